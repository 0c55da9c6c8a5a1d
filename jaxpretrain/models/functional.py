"""A Flax NNX module as pure functions of a parameter tree."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from jaxpretrain.types import Array


class Functional:
    """The parameters of a module as a nested dict of float32 arrays, outside of the module.

    Stacked parameters (of layers that are scanned) have a leading axis more than their names.

    Args:
        make: makes the module from its random numbers.
    """

    def __init__(self, make: Callable[[nnx.Rngs], nnx.Module]):
        self._make = make
        abstract = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
        self._definition, self._abstract = nnx.split(abstract)
        self._names = nnx.to_pure_dict(self._abstract).keys()

    def init(self, key: Array) -> dict:
        """Initial parameters, a function of the key alone."""
        return nnx.to_pure_dict(nnx.split(self._make(nnx.Rngs(key)))[1])

    def axes(self) -> dict:
        """Logical axis names, a tuple for each parameter; stacked ones begin with "layers"."""

        def names(variable):
            stacked = len(variable.shape) - len(variable.axes)
            return ("layers",) * stacked + tuple(variable.axes)

        leaves = jax.tree.map(
            names, self._abstract, is_leaf=lambda node: isinstance(node, nnx.Variable)
        )
        return nnx.to_pure_dict(leaves)

    def module(self, params: dict) -> Any:
        """The module with these parameters; names that are not the module's own are left out."""
        state = jax.tree.map(lambda leaf: leaf, self._abstract)
        nnx.replace_by_pure_dict(state, {name: params[name] for name in self._names})
        return nnx.merge(self._definition, state)
