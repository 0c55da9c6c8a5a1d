"""Arrays of another library as parameters of ours and back, by a table of names.

A line of a table names one of their tensors and the arrays of ours that hold the same numbers. All
that may differ is read off the line: which way round a matrix is stored, whether several of ours
are one of theirs, whether it is there once for each layer.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxpretrain.errors import UserError


class Tensor(NamedTuple):
    """One line of a table.

    Attributes:
        theirs: their name, with ``{}`` where the number of the layer is, if there is one for each.
        ours: paths like ``"stack/blocks/mlp/up/kernel"``; the outputs of several are joined.
        layout: "vector", "table" (as it is), "matrix" (``[inputs, outputs]``) or "turned"
            (``[outputs, inputs]``).
        input_axes: how many axes of our kernel are summed over.
        first: the layer from which on they have it; before it ours are not used, and are ones.
        given: a path of ours; the line is for models that have it.
        unless: a path of ours; the line is for models that do not have it.
    """

    theirs: str
    ours: tuple[str, ...]
    layout: Literal["vector", "table", "matrix", "turned"]
    input_axes: int = 1
    first: int = 0
    given: str = ""
    unless: str = ""

    @property
    def layered(self) -> bool:
        """Whether there is one for each layer."""
        return "{}" in self.theirs

    def holds(self, paths: Set[str]) -> bool:
        """Whether it is a line for a model with these paths."""
        return {*self.ours, self.given} - {""} <= paths and self.unless not in paths


def to_ours(
    table: Iterable[Tensor], tensors: Mapping[str, np.ndarray], shapes: Mapping[str, Any]
) -> dict:
    """Our parameters, filled with their tensors.

    Args:
        table: what holds the same numbers.
        tensors: theirs by name; more than the table names is ignored.
        shapes: our parameters, a nested dict of things with a ``shape``; lines of the table whose
            arrays are not among them are passed over.

    Returns:
        A nested dict like `shapes`, float32.

    Raises:
        UserError: a tensor is missing, or its shape is not what ours need; a parameter that no line
            of the table fills.
    """
    wanted = dict(flat(shapes))
    found: dict[str, np.ndarray] = {}
    for line in table:
        if not line.holds(wanted.keys()):
            continue
        ours = [wanted[path].shape for path in line.ours]
        if line.layered:
            each = [shape[1:] for shape in ours]
            parts = [
                _split(line, line.theirs.format(n), tensors, each)
                if n >= line.first
                else [np.ones(shape, np.float32) for shape in each]
                for n in range(ours[0][0])
            ]
            arrays = [np.stack(arrays) for arrays in zip(*parts, strict=True)]
        else:
            arrays = _split(line, line.theirs, tensors, ours)
        found |= zip(line.ours, arrays, strict=True)
    missing = sorted(wanted.keys() - found.keys())
    if missing:
        raise UserError(f"the model has nothing for our parameters {', '.join(missing)}")
    return nested(found)


def to_theirs(table: Iterable[Tensor], params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Their tensors, by name, of our parameters.

    Args:
        table: what holds the same numbers; lines whose arrays are not among ours are passed over.
        params: nested dict of arrays.
    """
    have = dict(flat(params))
    tensors = {}
    for line in table:
        if not line.holds(have.keys()):
            continue
        arrays = [np.asarray(have[path]) for path in line.ours]
        if line.layered:
            for n in range(line.first, len(arrays[0])):
                tensors[line.theirs.format(n)] = _join(line, [array[n] for array in arrays])
        else:
            tensors[line.theirs] = _join(line, arrays)
    return tensors


def flat(tree: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a nested dict by path, ``"a/b/c"``."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{at}{key}/")
        else:
            yield f"{at}{key}", value


def nested(leaves: Mapping[str, Any]) -> dict:
    """The inverse of `flat`."""
    tree: dict = {}
    for path, value in leaves.items():
        *folders, name = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = value
    return tree


def _sizes(line: Tensor, shape: tuple[int, ...]) -> tuple[int, int]:
    """Inputs and outputs of a kernel of ours."""
    return math.prod(shape[: line.input_axes]), math.prod(shape[line.input_axes :])


def _split(line: Tensor, name: str, tensors, shapes) -> list[np.ndarray]:
    if name not in tensors:
        raise UserError(f"the model has no tensor {name}: its files are incomplete")
    tensor = np.asarray(tensors[name], np.float32)
    if line.layout in ("vector", "table"):
        vector = line.layout == "vector"
        outputs = [math.prod(shape) if vector else shape[-1] for shape in shapes]
        expected = (sum(outputs),) if vector else shapes[0]
    else:
        outputs = [_sizes(line, shape)[1] for shape in shapes]
        expected = (_sizes(line, shapes[0])[0], sum(outputs))
        tensor = tensor.T if line.layout == "turned" else tensor
    if tensor.shape != tuple(expected):
        raise UserError(
            f"the tensor {name} has the shape {tensor.shape} where its config.json makes it "
            f"{tuple(expected)}{' (turned round)' if line.layout == 'turned' else ''}"
        )
    parts = np.split(tensor, np.cumsum(outputs)[:-1], axis=-1)
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def _join(line: Tensor, arrays: list[np.ndarray]) -> np.ndarray:
    if line.layout == "vector":
        return np.concatenate([array.ravel() for array in arrays])
    if line.layout == "table":
        return np.concatenate(arrays, axis=-1)
    joined = np.concatenate([array.reshape(_sizes(line, array.shape)) for array in arrays], axis=-1)
    return np.ascontiguousarray(joined.T) if line.layout == "turned" else joined
