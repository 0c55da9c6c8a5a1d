import numpy as np

from jaxpretrain.losses import accuracy, binary_cross_entropy, cross_entropy
from jaxpretrain.types import Sum


def test_cross_entropy_and_accuracy_are_their_definitions_in_float64():
    rng = np.random.default_rng(0)
    logits = (10 * rng.normal(size=(3, 5, 11))).astype(np.float32)
    targets, weights = rng.integers(0, 11, (3, 5)), rng.integers(0, 2, (3, 5)).astype(np.float32)
    exact = logits.astype(np.float64)
    p = np.exp(exact) / np.exp(exact).sum(-1, keepdims=True)
    nats = -np.log(np.take_along_axis(p, targets[..., None], -1)[..., 0])
    found = cross_entropy(logits, targets, weights)
    np.testing.assert_allclose(found.total, (nats * weights).sum(), rtol=1e-6)
    assert found.weight == weights.sum()
    hits = accuracy(logits, targets, weights)
    assert hits.total == ((exact.argmax(-1) == targets) * weights).sum()
    assert hits.weight == weights.sum()


def test_binary_cross_entropy_is_its_definition_in_float64():
    rng = np.random.default_rng(1)
    scores, labels = rng.uniform(-20, 20, (4, 6)).astype(np.float32), rng.random((4, 6)) < 0.5
    weights = rng.integers(0, 2, (4, 6)).astype(np.float32)
    p = 1 / (1 + np.exp(-scores.astype(np.float64)))
    nats = -np.log(np.where(labels, p, 1 - p))
    found = binary_cross_entropy(scores, labels, weights)
    np.testing.assert_allclose(found.total, (nats * weights).sum(), rtol=1e-5)
    assert found.weight == weights.sum()


def test_large_logits_do_not_overflow():
    found = cross_entropy(np.array([[3e4, -3e4]], np.float32), np.array([1]), np.ones(1))
    np.testing.assert_allclose(found.total, 6e4)


def test_a_sum_without_weight_has_mean_zero():
    assert Sum(np.float32(0), np.float32(0)).mean() == 0
    assert Sum(np.float32(3), np.float32(2)).mean() == 1.5
