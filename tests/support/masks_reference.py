"""Token-level corruptions and the contrastive loss in plain NumPy, one row at a time.

Written from the published definitions (replaced token detection: Clark et al. 2020,
arXiv:2003.10555; SpanBERT: Joshi et al. 2020, arXiv:1907.10529; Contriever's crops: Izacard et al.
2022, arXiv:2112.09118; masked diffusion: Sahoo et al. 2024, arXiv:2406.07524, Ou et al. 2024,
arXiv:2406.03736, Nie et al. 2025, arXiv:2502.09992; InfoNCE: van den Oord et al. 2018,
arXiv:1807.03748), without reference to the library.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np


def rtd_labels(
    original: np.ndarray, shown: np.ndarray, chosen: np.ndarray, sampled: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """ELECTRA's inputs and labels of the discriminator, from what the generator did.

    Args:
        original: Token ids, int [length].
        shown: What the generator was shown; differs from ``original`` only where ``chosen``.
        chosen: The positions that the generator predicts, bool [length].
        sampled: The tokens that it sampled, int [length]; those not ``chosen`` do not matter.

    Returns:
        ``(inputs, labels)``: the original with the sampled tokens at the chosen positions, and 1
        where that differs from the original (a correct guess counts as original), else 0.
    """
    inputs, labels = np.array(original), np.zeros(len(original), np.int64)
    for i in range(len(inputs)):
        if chosen[i]:
            inputs[i] = sampled[i]
            labels[i] = sampled[i] != original[i]
        elif shown[i] != original[i]:
            raise ValueError(f"the generator was shown another token at {i}, which is not chosen")
    return inputs, labels


def span_length_probabilities(p: float = 0.2, longest: int = 10) -> np.ndarray:
    """SpanBERT's distribution of a span's length in words: entry l - 1 is that of l words.

    Geometric, cut off after ``longest`` and renormalised. The mean is 3.8 for the defaults.
    """
    weights = np.array([p * (1 - p) ** (length - 1) for length in range(1, longest + 1)])
    return weights / weights.sum()


def _words(eligible: Sequence[bool], word_start: Sequence[bool]) -> list[list[int]]:
    """The positions of each word: an eligible run, cut before every position that starts a word."""
    words: list[list[int]] = []
    for i in range(len(eligible)):
        if eligible[i]:
            if word_start[i] or i == 0 or not eligible[i - 1]:
                words.append([])
            words[-1].append(i)
    return words


def spanbert_mask(
    rng: np.random.Generator,
    tokens: Sequence[int],
    eligible: Sequence[bool],
    word_start: Sequence[bool],
    budget: int,
    probabilities: Sequence[float],
) -> tuple[np.ndarray, list[list[int]]]:
    """Choose the tokens that SpanBERT hides.

    Repeat until ``budget`` tokens are hidden: draw a length l in words, and a word uniformly over
    all (also those hidden already). The span is up to l words from there on, as far as eligible
    tokens go without a gap. Of these, those not yet hidden are hidden, in order, until the budget
    is met exactly.

    Args:
        rng: Source of randomness.
        tokens: Token ids, [length]; only their number matters.
        eligible: The positions that may be hidden, bool [length].
        word_start: The positions that start a word, bool [length]. An eligible position after one
            that is not, or at the row's start, starts a word too.
        budget: The number of tokens to hide.
        probabilities: Of lengths 1, 2, …; see :func:`span_length_probabilities`.

    Returns:
        ``(hidden, spans)``: bool [length], and for each span that hid any token the positions that
        it hid, in the order of the draws. Tokens of a span share one 80/10/10 decision.
    """
    words = _words(eligible, word_start)
    if not 0 <= budget <= sum(map(len, words)):
        raise ValueError(f"{budget} tokens cannot be hidden")
    hidden, spans = np.zeros(len(tokens), bool), []
    while hidden.sum() < budget:
        length = 1 + rng.choice(len(probabilities), p=probabilities)
        first = int(rng.integers(len(words)))
        covered = list(words[first])
        for word in words[first + 1 : first + length]:
            if word[0] != covered[-1] + 1:
                break
            covered += word
        fresh = [i for i in covered if not hidden[i]][: budget - int(hidden.sum())]
        hidden[fresh] = True
        if fresh:
            spans.append(fresh)
    return hidden, spans


def span_boundaries(hidden: Sequence[bool]) -> dict[int, tuple[int, int, int]]:
    """For each hidden position ``(left, right, offset)`` of SpanBERT's boundary objective.

    A maximal run s … e of hidden positions is one span, however it arose. Position i in it is
    predicted from the states at ``left = s - 1`` and ``right = e + 1`` and the offset
    ``i - s + 1``. A run at an end of the row gives ``left = -1`` or ``right = length``.
    """
    result = {}
    for i in range(len(hidden)):
        if hidden[i]:
            left = i
            while left >= 0 and hidden[left]:
                left -= 1
            right = i
            while right < len(hidden) and hidden[right]:
                right += 1
            result[i] = (left, right, i - left)
    return result


def diffusion_counts(m: int) -> np.ndarray:
    """Probabilities that 0 … ``m`` of ``m`` ordinary tokens are masked, [m + 1].

    Uniform on 1 … m (masked diffusion in its form with l masked tokens). For m = 0: surely 0.
    """
    return np.array([1.0]) if m == 0 else np.array([0.0] + [1.0 / m] * m)


def crop(tokens: Sequence[int], start: int, length: int, keep: Sequence[bool]) -> list[int]:
    """``tokens[start : start + length]`` without the tokens to delete (Contriever).

    ``keep`` has an entry for each of the ``length`` tokens. If none is True, the first stays.
    """
    window = [int(token) for token in tokens[start : start + length]]
    kept = [token for token, stays in zip(window, keep, strict=True) if stays]
    return kept or window[:1]


def crop_distribution(
    n: int, low: float = 0.05, high: float = 0.5
) -> dict[tuple[int, int], Fraction]:
    """The exact probabilities of a crop's ``(length, start)`` in a row of ``n`` >= 1 tokens.

    ``length = max(1, floor(n * u))`` for u uniform on [low, high], 0 <= low < high <= 1, and the
    start is uniform on {0, …, n - length}. The bounds are taken as the decimals that were written.
    """
    lower, upper = Fraction(repr(float(low))), Fraction(repr(float(high)))
    lengths: dict[int, Fraction] = {}
    for floor in range(math.floor(n * lower), math.floor(n * upper) + 1):
        # floor(n * u) == floor for u in [floor / n, (floor + 1) / n)
        share = min(upper, Fraction(floor + 1, n)) - max(lower, Fraction(floor, n))
        if share > 0:
            length = max(1, floor)
            lengths[length] = lengths.get(length, Fraction(0)) + share / (upper - lower)
    return {
        (length, start): probability / (n - length + 1)
        for length, probability in lengths.items()
        for start in range(n - length + 1)
    }


def info_nce(
    q: np.ndarray,
    k: np.ndarray,
    tau: float,
    valid: np.ndarray,
    hard: np.ndarray | None = None,
    symmetric: bool = False,
) -> tuple[float, float]:
    """The contrastive loss with in-batch negatives, in float64.

    Args:
        q: Queries, unit vectors, [rows, width].
        k: Keys, unit vectors, [rows, width]; row i's is the positive of query i.
        tau: Temperature.
        valid: Rows that count, bool [rows]; others have no loss and are nobody's negatives.
        hard: Hard negatives of the rows, [rows, width] or [rows, number, width]. Those of every
            valid row are negatives for every query.
        symmetric: Take the mean with the loss of the keys against the queries (which has no hard
            negatives).

    Returns:
        ``(total, weight)``: the sum of the losses and the number of valid rows.
    """
    rows = [i for i in range(len(q)) if valid[i]]
    q, k = np.asarray(q, np.float64), np.asarray(k, np.float64)

    def one_way(queries: np.ndarray, keys: np.ndarray, extra: list[np.ndarray]) -> float:
        total = 0.0
        for i in rows:
            logits = [float(queries[i] @ keys[j]) / tau for j in rows]
            logits += [float(queries[i] @ key) / tau for key in extra]
            largest = max(logits)
            log_sum = largest + math.log(sum(math.exp(logit - largest) for logit in logits))
            total += log_sum - float(queries[i] @ keys[i]) / tau
        return total

    extra: list[np.ndarray] = []
    if hard is not None:
        negatives = np.asarray(hard, np.float64).reshape(len(q), -1, q.shape[1])
        extra = [key for i in rows for key in negatives[i]]
    total = one_way(q, k, extra)
    if symmetric:
        total = (total + one_way(k, q, [])) / 2
    return total, float(len(rows))
