"""Masked diffusion: how many tokens are hidden, which, and what they weigh."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxpretrain.evaluation.heldout import held_out
from jaxpretrain.objectives.masked_diffusion import MaskedDiffusion
from jaxpretrain.step import eval_step
from support import masks_reference as reference
from support.small import SPECIAL, document_rows, small_backbone, small_batch, small_vocab

VOCAB = small_vocab()


def hidden(batch):
    objective = MaskedDiffusion().bind(None, VOCAB)
    make = jax.jit(objective.corrupt, static_argnames=("train", "progress"))
    keys = jax.random.split(jax.random.key(0), len(batch.tokens))
    return jax.tree.map(np.asarray, make(keys, batch, train=True, progress=None))


def test_the_number_of_hidden_tokens_is_uniform_and_so_are_their_places():
    rows, n = 6000, 8
    batch = document_rows(0, VOCAB, rows=rows, length=n, full=True)
    masked = hidden(batch).inputs == VOCAB.mask
    counts = np.bincount(masked.sum(1), minlength=n + 1)
    expected = reference.diffusion_counts(n) * rows
    assert counts[0] == 0
    assert stats.chisquare(counts[1:], expected[1:]).pvalue > 1e-3
    assert stats.chisquare(masked.sum(0)).pvalue > 1e-3


def test_each_hidden_token_weighs_the_inverse_of_the_rate():
    batch = small_batch(1, VOCAB, rows=64)
    example = hidden(batch)
    ordinary = (batch.tokens >= SPECIAL) & (batch.segments > 0)
    masked = example.inputs == VOCAB.mask
    assert not masked[~ordinary].any()
    np.testing.assert_array_equal(example.counts, ordinary.sum(1))
    rate = masked.sum(1, keepdims=True) / ordinary.sum(1, keepdims=True)
    np.testing.assert_allclose(example.weights, masked / rate, rtol=1e-6)
    np.testing.assert_array_equal(example.inputs[~masked], batch.tokens[~masked])
    tokens, weights = MaskedDiffusion().bind(None, VOCAB).scored(example)
    np.testing.assert_array_equal(tokens, batch.tokens)
    np.testing.assert_array_equal(weights, ordinary)


def test_a_model_that_knows_nothing_needs_the_logarithm_of_the_vocabulary_for_each_token():
    """The weights of a row's hidden tokens add up to the row, however many there are."""
    backbone = small_backbone(VOCAB, layers=1, width=16, heads=2, scan_layers="off")
    objective = MaskedDiffusion().bind(backbone, VOCAB)
    params = jax.tree.map(jnp.zeros_like, objective.init(jax.random.key(0)))
    step = jax.jit(partial(eval_step, objective=objective))
    batches = [small_batch(seed, VOCAB, rows=16) for seed in range(2)]
    found = held_out(step, params, batches, objective, np.ones(VOCAB.size))
    assert found.loss == pytest.approx(np.log(VOCAB.size), rel=1e-6)
    assert found.bits_per_byte == pytest.approx(np.log2(VOCAB.size) / 3, rel=1e-6)
    assert found.bits_per_hidden_byte is None
    assert found.predicted == sum((b.tokens >= SPECIAL).sum() for b in batches)
