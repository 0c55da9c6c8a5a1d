"""Linear probes: what a linear model reads off the vectors of a frozen backbone.

Classes are told apart by logistic regression, numbers by ridge regression, both of scikit-learn, on
standardised vectors. A pair of texts is ``[u, v, |u - v|, u * v]`` of its two vectors (SentEval:
Conneau & Kiela 2018, arXiv:1803.05449).
"""

from collections.abc import Sequence

import numpy as np

from jaxpretrain.evaluation.measures import score
from jaxpretrain.report.results import Shuffled

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)  # inverse of the regularisation, chosen on the dev rows
SHUFFLES = 10
# Of the interval over shuffles: wide, since it is asked of each cell and task of an ablation.
SURE = 0.999


def joined(vectors: Sequence[np.ndarray]) -> np.ndarray:
    """Vectors of one text ``[rows, width]``, or of a pair ``[rows, 4 width]``."""
    if len(vectors) == 1:
        return vectors[0]
    u, v = vectors
    return np.concatenate([u, v, np.abs(u - v), u * v], axis=1)


def fitted(x: np.ndarray, y: np.ndarray, *, classes: bool, strength: float):
    """A fitted pipeline of scikit-learn's with ``predict``.

    Args:
        x: ``[rows, features]``.
        y: class numbers or numbers, ``[rows]``.
        classes: which of the two.
        strength: the inverse of the regularisation.
    """
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if classes and len(np.unique(y)) < 2:  # a small draw: nothing to tell apart
        from sklearn.dummy import DummyClassifier

        return DummyClassifier().fit(x, y)
    model = (
        LogisticRegression(C=strength, max_iter=200, tol=1e-3)
        if classes
        else Ridge(alpha=1 / strength)
    )
    return make_pipeline(StandardScaler(), model).fit(x, y)


def probed(
    train: tuple[np.ndarray, np.ndarray],
    dev: tuple[np.ndarray, np.ndarray],
    test: np.ndarray,
    *,
    metric: str,
    classes: bool,
) -> tuple[np.ndarray, float]:
    """Predictions on the test rows, with the regularisation that is best on the dev rows.

    Args:
        train: vectors and labels.
        dev: the same; without rows, the middle strength is taken.
        test: vectors.
        metric: to choose by.
        classes: whether the labels are classes.

    Returns:
        Predictions ``[rows]`` and the strength.
    """
    tried = {}
    for strength in STRENGTHS if len(dev[1]) else STRENGTHS[1:2]:
        model = fitted(*train, classes=classes, strength=strength)
        value = score(metric, dev[1], model.predict(dev[0])) if len(dev[1]) else 0.0
        tried[strength] = value, model
    best = max(tried, key=lambda strength: tried[strength][0])
    return tried[best][1].predict(test), best


def shuffled(
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    *,
    classes: bool,
    strength: float,
    seed: int = 0,
) -> Shuffled:
    """The probe with its training labels shuffled, which can learn nothing but what leaks.

    Measured by balanced accuracy, whose expectation is one by the number of classes where each has
    as many of the shuffled rows (the rest are left out); numbers by Pearson's correlation, 0. The
    interval is that of Student's t over the shuffles, at 99.9 %.
    """
    from scipy import stats

    rng = np.random.default_rng(seed)
    metric = "balanced_accuracy" if classes else "pearson"
    values = []
    for _ in range(SHUFFLES):
        x, y = train[0], rng.permutation(train[1])
        if classes:
            each = np.bincount(y)
            fewest = each[each > 0].min()
            kept = np.concatenate([np.flatnonzero(y == c)[:fewest] for c in np.flatnonzero(each)])
            x, y = x[kept], y[kept]
        model = fitted(x, y, classes=classes, strength=strength)
        values.append(score(metric, test[1], model.predict(test[0])))
    mean, error = float(np.mean(values)), float(stats.sem(values))
    half = float(stats.t.ppf(0.5 + SURE / 2, SHUFFLES - 1)) * error
    chance = 1 / len(np.unique(train[1])) if classes else 0.0
    low, high = mean - half, mean + half
    return Shuffled(
        mean=mean,
        low=low,
        high=high,
        chance=chance,
        at_chance=bool(low - 1e-9 <= chance <= high + 1e-9),
    )
