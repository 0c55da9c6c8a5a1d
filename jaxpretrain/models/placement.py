"""Where activations live, named by their logical axes as parameters are.

The models know no mesh. They name the axes of what they compute, and whoever compiles them says,
for as long as they are traced, what the names mean; where nobody says so, the names mean nothing.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

import jax

from jaxpretrain.types import Array


class Meaning(Protocol):
    """What the names of axes mean: see `jaxpretrain.sharding.Placement`."""

    @property
    def platform(self) -> str:
        """Of the devices: "cpu", "gpu" or "tpu"."""

    def constrain(self, x: Array, names: tuple[str, ...]) -> Array:
        """The same array, placed by the names of its axes; "" is an axis left whole."""

    def mapped(self, function, names_in, names_out, *arrays: Array) -> Array:
        """See `on_each_device`."""

    def parts(self, name: str) -> int:
        """Over how many devices, or groups of devices, an axis of this name is spread."""


_meaning: ContextVar[Meaning | None] = ContextVar("meaning", default=None)


@contextmanager
def placed_by(meaning: Meaning | None) -> Iterator[None]:
    """A context in which the models place their activations so."""
    token = _meaning.set(meaning)
    try:
        yield
    finally:
        _meaning.reset(token)


def place(x: Array, *names: str) -> Array:
    """The array, placed by the names of its axes: one for each, "" for one that is left whole."""
    meaning = _meaning.get()
    return x if meaning is None else meaning.constrain(x, names)


def parts_of(name: str) -> int:
    """Over how many devices, or groups of devices, an axis of this name is spread."""
    meaning = _meaning.get()
    return 1 if meaning is None else meaning.parts(name)


def is_divided(name: str) -> bool:
    """Whether an axis of this name is spread over several devices."""
    return parts_of(name) > 1


def is_placed() -> bool:
    """Whether somebody says where activations live."""
    return _meaning.get() is not None


def platform() -> str:
    """What the models are compiled for: "cpu", "gpu" or "tpu"."""
    meaning = _meaning.get()
    return jax.default_backend() if meaning is None else meaning.platform


def on_each_device(
    function: Callable[..., Array],
    names_in: Sequence[tuple[str, ...]],
    names_out: tuple[str, ...],
    *arrays: Array,
) -> Array:
    """A function of each device's parts of arrays, for what the compiler cannot divide itself.

    Args:
        function: takes the parts, and needs nothing from other devices.
        names_in: of the axes of each array, as for `place`.
        names_out: of the axes of what it gives.
        arrays: whole.
    """
    meaning = _meaning.get()
    if meaning is None:
        return function(*arrays)
    return meaning.mapped(function, names_in, names_out, *arrays)
