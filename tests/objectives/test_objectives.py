"""What holds of every objective: each is in the suite by being in the table."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpretrain.objectives import OBJECTIVES
from jaxpretrain.types import Sum
from support.small import small_backbone, small_batch, small_vocab

VOCAB = small_vocab()
BATCH = small_batch(3, VOCAB, rows=8, length=24)
KEY = jax.random.key(7)
# Sums of some hundred float32 terms of order 1 in another order.
ROUNDING = 1e-5


@pytest.fixture(scope="module", params=sorted(OBJECTIVES))
def objective(request):
    return OBJECTIVES[request.param]().bind(small_backbone(VOCAB, dropout=0.1), VOCAB)


@pytest.fixture(scope="module")
def params(objective):
    return objective.init(jax.random.key(0))


def loss(objective, params, batch, *, train=True, key=KEY):
    return jax.jit(lambda p, b, k: objective.loss(p, b, k, train=train, progress=jnp.float32(0.3)))(
        params, batch, key
    )


def assert_sums_close(a, b):
    for name in a:
        for x, y in zip(a[name], b[name], strict=True):
            np.testing.assert_allclose(x, y, rtol=ROUNDING)


def test_pure_and_the_same_eager_and_compiled(objective, params):
    a, b = loss(objective, params, BATCH), loss(objective, params, BATCH)
    jax.tree.map(np.testing.assert_array_equal, a, b)
    eager = objective.loss(params, BATCH, KEY, train=True, progress=jnp.float32(0.3))
    assert_sums_close(a, eager)
    other = loss(objective, params, BATCH, key=jax.random.key(8))
    assert a["loss"].total != other["loss"].total  # dropout at least


def test_sums_add_up_over_any_split_of_the_rows(objective, params):
    whole = loss(objective, params, BATCH)
    for cut in (1, 3):
        parts = [jax.tree.map(lambda x, s=s: x[s], BATCH) for s in (slice(cut), slice(cut, None))]
        a, b = (loss(objective, params, part) for part in parts)
        added = {k: Sum(a[k].total + b[k].total, a[k].weight + b[k].weight) for k in a}
        assert_sums_close(whole, added)


def test_a_row_of_padding_adds_nothing(objective, params):
    empty = jax.tree.map(lambda x: np.zeros_like(x[:1]), BATCH)
    empty = empty._replace(row_ids=np.array([-1], np.int32))
    more = jax.tree.map(lambda a, b: np.concatenate([a, b]), BATCH, empty)
    for train in (True, False):
        assert_sums_close(
            loss(objective, params, BATCH, train=train), loss(objective, params, more, train=train)
        )


def test_special_tokens_are_not_corrupted_and_shapes_are_static(objective):
    example = objective.example(BATCH, KEY, train=True, progress=jnp.float32(0.5))
    special = (BATCH.tokens < VOCAB.first_regular) | (BATCH.segments == 0)
    np.testing.assert_array_equal(np.asarray(example.inputs)[special], BATCH.tokens[special])
    other = small_batch(9, VOCAB, rows=8, length=24)
    again = objective.example(other, jax.random.key(1), train=True, progress=jnp.float32(0.1))
    assert jax.tree.map(jnp.shape, example) == jax.tree.map(jnp.shape, again)


def test_no_leak_of_what_is_hidden(objective, params):
    """Change one token that is a target: no score at its own slot may move.

    The key is fixed, so the corruption chooses the same positions; where the target is shown all
    the same (the tenth of MLM's tokens that stay visible), there is nothing hidden to leak.
    """
    example = objective.example(BATCH, KEY, train=False, progress=jnp.float32(1.0))
    slots, weights = example.slots, np.asarray(example.weights)
    row = 0
    slot = next(
        s
        for s in np.flatnonzero(weights[row])
        if slots is None or example.inputs[row, slots[row, s]] == VOCAB.mask
    )
    place = slot + 1 if slots is None else int(slots[row, slot])
    tokens = BATCH.tokens.copy()
    tokens[row, place] = VOCAB.first_regular + (tokens[row, place] + 3) % 40

    def scores(batch):
        e = objective.example(batch, KEY, train=False, progress=jnp.float32(1.0))
        h = objective.backbone.encode(
            params, e.inputs, e.segments, e.positions, e.prefix, visibility=objective.visibility
        )
        if e.slots is not None:
            h = jnp.take_along_axis(h, e.slots[:, :, None], axis=1)
        return np.asarray(e.targets), np.asarray(objective.backbone.logits(params, h))

    (targets, before), (changed, after) = scores(BATCH), scores(BATCH._replace(tokens=tokens))
    assert targets[row, slot] != changed[row, slot]
    np.testing.assert_array_equal(before[row, slot], after[row, slot])


def test_evaluation_is_deterministic_and_has_no_dropout(objective, params):
    a = loss(objective, params, BATCH, train=False)
    jax.tree.map(np.testing.assert_array_equal, a, loss(objective, params, BATCH, train=False))
    still = dataclasses.replace(objective, backbone=small_backbone(VOCAB, dropout=0.0))
    assert_sums_close(a, loss(still, params, BATCH, train=False))


def test_gradients_are_finite_in_bfloat16(objective, params):
    low = dataclasses.replace(objective, backbone=small_backbone(VOCAB, dtype="bfloat16"))
    gradient = jax.jit(
        jax.grad(
            lambda p: low.loss(p, BATCH, KEY, train=True, progress=jnp.float32(0.0))["loss"].total
        )
    )(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert float(sum(jnp.abs(leaf).sum() for leaf in jax.tree.leaves(gradient))) > 0


def test_flops_are_those_of_the_shapes(objective):
    # By hand for width 32, 2 layers, mlp 128, length 24: products of 2 * in * out per token.
    config = objective.backbone.config
    example = objective.example(BATCH, KEY, train=True, progress=jnp.float32(0.0))
    per_token = 2 * (2 * 32 * 32 * 4 + 2 * 32 * 128 * 2)
    scores = 2 * 2 * 2 * 24 * 32 // (2 if objective.visibility == "causal" else 1)
    head = example.weights.shape[1] * 2 * 32 * config.vocab_size
    assert objective.flops(24) == 3 * (24 * (per_token + scores) + head)
