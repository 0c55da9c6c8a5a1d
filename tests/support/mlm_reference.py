"""BERT's dynamic masking in plain NumPy, one row at a time: what the library's masking must equal.

Written from the published definition (Devlin et al. 2019, arXiv:1810.04805, and Google's
``create_pretraining_data.py``; dynamic as in RoBERTa, Liu et al. 2019, arXiv:1907.11692), without
reference to the library. The random streams differ, so the two are compared in distribution:
:func:`measure` reduces many draws of either one to the same statistics.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np


def number_predicted(rate: float, maskable: int) -> int:
    """The number of positions to predict out of ``maskable`` ones.

    ``max(1, round-half-up(rate * maskable))``, and 0 when nothing can be masked. The rate is taken
    as the decimal number that was written, so that .285 of 100 is 29 although the nearest double
    to .285, times 100, is below 28.5.
    """
    if maskable == 0:
        return 0
    return max(1, math.floor(Fraction(repr(float(rate))) * maskable + Fraction(1, 2)))


def words_of(maskable: np.ndarray, word_start: np.ndarray) -> list[list[int]]:
    """The words of a row, each as a list of its positions, in order.

    A word is a maximal run of maskable positions; a new one begins at a position that starts a
    word and after any position that cannot be masked.
    """
    words: list[list[int]] = []
    inside = False
    for position in range(len(maskable)):
        if not maskable[position]:
            inside = False
        elif word_start[position] or not inside:
            words.append([position])
            inside = True
        else:
            words[-1].append(position)
    return words


def take_words(words: Sequence[list[int]], order: Sequence[int], budget: int) -> list[int]:
    """The positions of the words taken whole in ``order``; a word beyond the budget is skipped.

    As ``create_masked_lm_predictions`` of ``create_pretraining_data.py``: shorter words that come
    later may still fit. When every word is longer than the budget nothing is taken.
    """
    taken: list[int] = []
    for index in order:
        if len(taken) + len(words[index]) <= budget:
            taken.extend(words[index])
    return taken


def mlm_corrupt(
    rng: np.random.Generator,
    tokens: np.ndarray,
    maskable: np.ndarray,
    *,
    rate: float,
    mask_share: float = 0.8,
    random_share: float = 0.1,
    mask_id: int,
    first_regular: int,
    vocab_size: int,
    word_start: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Corrupt one row.

    Args:
        rng: Source of randomness.
        tokens: Token ids, int [length].
        maskable: Positions that may be predicted, bool [length] (no padding, no special tokens).
        rate: Share of the maskable positions to predict; see :func:`number_predicted`.
        mask_share: Probability that a predicted token is shown as ``mask_id``.
        random_share: Probability that it is shown as an id uniform over
            ``[first_regular, vocab_size)``, which may be the original again. Otherwise it is shown
            unchanged. Decided for each token by itself, also inside a word.
        mask_id: The id of [MASK].
        first_regular: The least id that is not special.
        vocab_size: One more than the greatest id.
        word_start: Positions that start a word, bool [length]; whole words are then predicted.

    Returns:
        ``(inputs, predicted)``: the ids that the model is shown, of the dtype of ``tokens``, and
        the positions that it has to predict, bool; both [length].
    """
    tokens, maskable = np.asarray(tokens), np.asarray(maskable, bool)
    candidates = np.flatnonzero(maskable)
    budget = number_predicted(rate, len(candidates))
    if word_start is None:
        chosen = rng.choice(candidates, size=budget, replace=False) if budget else candidates[:0]
    else:
        words = words_of(maskable, np.asarray(word_start, bool))
        chosen = take_words(words, rng.permutation(len(words)), budget)

    inputs, predicted = tokens.copy(), np.zeros(len(tokens), bool)
    for position in chosen:
        predicted[position] = True
        decision = rng.random()
        if decision < mask_share:
            inputs[position] = mask_id
        elif decision < mask_share + random_share:
            inputs[position] = rng.integers(first_regular, vocab_size)
    return inputs, predicted


class MaskingStatistics(NamedTuple):
    """What many corrupted copies of one row have in common; see :func:`measure`."""

    draws: int
    counts: np.ndarray
    """Number of predicted positions in each draw, int [draws]."""
    position_frequency: np.ndarray
    """Share of the draws in which each position is predicted, [length]."""
    pair_frequency: np.ndarray
    """Share of the draws in which two positions are both predicted, [length, length]."""
    masked_counts: np.ndarray
    """Number of positions shown as [MASK] in each draw, int [draws]."""
    masked: float
    """Of all predicted tokens, the share shown as [MASK]; the three shares add up to 1."""
    changed: float
    """The share shown as an id other than the original and [MASK]."""
    kept: float
    """The share shown as they are, including random ids that happened to be the original."""
    predicted_total: int
    """Number of predicted tokens over all draws: the trials behind the three shares."""
    changed_ids: np.ndarray
    """How often each id took the place of another, int [vocab_size]."""
    untouched: bool
    """Whether every position that is not predicted shows its original in every draw."""


def measure(
    tokens: np.ndarray,
    inputs: np.ndarray,
    predicted: np.ndarray,
    *,
    mask_id: int,
    vocab_size: int,
) -> MaskingStatistics:
    """Statistics of corrupted copies of a row, whoever made them.

    Args:
        tokens: The original ids, [length], or [draws, length] when every draw has its own.
        inputs: The corrupted ids, [draws, length].
        predicted: The predicted positions, bool [draws, length].
        mask_id: The id of [MASK]; ``tokens`` must not contain it at a predicted position.
        vocab_size: One more than the greatest id.
    """
    inputs, predicted = np.asarray(inputs), np.asarray(predicted, bool)
    tokens = np.broadcast_to(np.asarray(tokens), inputs.shape)
    shown, truth = inputs[predicted], tokens[predicted]
    total = max(1, shown.size)
    is_mask, is_same = shown == mask_id, shown == truth
    is_changed = ~is_mask & ~is_same
    as_number = predicted.astype(np.float64)
    return MaskingStatistics(
        draws=len(inputs),
        counts=predicted.sum(axis=1),
        position_frequency=as_number.mean(axis=0),
        pair_frequency=as_number.T @ as_number / len(inputs),
        masked_counts=(predicted & (inputs == mask_id)).sum(axis=1),
        masked=is_mask.sum() / total,
        changed=is_changed.sum() / total,
        kept=is_same.sum() / total,
        predicted_total=shown.size,
        changed_ids=np.bincount(shown[is_changed], minlength=vocab_size),
        untouched=bool(np.array_equal(inputs[~predicted], tokens[~predicted])),
    )


def sample_statistics(
    rng: np.random.Generator,
    tokens: np.ndarray,
    maskable: np.ndarray,
    *,
    draws: int,
    mask_id: int,
    vocab_size: int,
    **options,
) -> MaskingStatistics:
    """:func:`measure` of ``draws`` calls of :func:`mlm_corrupt` with the other ``options``."""
    pairs = [
        mlm_corrupt(rng, tokens, maskable, mask_id=mask_id, vocab_size=vocab_size, **options)
        for _ in range(draws)
    ]
    inputs, predicted = (np.stack(column) for column in zip(*pairs, strict=True))
    return measure(tokens, inputs, predicted, mask_id=mask_id, vocab_size=vocab_size)


def expected_shares(
    *, regular: int, mask_share: float = 0.8, random_share: float = 0.1
) -> tuple[float, float, float]:
    """Expected ``(masked, changed, kept)`` of :class:`MaskingStatistics`.

    One random id in ``regular`` (the number of regular ids) is the original again, which looks
    like a kept token. The originals must be regular ids.
    """
    changed = random_share * (regular - 1) / regular
    return mask_share, changed, 1.0 - mask_share - changed


def binomial(trials: int, share: float) -> np.ndarray:
    """Probabilities of 0 … ``trials`` successes, [trials + 1].

    Of n predicted tokens in a draw, the number shown as [MASK] follows ``binomial(n, mask_share)``
    only if each token is decided by itself, not the row or the word as a whole.
    """
    return np.array(
        [math.comb(trials, k) * share**k * (1 - share) ** (trials - k) for k in range(trials + 1)]
    )


def z_score(observed: np.ndarray, expected: np.ndarray, trials: int) -> np.ndarray:
    """Observed shares as standard deviations from what independent trials would give.

    For a share of predicted tokens ``trials`` is ``predicted_total``, for a frequency of positions
    or pairs it is ``draws``. An expected share of 0 or 1 must be met exactly: 0 if so, else inf.
    """
    observed, expected = np.asarray(observed, float), np.asarray(expected, float)
    deviation = np.sqrt(np.clip(expected * (1 - expected), 0, None) / trials)
    gap = observed - expected
    exact = np.where(np.abs(gap) < 1e-12, 0.0, np.inf)
    return np.where(deviation > 1e-12, gap / np.where(deviation > 1e-12, deviation, 1.0), exact)
