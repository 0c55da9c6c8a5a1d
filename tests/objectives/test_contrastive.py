"""Contrastive objectives: views, the loss against NumPy, and negatives from every device."""

import dataclasses
from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxpretrain.corruption.crops import random_crop
from jaxpretrain.errors import UserError
from jaxpretrain.losses import info_nce
from jaxpretrain.objectives.contrastive import pool
from jaxpretrain.objectives.crops import Crops
from jaxpretrain.objectives.simcse import SimCSE
from jaxpretrain.sharding import Placement, make_mesh
from support import masks_reference as reference
from support.small import SPECIAL, document_rows, small_backbone, small_vocab

VOCAB = small_vocab()
KEY = jax.random.key(3)
BACKBONE = small_backbone(VOCAB, layers=1, dropout=0.1, scan_layers="off")


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("hard", [0, 2])
def test_info_nce_is_that_of_the_reference(symmetric, hard):
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, 7, 5)).astype(np.float32)
    negatives = rng.normal(size=(7, hard, 5)).astype(np.float32) if hard else None
    valid = np.array([1, 1, 0, 1, 1, 1, 0], np.float32)

    def unit(x):
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    total, weight = reference.info_nce(
        unit(q),
        unit(k),
        0.2,
        valid > 0,
        hard=unit(negatives) if hard else None,
        symmetric=symmetric,
    )
    found = info_nce(q, k, valid, temperature=0.2, hard_negatives=negatives, symmetric=symmetric)
    np.testing.assert_allclose(found["loss"].total, total, rtol=1e-5)
    assert found["loss"].weight == weight == 5
    cosines, rows = (unit(q) @ unit(k).T)[valid > 0][:, valid > 0], np.eye(5, dtype=bool)
    np.testing.assert_allclose(found["positive_cosine"].mean(), cosines[rows].mean(), rtol=1e-5)
    np.testing.assert_allclose(found["negative_cosine"].mean(), cosines[~rows].mean(), rtol=1e-5)
    best = cosines.max(1)
    if hard:
        best = np.maximum(best, (unit(q) @ unit(negatives)[valid > 0].reshape(-1, 5).T)
                          [valid > 0].max(1))  # fmt: skip
    assert found["accuracy"].total == (cosines[rows] == best).sum()


def loss_and_gradient(devices, **settings):
    """Of crops with a copy that is a hard negative, dropout on."""
    mesh = make_mesh(data=devices, devices=jax.devices()[:devices])
    objective = Crops(longest=0.9, hard_negatives=1, **settings).bind(BACKBONE, VOCAB)
    params = objective.init(jax.random.key(0))

    def loss(params, batch):
        example, keys = objective.example(batch, KEY, train=True, progress=None)
        return objective.loss(params, example, keys, train=True, progress=None)["loss"].mean()

    # Some rows are empty, so that it matters which vectors are of which row.
    batch = jax.device_put(document_rows(0, VOCAB, rows=8, length=10), Placement(mesh).batch)
    return jax.device_get(jax.jit(jax.value_and_grad(loss))(params, batch))


@pytest.fixture(scope="module")
def whole():
    return loss_and_gradient(devices=1)


def assert_same(one, other):
    np.testing.assert_allclose(one[0], other[0], rtol=1e-5)
    # Cosines over a temperature of 0.05: gradients of order 10, float32 rounding of some terms.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), one[1], other[1])


def test_negatives_cross_devices_and_so_do_their_gradients(whole):
    """With simcse, tests/test_sharding.py."""
    assert_same(whole, loss_and_gradient(devices=8))
    # On its own device each row would find itself alone.
    assert whole[0] > 0.1


def test_chunks_change_nothing(whole):
    assert_same(whole, loss_and_gradient(devices=1, chunks=4))


@pytest.mark.parametrize(
    "objective",
    [SimCSE(hard_negatives=2, temperature=0.3), Crops(hard_negatives=1, symmetric=False)],
    ids=lambda o: o.name,
)
def test_the_loss_is_that_of_the_query_the_key_and_the_hard_negatives(objective):
    bound = objective.bind(BACKBONE, VOCAB)
    params = bound.init(jax.random.key(0))

    @jax.jit
    def run(params, batch):
        example, keys = bound.example(batch, KEY, train=True, progress=None)
        sums = bound.loss(params, example, keys, train=True, progress=None)
        return example.weights, bound.vectors(params, example, keys), sums["loss"]

    weights, vectors, found = run(params, document_rows(5, VOCAB, rows=8, length=16))
    vectors = np.asarray(vectors, np.float64)
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-30)
    total, weight = reference.info_nce(
        unit[:, 0],
        unit[:, 1],
        objective.temperature,
        np.asarray(weights) > 0,
        hard=unit[:, 2:],
        symmetric=objective.symmetric,
    )
    np.testing.assert_allclose(found.total, total, rtol=1e-4)
    assert found.weight == weight > 0


def test_dropout_alone_tells_the_two_passes_of_simcse_apart_held_out_too():
    objective = SimCSE().bind(BACKBONE, VOCAB)
    params = objective.init(jax.random.key(0))

    @jax.jit
    def run(params, batch):
        example, keys = objective.example(batch, KEY, train=False, progress=None)
        sums = objective.loss(params, example, keys, train=False, progress=None)
        vectors = [objective.vectors(params, example, keys=x) for x in (keys, None)]
        return *vectors, sums["positive_cosine"].mean()

    batch = document_rows(3, VOCAB, rows=8, length=10, full=True)
    vectors, still, cosine = jax.device_get(run(params, batch))
    assert not np.allclose(vectors[:, 0], vectors[:, 1], atol=1e-3)
    np.testing.assert_allclose(still[:, 0], still[:, 1], atol=1e-6)
    assert 0 < cosine < 0.999


def views(objective, batch, *, train=True):
    make = jax.jit(partial(objective.bind(BACKBONE, VOCAB).corrupt, train=train, progress=None))
    keys = jax.random.split(KEY, len(batch.tokens))
    return jax.tree.map(np.asarray, make(keys, batch))


def test_views_are_enclosed_texts_crops_and_corrupted_copies():
    batch = document_rows(2, VOCAB, rows=200, length=16)
    lengths = batch.segments.sum(1)
    for objective in (SimCSE(hard_negatives=2), Crops(delete=0.0)):
        found, changes = views(objective, batch), []
        for row in range(200):
            text = batch.tokens[row, : lengths[row]].tolist()
            if not text:
                assert found.weights[row] == 0 and not found.segments[row].any()
                continue
            for view in range(found.inputs.shape[1]):
                tokens = found.inputs[row, view][found.segments[row, view] > 0].tolist()
                assert tokens[0] == VOCAB.cls and tokens[-1] == VOCAB.sep
                inner = tokens[1:-1]
                if objective.name == "crops":
                    assert any(text[i : i + len(inner)] == inner for i in range(len(text)))
                    assert 1 <= len(inner) <= max(1, len(text) / 2)
                elif view < 2:
                    assert inner == text
                else:  # a copy with 30% of the tokens replaced, by themselves at times
                    changed = sum(a != b for a, b in zip(inner, text, strict=True))
                    assert len(inner) == len(text) and changed <= np.ceil(0.3 * len(text))
                    changes.append(changed / np.ceil(0.3 * len(text)))
        if changes:  # a random token is the original once in 48 times
            assert np.mean(changes) > 0.9
            assert (found.inputs[:, 2] != found.inputs[:, 3]).any(1).mean() > 0.8


def test_crops_have_the_distribution_of_the_paper():
    n, draws = 12, 6000
    tokens = jnp.arange(20, dtype=jnp.int32) + SPECIAL
    crop = partial(random_crop, shortest=0.05, longest=0.5, delete=0.0, fill=0)
    make = jax.jit(jax.vmap(lambda key: crop(key, tokens, jnp.int32(n), 10)))
    found, counts = make(jax.random.split(KEY, draws))
    seen = Counter(
        (int(c), int(row[0]) - SPECIAL)
        for row, c in zip(np.asarray(found), np.asarray(counts), strict=True)
    )
    expected = {k: float(p) for k, p in reference.crop_distribution(n).items() if p > 1e-9}
    assert set(seen) <= set(expected)
    keys = list(expected)
    odds = np.array([expected[key] for key in keys])
    assert stats.chisquare([seen[key] for key in keys], odds / odds.sum() * draws).pvalue > 1e-3
    deleting = jax.jit(
        jax.vmap(lambda key: random_crop(
            key, tokens, jnp.int32(20), 20, shortest=1.0, longest=1.0, delete=0.1, fill=0
        )[1])
    )  # fmt: skip
    kept = np.asarray(deleting(jax.random.split(KEY, draws)))
    assert abs(kept.mean() - 18) < 5 * np.sqrt(20 * 0.09 / draws)


def test_pooling():
    hidden = jnp.arange(24, dtype=jnp.float32).reshape(2, 4, 3)
    segments = jnp.array([[1, 1, 1, 0], [1, 1, 1, 1]])
    np.testing.assert_array_equal(pool(hidden, segments, "cls"), hidden[:, 0])
    np.testing.assert_array_equal(pool(hidden, segments, "last"), [hidden[0, 2], hidden[1, 3]])
    np.testing.assert_allclose(
        pool(hidden, segments, "mean"), [hidden[0, :3].mean(0), hidden[1].mean(0)]
    )
    assert SimCSE(pooling="last").visibility == "causal"
    assert SimCSE(pooling="cls").visibility == "full"


def test_what_cannot_work_is_refused():
    still = small_backbone(VOCAB)
    with pytest.raises(UserError, match="model.dropout is 0"):
        SimCSE().bind(still, VOCAB)
    bound = dataclasses.replace(Crops(chunks=3).bind(still, VOCAB))
    with pytest.raises(UserError, match="objective.chunks is 3"):
        bound.check_run(length=10, batch_size=8)
    with pytest.raises(UserError, match="make it at least 2"):
        bound.check_run(length=10, batch_size=1)
    with pytest.raises(UserError, match="temperature is 0"):
        Crops(temperature=0.0)
