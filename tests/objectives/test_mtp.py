"""Multi-token prediction: which token each depth predicts, and what it may see."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxpretrain.objectives.mtp import MTP
from support.small import SPECIAL, small_backbone, small_batch, small_vocab

VOCAB = small_vocab()
BATCH = small_batch(1, VOCAB, rows=4, length=20)
BACKBONE = small_backbone(VOCAB, layers=1, width=16, heads=2, scan_layers="off")


def test_depth_d_predicts_the_token_d_after_the_next_one_of_the_document():
    objective = MTP(depth=3).bind(BACKBONE, VOCAB)
    example = objective.corrupt(None, BATCH, train=True, progress=None)
    for depth in (1, 2, 3):
        targets, weights = map(np.asarray, objective._targets(example, depth))
        for row in range(4):
            segments = BATCH.segments[row]
            for i in range(20):
                ahead = i + 1 + depth
                inside = ahead < 20 and segments[i] == segments[ahead] > 0
                assert weights[row, i] == inside
                if inside:
                    assert targets[row, i] == BATCH.tokens[row, ahead]


def test_no_depth_sees_what_it_predicts():
    """Changing token ``i + 1 + d`` changes no score of depth d at positions up to i."""
    objective = MTP(depth=2).bind(BACKBONE, VOCAB)
    params = objective.init(jax.random.key(0))
    example = objective.corrupt(None, BATCH, train=False, progress=None)
    run = jax.jit(lambda e: objective.loss(params, e, None, train=False, progress=None))
    row, i = 0, 5
    assert len(set(BATCH.segments[row, : i + 4])) == 1 or BATCH.segments[row, i + 3] > 0
    for depth in (1, 2):
        place = i + 1 + depth
        probe = np.zeros(example.weights.shape, np.float32)
        probe[row, : i + 1] = np.asarray(example.weights)[row, : i + 1]
        tokens = BATCH.tokens.copy()
        tokens[row, place] = SPECIAL + 1
        changed = example._replace(inputs=jnp.asarray(tokens), weights=jnp.asarray(probe))
        before = run(example._replace(weights=jnp.asarray(probe)))[f"loss_ahead_{depth}"]
        after = run(changed)[f"loss_ahead_{depth}"]
        np.testing.assert_array_equal(before.total, after.total)
        # One token earlier is read by this depth, and moves the score at i.
        tokens[row, place - 1] = SPECIAL + 2
        moved = run(changed._replace(inputs=jnp.asarray(tokens)))[f"loss_ahead_{depth}"]
        assert moved.total != before.total


def test_the_first_term_is_that_of_clm_and_the_others_are_averaged():
    objective = MTP(depth=2, ahead_weight=0.6).bind(BACKBONE, VOCAB)
    assert objective.coefficients(None) == {
        "next_loss": 1.0,
        "loss_ahead_1": 0.3,
        "loss_ahead_2": 0.3,
    }
    params = objective.init(jax.random.key(0))

    def ahead(params):
        return objective.loss(params, example, None, train=False, progress=None)["loss_ahead_2"][0]

    plain = dataclasses.replace(MTP(depth=1).bind(BACKBONE, VOCAB))
    example = objective.corrupt(None, BATCH, train=False, progress=None)
    # The second module reads what the first one gives.
    chain = jax.jit(jax.grad(ahead))(params)["loss_ahead_1"]
    assert all(float(jnp.abs(leaf).sum()) > 0 for leaf in jax.tree.leaves(chain))
    both = [
        jax.jit(partial(o.loss, train=False, progress=None))(params, example, None)
        for o in (objective, plain)
    ]
    np.testing.assert_array_equal(both[0]["next_loss"], both[1]["next_loss"])
