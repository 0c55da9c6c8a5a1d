"""Span corruption and UL2 against the references, exactly and in distribution."""

from collections import Counter
from functools import cache

import jax
import numpy as np
import pytest
from scipy import stats

from jaxpretrain.corruption.spans import composition_starts, noise_counts
from jaxpretrain.errors import UserError
from jaxpretrain.objectives.span_corruption import SpanCorruption
from jaxpretrain.objectives.ul2 import DENOISERS, UL2
from support import spans_reference as reference
from support.small import SPECIAL, document_rows, small_backbone, small_vocab

VOCAB = small_vocab()
STACKS = {layers: small_backbone(VOCAB, decoder_layers=layers) for layers in (0, 1)}
# A chi-squared test of a true hypothesis fails below this once in a thousand choices of the key.
UNLIKELY = 1e-3


def corrupted(objective, batch, *, decoder, train=True):
    objective = objective.bind(STACKS[int(decoder)], VOCAB)
    make = jax.jit(lambda b, k: objective.example(b, k, train=train, progress=None)[0])
    return jax.tree.map(np.asarray, make(batch, jax.random.key(0)))


MANY = document_rows(0, VOCAB, rows=3000, length=40)


@cache
def of_many(objective, decoder):
    return corrupted(objective, MANY, decoder=decoder)


def used(tokens, segments):
    return tokens[segments > 0].tolist()


def sequences(example, row):
    """Encoder inputs and targets of a row, from either form."""
    targets = example.targets[row][example.weights[row] > 0].tolist()
    if example.source is not None:
        return used(example.source.inputs[row], example.source.segments[row]), targets
    prefix = int(example.prefix[row])
    return example.inputs[row, :prefix].tolist(), targets


def test_counts_are_those_of_the_reference():
    for density, mean in ((0.15, 3.0), (0.15, 8.0), (0.5, 3.0), (0.5, 64.0), (0.3, 1.0)):
        lengths = np.arange(0, 1500)
        expected = np.array([reference.noise_counts(int(n), density, mean) for n in lengths])
        found = np.stack(noise_counts(lengths, density, mean), axis=1)
        np.testing.assert_array_equal(found, expected)


def test_the_lengths_of_t5_come_out():
    # T5's helper: 512 inputs with eos take 568 raw tokens and give 114 targets with eos.
    objective = SpanCorruption().bind(STACKS[1], VOCAB)
    shapes = objective.shapes(568)
    assert (shapes.source.inputs.shape[1], shapes.targets.shape[1]) == (512, 114)


@pytest.mark.parametrize("decoder", [False, True], ids=["single", "decoder"])
@pytest.mark.parametrize("objective", [SpanCorruption(), UL2()], ids=lambda o: o.name)
def test_thousands_of_rows_are_reconstructed_from_inputs_and_targets(objective, decoder):
    example, seen = of_many(objective, decoder), 0
    for row in range(3000):
        original = used(MANY.tokens[row], MANY.segments[row])
        source, targets = sequences(example, row)
        if len(original) < 2:
            assert not targets and not example.segments[row].any()
            continue
        assert reference.reconstruct(source, targets, VOCAB) == original
        seen += 1
    assert seen > 2500


@pytest.mark.parametrize("decoder", [False, True], ids=["single", "decoder"])
def test_layout_is_that_of_the_reference(decoder):
    example = of_many(SpanCorruption(), decoder)
    for row in range(200):
        original = used(MANY.tokens[row], MANY.segments[row])
        if len(original) < 2:
            continue
        source, targets = sequences(example, row)
        if decoder:
            assert used(example.inputs[row], example.segments[row]) == [VOCAB.pad, *targets[:-1]]
            assert (example.slots, example.prefix) == (None, None)
        else:
            inputs, prefix, slots = reference.single_stack(source, targets)
            assert used(example.inputs[row], example.segments[row]) == list(inputs)
            assert example.prefix[row] == prefix
            assert example.slots[row][example.weights[row] > 0].tolist() == list(slots)


def test_masks_have_the_distribution_of_the_paper():
    n, density, mean = 12, 0.35, 2.0
    tokens = np.tile(np.arange(n, dtype=np.int32) + SPECIAL, (6000, 1))
    batch = document_rows(2, VOCAB, rows=6000, length=n)._replace(
        tokens=tokens, segments=np.ones_like(tokens)
    )
    objective = SpanCorruption(noise_density=density, mean_span_length=mean)
    example = corrupted(objective, batch, decoder=True)
    hidden = Counter(
        tuple(sorted(t for t in sequences(example, row)[1] if t >= SPECIAL)) for row in range(6000)
    )
    possible = reference.noise_masks(n, density, mean)
    keys = [tuple((np.flatnonzero(mask) + SPECIAL).tolist()) for mask in possible]
    assert set(hidden) <= set(keys) and len(keys) == len(set(keys)) > 10
    assert stats.chisquare([hidden[key] for key in keys]).pvalue > UNLIKELY


def test_compositions_are_uniform():
    total, parts, draws = 7, 3, 4000
    make = jax.jit(jax.vmap(lambda key: composition_starts(key, total, parts, 10)))
    starts = np.asarray(make(jax.random.split(jax.random.key(0), draws)))
    found = Counter(tuple(np.diff([*np.flatnonzero(row), total]).tolist()) for row in starts)
    expected = reference.compositions(total, parts)
    assert set(found) == set(map(tuple, expected))
    assert stats.chisquare(list(found.values())).pvalue > UNLIKELY


def test_held_out_corruption_is_the_papers_whatever_is_trained():
    batch = document_rows(3, VOCAB, rows=50, length=40)
    usual = corrupted(SpanCorruption(), batch, decoder=True, train=False)
    other = corrupted(
        SpanCorruption(noise_density=0.5, mean_span_length=6.0), batch, decoder=True, train=False
    )
    jax.tree.map(np.testing.assert_array_equal, usual, other)


def test_ul2_draws_its_denoisers_at_the_published_rates_with_exact_counts():
    rows, n = 7000, 40
    batch = document_rows(4, VOCAB, rows=rows, length=n, full=True)
    example = corrupted(UL2(), batch, decoder=True)
    pieces = {VOCAB.mode_r: "r", VOCAB.mode_s: "s", VOCAB.mode_x: "x"}
    table = [
        (mode, *reference.ul2_counts(n, number))
        for number, (mode, _, _) in enumerate(reference.UL2_TABLE)
    ]
    assert [f"mode_{mode}" for mode, _, _ in DENOISERS] == [m for m, _, _ in reference.UL2_TABLE]
    found = Counter()
    for row in range(rows):
        source, targets = sequences(example, row)
        noise = sum(t >= SPECIAL for t in targets)
        spans = sum(t in VOCAB.sentinels for t in targets)
        found[f"mode_{pieces[source[0]]}", noise, spans] += 1
        if pieces[source[0]] == "s":  # the end of the text, in one piece
            assert targets[1:-1] == batch.tokens[row, -noise:].tolist()
    expected = Counter(table)  # denoisers that coincide at this length are one outcome
    assert set(found) == set(expected)
    keys = sorted(expected)
    odds = np.array([expected[key] for key in keys]) / 7
    assert stats.chisquare([found[key] for key in keys], odds * rows).pvalue > UNLIKELY


def test_ul2_shares_are_settings():
    batch = document_rows(5, VOCAB, rows=300, length=40, full=True)
    example = corrupted(UL2(r_share=0.0, s_share=1.0, x_share=0.0), batch, decoder=True)
    assert set(example.source.inputs[:, 0]) == {VOCAB.mode_s}


@pytest.mark.parametrize(
    ("objective", "length", "message"),
    [
        (SpanCorruption(noise_density=0.5), 200, "needs 33 sentinels .* tokenizer has 11"),
        (SpanCorruption(noise_density=0.85), 24, "only 4 stay visible"),
        (UL2(), 100, "needs 17 sentinels"),
    ],
    ids=["sentinels", "infeasible", "ul2"],
)
def test_rows_that_cannot_be_corrupted_are_refused(objective, length, message):
    bound = objective.bind(STACKS[1], VOCAB)
    with pytest.raises(UserError, match=message):
        bound.check_run(length=length, batch_size=4)
