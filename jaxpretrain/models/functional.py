"""A Flax NNX module as pure functions of a parameter tree."""

from collections.abc import Hashable
from functools import lru_cache
from typing import Any

import jax
from flax import nnx

from jaxpretrain.types import Array


class Functional:
    """The parameters of a module as a nested dict of float32 arrays, outside of the module.

    Stacked parameters (of layers that are scanned) have a leading axis more than their names. Two
    of the same module are equal, so that what was compiled for one is there for the other.

    Args:
        module: the class.
        arguments: of it, beside its random numbers.
    """

    def __init__(self, module: type[nnx.Module], *arguments: Hashable):
        self._made_of = module, arguments
        self._definition, self._abstract = _structure(module, arguments)
        self._names = nnx.to_pure_dict(self._abstract).keys()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Functional) and self._made_of == other._made_of

    def __hash__(self) -> int:
        return hash(self._made_of)

    def init(self, key: Array) -> dict:
        """Initial parameters, a function of the key alone."""
        module, arguments = self._made_of
        return nnx.to_pure_dict(nnx.split(module(*arguments, rngs=nnx.Rngs(key)))[1])

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


@lru_cache(maxsize=64)
def _structure(module: type[nnx.Module], arguments: tuple) -> tuple[Any, Any]:
    """The definition of a module and its abstract state."""
    return nnx.split(nnx.eval_shape(lambda: module(*arguments, rngs=nnx.Rngs(0))))
