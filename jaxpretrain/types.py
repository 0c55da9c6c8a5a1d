"""The three records that pass between data, objectives and the backbone.

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
    """

    tokens: Array
    segments: Array
    positions: Array
    row_ids: Array
    epochs: Array


class Example(NamedTuple):
    """What an objective makes of a batch: what the backbone sees and what it must predict.

    Attributes:
        inputs: int32 ``[rows, length]`` token ids that the backbone reads.
        segments: int32 ``[rows, length]``; attention stays inside a segment, 0 is padding.
        positions: int32 ``[rows, length]``.
        prefix: int32 ``[rows]``, how many leading positions see each other both ways, or None
            where the objective's visibility does not use it.
        targets: int32 ``[rows, slots]`` token ids to predict.
        slots: int32 ``[rows, slots]``, the position that predicts each target, or None when
            ``slots == length`` and slot ``i`` is position ``i`` (no gather is needed).
        weights: float32 ``[rows, slots]``, 0 for a slot that is not used.
    """

    inputs: Array
    segments: Array
    positions: Array
    prefix: Array | None
    targets: Array
    slots: Array | None
    weights: Array


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
