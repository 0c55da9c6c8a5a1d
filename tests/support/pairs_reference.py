"""Sentence-pair objectives in plain Python: all outcomes of a row with their exact probabilities.

Written from the published definitions (next-sentence prediction: Devlin et al. 2019,
arXiv:1810.04805; sentence order prediction: Lan et al. 2020, arXiv:1909.11942), with the lengths of
the second part matched under both labels, without reference to the library. Rows are sequences of
tokens without padding; ``is_sentence_end`` is the table [vocabulary size] of ``Vocab``.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxpretrain.data.vocab import Vocab

Outcome = tuple[tuple[int, ...], tuple[int, ...], int]
"""Token ids, token types, and label."""


def split_candidates(tokens: Sequence[int], is_sentence_end: np.ndarray) -> list[int]:
    """The lengths that the first part may have, each as likely as any other.

    Those after a token that ends a sentence; if there are none, all from 1 to n - 1. Both parts
    have a token at least: a row of fewer than two has no candidates.
    """
    everywhere = list(range(1, len(tokens)))
    at_ends = [a for a in everywhere if is_sentence_end[tokens[a - 1]]]
    return at_ends or everywhere


def trim(tokens: Sequence[int], is_sentence_end: np.ndarray) -> list[int]:
    """What is between the first and the last sentence end, the latter included.

    So that both parts begin and end where sentences do. With fewer than three sentence ends: all.
    """
    ends = [i for i in range(len(tokens)) if is_sentence_end[tokens[i]]]
    kept = tokens[ends[0] + 1 : ends[-1] + 1] if len(ends) >= 3 else tokens
    return [int(token) for token in kept]


def pair_sequence(
    first: Sequence[int], second: Sequence[int], vocab: Vocab
) -> tuple[list[int], list[int]]:
    """``(ids, types)``: cls first sep (type 0) second sep (type 1)."""
    head = [vocab.cls, *(int(token) for token in first), vocab.sep]
    tail = [*(int(token) for token in second), vocab.sep]
    return head + tail, [0] * len(head) + [1] * len(tail)


def _add(
    outcomes: dict[Outcome, Fraction],
    first: Sequence[int],
    second: Sequence[int],
    label: int,
    probability: Fraction,
    vocab: Vocab,
) -> None:
    ids, types = pair_sequence(first, second, vocab)
    key = (tuple(ids), tuple(types), label)
    outcomes[key] = outcomes.get(key, Fraction(0)) + probability


def nsp_outcomes(
    rows: Sequence[Sequence[int]],
    documents: Sequence[int],
    i: int,
    is_sentence_end: np.ndarray,
    vocab: Vocab,
) -> dict[Outcome, Fraction]:
    """What row ``i`` of a batch becomes in next-sentence prediction, with exact probabilities.

    The row's split, the partner, the partner's split and the label are independent. The second
    part has ``min(n_i - a_i, n_j - a_j)`` tokens whether it is the row's own (label 0) or the
    partner's (label 1). Without a partner the label is 0 and the second part is the row's rest.

    Args:
        rows: The rows of the global batch; padding rows are empty.
        documents: The document of each row. A partner has another one.
        i: The row.
        is_sentence_end: Table of the vocabulary.
        vocab: The vocabulary.

    Returns:
        Probabilities that add up to 1; nothing for a row of fewer than two tokens (weight 0). A
        row that has fewer than two tokens cannot be split, and so is no partner either.
    """
    own = rows[i]
    outcomes: dict[Outcome, Fraction] = {}
    own_splits = split_candidates(own, is_sentence_end)
    partners = [j for j in range(len(rows)) if documents[j] != documents[i] and len(rows[j]) >= 2]
    for a in own_splits:
        p_split = Fraction(1, len(own_splits))
        if not partners:
            _add(outcomes, own[:a], own[a:], 0, p_split, vocab)
        for j in partners:
            other = rows[j]
            other_splits = split_candidates(other, is_sentence_end)
            for c in other_splits:
                p = p_split * Fraction(1, len(partners)) * Fraction(1, len(other_splits))
                b = min(len(own) - a, len(other) - c)
                _add(outcomes, own[:a], own[a : a + b], 0, p / 2, vocab)
                _add(outcomes, own[:a], other[c : c + b], 1, p / 2, vocab)
    return outcomes


def sop_outcomes(
    row: Sequence[int], is_sentence_end: np.ndarray, vocab: Vocab
) -> dict[Outcome, Fraction]:
    """What a row becomes in sentence order prediction, with exact probabilities.

    The row is trimmed (:func:`trim`) and split; with probability 1/2 (label 1) the parts are
    swapped. Nothing for a row of fewer than two tokens.
    """
    row = trim(row, is_sentence_end)
    outcomes: dict[Outcome, Fraction] = {}
    splits = split_candidates(row, is_sentence_end)
    for a in splits:
        p = Fraction(1, 2 * len(splits))
        _add(outcomes, row[:a], row[a:], 0, p, vocab)
        _add(outcomes, row[a:], row[:a], 1, p, vocab)
    return outcomes
