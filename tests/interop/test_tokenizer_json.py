"""The tokenizer in Hugging Face's terms gives our ids, for any text."""

import json
import random
import re
import sys

import pytest

from jaxpretrain.data.tokenizer import Tokenizer
from jaxpretrain.data.vocab import NAMES, SPECIAL
from jaxpretrain.errors import UserError
from jaxpretrain.evaluation import scoring
from jaxpretrain.interop.tokenizer_json import fast_tokenizer
from support.tiny_source import topics

TEXTS = topics(1, 40)[0]
NOTHING = (None, None)
POOLS = [
    "\n ",
    "\n a\u2581b\t\r.",
    "\0\x01\u2585\u2581\u2028\u2029\x85\v\f\x1c\xa0\n",
    "Привет, мир\n 😀",
    "-- ==aab\n",
    "e\u0301\u0308\u200d\ufeff👩\u200d👧🇩🇪 ",
]
WORDS = [
    *("<0x41>", "<0x0A>", "<0x0a>", "0x41>", "<0x", "<0x<0x41>", "<<0xFF>>", "\u2581<0xE2>"),
    *("[MASK", "[mask]", "<extra_id_100>", "<extra_id_05>", "<extra_id_>", "< pad>", "<s", "/s>"),
    *("\n", "\n\n", " ", "    ", " " * 17, "-" * 23, "=" * 40, "\r\n", "\n \n", "文字列。", "😀"),
    *("The statement", " print(x)", "the", "naïve", "\u2581", "\U0010ffff", "\ufdd0", "\0"),
]
PLANES = [(0, 0x80), (0x80, 0x800), (0x800, 0xD800), (0xE000, 0x10000), (0x10000, 0x110000)]


def random_texts(number: int) -> list[str]:
    rng = random.Random(40)
    source = "\n".join(TEXTS)

    def item() -> str:
        match rng.randrange(5):
            case 0:
                return chr(rng.randrange(*rng.choice(PLANES)))
            case 1:
                return rng.choice(WORDS)
            case 2:
                at = rng.randrange(len(source))
                return source[at : at + rng.randrange(60)]
            case _:
                return rng.choice(rng.choice(POOLS))

    texts = ["".join(item() for _ in range(rng.choice([1, 2, 3, 8, 40]))) for _ in range(number)]
    return [text for text in texts if not any(name in text for name in SPECIAL)]


RANDOM = random_texts(5000)


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def tokenizer(request) -> Tokenizer:
    return Tokenizer.train(TEXTS, vocab_size=1000, kind=request.param)


def built(tokenizer, enclosing=NOTHING, **options):
    """The library's own reading of the file."""
    tokenizers = pytest.importorskip("tokenizers")
    files = fast_tokenizer(tokenizer, enclosing=enclosing, model_max_length=64, **options)
    return tokenizers.Tokenizer.from_str(files["tokenizer.json"])


@pytest.fixture(scope="module")
def fast(tokenizer):
    return built(tokenizer)


def test_random_texts_have_the_same_ids_and_come_back(tokenizer, fast):
    texts = ["", *RANDOM]
    ours = [ids.tolist() for ids in tokenizer.encode_batch(texts)]
    theirs = [encoding.ids for encoding in fast.encode_batch(texts)]
    for text, a, b in zip(texts, ours, theirs, strict=True):
        assert a == b, repr(text)
    for text, back in zip(texts, fast.decode_batch(theirs), strict=True):
        assert back == text


def test_long_texts_have_the_same_ids_and_come_back(tokenizer, fast):
    joined, rng = "\n\n".join(TEXTS) * 2, random.Random(4)
    unbroken = ["".join(rng.choices("-=ab\u2581e<0x41> "[:n], k=40_000)) for n in (4, 4, 8, 12)]
    unbroken += [" " * spaces + part for part in unbroken[:2] for spaces in (1, 7, 8_191, 20_000)]
    unbroken += [f"the{place}{'-' * 30_001}" for place in (" ", "   ", "\u2581", "\n", "\n\n ")]
    unbroken.append("\n".join(unbroken) + "[MASK" + unbroken[0] + "\n\n" + "e" * 8_192 + " a")
    other = [" " * 30_000, "\n" * 30_000, "-" * 30_000, "文 字\n" * 9_000, "<0x41>" * 9_000]
    for text in [*TEXTS, joined, *unbroken, *other]:
        ids = fast.encode(text).ids
        assert ids == tokenizer.encode(text)
        assert fast.decode(ids) == text


def test_no_word_is_cut_otherwise_where_ways_are_equally_good(tokenizer, fast):
    rng = random.Random(3)
    parts = ["-", "=", ".", " ", "*", "ab", "aa", ". ", "- ", "0", "\n", "--|", "the", "—"]
    texts = [
        "".join(rng.choice(parts) * rng.randrange(1, 40) for _ in range(12)) for _ in range(2000)
    ]
    ours = [ids.tolist() for ids in tokenizer.encode_batch(texts)]
    assert [encoding.ids for encoding in fast.encode_batch(texts)] == ours


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_a_newline_is_chosen_even_where_the_spaces_after_it_cost_more_without_one(kind):
    lines = [" " * 15 + word for word in " ".join(TEXTS[:3]).split()]
    tokenizer = Tokenizer.train(["\n".join(lines)], vocab_size=500, kind=kind)
    fast = built(tokenizer)
    assert len(tokenizer.encode(" " * 15)) == 1
    for spaces in range(20):
        text = "a\n" + " " * spaces + "a"
        assert fast.encode(text).ids == tokenizer.encode(text), spaces


def test_vocabularies_are_of_one_size(tokenizer, fast):
    assert fast.get_vocab_size() == tokenizer.vocab.size
    assert [fast.id_to_token(number) for number in range(len(SPECIAL))] == SPECIAL


MASKED = [
    *("[MASK]", " [MASK]", "[MASK] ", "[MASK][MASK]", "[MASK] [MASK]", "[MASK]\n[MASK]"),
    *("The brown [MASK] jumps", "a list of [MASK].", "[MASK] is", "is [MASK]", "the   [MASK]s."),
    *("a\n[MASK]", "a\n  [MASK] b", "a [MASK]\nb", "a [MASK] \nb", "a [MASK] \n\n b", "\n[MASK]"),
    *("a\n\n[MASK]\n\n[MASK]\n", "\u2581[MASK]\u2581", "a\t[MASK]\tb", "\xa0[MASK]", "[[MASK]]"),
]


def masked_texts() -> list[str]:
    rng = random.Random(5)
    return MASKED + [
        "".join(
            rng.choice([" ", ""]) + "[MASK]" * (rng.random() < 0.7) + rng.choice(["", text])
            for text in rng.choices(RANDOM, k=3)
        )
        for _ in range(500)
    ]


def test_masks_are_placed_as_in_scoring(tokenizer, fast):
    for text in masked_texts():
        assert fast.encode(text).ids == tokenizer.encode_gaps(text, scoring.MASK), repr(text)


def test_sentinels_stand_in_a_text_as_masks_do(tokenizer, fast):
    for number, text in enumerate(masked_texts()):
        sentinel = number % 100
        expected = [
            tokenizer.vocab.sentinels[sentinel] if number == tokenizer.vocab.mask else number
            for number in tokenizer.encode_gaps(text, scoring.MASK)
        ]
        written = text.replace("[MASK]", f"<extra_id_{sentinel}>")
        assert fast.encode(written).ids == expected, repr(written)


def test_other_special_names_are_between_texts(tokenizer, fast):
    between = [name for name in SPECIAL if name != "[MASK]" and not name.startswith("<extra_id")]
    assert len(between) == 12
    for first, second, name in zip(RANDOM, RANDOM[1:], between * 50, strict=False):
        expected = [*tokenizer.encode(first), SPECIAL.index(name), *tokenizer.encode(second)]
        assert fast.encode(first + name + second).ids == expected
    assert fast.decode(expected) == tokenizer.decode(expected)


def test_a_character_in_pieces_and_special_pieces_are_decoded(tokenizer, fast):
    vocab, ids = tokenizer.vocab, tokenizer.encode("one 文\nthree")
    framed = [vocab.cls, *ids, vocab.sep, vocab.pad]
    assert fast.decode(framed) == "one 文\nthree"
    assert fast.decode(framed, skip_special_tokens=False) == "[CLS] one 文\nthree[SEP]<pad>"
    broken = tokenizer.encode("文")
    assert fast.decode(broken[:-1]) == tokenizer.decode(broken[:-1]) == "\ufffd\ufffd"


@pytest.mark.parametrize(
    ("enclosing", "single", "pair", "types"),
    [
        (("cls", "sep"), "cls A sep", "cls A sep B sep", "000011"),
        (("bos", "eos"), "bos A eos", "bos A eos B eos", "000011"),
        (("bos", None), "bos A", "bos A B", "0001"),
        ((None, "eos"), "A eos", "A eos B eos", "00011"),
        (NOTHING, "A", "A B", "001"),
    ],
)
def test_texts_and_pairs_are_enclosed(tokenizer, enclosing, single, pair, types):
    fast, vocab = built(tokenizer, enclosing), tokenizer.vocab
    (the,) = tokenizer.encode("the")
    texts = {"A": [the, the], "B": [the]}

    def ids(plan: str) -> list[int]:
        return [n for part in plan.split() for n in texts.get(part) or [getattr(vocab, part)]]

    assert fast.encode("the the").ids == ids(single)
    both = fast.encode("the the", "the")
    assert both.ids == ids(pair)
    assert "".join(map(str, both.type_ids)) == types
    assert fast.encode("the the", "the", add_special_tokens=False).ids == [the] * 3
    assert fast.encode("").ids == ids(single.replace("A", ""))


def test_the_config_names_the_roles(tokenizer):
    def config(**options) -> dict:
        return json.loads(fast_tokenizer(tokenizer, **options)["tokenizer_config.json"])

    causal = config(enclosing=("bos", None), model_max_length=64)
    assert causal["model_max_length"] == 64
    assert causal["model_input_names"] == ["input_ids", "attention_mask"]
    roles = {name: NAMES[name] for name in ("pad", "unk", "bos", "eos", "mask")}
    found = {key.removesuffix("_token"): causal[key] for key in causal if key.endswith("_token")}
    assert found == roles
    encoder = config(enclosing=("cls", "sep"), model_max_length=64, has_types=True)
    assert encoder["model_input_names"] == ["input_ids", "token_type_ids", "attention_mask"]
    assert (encoder["cls_token"], encoder["sep_token"]) == ("[CLS]", "[SEP]")
    for made in (causal, encoder):
        named = {made[key] for key in made if key.endswith("_token")}
        assert named | set(made["additional_special_tokens"]) == set(SPECIAL)
        assert not named & set(made["additional_special_tokens"])


def test_the_library_is_asked_for(tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=re.escape("pip install 'jaxpretrain[hf]'")):
        fast_tokenizer(tokenizer, enclosing=NOTHING, model_max_length=64)


@pytest.mark.parametrize("model_type", [None, "bert", "electra", "gpt2", "llama", "t5"])
def test_transformers_reads_it_and_writes_it_again(tokenizer, tmp_path, model_type):
    transformers = pytest.importorskip("transformers")
    files = fast_tokenizer(
        tokenizer, enclosing=("cls", "sep"), model_max_length=64, has_types=model_type == "bert"
    )
    for name, content in files.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    if model_type:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    read = transformers.AutoTokenizer.from_pretrained(tmp_path)
    read.save_pretrained(tmp_path / "again")
    vocab = tokenizer.vocab
    for theirs in (read, transformers.AutoTokenizer.from_pretrained(tmp_path / "again")):
        assert theirs.is_fast and len(theirs) == vocab.size and theirs.model_max_length == 64
        ids = [getattr(theirs, f"{name}_token_id") for name in ("pad", "unk", "bos", "eos")]
        assert ids == [vocab.pad, vocab.unk, vocab.bos, vocab.eos]
        ids = [theirs.cls_token_id, theirs.sep_token_id, theirs.mask_token_id]
        assert ids == [vocab.cls, vocab.sep, vocab.mask]
        texts = [*RANDOM[:300], *TEXTS[:3], "for\n\n if a . b , c 's n't"]
        found = theirs(texts, add_special_tokens=False).input_ids
        assert found == [tokenizer.encode(text) for text in texts]
        assert theirs.batch_decode(found) == texts
        masked = theirs(MASKED, add_special_tokens=False).input_ids
        assert masked == [tokenizer.encode_gaps(text, scoring.MASK) for text in MASKED]

        (the,) = tokenizer.encode("the")
        short, long = [vocab.cls, the, vocab.sep], [vocab.cls, the, the, vocab.sep]
        for side, padded in (("right", [*short, vocab.pad]), ("left", [vocab.pad, *short])):
            theirs.padding_side = side
            batch = theirs(["the", "the the"], padding=True)
            assert batch.input_ids == [padded, long]
            assert batch.attention_mask[0] == [int(number != vocab.pad) for number in padded]
        pair = theirs("the the", "the")
        assert pair.input_ids == [*long, the, vocab.sep]
        assert pair.get("token_type_ids") == ([0] * 4 + [1] * 2 if model_type == "bert" else None)
        assert len(theirs("the " * 99, truncation=True).input_ids) == 64
