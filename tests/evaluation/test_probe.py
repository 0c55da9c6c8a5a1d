"""Probes on made vectors, of which it is known what a linear model reads off them."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from jaxpretrain.evaluation import probe
from jaxpretrain.evaluation.measures import score
from jaxpretrain.evaluation.probe import fitted, joined, probed, shuffled

WIDTH = 12


def made(classes, rows=400, seed=0, noise=0.0):
    """Vectors of which a linear function is the label: the largest of some, or one number."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, WIDTH)) * rng.uniform(0.01, 100, WIDTH) + rng.normal(size=WIDTH)
    scaled = (x - x.mean(0)) / x.std(0)
    weights = np.random.default_rng(9).normal(size=(WIDTH, max(classes, 1)))
    scores = scaled @ weights + noise * rng.normal(size=(rows, max(classes, 1)))
    return x, (scores.argmax(1) if classes else scores[:, 0])


def parts(x, y):
    return (x[:200], y[:200]), (x[200:300], y[200:300]), (x[300:], y[300:])


@pytest.mark.parametrize("classes", [2, 4])
def test_a_linear_label_is_read_off_whatever_the_scales(classes):
    train, dev, test = parts(*made(classes))
    found, strength = probed(train, dev, test[0], metric="accuracy", classes=True)
    assert np.mean(found == test[1]) >= 0.85 and strength == 1.0
    assert set(found.tolist()) <= set(range(classes))


def test_numbers_are_those_of_ridge_regression_in_closed_form():
    train, dev, test = parts(*made(0, noise=0.1))
    found, strength = probed(train, dev, test[0], metric="pearson", classes=False)
    assert score("pearson", test[1], found) > 0.98
    mean, spread, level = train[0].mean(0), train[0].std(0), train[1].mean()
    x = (train[0] - mean) / spread
    w = np.linalg.solve(x.T @ x + np.eye(WIDTH) / strength, x.T @ (train[1] - level))
    np.testing.assert_allclose(found, (test[0] - mean) / spread @ w + level, rtol=1e-6)


def test_classes_are_those_of_logistic_regression_called_directly():
    train, dev, test = parts(*made(3, noise=1.0))
    found, strength = probed(train, dev, test[0], metric="accuracy", classes=True)
    mean, spread = train[0].mean(0), train[0].std(0)
    values = {}
    for c in probe.STRENGTHS:
        model = LogisticRegression(C=c, tol=1e-8, max_iter=2000)
        model.fit((train[0] - mean) / spread, train[1])
        values[c] = np.mean(model.predict((dev[0] - mean) / spread) == dev[1]), model
    assert values[strength][0] >= max(value for value, _ in values.values()) - 0.011
    direct = values[strength][1].predict((test[0] - mean) / spread)
    assert np.mean(direct == found) > 0.98


def test_the_strength_is_the_best_on_the_dev_rows_by_the_metric_and_without_them_fixed():
    """With noise only in the training labels, less strength is better; the dev rows decide."""
    rng = np.random.default_rng(0)
    x, y = made(0, rows=90)
    wide = np.concatenate([x, rng.normal(size=(90, 60))], axis=1)
    y = y + rng.normal(size=90)
    train, dev, test = (wide[:70], y[:70]), (wide[70:80], y[70:80]), wide[80:]
    found, strength = probed(train, dev, test, metric="pearson", classes=False)
    values = {
        s: score("pearson", dev[1], fitted(*train, classes=False, strength=s).predict(dev[0]))
        for s in probe.STRENGTHS
    }
    assert values[strength] == max(values.values()) > min(values.values())
    np.testing.assert_array_equal(
        found, fitted(*train, classes=False, strength=strength).predict(test)
    )
    nothing = np.zeros((0, 1)), np.zeros(0)
    _, strength = probed(train, nothing, test, metric="pearson", classes=False)
    assert strength == 1e-2


@pytest.mark.parametrize("classes", [2, 4, 0])
def test_shuffled_labels_of_informative_vectors_are_at_chance(classes):
    train, _, test = parts(*made(classes))
    found = shuffled(train, test, classes=bool(classes), strength=1.0)
    assert found["chance"] == (1 / classes if classes else 0.0)
    assert found["at_chance"] and found["low"] <= found["chance"] <= found["high"]
    # A random direction of 12 has a cosine of about 1 / sqrt(12) with the right one.
    assert abs(found["mean"] - found["chance"]) < (0.1 if classes else 3 / (12 * 10) ** 0.5)
    assert found == shuffled(train, test, classes=bool(classes), strength=1.0)
    assert found != shuffled(train, test, classes=bool(classes), strength=1.0, seed=1)


@pytest.mark.parametrize("classes", [2, 0])
def test_shuffled_labels_that_leak_are_not_at_chance(classes, monkeypatch):
    """A generator that hardly shuffles: only a tenth of the labels change their place."""

    class Lazy:
        def __init__(self, seed):
            self.rng = np.random.Generator(np.random.PCG64(seed))

        def permutation(self, y):
            y = y.copy()
            some = self.rng.choice(len(y), len(y) // 10, replace=False)
            y[some] = y[np.sort(some)]
            return y

    train, _, test = parts(*made(classes))
    monkeypatch.setattr(probe.np.random, "default_rng", Lazy)
    found = shuffled(train, test, classes=bool(classes), strength=1.0)
    assert not found["at_chance"] and found["low"] > found["chance"]


def test_the_interval_over_shuffles_is_student_s(monkeypatch):
    train, _, test = parts(*made(2))
    values = []
    real = probe.score
    monkeypatch.setattr(probe, "score", lambda *a: values.append(real(*a)) or values[-1])
    found = shuffled(train, test, classes=True, strength=1.0)
    assert len(values) == 10 and found["mean"] == pytest.approx(np.mean(values))
    half = 4.780913 * np.std(values, ddof=1) / 10**0.5  # t of 9 degrees of freedom, 99.9 % inside
    assert found["high"] - found["mean"] == pytest.approx(half, rel=1e-6)
    assert found["mean"] - found["low"] == pytest.approx(half, rel=1e-6)


def test_balanced_accuracy_makes_chance_the_same_for_rare_classes():
    x, y = made(2)
    y = (np.arange(400) % 10 == 0).astype(int)
    found = shuffled(*(parts(x, y)[i] for i in (0, 2)), classes=True, strength=1.0)
    assert found["at_chance"] and found["chance"] == 0.5 and found["mean"] < 0.65


def test_a_pair_is_both_vectors_their_distance_and_their_product():
    u, v = np.array([[1.0, -2.0], [0.5, 4.0]]), np.array([[3.0, 5.0], [2.0, 0.0]])
    expected = [[1, -2, 3, 5, 2, 7, 3, -10], [0.5, 4, 2, 0, 1.5, 4, 1, 0]]
    np.testing.assert_array_equal(joined([u, v]), expected)
    np.testing.assert_array_equal(joined([u]), u)


def test_whether_two_vectors_are_near_is_read_off_a_pair_and_not_off_each():
    rng = np.random.default_rng(0)
    u = rng.normal(size=(400, WIDTH))
    y = np.arange(400) % 2
    v = np.where(y[:, None] == 1, u + 0.3 * rng.normal(size=u.shape), rng.normal(size=u.shape))
    for x, low, high in ((joined([u, v]), 0.95, 1.0), (np.hstack([u, v]), 0.3, 0.7)):
        train, dev, test = parts(x, y)
        found, _ = probed(train, dev, test[0], metric="accuracy", classes=True)
        assert low <= np.mean(found == test[1]) <= high


def test_the_same_rows_give_the_same_predictions():
    train, dev, test = parts(*made(3, noise=1.0))
    one, two = (probed(train, dev, test[0], metric="accuracy", classes=True) for _ in range(2))
    np.testing.assert_array_equal(one[0], two[0])
    assert one[1] == two[1]


def test_one_class_alone_in_a_small_draw_is_predicted_everywhere():
    x = np.random.default_rng(0).normal(size=(5, 3))
    found, _ = probed((x, np.full(5, 2)), (x, np.arange(5) % 3), x, metric="f1", classes=True)
    assert found.tolist() == [2] * 5
