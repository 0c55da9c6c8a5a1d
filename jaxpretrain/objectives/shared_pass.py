"""Rows of different objectives in one forward pass.

The mask formula makes it possible: whether a row is read causally, both ways or with a prefix is a
number of the row, its prefix. What is left is to bring examples to common shapes and to choose.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxpretrain.objectives.base import Objective
from jaxpretrain.types import Array, Example


def can_share(objective: Objective) -> bool:
    """Whether the loss is the cross-entropy over slots that all objectives have by default."""
    plain = type(objective).loss is Objective.loss and not objective.heads()
    return plain and not objective.backbone.config.decoder_layers


def shared_visibility(objectives: Sequence[Objective]) -> str:
    """Theirs, if they have one in common, so that its fast path is taken; else by prefix."""
    each = {objective.visibility for objective in objectives}
    return each.pop() if len(each) == 1 else "prefix"


def merge(
    examples: Sequence[Example], visibilities: Sequence[str], chosen: Array, pad: int
) -> Example:
    """One example of which each row is that of one of several examples.

    Args:
        examples: of the same rows, by different objectives; none has token types, since those that
            do have a head for their pairs and cannot share.
        visibilities: of the objectives.
        chosen: int32 ``[rows]``, which of the examples a row is taken from.
        pad: token at positions that an example does not have.

    Returns:
        An Example with `counts`, and with `chosen` as ``extra["task"]``.
    """
    size = max(example.inputs.shape[1] for example in examples)
    dense = any(example.slots is None for example in examples)
    slots = size if dense else max(example.slots.shape[1] for example in examples)
    alike = [
        _alike(example, visibility, size, slots, dense, pad)
        for example, visibility in zip(examples, visibilities, strict=True)
    ]

    def choose(*leaves):
        picked = leaves[0]
        for number, leaf in enumerate(leaves[1:], start=1):
            mine = (chosen == number).reshape(-1, *[1] * (leaf.ndim - 1))
            picked = jnp.where(mine, leaf, picked)
        return picked

    return jax.tree.map(choose, *alike)._replace(extra={"task": chosen})


def _alike(
    example: Example, visibility: str, size: int, slots: int, dense: bool, pad: int
) -> Example:
    """The example in the shapes that all of them get."""
    rows = example.inputs.shape[0]

    def wider(x, width, fill=0):
        return jnp.pad(x, ((0, 0), (0, width - x.shape[1])), constant_values=fill)

    targets, weights, where = example.targets, example.weights, example.slots
    if dense and where is not None:
        # A target for each position; slots that are not used go nowhere.
        place = jnp.where(weights > 0, where, size)
        scatter = jax.vmap(lambda at, x: jnp.zeros(size, x.dtype).at[at].set(x, mode="drop"))
        targets, weights, where = scatter(place, targets), scatter(place, weights), None
    everything = jnp.full(rows, size, jnp.int32)
    prefix = {"causal": jnp.zeros(rows, jnp.int32), "full": everything, "prefix": example.prefix}
    return Example(
        inputs=wider(example.inputs, size, pad),
        segments=wider(example.segments, size),
        positions=wider(example.positions, size),
        targets=wider(targets, slots),
        slots=None if where is None else wider(where, slots),
        weights=wider(weights, slots),
        prefix=prefix[visibility],
        counts=jnp.sum(weights, axis=1) if example.counts is None else example.counts,
    )
