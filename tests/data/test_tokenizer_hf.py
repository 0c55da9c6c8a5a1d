"""Tokenizers of Hugging Face checkpoints against the library itself, and runs with them."""

import json
import sys
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from jaxpretrain.corruption.masks import Choice, choose_words, replace_tokens
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


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folders by the kind of their tokenizer."""
    base = tmp_path_factory.mktemp("tokenizers")
    return {
        "wordpiece": folders.wordpiece(base / "wordpiece"),
        "vocab.txt": folders.wordpiece_vocabulary(base / "vocab.txt"),
        "cased": folders.wordpiece_vocabulary(
            base / "cased", do_lower_case=False, tokenizer_class="BertTokenizer"
        ),
        "byte-level": folders.byte_level(base / "byte-level"),
        "prefixed": folders.byte_level(base / "prefixed", add_prefix_space=True),
        "llama": folders.llama(base / "llama"),
        "t5": folders.t5(base / "t5"),
    }


def librarys(made, kind):
    """The tokenizer as the library alone makes it of the same files."""
    folder = made[kind]
    if (folder / "tokenizer.json").exists():
        return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    lowercase = kind == "vocab.txt"
    return tokenizers.BertWordPieceTokenizer(str(folder / "vocab.txt"), lowercase=lowercase)


KINDS = ("wordpiece", "vocab.txt", "cased", "byte-level", "prefixed", "llama", "t5")


@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_texts_are_those_of_the_library(made, kind):
    ours, theirs = load_tokenizer(made[kind]), librarys(made, kind)
    texts = [*folders.random_texts(2500), *folders.TEXTS[:3], PLAIN, STATEMENT, "", " ", "\n"]
    wanted = [theirs.encode(text, add_special_tokens=False).ids for text in texts]
    found = ours.encode_batch(texts)
    assert [ids.tolist() for ids in found] == wanted
    assert all(ids.dtype == np.int32 for ids in found)
    flat, ends = ours.encode_flat(texts)
    assert (
        flat.tolist() == sum(wanted, [])
        and ends.tolist() == np.cumsum([len(ids) for ids in wanted]).tolist()
    )
    assert ours.encode_flat([])[0].shape == (0,) and ours.encode(PLAIN) == wanted[-5]
    assert [ours.decode(ids) for ids in wanted] == [theirs.decode(ids) for ids in wanted]
    for ids, text in zip(wanted[:50], texts, strict=False):
        assert ours.pieces(ids) == [theirs.id_to_token(number) for number in ids], text
    with pytest.raises(UnicodeEncodeError):
        ours.encode("\ud800")


@pytest.mark.parametrize("kind", KINDS)
def test_text_that_spells_a_special_piece_is_text(made, kind):
    tokenizer = load_tokenizer(made[kind])
    vocab = tokenizer.vocab
    names = tokenizer.pieces(np.flatnonzero(vocab.is_special))
    for text in ["".join(names), " ".join(names), *names]:
        ids = tokenizer.encode(text)
        # Capitals are unknown to the small vocabulary, and a Unigram model has no rules for words.
        unknown = {vocab.unk} if kind in ("cased", "t5") else set()
        assert len(ids) and set(np.array(ids)[vocab.is_special[ids]]) <= unknown
        [located] = tokenizer.locate([text])
        assert located.ids.tolist() == ids


def test_byte_level_pieces_count_the_text(made):
    kinds = ("byte-level", "prefixed", "llama")
    exact, *prefixed = (load_tokenizer(made[kind]) for kind in kinds)
    assert all(tokenizer.keeps_text for tokenizer in (exact, *prefixed))
    for text in [*folders.random_texts(2000, seed=1), *folders.TEXTS]:
        size = len(text.encode())
        assert exact.decode(exact.encode(text)) == text
        assert exact.vocab.piece_bytes[exact.encode(text)].sum() == size
        inserted = 1 if text and text[0] != " " else 0
        for tokenizer in prefixed:
            assert tokenizer.vocab.piece_bytes[tokenizer.encode(text)].sum() == size + inserted
    assert exact.vocab.piece_bytes[exact.vocab.eos] == 0
    assert all(one.vocab.piece_bytes[one.vocab.eos] == -1 for one in prefixed)


def test_what_is_not_kept_is_counted_as_near_as_can_be(made):
    for kind in ("wordpiece", "t5"):
        tokenizer = load_tokenizer(made[kind])
        vocab = tokenizer.vocab
        assert not tokenizer.keeps_text
        assert vocab.piece_bytes[vocab.eos] == -1
        text = PLAIN if kind == "wordpiece" else "the statement is executed a program"
        stored = [*tokenizer.encode(text), vocab.eos]
        assert vocab.piece_bytes[stored].sum() == len(text)
    pieces = dict(zip(folders.bert_pieces(), vocab_of(made, "wordpiece").piece_bytes, strict=True))
    assert (
        pieces["the"] == 4 and pieces["##ment"] == 4 and pieces["("] == 1 and pieces["[UNK]"] == 0
    )
    assert pieces["\u6f22"] == 3 and pieces["\u044f"] == 3


def vocab_of(made, kind):
    return load_tokenizer(made[kind]).vocab


def test_words_of_wordpiece_are_those_of_the_library(made):
    theirs, vocab = librarys(made, "wordpiece"), vocab_of(made, "wordpiece")
    words = 0
    for text in [*folders.random_texts(1500, seed=2), *folders.TEXTS, STATEMENT, "the\u20ac"]:
        found = theirs.encode(text, add_special_tokens=False)
        numbers = [None, *found.word_ids]
        for (before, here), number, piece in zip(
            pairwise(numbers), found.ids, found.tokens, strict=True
        ):
            if number != vocab.unk and piece != "##\u3044":
                assert vocab.is_word_start[number] == (before != here), (piece, text)
                words += before != here
        # Japanese is written without spaces: there every piece starts a word, as in ours.
    assert words > 5000
    assert vocab.is_word_start[folders.bert_pieces().index("##\u3044")]


def test_words_of_byte_level_pieces_are_those_of_their_text(made):
    tokenizer = load_tokenizer(made["byte-level"])
    ids = tokenizer.encode(STATEMENT.replace("\U0001f600", ""))
    starts = [0, *(np.flatnonzero(tokenizer.vocab.is_word_start[ids][1:]) + 1), len(ids)]
    found = [tokenizer.decode(ids[a:b]) for a, b in pairwise(starts)]
    # The word after a line break goes with it; in bytes, the space piece starts the word.
    assert found == [
        *("The", " program", ",", " which", " isn", "'t", "\nrunning", ":"),
        *(" na\u00efve", " \u00e9lan", " \u6f22\u5b57", " ", "!"),
    ]


def test_words_of_pieces_with_marked_spaces(made):
    tokenizer = load_tokenizer(made["llama"])
    ids = tokenizer.encode("the thing, is\n\u00e9 \u6f22")
    starts = tokenizer.vocab.is_word_start[ids]
    found = [p for p, s in zip(tokenizer.pieces(ids), starts, strict=True) if s]
    # Of a character in bytes none starts a word, the line break is a byte too.
    assert found == ["\u2581the", "\u2581", ",", "\u2581is", "<0x0A>", "\u2581"]
    assert tokenizer.pieces([1, 2]) == ["<s>", "</s>"] and tokenizer.vocab.pad == 2
    assert tokenizer.words(ids)[:3] == ["the", "'\u2581'", "th"]


def test_sentence_ends(made):
    for kind, more in (("wordpiece", ""), ("byte-level", "\n")):
        tokenizer = load_tokenizer(made[kind])
        pieces = tokenizer.pieces(range(tokenizer.vocab.size))
        ends = {p for p, e in zip(pieces, tokenizer.vocab.is_sentence_end, strict=True) if e}
        assert {".", "?"} <= ends and not {",", "the", "[SEP]", "<|endoftext|>"} & ends
        assert ("\u010a" in ends) == bool(more)


def test_whole_words_are_hidden_together(made):
    """The tokens of a word of the library's are hidden all or none."""
    theirs, vocab = librarys(made, "wordpiece"), vocab_of(made, "wordpiece")
    text = "objects named programming? statements executedly, (valued) isment " * 2
    found = theirs.encode(text, add_special_tokens=False)
    ids, words = np.array(found.ids, np.int32), np.array(found.word_ids)
    assert vocab.unk not in ids and len(set(words.tolist())) < len(ids) - 10
    eligible = jnp.ones(len(ids), bool)
    hidden_at_all = 0
    for seed in range(30):
        slots, used = choose_words(
            jax.random.key(seed), eligible, vocab.is_word_start[ids], jnp.int32(8), 8
        )
        hidden = np.isin(np.arange(len(ids)), np.asarray(slots)[np.asarray(used)])
        for word in set(words.tolist()):
            assert len(set(hidden[words == word].tolist())) == 1
        hidden_at_all += hidden.sum()
    assert hidden_at_all > 200


@pytest.mark.parametrize("kind", ["wordpiece", "byte-level"])
def test_random_tokens_are_pieces_of_text(made, kind):
    vocab = FastTokenizer.from_folder(made[kind], size=600).vocab
    row = jnp.full(20_000, vocab.ordinary[0], jnp.int32)
    every = Choice(jnp.arange(20_000), jnp.ones(20_000, bool))
    new = replace_tokens(
        jax.random.key(0), row, every, mask_share=0.0, random_share=1.0, mask_id=vocab.mask,
        ordinary=vocab.ordinary,
    )  # fmt: skip
    assert set(np.asarray(new).tolist()) == set(vocab.ordinary.tolist())
    assert not vocab.is_special[new].any()


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


def test_gaps_are_the_librarys(made):
    ours, theirs = load_tokenizer(made["wordpiece"]), librarys(made, "wordpiece")
    for text in ("A [MASK] is here.", "the [MASK], [MASK]ed", "[MASK]", "is [MASK]"):
        wanted = theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode_gaps(text, "[MASK]") == wanted and ours.vocab.mask in wanted
    assert ours.encode_gaps("<gap> is", "<gap>") == [ours.vocab.mask, *ours.encode("is")]
    gpt = load_tokenizer(made["byte-level"])
    assert gpt.encode_gaps("a [MASK]", "[MASK]") == gpt.encode("a [MASK]")


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_found_in_the_text(made, kind):
    tokenizer = load_tokenizer(made[kind])
    texts = [*folders.random_texts(300, seed=4), STATEMENT, PLAIN, folders.TEXTS[0]]
    for text, (ids, begins, ends) in zip(texts, tokenizer.locate(texts), strict=True):
        assert ids.tolist() == tokenizer.encode(text)
        assert (np.diff(begins) >= 0).all() and (np.diff(ends) >= 0).all()
        for low, high in zip(begins, ends, strict=True):
            part = text.encode()[low:high].decode()  # whole characters
            assert part == part.lstrip()
        if kind != "t5" and not text[:1].isspace():
            covered = {i for a, b in zip(begins, ends, strict=True) for i in range(a, b)}
            left = bytes(b for i, b in enumerate(text.encode()) if i not in covered)
            assert kind != "byte-level" or not left.decode().strip()
    text = "The  statement, na\u00efve \u6f22."
    [(ids, begins, ends)] = tokenizer.locate([text])
    found = [text.encode()[a:b].decode() for a, b in zip(begins, ends, strict=True)]
    if kind in ("wordpiece", "vocab.txt"):
        assert found == ["The", "statement", ",", *"na\u00efve", "\u6f22", "."]
    else:
        assert "statement" in "".join(found) and "," in found[-20:]


def test_pieces_as_words(made):
    bert, gpt = load_tokenizer(made["wordpiece"]), load_tokenizer(made["byte-level"])
    assert bert.words(bert.encode("the statement")) == ["the", "statement"]
    assert bert.words([bert.vocab.mask, *bert.encode("xs")]) == ["[MASK]", "x", "##s"]
    ids = gpt.encode(" the\n\u6f22")
    assert gpt.words(ids) == ["the", "'\u010a'", "'\u00e6'", "'\u00bc'", "'\u00a2'"]
    assert gpt.words([gpt.vocab.eos]) == ["<|endoftext|>"]


REFUSED = {
    "mask": ("mlm", "span_mlm", "masked_diffusion", "rtd", "bert", "albert"),
    "sentinels": ("span_corruption", "ul2"),
    "fim_prefix": ("fim",),
}


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
    refused(tmp_path / "a.json", "{", "a.json is not a JSON object")
    refused(tmp_path / "a.json", "{}", "is not a tokenizer.json: it has no 'model'")
    broken = '{"model": {"type": "None"}, "added_tokens": []}'
    refused(tmp_path / "a.json", broken, "cannot be read by tokenizers 0")
    refused(tmp_path / "a.json", '{"tokenizer": 3}', "a.json is damaged")
    (tmp_path / "tokenizer.json").write_text("[]")
    refused(tmp_path, None, "tokenizer.json is not a JSON object")
    assert isinstance(
        load_tokenizer(sentencepiece_file(tmp_path)), Tokenizer
    )  # the other kind, by its content
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    refused(made["wordpiece"], None, r"pip install 'jaxpretrain\[hf\]'")


def sentencepiece_file(folder):
    Tokenizer.train(folders.TEXTS[:5], vocab_size=600).save(folder / "ours.model")
    return folder / "ours.model"
