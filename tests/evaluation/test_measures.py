"""Metrics and bootstrap intervals, against libraries, counting, and SQuAD's definition."""

import random
import string

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from jaxpretrain.evaluation.measures import (
    answer_f1,
    exact_match,
    interval,
    noise_of,
    resampled,
    score,
)


def confusion(truth, predicted):
    """Counts by true and predicted class, over all that occur."""
    classes = sorted({*truth.tolist(), *predicted.tolist()})
    pairs = list(zip(truth.tolist(), predicted.tolist(), strict=True))
    return np.array([[pairs.count((a, b)) for b in classes] for a in classes], float)


def f1_by_class(counts):
    hits = np.diag(counts)
    return 2 * hits / np.maximum(counts.sum(0) + counts.sum(1), 1)


def matthews(counts):
    """Of Gorodkin (2004), from the sums of the confusion matrix."""
    total, hits, t, p = counts.sum(), np.trace(counts), counts.sum(1), counts.sum(0)
    below = (total**2 - p @ p) * (total**2 - t @ t)
    return (hits * total - t @ p) / below**0.5 if below else 0.0


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_scores_of_classes_are_scikit_learn_s_and_those_of_counting(classes):
    rng = np.random.default_rng(classes)
    for rows in (30, 200):
        truth = rng.integers(0, classes, rows)
        predicted = np.where(rng.random(rows) < 0.6, truth, rng.integers(0, classes, rows))
        counts = confusion(truth, predicted)
        assert score("accuracy", truth, predicted) == np.mean(truth == predicted)
        assert score("accuracy", truth, predicted) == metrics.accuracy_score(truth, predicted)
        found = score("matthews", truth, predicted)
        assert found == pytest.approx(metrics.matthews_corrcoef(truth, predicted))
        assert found == pytest.approx(matthews(counts))
        found = score("balanced_accuracy", truth, predicted)
        assert found == pytest.approx(metrics.balanced_accuracy_score(truth, predicted))
        assert found == pytest.approx(np.mean(np.diag(counts) / counts.sum(1)))
        average = "binary" if classes == 2 else "macro"
        by_class = f1_by_class(counts)
        found = score("f1", truth, predicted)
        assert found == pytest.approx(metrics.f1_score(truth, predicted, average=average))
        assert found == pytest.approx(by_class[1] if classes == 2 else by_class.mean())


def test_f1_of_two_classes_is_that_of_class_1():
    truth, predicted = np.array([1, 1, 1, 0, 0, 0, 0, 0]), np.array([1, 0, 0, 1, 0, 0, 0, 0])
    assert score("f1", truth, predicted) == pytest.approx(2 * 1 / (3 + 2))
    assert score("f1", truth, 0 * truth) == 0.0


def test_correlations_are_scipy_s_and_those_of_their_definitions():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 12, 80) / 2  # with ties
    predicted = truth**3 + rng.normal(size=80) * 30

    def pearson(a, b):
        a, b = a - a.mean(), b - b.mean()
        return (a @ b) / np.sqrt((a @ a) * (b @ b))

    def ranks(x):
        """The mean of the places that equal values share."""
        return np.array([np.sum(x < v) + (np.sum(x == v) + 1) / 2 for v in x])

    assert score("pearson", truth, predicted) == pytest.approx(pearson(truth, predicted))
    assert score("pearson", truth, predicted) == stats.pearsonr(truth, predicted).statistic
    expected = pearson(ranks(truth), ranks(predicted))
    assert score("spearman", truth, predicted) == pytest.approx(expected)
    assert score("spearman", truth, predicted) == stats.spearmanr(truth, predicted).statistic
    assert score("spearman", truth, np.exp(truth)) == pytest.approx(1)
    assert score("pearson", truth, -2 * truth + 1) == pytest.approx(-1)


@pytest.mark.parametrize("metric", ["pearson", "spearman", "matthews"])
def test_the_correlation_of_a_constant_is_0_without_a_warning(metric, recwarn):
    truth, same = np.array([0, 1, 1, 0]), np.ones(4, int)
    assert score(metric, truth, same) == score(metric, same, truth) == 0.0
    assert not [w for w in recwarn if issubclass(w.category, RuntimeWarning)]


# SQuAD's comparison, from the papers' words: answers are compared without punctuation and articles;
# F1 is that of bags of words, the maximum over the answers; what cannot be answered has the empty
# answer, which nothing but an empty prediction agrees with.


def words_of(text):
    kept = [c for c in text.lower() if c not in string.punctuation]
    words, word = [], ""
    for c in [*kept, " "]:
        if c.isspace():
            words, word = words + [word] if word else words, ""
        else:
            word += c
    return [w for w in words if w not in ("a", "an", "the")]


def squad_exact(predicted, answers):
    return float(words_of(predicted) in [words_of(a) for a in answers or [""]])


def squad_f1(predicted, answers):
    best = 0.0
    for answer in answers or [""]:
        p, a = words_of(predicted), words_of(answer)
        rest, shared = list(a), 0
        for word in p:
            if word in rest:
                rest.remove(word)
                shared += 1
        if not p or not a:
            found = float(p == a)
        elif not shared:
            found = 0.0
        else:
            precision, recall = shared / len(p), shared / len(a)
            found = 2 * precision * recall / (precision + recall)
        best = max(best, found)
    return best


@pytest.mark.parametrize(
    ("predicted", "answers", "exact", "f1"),
    [
        ("The Eiffel Tower!", ["eiffel tower"], 1, 1),
        ("U.S.A.", ["USA"], 1, 1),
        ("U S A", ["USA"], 0, 0),
        ("sofa", ["sof"], 0, 0),  # no word, but the end of one
        ("another an anthem", ["another anthem"], 1, 1),
        ("  two\n words ", ["two words"], 1, 1),
        ("words two", ["two words"], 0, 1),
        ("Café Ünder", ["café ünder"], 1, 1),
        ("“quoted”", ["quoted"], 0, 0),  # only the punctuation of ASCII is left out
        ("mother-in-law", ["motherinlaw"], 1, 1),
        ("to be or to be", ["to be"], 0, 2 * (2 / 5) / (2 / 5 + 1)),
        ("to be", ["to to be"], 0, 0.8),
        ("b c", ["x", "b d", "b c e"], 0, 0.8),
        ("", [], 1, 1),
        ("something", [], 0, 0),
        ("", ["something"], 0, 0),
        ("the", [], 1, 1),
    ],
    ids=str,
)
def test_answers_are_compared_as_squad_compares_them(predicted, answers, exact, f1):
    assert exact_match(predicted, answers) == exact == squad_exact(predicted, answers)
    assert answer_f1(predicted, answers) == pytest.approx(f1)
    assert squad_f1(predicted, answers) == pytest.approx(f1)


def test_thousands_of_random_answers_are_compared_as_squad_compares_them():
    rng = random.Random(0)
    words = [
        "a",
        "The",
        "AN",
        "cat",
        "Cat's",
        "dog,",
        "(dog)",
        "é",
        "漢字",
        "x-y",
        ".",
        "3.5",
        "ana",
    ]

    def text():
        return rng.choice([" ", "  ", "\n"]).join(rng.choices(words, k=rng.choice([0, 1, 2, 3, 5])))

    for _ in range(4000):
        predicted, answers = text(), [text() for _ in range(rng.choice([0, 1, 1, 2, 3]))]
        assert exact_match(predicted, answers) == squad_exact(predicted, answers)
        found = answer_f1(predicted, answers)
        assert found == pytest.approx(squad_f1(predicted, answers)), (predicted, answers)


@pytest.mark.parametrize("rows", [40, 300])
def test_the_spread_of_resampled_means_is_the_standard_error(rows):
    values = np.random.default_rng(rows).exponential(size=rows)
    found = resampled(lambda seed, chosen: values[chosen].mean(), 1, rows, resamples=4000)
    error = values.std() / rows**0.5  # of the bootstrap: the spread with n, not n - 1
    # The spread of B draws is known to one part in sqrt(2 B), and more with heavy tails.
    assert found.std() == pytest.approx(error, rel=5 / (2 * 4000) ** 0.5)
    assert found.mean() == pytest.approx(values.mean(), abs=5 * error / 4000**0.5)


def test_few_seeds_have_the_interval_of_student_s_t():
    by_seed = np.array([0.1, 0.5, 0.2, 0.9])
    found = resampled(lambda seed, _: by_seed[seed], 4, 10, resamples=20_000)
    expected = stats.t.interval(0.95, 3, by_seed.mean(), stats.sem(by_seed))
    assert interval(found) == pytest.approx(expected, abs=0.05)
    # The rows' noise is beside it: the wider of the two decides.
    values = 10 * np.random.default_rng(0).normal(size=50)
    both = resampled(lambda s, rows: by_seed[s] + values[rows].mean(), 4, 50, resamples=4000)
    rows_alone = resampled(lambda s, rows: values[rows].mean(), 1, 50, resamples=4000)
    assert np.ptp(interval(both)) == pytest.approx(np.ptp(interval(rows_alone)), rel=0.08)
    assert not noise_of([0.3]).any()


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_two_models_that_are_equal_are_seldom_told_apart(seeds):
    """The noise of the seeds is many times that of the rows; 5 % is what is promised."""
    rng = np.random.default_rng(seeds)
    told = 0
    for _ in range(300):
        a, b = (noise_of(v) + v.mean() for v in rng.normal(size=(2, seeds)))
        low, high = interval(a - b)
        told += low > 0 or high < 0
    assert told / 300 < 0.05 + 3 * (0.05 * 0.95 / 300) ** 0.5


def test_two_models_on_the_same_rows_meet_the_same_draws():
    values = np.random.default_rng(0).normal(size=60)

    def of(shift):
        return resampled(lambda _, chosen: float(values[chosen].mean()) + shift, 1, 60)

    assert interval(of(0.0) - of(0.0)) == (0.0, 0.0)
    assert interval(of(1.0) - of(0.0)) == pytest.approx((1.0, 1.0))
    assert len(of(0.0)) == 1000 and of(0.0).std() > 0


def test_intervals_hold_the_mean_as_often_as_they_say():
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        values = rng.normal(size=50)
        replicates = resampled(lambda _, chosen: values[chosen].mean(), 1, 50, resamples=200)  # noqa: B023
        # All samples have the same draws, so each is shuffled, which changes nothing else.
        low, high = interval(replicates)
        held += low <= 0 <= high
    # The percentile interval of 50 rows covers about 94 %; five standard deviations around it.
    assert 0.94 - 5 * (0.94 * 0.06 / 200) ** 0.5 < held / 200 < 0.995


def test_the_interval_is_that_of_the_middle_share():
    assert interval(np.arange(1001.0)) == pytest.approx((25, 975))
    assert interval(np.arange(1001.0), 0.5) == pytest.approx((250, 750))


def test_a_resample_without_the_third_class_still_has_the_mean_over_classes():
    truth, found = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])
    of_each = [2 / 3, 4 / 5]  # F1 by counting: 2 hits / (2 hits + errors)
    assert score("f1", truth, found) == pytest.approx(of_each[1])
    assert score("f1", truth, found, classes=2) == pytest.approx(of_each[1])
    assert score("f1", truth, found, classes=3) == pytest.approx(np.mean(of_each))
