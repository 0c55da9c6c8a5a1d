"""The records that pass between data, objectives and the backbone.

They are plain named tuples, so they are JAX pytrees, and they live here so that neither the data
code nor the objectives have to import the other.
"""

from typing import Any, NamedTuple

Array = Any  # a numpy.ndarray on the host, a jax.Array on a device


class Batch(NamedTuple):
    """Rows of the token stream as the data pipeline delivers them, the same for every objective.

    Attributes:
        tokens: int32 ``[rows, length]`` token ids, before any corruption.
        segments: int32 ``[rows, length]``, 0 at padding, 1, 2, … by document within the row.
        positions: int32 ``[rows, length]``, restarting at 0 with every document in the row.
        row_ids: int32 ``[rows]``, the row's number over all sources; -1 for a row of padding.
        epochs: int32 ``[rows]``, how often the row's source had been read before.
        documents: int32 ``[rows]``, the number over all sources of the document that the row
            begins in; -1 for a row of padding.
    """

    tokens: Array
    segments: Array
    positions: Array
    row_ids: Array
    epochs: Array
    documents: Array


class Progress(NamedTuple):
    """How far the training is, for what is scheduled.

    Attributes:
        step: int32 scalar, updates done.
        fraction: float32 scalar in [0, 1], the share of all the updates that is done.
    """

    step: Array
    fraction: Array


class Source(NamedTuple):
    """What the encoder of an encoder-decoder reads, as in `Example`."""

    inputs: Array
    segments: Array
    positions: Array


class Example(NamedTuple):
    """What an objective makes of a batch: what the backbone sees and what it must predict.

    Attributes:
        inputs: int32 ``[rows, length]`` token ids that the backbone reads (its decoder, if it has
            one).
        segments: int32 ``[rows, length]``; attention stays inside a segment, 0 is padding.
        positions: int32 ``[rows, length]``.
        targets: int32 ``[rows, slots]`` token ids to predict.
        slots: int32 ``[rows, slots]``, the position that predicts each target, or None when
            ``slots == length`` and slot ``i`` is position ``i`` (no gather is needed).
        weights: float32 ``[rows, slots]``, 0 for a slot that is not used.
        prefix: int32 ``[rows]``, how many leading positions see each other both ways, or None
            where the objective's visibility does not use it.
        types: int32 ``[rows, length]``, token types, or None for type 0 everywhere.
        source: what the encoder reads, or None for a single stack.
        counts: float32 ``[rows]``, what a row adds to the weight of the loss, or None where that
            is the sum of its weights.
        extra: arrays ``[rows, ...]`` by name that the objective's own loss needs besides.
    """

    inputs: Array
    segments: Array
    positions: Array
    targets: Array
    slots: Array | None
    weights: Array
    prefix: Array | None = None
    types: Array | None = None
    source: Source | None = None
    counts: Array | None = None
    extra: dict[str, Array] | None = None


class Sum(NamedTuple):
    """A quantity summed over some rows, with the weight that turns it into a mean.

    Sums over disjoint rows add up, means do not; so nothing is divided before all the rows of a
    step, over microbatches and devices, have been added.
    """

    total: Array
    weight: Array

    def mean(self) -> Array:
        """``total / weight``, and 0 where the weight is 0."""
        weight = self.weight
        return self.total / (weight + (weight == 0))


Sums = dict[str, Sum]
