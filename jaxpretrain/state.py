"""What training changes: step, parameters, optimizer state; made in place on the mesh."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpretrain.objectives.base import Objective
from jaxpretrain.optim import Optimizer
from jaxpretrain.sharding import Placement
from jaxpretrain.types import Array


class TrainState(NamedTuple):
    """A point of a run. With the config and the token store it determines all that follows.

    Attributes:
        step: int32 scalar, updates done.
        params: nested dict of float32 arrays.
        opt_state: optax's state, moments placed like the parameters.
        balance: factors on the tasks of a mixture that balances itself; else empty.
        passed_over: int32 scalar, batches of the stream that were left out so far; see
            `jaxpretrain.guard`.
    """

    step: Array
    params: Any
    opt_state: Any
    balance: dict[str, Array]
    passed_over: Array


def make_state(objective: Objective, optimizer: Optimizer, seed: Array | int) -> TrainState:
    """The state before the first update; pure, so it can be traced, compiled and sharded."""
    params = objective.init(jax.random.key(seed))
    opt_state = optimizer.update_rule.init(params)
    zero = jnp.zeros((), jnp.int32)
    return TrainState(zero, params, opt_state, objective.initial_balance(), zero)


@lru_cache(maxsize=16)
def abstract_state(objective: Objective, optimizer: Optimizer, placement: Placement) -> TrainState:
    """Shapes, types and shardings of the state, without making it.

    Returns:
        A TrainState of `jax.ShapeDtypeStruct`, which `jax.jit`, Orbax and `init_state` take.
    """
    shapes = jax.eval_shape(lambda: make_state(objective, optimizer, 0))
    placed = placement.parameters(objective.axes(), shapes.params)
    structure = jax.tree.structure(shapes.params)
    whole = placement.whole

    # Moments have the structure of the parameters, so they are placed like them.
    def like_params(node):
        return jax.tree.structure(node) == structure

    def shardings(node):
        return placed if like_params(node) else jax.tree.map(lambda _: whole, node)

    opt = jax.tree.map(shardings, shapes.opt_state, is_leaf=like_params)
    return jax.tree.map(
        lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
        shapes,
        TrainState(whole, placed, opt, jax.tree.map(lambda _: whole, shapes.balance), whole),
    )


def init_state(
    objective: Objective, optimizer: Optimizer, seed: int, abstract: TrainState
) -> TrainState:
    """The initial state, each device making its own part of it."""
    return _jit_make_state(objective, optimizer, Placed.like(abstract))(np.uint32(seed))


class Placed(NamedTuple):
    """Where the arrays of a tree are, in a form that can be compared and hashed."""

    shardings: tuple
    structure: jax.tree_util.PyTreeDef

    @classmethod
    def like(cls, abstract: Any) -> "Placed":
        """Of a tree of things with a sharding."""
        leaves, structure = jax.tree.flatten(abstract)
        return cls(tuple(leaf.sharding for leaf in leaves), structure)

    @property
    def tree(self) -> Any:
        """The tree of shardings."""
        return jax.tree.unflatten(self.structure, self.shardings)


@lru_cache(maxsize=8)
def _jit_make_state(objective: Objective, optimizer: Optimizer, placed: Placed) -> Callable:
    """`make_state` of a seed, compiled once for all seeds."""
    make = partial(make_state, objective, optimizer)
    return jax.jit(make, out_shardings=placed.tree)


def fingerprint(tree: Any) -> dict[str, Array]:
    """A checksum of each array's bits, a uint32 scalar by the array's path.

    It is the same on every mesh, and another one if a bit is turned or a part is lost: the bits, as
    whole numbers, are added up modulo 2**32 with odd factors that tell where they stand.

    Args:
        tree: a pytree of arrays of up to 32 bits.
    """

    def of(x: Array) -> Array:
        bits = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}").astype(jnp.uint32)
        place = jnp.zeros((), jnp.uint32)
        for axis, size in enumerate(x.shape):
            place = place * jnp.uint32(size % 2**32)
            place = place + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
        return jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32)

    return {
        jax.tree_util.keystr(path): of(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
