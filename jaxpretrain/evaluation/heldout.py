"""The loss on documents that training never saw, beside what a unigram model would have."""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxpretrain.evaluation.measures import resampled
from jaxpretrain.objectives.base import Objective, total_loss
from jaxpretrain.types import Batch, Progress, Sum, Sums


class HeldOut(NamedTuple):
    """A held-out evaluation. Losses are means in nats, per predicted token where tokens are.

    Attributes:
        loss: of the objective: the sum of its terms, as in training.
        accuracy: share of the predicted tokens that had the highest score; None where the
            objective reports no such number.
        unigram_loss: of the training tokens' frequencies, on the same targets; None where no
            tokens are predicted.
        token_loss: of those targets: the loss itself, or the part of it that is about text.
        bits_per_byte: of the text, where the loss is a likelihood of the text or a bound; else
            None.
        bits_per_hidden_byte: of the hidden text given the visible text, where it is not.
        predicted: number of predicted tokens, or else the weight of the first term.
        parts: the means of all the sums of the objective, by name; None where there was nothing.
    """

    loss: float
    accuracy: float | None
    unigram_loss: float | None
    token_loss: float | None
    bits_per_byte: float | None
    bits_per_hidden_byte: float | None
    predicted: int
    parts: dict[str, float | None]

    def numbers(self) -> dict[str, float]:
        """All that is a number, in one dict: what a log has a column for."""
        flat = {name: value for name, value in self._asdict().items() if name != "parts"}
        return {k: v for k, v in (self.parts | flat).items() if v is not None}


def held_out(
    step: Callable[[dict, Batch], tuple[Any, Any]],
    params: dict,
    batches: Iterable[Batch],
    objective: Objective,
    train_counts: np.ndarray,
    by_batch: list | None = None,
) -> HeldOut:
    """Adds up an eval step over batches.

    Args:
        step: compiled `step.eval_step`.
        params: the parameters.
        batches: on the devices.
        objective: bound to its vocabulary.
        train_counts: ``[vocab]``, how often each token is in the training split.
        by_batch: if given, the sums of each batch are put there, for `loss_replicates`.
    """
    total = pending = None
    # float32 sums of one batch are exact enough; over many they are added in float64. They are
    # fetched one batch late, so that the device has the next one to work on.
    for batch in itertools.chain(batches, [None]):
        sums = None if batch is None else step(params, batch)
        if pending is not None:
            found = jax.tree.map(lambda x: np.asarray(x, np.float64), jax.device_get(pending))
            if by_batch is not None:
                by_batch.append(found[0])
            total = found if total is None else jax.tree.map(np.add, total, found)
        pending = sums
    sums, targets = total
    parts = {n: float(value.mean()) if value.weight else None for n, value in sums.items()}
    terms = objective.coefficients(Progress(0, 1.0))
    tokens = objective.token_term is not None
    bytes_predicted = float(np.sum(targets * objective.vocab.piece_bytes))
    bits = None
    if tokens and bytes_predicted:
        bits = float(sums[objective.token_term].total) / math.log(2) / bytes_predicted
    return HeldOut(
        loss=float(total_loss(terms, sums)),
        accuracy=parts.get("accuracy"),
        unigram_loss=(
            unigram_loss(targets, train_counts, objective.vocab.is_special) if tokens else None
        ),
        token_loss=parts[objective.token_term] if tokens else None,
        bits_per_byte=bits if objective.is_likelihood else None,
        bits_per_hidden_byte=(
            bits if objective.hides_text and not objective.is_likelihood else None
        ),
        predicted=int(sums[objective.token_term or next(iter(terms))].weight),
        parts=parts,
    )


def loss_replicates(objective: Objective, by_batch: Sequence[Sums]) -> np.ndarray:
    """The loss on batches drawn with replacement, float64 ``[resamples]``; see
    `measures.resampled`."""
    terms = objective.coefficients(Progress(0, 1.0))
    sums = {
        name: np.array([(one[name].total, one[name].weight) for one in by_batch]) for name in terms
    }

    def loss(_: int, chosen: np.ndarray) -> float:
        drawn = {name: Sum(*values[chosen].sum(axis=0)) for name, values in sums.items()}
        return float(total_loss(terms, drawn))

    return resampled(loss, 1, len(by_batch))


def unigram_loss(
    target_counts: Sequence[float], train_counts: Sequence[int], is_special: np.ndarray
) -> float:
    """Mean nats per target under the training tokens' frequencies, add-one smoothed.

    Ordinary pieces, and those special pieces that are targets, share the probability.

    Args:
        target_counts: ``[vocab]``.
        train_counts: ``[vocab]``.
        is_special: bool ``[vocab]``.
    """
    target_counts = np.asarray(target_counts, np.float64)
    possible = ~is_special | (target_counts > 0)
    smoothed = np.where(possible, np.asarray(train_counts, np.float64) + 1, 0)
    log_p = np.log(np.where(possible, smoothed, 1) / smoothed.sum())
    return float(-(target_counts * log_p).sum() / max(target_counts.sum(), 1))
