"""The loss on documents that training never saw, beside what a unigram model would have."""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxpretrain.objectives.base import Objective
from jaxpretrain.types import Batch


class HeldOut(NamedTuple):
    """A held-out evaluation. All losses are means in nats per predicted token.

    Attributes:
        loss: of the objective.
        accuracy: share of the predicted tokens that had the highest score.
        unigram_loss: of the training tokens' frequencies, on the same targets.
        bits_per_byte: of the text, where the loss is a likelihood of the text; else None.
        bits_per_hidden_byte: of the hidden text given the visible text, where it is not.
        predicted: number of predicted tokens.
    """

    loss: float
    accuracy: float
    unigram_loss: float
    bits_per_byte: float | None
    bits_per_hidden_byte: float | None
    predicted: int


def held_out(
    step: Callable[[dict, Batch], tuple[Any, Any]],
    params: dict,
    batches: Iterable[Batch],
    objective: Objective,
    train_counts: np.ndarray,
) -> HeldOut:
    """Adds up an eval step over batches.

    Args:
        step: compiled `step.eval_step`.
        params: the parameters.
        batches: on the devices.
        objective: bound to its vocabulary.
        train_counts: ``[vocab]``, how often each token is in the training split.
    """
    total = pending = None
    # float32 sums of one batch are exact enough; over many they are added in float64. They are
    # fetched one batch late, so that the device has the next one to work on.
    for batch in itertools.chain(batches, [None]):
        sums = None if batch is None else step(params, batch)
        if pending is not None:
            found = jax.tree.map(lambda x: np.asarray(x, np.float64), jax.device_get(pending))
            total = found if total is None else jax.tree.map(np.add, total, found)
        pending = sums
    sums, targets = total
    nats, predicted = sums["loss"]
    bytes_predicted = float(np.sum(targets * objective.vocab.piece_bytes))
    bits = float(nats) / math.log(2) / bytes_predicted if bytes_predicted else None
    return HeldOut(
        loss=float(sums["loss"].mean()),
        accuracy=float(sums["accuracy"].mean()),
        unigram_loss=unigram_loss(targets, train_counts, objective.vocab.first_regular),
        bits_per_byte=bits if objective.is_likelihood else None,
        bits_per_hidden_byte=None if objective.is_likelihood else bits,
        predicted=int(predicted),
    )


def unigram_loss(
    target_counts: Sequence[float], train_counts: Sequence[int], first_regular: int
) -> float:
    """Mean nats per target under the training tokens' frequencies, add-one smoothed.

    Ordinary pieces, and those special pieces that are targets, share the probability.

    Args:
        target_counts: ``[vocab]``.
        train_counts: ``[vocab]``.
        first_regular: first ordinary piece.
    """
    target_counts = np.asarray(target_counts, np.float64)
    possible = (np.arange(len(target_counts)) >= first_regular) | (target_counts > 0)
    smoothed = np.where(possible, np.asarray(train_counts, np.float64) + 1, 0)
    log_p = np.log(np.where(possible, smoothed, 1) / smoothed.sum())
    return float(-(target_counts * log_p).sum() / max(target_counts.sum(), 1))
