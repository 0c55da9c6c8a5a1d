"""Tokenizers of Hugging Face checkpoints against the library itself, and runs with them."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from jaxpretrain.corruption.masks import Choice, choose_words, replace_tokens
from jaxpretrain.data.tokenizer_hf import FastTokenizer
from jaxpretrain.data.tokenizer_load import load_tokenizer
from support import hf_tokenizers as folders

ROLES = ("pad", "unk", "bos", "eos", "cls", "sep", "mask")
PLAIN = "the statement is executed, an object (which value?) names it."
STATEMENT = "The program, which isn't\nrunning: na\u00efve \u00e9lan \u6f22\u5b57 \U0001f600!"


KINDS = tuple(folders.KINDS)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folders by the kind of their tokenizer."""
    return folders.of_all_kinds(tmp_path_factory.mktemp("tokenizers"))


def librarys(made, kind):
    """The tokenizer as the library alone makes it of the same files."""
    folder = made[kind]
    if (folder / "tokenizer.json").exists():
        return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    lowercase = kind == "vocab.txt"
    return tokenizers.BertWordPieceTokenizer(str(folder / "vocab.txt"), lowercase=lowercase)


@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_texts_are_those_of_the_library(made, kind):
    ours, theirs = load_tokenizer(made[kind]), librarys(made, kind)
    texts = [*folders.random_texts(2500), *folders.TEXTS[:3], PLAIN, STATEMENT, "", " ", "\n"]
    wanted = [theirs.encode(text, add_special_tokens=False).ids for text in texts]
    found = ours.encode_batch(texts)
    assert [ids.tolist() for ids in found] == wanted
    assert all(ids.dtype == np.int32 for ids in found)
    flat, ends = ours.encode_flat([text.encode() for text in texts])
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
