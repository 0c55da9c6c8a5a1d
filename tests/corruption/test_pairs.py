"""NSP and SOP pairs against exact enumeration."""

from collections import Counter
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxpretrain.corruption.pairs import next_sentence_pairs, sentence_order_pairs
from jaxpretrain.objectives.albert import ALBERT
from jaxpretrain.objectives.bert import BERT
from jaxpretrain.objectives.nsp import NSP
from jaxpretrain.objectives.sop import SOP
from jaxpretrain.types import Example
from support import pairs_reference as reference
from support.small import SPECIAL, document_rows, progress_at, small_backbone, small_vocab

VOCAB = small_vocab()
END = SPECIAL + 5
VOCAB.is_sentence_end[END] = True
UNLIKELY = 1e-3
DRAWS = 4000


def rows_of(batch):
    return [
        tokens[segments > 0].tolist()
        for tokens, segments in zip(batch.tokens, batch.segments, strict=True)
    ]


def a_batch():
    """Five rows of three documents; sentences end in some of them; one row is padding."""
    batch = document_rows(0, VOCAB, rows=6, length=7, full=True)
    tokens, segments = batch.tokens.copy(), batch.segments.copy()
    tokens[tokens == END] += 1
    tokens[0, [1, 3, 5]] = END
    tokens[3, 2] = END
    tokens[1, 4:], segments[1, 4:] = VOCAB.pad, 0
    tokens[5], segments[5] = VOCAB.pad, 0
    return batch._replace(
        tokens=tokens,
        segments=segments,
        documents=np.array([0, 0, 1, 1, 2, -1], np.int32),
        row_ids=np.array([0, 1, 2, 3, 4, -1], np.int32),
    )


@cache
def draw(pairs):
    """Outcomes per row of `a_batch` over many keys."""
    batch = a_batch()
    keys = jax.random.split(jax.random.key(0), (DRAWS, len(batch.tokens)))
    batch = jax.tree.map(jnp.asarray, batch)
    found = jax.jit(jax.vmap(lambda k: pairs(k, batch, VOCAB)))(keys)
    return jax.tree.map(np.asarray, found)


def outcomes(found, row):
    counter = Counter()
    for tokens, types, segments, label in zip(
        found.tokens[:, row],
        found.types[:, row],
        found.segments[:, row],
        found.labels[:, row],
        strict=True,
    ):
        inside = segments > 0
        assert not tokens[~inside].any() and not types[~inside].any()
        counter[tuple(tokens[inside].tolist()), tuple(types[inside].tolist()), int(label)] += 1
    return counter


def assert_distribution(found, expected):
    assert set(found) <= set(expected)
    keys = list(expected)
    probabilities = np.array([float(expected[key]) for key in keys])
    counts = np.array([found[key] for key in keys])
    rare = probabilities * DRAWS < 5  # together, as the chi-squared test wants
    if rare.any():
        counts = np.append(counts[~rare], counts[rare].sum())
        probabilities = np.append(probabilities[~rare], probabilities[rare].sum())
    if len(counts) > 1:
        assert stats.chisquare(counts, probabilities * DRAWS).pvalue > UNLIKELY


def test_next_sentence_pairs_have_the_exact_distribution():
    batch = a_batch()
    found, rows = draw(next_sentence_pairs), rows_of(batch)
    for row in range(5):
        expected = reference.nsp_outcomes(
            rows, batch.documents.tolist(), row, VOCAB.is_sentence_end, VOCAB
        )
        assert (found.weights[:, row] == 1).all()
        assert_distribution(outcomes(found, row), expected)
    assert (found.weights[:, 5] == 0).all() and (found.segments[:, 5] == 0).all()


def test_the_length_says_nothing_about_the_label():
    found = draw(next_sentence_pairs)
    lengths = found.segments.sum(-1)
    for row in range(5):
        counts = [
            np.bincount(lengths[:, row][found.labels[:, row] == label], minlength=12)
            for label in (0, 1)
        ]
        seen = sum(counts) > 0
        assert seen.sum() > 1
        table = np.stack(counts)[:, seen]
        assert stats.chi2_contingency(table).pvalue > UNLIKELY


def test_a_negative_is_never_from_the_same_document():
    """Every token says its document; a batch of one document has no negatives."""
    rows = 24
    documents = np.repeat(np.arange(5, dtype=np.int32), [12, 6, 3, 2, 1])
    batch = document_rows(1, VOCAB, rows=rows, length=9, full=True)._replace(
        tokens=np.tile(SPECIAL + documents[:, None], (1, 9)).astype(np.int32),
        documents=documents,
    )
    pairs = jax.jit(lambda k, b: next_sentence_pairs(k, b, VOCAB))
    negatives = 0
    for seed in range(50):
        keys = jax.random.split(jax.random.key(seed), rows)
        found = jax.tree.map(np.asarray, pairs(keys, batch))
        for row in range(rows):
            sides = [
                set(found.tokens[row][(found.types[row] == side) & (found.segments[row] > 0)])
                - {VOCAB.cls, VOCAB.sep}
                for side in (0, 1)
            ]
            assert (sides[0] == sides[1]) == (found.labels[row] == 0)
            negatives += found.labels[row]
    assert abs(negatives / (50 * rows) - 0.5) < 5 * 0.5 / np.sqrt(50 * rows)
    alone = batch._replace(documents=np.zeros(rows, np.int32))
    found = pairs(jax.random.split(jax.random.key(0), rows), alone)
    assert not found.labels.any() and found.weights.all()


def test_sentence_order_pairs_have_the_exact_distribution():
    batch = a_batch()
    found, rows = draw(sentence_order_pairs), rows_of(batch)
    for row in range(5):
        expected = reference.sop_outcomes(rows[row], VOCAB.is_sentence_end, VOCAB)
        assert_distribution(outcomes(found, row), expected)


@pytest.mark.parametrize("pairs", [next_sentence_pairs, sentence_order_pairs])
def test_rows_too_short_to_be_split_have_no_weight(pairs):
    batch = document_rows(2, VOCAB, rows=4, length=6, full=True)
    segments = batch.segments.copy()
    segments[1, 1:] = 0
    segments[2, 2:] = 0
    batch = batch._replace(
        segments=segments, tokens=np.where(segments > 0, batch.tokens, VOCAB.pad)
    )
    found = jax.jit(lambda k, b: pairs(k, b, VOCAB))(jax.random.split(jax.random.key(0), 4), batch)
    assert found.weights.tolist() == [1, 0, 1, 1]


@pytest.mark.parametrize("objective", [NSP(), SOP(), BERT(), ALBERT()], ids=lambda o: o.name)
def test_objectives_read_the_pairs_of_their_papers_with_their_types(objective):
    """Each row is of one token, which says its document, but for the ends of its two halves."""
    rows, length = 64, 9
    mine = SPECIAL + 10 + np.arange(rows, dtype=np.int32) % 8
    tokens = np.tile(mine[:, None], (1, length))
    tokens[:, -1] = SPECIAL
    batch = document_rows(1, VOCAB, rows=rows, length=length, full=True)._replace(
        tokens=tokens, documents=np.arange(rows, dtype=np.int32) % 8
    )
    bound = objective.bind(small_backbone(VOCAB, token_types=2), VOCAB)
    make = jax.jit(partial(bound.corrupt, train=True, progress=progress_at(0.0)))
    example = jax.tree.map(np.asarray, make(jax.random.split(jax.random.key(0), rows), batch))
    read = example.inputs.copy()
    np.put_along_axis(read, example.slots, np.where(example.weights > 0, example.targets,
                      np.take_along_axis(read, example.slots, 1)), 1)  # fmt: skip
    for row in range(rows):
        n = int((example.segments[row] > 0).sum())
        first_sep, last_sep = np.flatnonzero(read[row] == VOCAB.sep)
        assert last_sep == n - 1
        types = (np.arange(length + 3) > first_sep) & (np.arange(length + 3) < n)
        np.testing.assert_array_equal(example.types[row], types)
        first, second = read[row, 1:first_sep], read[row, first_sep + 1 : last_sep]
        label = example.extra["label"][row]
        if objective.name in ("nsp", "bert"):
            if second[0] != SPECIAL:
                assert (second[0] == mine[row]) == (label == 0)
        else:  # the end of the row is the end of its second half
            assert {*first, *second} == {mine[row], SPECIAL}
            assert (first[-1] == SPECIAL) == (label == 1)
    assert 0.2 < example.extra["label"].mean() < 0.8


def test_the_class_is_read_at_the_first_position():
    objective = NSP().bind(small_backbone(VOCAB, token_types=2, width=16), VOCAB)
    params = {name: head.init(jax.random.key(0)) for name, head in objective.heads().items()}
    hidden = np.random.default_rng(0).normal(size=(4, 6, 16)).astype(np.float32)
    none = np.zeros((4, 0), np.int32)
    extra = {"label": np.array([0, 1, 0, 1]), "label_weight": np.ones(4, np.float32)}
    example = Example(none, none, none, targets=none, slots=none, weights=none, extra=extra)
    total = jax.jit(lambda x: objective.pair_sums(params, x, example)["pair_loss"].total)
    found = total(hidden)
    elsewhere = np.where(np.arange(6)[None, :, None] > 0, np.float32(0.0), hidden)
    assert total(elsewhere) == found
    assert total(-hidden) != found
