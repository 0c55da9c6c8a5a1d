"""The numbers of downstream tasks: metrics by well-kept libraries, and bootstrap intervals."""

import re
import string
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

RESAMPLES = 1000  # of the bootstrap


def score(metric: str, truth: np.ndarray, predicted: np.ndarray, *, classes: int = 0) -> float:
    """A metric of predictions; the higher, the better.

    Args:
        metric: "accuracy"; "f1", of class 1 where there are two classes, else the mean over classes
            (macro); "matthews" correlation; "balanced_accuracy"; "pearson" or "spearman"
            correlation, 0 where all predictions are the same.
        truth: class numbers or numbers, ``[rows]``.
        predicted: the same of the model.
        classes: how many there are, where these rows may not have all of them; 0 counts them here.
    """
    from scipy import stats
    from sklearn import metrics

    if metric in ("pearson", "spearman"):
        if len(set(np.asarray(predicted).tolist())) < 2 or len(set(np.asarray(truth).tolist())) < 2:
            return 0.0
        function = stats.pearsonr if metric == "pearson" else stats.spearmanr
        return float(function(truth, predicted).statistic)
    if metric == "f1":
        two = (classes or max(np.max(truth), np.max(predicted)) + 1) <= 2
        average = "binary" if two else "macro"
        return float(metrics.f1_score(truth, predicted, average=average, zero_division=0))
    function = {
        "accuracy": metrics.accuracy_score,
        "balanced_accuracy": metrics.balanced_accuracy_score,
        "matthews": metrics.matthews_corrcoef,
    }[metric]
    with warnings.catch_warnings():  # of classes that a resample has not
        warnings.simplefilter("ignore", UserWarning)
        return float(function(truth, predicted))


def resampled(
    statistic: Callable[[int, np.ndarray], float], seeds: int, rows: int, *, resamples=RESAMPLES
) -> np.ndarray:
    """A statistic, mean over seeds, on rows drawn with replacement (Efron 1979), with the noise of
    the seeds.

    The rows that are drawn depend on how many there are and on nothing else: two models on the same
    rows have the same draws, so that the differences of what comes out are those of paired rows.

    Args:
        statistic: of a seed, by number, on rows, by number.
        seeds: how many.
        rows: how many.
        resamples: how many draws.

    Returns:
        float64 ``[resamples]``.
    """
    rng = np.random.default_rng(rows)
    found = np.zeros(resamples)
    for number in range(resamples):
        chosen = rng.integers(0, rows, rows)
        found[number] = np.mean([statistic(seed, chosen) for seed in range(seeds)])
    every = np.arange(rows)
    return found + noise_of([statistic(seed, every) for seed in range(seeds)], resamples)


def noise_of(values: Sequence[float], resamples: int = RESAMPLES) -> np.ndarray:
    """Draws of the error that the mean of a few values has: Student's t times the standard error.

    Drawing a few seeds with replacement would make far too little of it. Each call has draws of its
    own, as the seeds of two models are, which follow from the values.

    Returns:
        float64 ``[resamples]``, 0 for one value, whose error is unknown.
    """
    if len(values) < 2:
        return np.zeros(resamples)
    values = np.asarray(values, np.float64)
    rng = np.random.default_rng(zlib.crc32(values.tobytes()))
    error = values.std(ddof=1) / np.sqrt(len(values))
    return error * rng.standard_t(len(values) - 1, resamples)


def interval(replicates: np.ndarray, share: float = 0.95) -> tuple[float, float]:
    """The percentile interval of what `resampled` gives."""
    low, high = np.percentile(replicates, [50 * (1 - share), 50 * (1 + share)])
    return float(low), float(high)


def squad_normalised(text: str) -> list[str]:
    """Words of an answer without case, punctuation and articles, as SQuAD compares them."""
    bare = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


def exact_match(predicted: str, answers: Sequence[str]) -> float:
    """1 where the prediction is one of the answers, but for case, punctuation and articles, else 0
    (SQuAD: Rajpurkar et al. 2016, arXiv:1606.05250; no answers: 2018, arXiv:1806.03822).

    Args:
        predicted: "" says that there is no answer.
        answers: those of several people; none where there is no answer.
    """
    found = squad_normalised(predicted)
    return float(any(found == squad_normalised(answer) for answer in answers or [""]))


def answer_f1(predicted: str, answers: Sequence[str]) -> float:
    """F1 of the words that prediction and answer share, the best over the answers; see
    `exact_match`."""
    return max(_overlap(squad_normalised(predicted), squad_normalised(a)) for a in answers or [""])


def _overlap(found: list[str], answer: list[str]) -> float:
    if not found or not answer:
        return float(found == answer)
    shared = sum((Counter(found) & Counter(answer)).values())
    return 2 * shared / (len(found) + len(answer))
