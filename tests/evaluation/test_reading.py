"""How texts are read: enclosed, cut, padded; and that padding changes no vector."""

import jax
import numpy as np
import pytest

from jaxpretrain.assemble import build
from jaxpretrain.data.store import Store
from jaxpretrain.evaluation import reading
from jaxpretrain.evaluation.reading import Rows, alike, padded, room_for_text, rows_of, vectors
from jaxpretrain.objectives import OBJECTIVES, Mixture, Task
from support import tiny_run
from support.small import at_random, small_backbone, small_vocab

LONG = "The statement is executed, and a class may be defined here or not. " * 3
TEXTS = ["Is it?", LONG, "A class may be defined here, or not.", "x"]
VOCAB = small_vocab()


@pytest.fixture(scope="module")
def tokenizer(tiny_config_file):
    return Store.open(tiny_run.config(tiny_config_file).store.path).tokenizer


@pytest.fixture(scope="module")
def model(tiny_config_file, tokenizer):
    known = {}

    def make(name, **overrides):
        key = name, *overrides.items()
        if key not in known:
            config = tiny_run.config(tiny_config_file, objective__name=name, **overrides)
            pieces = build(config, tokenizer.vocab)
            known[key] = pieces.objective, at_random(pieces.abstract.params)
        return known[key]

    return make


def row(rows, number):
    """Ids and types of a row, and what is behind them."""
    size = int(rows.segments[number].sum())
    assert rows.segments[number].tolist() == [1] * size + [0] * (rows.ids.shape[1] - size)
    assert not rows.types[number, size:].any()
    return rows.ids[number, :size].tolist(), rows.types[number, :size].tolist()


@pytest.mark.parametrize(("name", "pieces"), [("mlm", ("bos", "eos")), ("simcse", ("cls", "sep"))])
def test_texts_are_enclosed_as_documents_or_as_pairs_are(model, tokenizer, name, pieces):
    objective, _ = model(name)
    first, last = (getattr(tokenizer.vocab, piece) for piece in pieces)
    a, b = tokenizer.encode("Is it?"), tokenizer.encode("A class.")
    rows = rows_of(objective, tokenizer, [("Is it?",), ("A class.",), ("",)], 32)
    assert row(rows, 0) == ([first, *a, last], [0] * (len(a) + 2))
    assert row(rows, 1) == ([first, *b, last], [0] * (len(b) + 2))
    assert row(rows, 2) == ([first, last], [0, 0])
    assert (
        rows.ids.shape[1] % 8 == 0 and (rows.ids[rows.segments == 0] == tokenizer.vocab.pad).all()
    )
    pairs = rows_of(objective, tokenizer, [("Is it?", "A class.")], 32)
    expected = [first, *a, last, *b, last], [0] * (len(a) + 2) + [1] * (len(b) + 1)
    assert row(pairs, 0) == expected


def longest_first(sizes, room):
    """One token after the other, from the longer text."""
    sizes = list(sizes)
    while sum(sizes) > room:
        sizes[sizes.index(max(sizes))] -= 1
    return sizes


class Words:
    """A tokenizer of whole words, by their places, so that sizes are what counts."""

    vocab = VOCAB

    def encode_batch(self, texts):
        return [np.arange(len(text.split()), dtype=np.int32) % 48 + 24 for text in texts]


@pytest.mark.parametrize("room", [1, 2, 9, 10, 31])
def test_the_longer_text_is_cut_first_and_at_its_end(room):
    objective = OBJECTIVES["mlm"]().bind(small_backbone(VOCAB), VOCAB)
    sizes = [(a, b) for a in (0, 1, 4, 5, 6, 15, 40) for b in (0, 1, 5, 6, 17, 40)]
    texts = [("w " * a, "w " * b) for a, b in sizes]
    rows = rows_of(objective, Words(), texts, room)
    for number, (a, b) in enumerate(sizes):
        ids, types = row(rows, number)
        found = [types.count(0) - 2, types.count(1) - 1]
        assert sum(found) == min(a + b, room)
        # Which of two equally long texts loses the last token is free.
        assert sorted(found) == sorted(longest_first((a, b), room))
        for size, kept in zip((a, b), found, strict=True):
            assert kept == size or kept >= max(found) - 1
        first, second = ids[1 : 1 + found[0]], ids[2 + found[0] : -1]
        assert first == list(range(24, 24 + found[0]))
        assert second == list(range(24, 24 + found[1]))


def test_learned_positions_limit_what_is_read():
    """A pair of texts and its three special pieces fill the positions that there are, not more."""
    for name, limit in (("rotary", 200), ("learned", 30)):
        backbone = small_backbone(VOCAB, positions=name, max_length=30, layers=1)
        objective = OBJECTIVES["mlm"]().bind(backbone, VOCAB)
        for texts in (1, 2):
            rows = rows_of(objective, Words(), [("w " * 300,) * texts], 200)
            size = len(row(rows, 0)[0])
            assert size == (limit if name == "learned" else limit + texts + 1)
            assert room_for_text(objective, 200, texts) == size - texts - 1
            assert room_for_text(objective, 7, texts) == 7
    params = at_random(jax.eval_shape(objective.init, jax.random.key(0)))
    assert np.isfinite(vectors(objective, params, rows)).all()


@pytest.mark.parametrize(
    ("name", "pooling"), [("mlm", "mean"), ("mlm", "last"), ("clm", "last"), ("simcse", "cls")]
)
def test_a_vector_is_the_same_alone_and_among_longer_texts(
    model, tokenizer, name, pooling, monkeypatch
):
    monkeypatch.setattr(reading, "BATCH", 3)  # so that there are two passes, one of them padded
    objective, params = model(name)
    together = vectors(
        objective, params, rows_of(objective, tokenizer, [(t,) for t in TEXTS], 32), pooling=pooling
    )
    assert together.shape == (4, 16) and together.dtype == np.float32
    for number, text in enumerate(TEXTS[:2]):  # of the first pass and of the second
        alone = rows_of(objective, tokenizer, [(text,)], 32)
        found = vectors(objective, params, alone, pooling=pooling)[0]
        np.testing.assert_allclose(found, together[number], rtol=1e-4, atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 1e-2


def test_pooling_takes_the_mean_the_first_or_the_last_of_the_stream(model, tokenizer):
    objective, params = model("mlm")
    rows = rows_of(objective, tokenizer, [(t,) for t in TEXTS], 32)
    stream = np.asarray(jax.jit(lambda p, r: reading.stream(objective, p, r))(params, rows))
    sizes = rows.segments.sum(1)
    expected = {
        "mean": [x[:size].mean(0) for x, size in zip(stream, sizes, strict=True)],
        "cls": [x[0] for x in stream],
        "last": [x[size - 1] for x, size in zip(stream, sizes, strict=True)],
    }
    for pooling, values in expected.items():
        found = vectors(objective, params, rows, pooling=pooling)
        np.testing.assert_allclose(found, values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "reads_back"),
    [
        ("clm", True),
        ("fim", True),
        ("mlm", False),
        ("prefix_lm", False),
        ("masked_diffusion", False),
    ],
)
def test_only_a_causal_objective_reads_causally(name, reads_back):
    """Whether the stream at a place depends on what comes after it."""
    objective = OBJECTIVES[name]().bind(small_backbone(VOCAB, layers=1), VOCAB)
    assert depends_on_what_follows(objective) != reads_back


def test_a_mixture_reads_causally_where_all_its_parts_do():
    def mixture(*names):
        tasks = tuple(Task(name=name, objective=OBJECTIVES[name]()) for name in names)
        return Mixture(tasks=tasks).bind(small_backbone(VOCAB, layers=1), VOCAB)

    assert not depends_on_what_follows(mixture("clm", "fim"))
    assert depends_on_what_follows(mixture("mlm", "clm"))


def test_an_encoder_with_a_decoder_reads_both_ways():
    backbone = small_backbone(VOCAB, layers=1, decoder_layers=1)
    assert depends_on_what_follows(OBJECTIVES["span_corruption"]().bind(backbone, VOCAB))


def depends_on_what_follows(objective):
    params = at_random(jax.eval_shape(objective.init, jax.random.key(0)))
    ids = np.arange(24, 40, dtype=np.int32)[None].repeat(2, 0)
    ids[1, 8:] += 3
    rows = Rows(ids, np.ones_like(ids), np.zeros_like(ids))
    one, two = np.asarray(jax.jit(lambda p, r: reading.stream(objective, p, r))(params, rows))
    return float(np.abs(one[:8] - two[:8]).max()) > 1e-4


def test_types_tell_the_two_texts_apart_where_the_model_has_them(model, tokenizer):
    objective, params = model("bert", model__token_types=2)
    rows = rows_of(objective, tokenizer, [("Is it?", "A class.")], 32)
    other = rows._replace(types=0 * rows.types)
    found = [vectors(objective, params, each) for each in (rows, other)]
    assert np.abs(found[0] - found[1]).max() > 1e-3


def test_rows_are_padded_in_steps_of_8_and_made_alike():
    a, b = padded([([5, 6], [0, 1])], 9), padded([([7] * 9, [1] * 9)], 9)
    assert a.ids.tolist() == [[5, 6, *[9] * 6]] and a.types.tolist() == [[0, 1, *[0] * 6]]
    assert a.segments.tolist() == [[1, 1, *[0] * 6]] and b.ids.shape == (1, 16)
    wide, same = alike(a, b, pad=9)
    assert wide.ids.tolist() == [[5, 6, *[9] * 14]] and wide.segments.sum() == 2
    assert wide.types.tolist() == [[0, 1, *[0] * 14]]
    for x, y in zip(same, b, strict=True):
        np.testing.assert_array_equal(x, y)
