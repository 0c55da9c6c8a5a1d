"""SpanBERT's masks and borders against the sequential reference."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxpretrain.corruption.spans import geometric_lengths
from jaxpretrain.objectives.span_mlm import SpanMLM, borders
from support import masks_reference as reference
from support import mlm_reference
from support.small import SPECIAL, small_batch, small_vocab

VOCAB = small_vocab()
DRAWS = 4000


def row_of(length=24):
    batch = small_batch(5, VOCAB, rows=1, length=length)
    return jax.tree.map(lambda x: np.repeat(x, DRAWS, axis=0), batch)


def corrupted(objective, batch, *, train=True):
    make = jax.jit(objective.bind(None, VOCAB).corrupt, static_argnames=("train", "progress"))
    keys = jax.random.split(jax.random.key(1), len(batch.tokens))
    return jax.tree.map(np.asarray, make(keys, batch, train=train, progress=None))


def hidden_of(example, shape):
    hidden = np.zeros(shape, bool)
    hidden[np.arange(shape[0])[:, None], example.slots] |= example.weights > 0
    return hidden


def test_lengths_are_geometric_cut_off_and_renormalised():
    np.testing.assert_allclose(
        geometric_lengths(0.2, 10), reference.span_length_probabilities(), rtol=1e-6
    )
    mean = geometric_lengths(0.2, 10) @ np.arange(1, 11)
    assert abs(mean - 3.8) < 0.01  # the paper's mean


def test_the_budget_is_met_exactly_and_special_tokens_are_never_hidden():
    batch = small_batch(2, VOCAB, rows=64)
    for rate in (0.15, 0.5):
        example = corrupted(SpanMLM(mask_rate=rate), batch)
        hidden = hidden_of(example, batch.tokens.shape)
        ordinary = (batch.tokens >= SPECIAL) & (batch.segments > 0)
        assert not hidden[~ordinary].any()
        expected = [mlm_reference.number_predicted(rate, int(n)) for n in ordinary.sum(1)]
        np.testing.assert_array_equal(hidden.sum(1), expected)


def test_masks_have_the_distribution_of_the_sequential_algorithm():
    """How often each position is hidden, and how often each pair of neighbours is."""
    batch = row_of()
    tokens, segments = batch.tokens[0], batch.segments[0]
    eligible = (tokens >= SPECIAL) & (segments > 0)
    budget = mlm_reference.number_predicted(0.3, int(eligible.sum()))
    rng = np.random.default_rng(0)
    probabilities = reference.span_length_probabilities()
    expected = np.stack(
        [
            reference.spanbert_mask(
                rng, tokens, eligible, VOCAB.is_word_start[tokens], budget, probabilities
            )[0]
            for _ in range(DRAWS)
        ]
    )
    found = hidden_of(corrupted(SpanMLM(mask_rate=0.3), batch), batch.tokens.shape)
    for a, b in (
        (found, expected),
        (found[:, 1:] & found[:, :-1], expected[:, 1:] & expected[:, :-1]),
    ):
        deviation = np.sqrt(2 * 0.25 / DRAWS)  # of a difference of two frequencies, at most
        assert np.abs(a.mean(0) - b.mean(0)).max() < 4.5 * deviation


def test_what_is_shown_is_decided_for_the_span_as_a_whole():
    batch = row_of()
    objective = SpanMLM(mask_rate=0.15, span_stop=0.05)
    example = corrupted(objective, batch)
    hidden = hidden_of(example, batch.tokens.shape)
    masked = example.inputs == VOCAB.mask
    # With one draw filling the budget nearly always, a row is all masked or not at all.
    share = np.where(hidden, masked, False).sum(1) / hidden.sum(1)
    assert (np.isin(share, (0.0, 1.0))).mean() > 0.8
    assert abs(share.mean() - 0.8) < 5 * 0.4 / np.sqrt(DRAWS)
    same = (example.inputs == batch.tokens) & hidden
    kept = same.sum(1) == hidden.sum(1)
    # Kept spans, and the random ones that hit all originals (next to none).
    assert abs(kept.mean() - 0.1) < 0.03


def test_held_out_spans_are_all_masked_whatever_is_trained():
    batch = small_batch(2, VOCAB, rows=16)
    usual = corrupted(SpanMLM(), batch, train=False)
    other = corrupted(SpanMLM(mask_rate=0.4, longest_span=3, span_stop=0.5), batch, train=False)
    jax.tree.map(np.testing.assert_array_equal, usual, other)
    hidden = hidden_of(usual, batch.tokens.shape)
    assert (usual.inputs[hidden] == VOCAB.mask).all()


def test_borders_are_those_of_the_reference():
    rows = np.random.default_rng(0).random((200, 20)) < 0.4
    find = jax.jit(jax.vmap(borders))
    found = map(np.asarray, find(rows, np.ones(rows.shape, np.int32)))
    for hidden, left, right, place in zip(rows, *found, strict=True):
        for i, (a, b, offset) in reference.span_boundaries(hidden).items():
            assert left[i] == max(a, i - offset + 1 if a < 0 else a)
            assert right[i] == (b if b < 20 else 19)
            assert place[i] == offset - 1
    # What the objective hands on is that, at the slots.
    batch = small_batch(2, VOCAB, rows=16)
    example = corrupted(SpanMLM(), batch)
    hidden = hidden_of(example, batch.tokens.shape)
    expected = find(hidden, batch.segments)
    used = example.weights > 0
    for name, value in zip(("left", "right", "place"), expected, strict=True):
        at = np.take_along_axis(np.asarray(value), example.slots, 1)
        np.testing.assert_array_equal(example.extra[name][used], at[used])
    # A run does not go on into the next document.
    segments = jnp.array([1, 1, 1, 2, 2, 2])
    left, right, _ = jax.jit(borders)(jnp.array([0, 1, 1, 1, 1, 0], bool), segments)
    assert left.tolist()[1:5] == [0, 0, 3, 3] and right.tolist()[1:5] == [2, 2, 5, 5]
