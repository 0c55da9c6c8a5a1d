"""The tokenizer: exact round trips, determinism, the tables, and what a user can get wrong."""

import io
import os
import random
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import sentencepiece

from jaxpretrain.data import tokenizer as module
from jaxpretrain.data.tokenizer import Tokenizer
from jaxpretrain.data.tokenizer_load import load_tokenizer
from jaxpretrain.data.vocab import NAMES
from jaxpretrain.errors import UserError
from support.tiny_source import topics

TEXTS = topics(1, 40)[0]
NASTY = [
    "",
    " ",
    "   ",
    "\n",
    "\n\n\n",
    " \n \n",
    "\n a\n\n  b \n\n\n\nc\n",
    "a\n",
    " a  b   c ",
    "\u2581",
    "a\u2581b \u2581\u2581 \n\u2581\n\u2581",
    "\u2585",
    "a\u2585b",
    "\0",
    "a\0b\0\n\0",
    "a\tb\t\n\tc",
    "a\r\nb\rc",
    "\x01\x1f\x7f\x80\x85\xa0",
    "\u2028\u2029\v\f\x1c",
    "\ufeffbyte order mark\ufffd",
    "<0x41>",
    "<0x0A>",
    "<s>[MASK]</s><pad><unk>",
    "".join(module.SPECIAL),
    "\ufb01 \uff21 e\u0301 \u00e9 \u1e9b\u0323",
    "Съешь ещё этих мягких французских булок, да выпей чаю.",
    "👩‍👩‍👧‍👦 🏳️‍🌈 😀\n🇩🇪",
    "\U0010ffff\ue000\ufdd0",
    "文字列。また、次の文。",
    "x" * 20_000,
    " " * 20_000,
    "\n" * 10_000,
    "a b  " * 5_000,
    "\u2581" * 3_000,
]


def random_texts(number: int) -> list[str]:
    rng = random.Random(20)
    pools = ["\n ", "\n a\u2581b\t\r.", "\0\x01\u2585\u2581\u2028\xa0\n", "Привет, мир\n 😀"]
    planes = [(0, 0x80), (0x80, 0x800), (0x800, 0xD800), (0xE000, 0x10000), (0x10000, 0x110000)]

    def character(pool: str) -> str:
        return rng.choice(pool) if rng.random() < 0.5 else chr(rng.randrange(*rng.choice(planes)))

    return [
        "".join(character(pool) for _ in range(rng.choice([1, 2, 3, 8, 40])))
        for pool in rng.choices(pools, k=number)
    ]


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def tokenizer(request) -> Tokenizer:
    return Tokenizer.train(TEXTS, vocab_size=1000, kind=request.param)


def piece_texts(tokenizer: Tokenizer, text: str) -> list[str]:
    """The tokens as SentencePiece names them."""
    return [tokenizer._model.IdToPiece(number) for number in tokenizer.encode(text)]


def test_round_trip_is_exact(tokenizer):
    for text in NASTY + random_texts(4000) + list(TEXTS):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert not tokenizer.vocab.is_special[ids].any()


def test_piece_bytes_count_the_text(tokenizer):
    for text in NASTY + random_texts(1000) + list(TEXTS):
        counted = int(tokenizer.vocab.piece_bytes[tokenizer.encode(text)].sum())
        inserted = 0 if text[:1] in ("", "\n") else 1
        assert counted == len(text.encode()) + inserted, text
        stored = counted + tokenizer.vocab.piece_bytes[tokenizer.vocab.eos]
        assert stored == len(text.encode()) - (1 - inserted), text


def by_the_definition(tokenizer: Tokenizer, text: str) -> list[int]:
    """Line by line, with the library alone."""
    library = tokenizer._model
    newline, blank = library.PieceToId("\n"), library.PieceToId("<0x0A>")
    mark = [library.PieceToId(f"<0x{byte:02X}>") for byte in "\u2581".encode()]
    ids, lines = [], text.split("\n")
    for number, line in enumerate(lines):
        if number:
            ids.append(newline if line else blank)
        for part, run in enumerate(f" {line}".split("\u2581") if line else []):
            ids += mark * (part > 0) + library.Encode(run)
    return ids


def test_batches_are_the_texts_one_by_one(tokenizer):
    texts = NASTY + random_texts(300)
    single = [tokenizer.encode(text) for text in texts]
    for text, ids in zip(texts, single, strict=True):
        if len(text) <= module.STRETCH:
            assert ids == by_the_definition(tokenizer, text), text
    batch = tokenizer.encode_batch(texts)
    assert [ids.tolist() for ids in batch] == single
    assert all(ids.dtype == np.int32 for ids in batch)
    flat, ends = tokenizer.encode_flat([text.encode() for text in texts])
    assert ends.tolist() == np.cumsum([len(ids) for ids in single]).tolist()
    assert len(flat) == ends[-1] and ends.dtype == np.int64
    assert tokenizer.encode_batch([]) == []


def test_a_word_is_the_same_piece_wherever_it_stands(tokenizer):
    (word,) = tokenizer.encode("the")
    newline = tokenizer._model.PieceToId("\n")
    blank = tokenizer._model.PieceToId("<0x0A>")
    assert tokenizer.encode("the the\nthe\n\nthe\n") == [
        *(word, word, newline, word, blank, newline, word, blank)
    ]


@pytest.mark.parametrize("stretch", [150, 333])
def test_long_texts_are_cut_where_no_piece_crosses(tokenizer, monkeypatch, stretch):
    text = "\n".join(TEXTS[:10])
    text += " ".join(" " * (i % 4) + word for i, word in enumerate(TEXTS[11].split()))
    whole = tokenizer.encode(text)
    monkeypatch.setattr(module, "STRETCH", stretch)
    assert tokenizer.encode(text) == whole


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 7, 10_000])
def test_cut_loses_nothing_and_keeps_the_limit(limit):
    for text in NASTY + random_texts(300):
        for whole in (text, text.encode()) if limit >= 4 else (text,):
            pieces = list(module._cut(whole, limit))
            assert whole[:0].join(pieces) == whole
            assert all(0 < len(piece) <= limit for piece in pieces) or not whole
            if isinstance(whole, bytes):
                assert "".join(piece.decode() for piece in pieces) == text


def test_training_is_deterministic_between_processes(tokenizer):
    kind = "bpe" if "bpe" in os.environ.get("PYTEST_CURRENT_TEST", "") else "unigram"
    program = (
        "from support.tiny_source import topics; from jaxpretrain.data.tokenizer import Tokenizer\n"
        f"print(Tokenizer.train(topics(1, 40)[0], vocab_size=1000, kind={kind!r}).sha256)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    pin = ["taskset", "-c", str(min(os.sched_getaffinity(0)))] if sys.platform == "linux" else []
    output = subprocess.check_output([*pin, sys.executable, "-c", program], env=environment)
    assert output.decode().strip() == tokenizer.sha256


def test_training_is_quiet(capfd):
    Tokenizer.train(TEXTS[:5], vocab_size=600)
    assert capfd.readouterr() == ("", "")


def test_training_text_is_not_dropped_silently():
    strange = [
        f"x{character}y {word * 1_500}"
        for character, word in zip("\u2585\u2581\0", ["giraffe ", "okapi ", "quagga "], strict=True)
    ]
    model = Tokenizer.train([*strange, *TEXTS], vocab_size=1500)._model
    for word in ("giraffe", "okapi", "quagga"):
        assert model.PieceToId(f"\u2581{word}") != model.unk_id(), word


def test_special_pieces(tokenizer):
    vocab = tokenizer.vocab
    assert (vocab.pad, vocab.unk, vocab.bos, vocab.eos) == (0, 1, 2, 3)
    assert len(vocab.sentinels) == len(set(vocab.sentinels)) == 100
    ids = [getattr(vocab, name) for name in NAMES if name != "sentinels"] + list(vocab.sentinels)
    assert sorted(ids) == np.flatnonzero(vocab.is_special).tolist() == list(range(len(ids)))
    assert tokenizer._model.IdToPiece(vocab.mode_s) == "[S2S]"
    assert tokenizer._model.IdToPiece(vocab.sentinels[7]) == "<extra_id_7>"
    assert vocab.size == 1000 == len(vocab.is_word_start) == len(vocab.piece_bytes)
    assert vocab.ordinary.tolist() == list(range(len(ids), 1000))
    special = vocab.is_special
    assert not vocab.is_word_start[special].any() and not vocab.is_sentence_end[special].any()
    assert np.flatnonzero(special & (vocab.piece_bytes != 0)).tolist() == [vocab.eos]
    assert vocab.piece_bytes.dtype == np.int32
    again = Tokenizer(tokenizer.model_bytes).vocab
    assert again is not vocab and again == vocab and hash(again) == hash(vocab)


def test_special_ids_vanish_in_decoding(tokenizer):
    vocab = tokenizer.vocab
    ids = tokenizer.encode("one two\nthree")
    framed = [vocab.bos, *ids[:2], vocab.mask, *ids[2:], vocab.sentinels[99], vocab.eos, vocab.pad]
    assert tokenizer.decode(framed) == tokenizer.decode(np.array(framed)) == "one two\nthree"
    assert tokenizer.decode([]) == tokenizer.decode([vocab.unk]) == ""
    with pytest.raises(ValueError, match="1000"):
        tokenizer.decode([1000])


def words(tokenizer: Tokenizer, text: str) -> list[str]:
    """The text cut at word starts."""
    ids = tokenizer.encode(text)
    starts = [0] + [i for i, n in enumerate(ids) if i and tokenizer.vocab.is_word_start[n]]
    raw = [tokenizer._model.Decode(ids[a:b]) for a, b in pairwise([*starts, len(ids)])]
    return raw


def test_word_starts(tokenizer):
    text = "The program, which isn't\nrunning: naïve élan"
    expected = [" The", " program", ",", " which", " isn", "'t", "\n", " running", ":"]
    assert words(tokenizer, text) == [*expected, " naïve", " élan"]
    assert words(tokenizer, "Ёжик ел") == [" Ёжик", " ел"]  # in bytes, the space piece starts it
    assert words(tokenizer, "x😀y") == [" x😀y"]


def test_word_starts_without_spaces_and_with_marks():
    hindi, japanese = "हिन्दी में लिखा हुआ पाठ", "日本語の文章をここに書く"
    tokenizer = Tokenizer.train([hindi, japanese] * 3, vocab_size=398, character_coverage=1.0)
    assert words(tokenizer, hindi) == [f" {word}" for word in hindi.split(" ")]
    assert len(words(tokenizer, japanese)) > 3


def test_sentence_ends(tokenizer):
    text = 'It stops. Does it? "Yes!" (So.) No: 3 of\nthem'
    ids = tokenizer.encode(text)
    ends = [i for i, number in enumerate(ids) if tokenizer.vocab.is_sentence_end[number]]
    reached = {tokenizer.decode(ids[: i + 1]).rstrip("\"')") for i in ends}
    assert reached == {
        "It stops.",
        "It stops. Does it?",
        'It stops. Does it? "Yes!',
        'It stops. Does it? "Yes!" (So.',
        'It stops. Does it? "Yes!" (So.) No: 3 of\n',
    }


def test_a_sentence_may_end_in_quotes_or_brackets():
    text = 'He said "no." She said (maybe!) to him, f().'
    tokenizer = Tokenizer.train([text], vocab_size=420, kind="bpe")
    for piece, is_end in [('."', True), ("!)", True), ("().", True), ("()", False), (",", False)]:
        number = tokenizer._model.PieceToId(piece)
        assert number != tokenizer.vocab.unk, piece
        assert tokenizer.vocab.is_sentence_end[number] == is_end, piece


def test_a_space_has_a_piece_however_rare_it_is():
    rng = random.Random(0)
    line = "".join(chr(0x4E00 + int(rng.expovariate(0.05))) for _ in range(8_000))
    tokenizer = Tokenizer.train([line], vocab_size=500, character_coverage=0.98)
    assert "\u2581" in piece_texts(tokenizer, "一 二")
    assert tokenizer.decode(tokenizer.encode("一 二")) == "一 二"


def test_save_and_load(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "t.model")
    assert [file.name for file in tmp_path.iterdir()] == ["t.model"]
    loaded = load_tokenizer(tmp_path / "t.model")
    assert loaded.sha256 == tokenizer.sha256
    assert loaded.encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_a_vocabulary_that_does_not_fit_is_an_error_with_both_numbers(kind):
    with pytest.raises(UserError, match=r"vocab_size 8192 is too large .* at most \d+ pieces"):
        Tokenizer.train(["hello world, hello moon"], kind=kind)
    with pytest.raises(UserError, match=r"vocab_size 300 is too small.* 3\d\d pieces"):
        Tokenizer.train(["hello world, hello moon"], vocab_size=300, kind=kind)


def test_an_error_in_the_texts_keeps_its_type():
    def texts():
        yield "some text"
        raise UserError("wiki.jsonl:7: broken")

    with pytest.raises(UserError, match="^wiki.jsonl:7: broken$"):
        Tokenizer.train(texts())


def test_other_errors(tmp_path):
    with pytest.raises(UserError, match="no text"):
        Tokenizer.train(["", "\n\n"])
    with pytest.raises(UserError, match="'word'"):
        Tokenizer.train(["a"], kind="word")
    with pytest.raises(UserError, match="1.5"):
        Tokenizer.train(["a"], character_coverage=1.5)
    with pytest.raises(UserError, match="vocab_size -1"):
        Tokenizer.train(["a"], vocab_size=-1)
    with pytest.raises(UserError, match="none.model: No such file"):
        load_tokenizer(tmp_path / "none.model")
    (tmp_path / "junk.model").write_bytes(b"junk")
    with pytest.raises(UserError, match="junk.model is not a SentencePiece model"):
        load_tokenizer(tmp_path / "junk.model")


def foreign(**options) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS[0].split("\n")),
        model_writer=model,
        minloglevel=2,
        hard_vocab_limit=False,
        **options,
    )
    return model.getvalue()


def test_models_of_others_are_refused():
    with pytest.raises(UserError, match="lacks the special piece <pad> at id 0"):
        Tokenizer(foreign(vocab_size=300))
    special = {"pad_id": 0, "unk_id": 1, "bos_id": 2, "eos_id": 3, "user_defined_symbols": ["\n"]}
    special["control_symbols"] = module.SPECIAL[4:]
    with pytest.raises(UserError, match="changes text"):
        Tokenizer(foreign(vocab_size=600, byte_fallback=True, **special))
    with pytest.raises(UserError, match="changes text"):
        Tokenizer(foreign(vocab_size=300, normalization_rule_name="identity", **special))
    exact = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    exact |= {"add_dummy_prefix": False, "byte_fallback": True, "vocab_size": 600}
    for symbols in ([], ["\n", "\n\n\n\n"]):
        with pytest.raises(UserError, match="a newline"):
            Tokenizer(foreign(**special | exact | {"user_defined_symbols": symbols}))


def test_jax_and_tensorflow_are_not_imported():
    program = (
        "import sys, jaxpretrain.data.prepare, jaxpretrain.data.store\n"
        "print([m for m in ('jax', 'flax', 'tensorflow') if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    output = subprocess.check_output([sys.executable, "-c", program], env=environment)
    assert output.decode().strip() == "[]"
