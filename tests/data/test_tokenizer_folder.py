"""Folders of Hugging Face tokenizers: who is who in them, and what cannot be read."""

import json
import sys

import numpy as np
import pytest
import tokenizers

from jaxpretrain.data.tokenizer import Tokenizer
from jaxpretrain.data.tokenizer_hf import FastTokenizer
from jaxpretrain.data.tokenizer_load import load_tokenizer
from jaxpretrain.errors import UserError
from jaxpretrain.objectives import OBJECTIVES, Mixture, Task
from support import hf_tokenizers as folders
from support.small import small_backbone

ROLES = ("pad", "unk", "bos", "eos", "cls", "sep", "mask")
PLAIN = "the statement is executed, an object (which value?) names it."
STATEMENT = "The program, which isn't\nrunning: na\u00efve \u00e9lan \u6f22\u5b57 \U0001f600!"


KINDS = tuple(folders.KINDS)
REFUSED = {
    "mask": ("mlm", "span_mlm", "masked_diffusion", "rtd", "bert", "albert"),
    "sentinels": ("span_corruption", "ul2"),
    "fim_prefix": ("fim",),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folders by the kind of their tokenizer."""
    return folders.of_all_kinds(tmp_path_factory.mktemp("tokenizers"))


def vocab_of(made, kind):
    return load_tokenizer(made[kind]).vocab


def test_special_pieces_of_bert(made):
    pieces = folders.bert_pieces()
    for kind in ("wordpiece", "vocab.txt", "cased"):
        vocab = vocab_of(made, kind)
        names = [pieces[getattr(vocab, role)] for role in ROLES]
        assert names == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[CLS]", "[SEP]", "[MASK]"]
        special = [p for p, s in zip(pieces, vocab.is_special, strict=True) if s]
        assert special == pieces[:14] and vocab.ordinary.tolist() == list(range(14, vocab.size))
        assert not vocab.is_word_start[:14].any() and not vocab.is_sentence_end[:14].any()
        assert vocab.sentinels == () and vocab.fim_prefix is vocab.mode_r is None
        assert vocab.piece_bytes.dtype == np.int32


def test_special_pieces_of_gpt2(made):
    vocab = vocab_of(made, "byte-level")
    last = vocab.size - 1
    assert vocab.size == 501 and np.flatnonzero(vocab.is_special).tolist() == [last]
    assert {getattr(vocab, role) for role in ROLES[:-1]} == {last} and vocab.mask is None
    assert vocab.ordinary.dtype == np.int32 and vocab.ordinary.tolist() == list(range(last))


def test_special_pieces_of_t5(made):
    tokenizer = load_tokenizer(made["t5"])
    vocab = tokenizer.vocab
    assert (vocab.pad, vocab.eos, vocab.unk, vocab.bos, vocab.cls, vocab.sep) == (0, 1, 2, 1, 1, 1)
    assert vocab.sentinels == tuple(range(vocab.size - 1, vocab.size - 101, -1))
    assert tokenizer.pieces(vocab.sentinels[:2]) == ["<extra_id_0>", "<extra_id_1>"]
    assert vocab.is_special.sum() == 103


def edited(folder, target, config=None, **changes):
    """A copy of a folder with another `tokenizer_config.json`, or changes to its JSON."""
    target.mkdir()
    content = json.loads((folder / "tokenizer.json").read_text()) | changes
    (target / "tokenizer.json").write_text(json.dumps(content))
    (target / "tokenizer_config.json").write_text(json.dumps(config or {}))
    return target


def test_roles_are_named_or_usual_or_stood_in_for(made, tmp_path):
    pieces = folders.bert_pieces()
    named = {"eos_token": {"content": "[unused2]"}, "pad_token": None, "bos_token": "[nothing]"}
    vocab = load_tokenizer(edited(made["wordpiece"], tmp_path / "a", named)).vocab
    assert [pieces[i] for i in (vocab.eos, vocab.bos, vocab.pad, vocab.cls)] == ["[unused2]"] * 4
    assert vocab.mask is None and pieces[vocab.unk] == "[UNK]"  # which the model names itself
    both = {"bos_token": "[unused1]", "eos_token": "[unused2]"}
    vocab = load_tokenizer(edited(made["wordpiece"], tmp_path / "d", both)).vocab
    names = [pieces[getattr(vocab, role)] for role in ("bos", "eos", "cls", "sep", "pad")]
    assert names == [f"[unused{n}]" for n in (1, 2, 1, 2, 2)]
    vocab = load_tokenizer(edited(made["wordpiece"], tmp_path / "b")).vocab
    assert [pieces[getattr(vocab, role)] for role in ("cls", "mask", "pad")] == [
        "[CLS]", "[MASK]", "[PAD]",
    ]  # fmt: skip
    content = json.loads((made["byte-level"] / "tokenizer.json").read_text())
    content["added_tokens"] = []
    with pytest.raises(UserError, match=r"no special piece that begins or ends a text: name bos_"):
        load_tokenizer(edited(made["byte-level"], tmp_path / "c", **content))


def test_fill_in_the_middle_pieces_are_known_by_their_names(made, tmp_path):
    content = json.loads((made["byte-level"] / "tokenizer.json").read_text())
    names = [f"<|fim_{name}|>" for name in ("prefix", "middle", "suffix")]
    more = [
        content["added_tokens"][0] | {"id": 501 + n, "content": name}
        for n, name in enumerate(names)
    ]
    added = content["added_tokens"] + more
    vocab = load_tokenizer(edited(made["byte-level"], tmp_path / "a", added_tokens=added)).vocab
    assert (vocab.fim_prefix, vocab.fim_middle, vocab.fim_suffix) == (501, 502, 503)
    assert vocab.is_special[500:].all() and vocab.size == 504
    OBJECTIVES["fim"]().bind(small_backbone(vocab), vocab)


def test_a_vocabulary_is_padded_to_the_models(made, tmp_path):
    plain = load_tokenizer(made["byte-level"])
    padded = FastTokenizer.from_folder(made["byte-level"], size=512)
    assert padded.vocab.size == len(padded.vocab.piece_bytes) == 512
    assert padded.vocab.is_special[501:].all() and not padded.vocab.is_word_start[501:].any()
    assert padded.encode(STATEMENT) == plain.encode(STATEMENT)
    assert padded.pieces([511]) == ["<unused 511>"] and padded.decode([511]) == ""
    with pytest.raises(ValueError, match="512"):
        padded.decode([512])
    assert padded.sha256 != plain.sha256
    with pytest.raises(UserError, match=r"has 501 pieces, and the vocabulary is to have 500"):
        FastTokenizer.from_folder(made["byte-level"], size=500)
    folder = edited(made["byte-level"], tmp_path / "a")
    (folder / "config.json").write_text('{"vocab_size": 520}')
    assert load_tokenizer(folder).vocab.size == 520
    assert load_tokenizer(folder / "tokenizer.json").vocab.size == 501


@pytest.mark.parametrize("kind", KINDS)
def test_one_file_holds_all(made, kind, tmp_path):
    tokenizer = FastTokenizer.from_folder(made[kind], size=700)
    tokenizer.save(tmp_path / "tokenizer.model")
    again = load_tokenizer(tmp_path / "tokenizer.model")
    assert again.sha256 == tokenizer.sha256 and again.model_bytes == tokenizer.model_bytes
    assert again.encode(STATEMENT) == tokenizer.encode(STATEMENT)
    for role in (*ROLES, "size", "sentinels", "owner"):
        assert getattr(again.vocab, role) == getattr(tokenizer.vocab, role)
    for table in ("is_special", "is_word_start", "is_sentence_end", "piece_bytes"):
        assert (getattr(again.vocab, table) == getattr(tokenizer.vocab, table)).all()


def test_dropout_of_merges_is_turned_off(made, tmp_path):
    content = json.loads((made["byte-level"] / "tokenizer.json").read_text())
    content["model"]["dropout"] = 0.5
    found = load_tokenizer(edited(made["byte-level"], tmp_path / "a", model=content["model"]))
    assert found.encode(STATEMENT) == load_tokenizer(made["byte-level"]).encode(STATEMENT)


def test_byte_level_without_a_tokenizer_json(made, tmp_path):
    """As the first GPT-2 and RoBERTa were: pieces and merges, and tokens that were added."""
    theirs = tokenizers.Tokenizer.from_file(str(made["byte-level"] / "tokenizer.json"))
    theirs.model.save(str(tmp_path))
    config = {
        "mask_token": "<mask>",
        "eos_token": "<|endoftext|>",
        "tokenizer_class": "RobertaTokenizer",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "added_tokens.json").write_text('{"<mask>": 501, "<|endoftext|>": 500}')
    ours = load_tokenizer(tmp_path)
    bare = tokenizers.ByteLevelBPETokenizer(
        str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt")
    )
    for text in folders.random_texts(500, seed=3):
        assert ours.encode(text) == bare.encode(text).ids
    assert (ours.vocab.mask, ours.vocab.eos, ours.vocab.bos) == (501, 500, 500)
    # RoBERTa's mask takes the space before it along.
    assert ours.encode_gaps("a [MASK] b", "[MASK]") == [
        *ours.encode("a"), 501, *ours.encode(" b"),
    ]  # fmt: skip
    (tmp_path / "added_tokens.json").write_text('{"<mask>": 505}')
    with pytest.raises(UserError, match=r"adds the piece '<mask>' as 505, .* make it 500"):
        load_tokenizer(tmp_path)
    (tmp_path / "added_tokens.json").unlink()
    config["tokenizer_class"] = "Qwen2TokenizerFast"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"no tokenizer.json \(that of a Qwen2TokenizerFast cannot"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "mixture"])
def test_an_objective_without_its_pieces_is_refused_by_name(made, name):
    bert, gpt = vocab_of(made, "wordpiece"), vocab_of(made, "byte-level")
    needs = next((piece for piece, names in REFUSED.items() if name in names), None)
    for vocab, kind in ((gpt, "byte-level BPE"), (bert, "WordPiece")):
        backbone = small_backbone(vocab, token_types=2, dropout=0.1)
        if needs is None or (needs == "mask" and vocab is bert):
            OBJECTIVES[name]().bind(backbone, vocab)
            continue
        pieces = f"{needs}.*the {kind} tokenizer of {vocab.size} pieces has no .*{needs}"
        with pytest.raises(UserError, match=rf"^{name} needs the special pieces .*{pieces}"):
            OBJECTIVES[name]().bind(backbone, vocab)
    if needs == "mask":
        tasks = tuple(Task(name=n, objective=OBJECTIVES[n]()) for n in ("clm", name))
        with pytest.raises(UserError, match=f"{name} needs"):
            Mixture(tasks=tasks).bind(small_backbone(gpt, token_types=2), gpt)


def test_span_corruption_takes_the_sentinels_of_t5(made):
    vocab = vocab_of(made, "t5")
    OBJECTIVES["span_corruption"]().bind(small_backbone(vocab), vocab)
    with pytest.raises(UserError, match="has no mode_r, mode_s, mode_x"):
        OBJECTIVES["ul2"]().bind(small_backbone(vocab), vocab)


def test_what_cannot_be_read_is_an_error_in_one_line(made, tmp_path, monkeypatch):
    def refused(path, content, match):
        if content is not None:
            path.write_text(content)
        with pytest.raises(UserError, match=match) as caught:
            load_tokenizer(path)
        assert "\n" not in str(caught.value)

    refused(tmp_path, None, "has no tokenizer.json, nor a vocab.txt")
    refused(tmp_path / "none.json", None, "none.json: No such file")
    refused(tmp_path / "a.json", "{", "a.json is damaged: it is not a JSON object")
    refused(tmp_path / "a.json", "{}", "is not a tokenizer.json: it has no 'model'")
    broken = '{"model": {"type": "None"}, "added_tokens": []}'
    refused(tmp_path / "a.json", broken, "cannot be read by tokenizers 0")
    refused(tmp_path / "a.json", '{"tokenizer": 3}', "a.json is damaged")
    (tmp_path / "tokenizer.json").write_text("[]")
    refused(tmp_path, None, "tokenizer.json is damaged: it is not a JSON object")
    assert isinstance(
        load_tokenizer(sentencepiece_file(tmp_path)), Tokenizer
    )  # the other kind, by its content
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    refused(made["wordpiece"], None, r"pip install 'jaxpretrain\[hf\]'")


def sentencepiece_file(folder):
    Tokenizer.train(folders.TEXTS[:5], vocab_size=600).save(folder / "ours.model")
    return folder / "ours.model"
