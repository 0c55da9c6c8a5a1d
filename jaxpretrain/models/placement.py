"""Where activations live, named by their logical axes as parameters are.

The models know no mesh. They name the axes of what they compute, and whoever compiles them says,
for as long as they are traced, what the names mean; where nobody says so, the names mean nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

from jaxpretrain.types import Array


class Meaning(Protocol):
    """What the names of axes mean: see `jaxpretrain.sharding.Placement`."""

    def constrain(self, x: Array, names: tuple[str, ...]) -> Array:
        """The same array, placed by the names of its axes; "" is an axis left whole."""

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
