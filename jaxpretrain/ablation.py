"""An ablation: one base config, and cells that differ from it in what is studied and nothing else.

A file of an ablation has ``get_ablation()``, which returns a dict::

    {
        "base": "../quickstart.py",             # a config file, relative to this one
        "change": {"train.log_every": 50},      # keys of the base to change in every cell
        "cells": {"mlm": {"objective": {"name": "mlm"}}, "clm": {"objective": {"name": "clm"}}},
        "grid": {"model.layers": [2, 4]},       # every combination
        "seeds": [0, 1],
        "budget": {"tokens": 2_000_000},        # of each cell; or "flops", or "seconds"
    }

``base``, ``budget`` and one of ``cells`` and ``grid`` are required. Keys are dotted; where the name
of a section is the key, the whole section is replaced.
"""

import ast
import copy
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from jaxpretrain.config import complete, override, read_file, section_of
from jaxpretrain.errors import UserError
from jaxpretrain.schema import did_you_mean, flatten

KEYS = ("base", "change", "cells", "grid", "seeds", "budget")
BUDGETS = ("tokens", "flops", "seconds")


class Cell(NamedTuple):
    """One run of an ablation.

    Attributes:
        name: of its folder and in the report.
        config: complete; its number of steps is that of the base where the budget is not in tokens.
    """

    name: str
    config: ConfigDict


class Ablation(NamedTuple):
    """What a file of an ablation says.

    Attributes:
        name: of the file, with its argument.
        about: the file's docstring.
        cells: in order.
        studied: dotted keys and sections in which the cells may differ.
        budget: one of ``tokens``, ``flops`` and ``seconds`` (of training), and how much of it.
    """

    name: str
    about: str
    cells: list[Cell]
    studied: tuple[str, ...]
    budget: tuple[str, float]

    def find(self, which: str) -> Cell:
        """The cell of that name, or of that number, from 0.

        Raises:
            UserError: there is none.
        """
        for number, cell in enumerate(self.cells):
            if which in (cell.name, str(number)):
                return cell
        names = [cell.name for cell in self.cells]
        raise UserError(
            f"{self.name} has no cell {which!r}{did_you_mean(which, names)}: it has "
            f"{', '.join(names)}, or 0 to {len(names) - 1}"
        )


def load(path: str, overrides: Mapping[str, str] | None = None) -> Ablation:
    """Reads and checks an ablation.

    Args:
        path: of the file; after a colon, an argument for ``get_ablation``.
        overrides: dotted keys of the base and text, as typed.

    Raises:
        UserError: in one line, whatever is wrong with it.
    """
    raw = read_file(path, "get_ablation")
    file, _, argument = path.partition(":")
    for key in raw:
        if key not in KEYS:
            hint = did_you_mean(key, KEYS) or f"; there is {', '.join(KEYS)}"
            raise UserError(f"{file}: there is no key {key!r} in an ablation{hint}")
    cells, grid = raw.get("cells") or {"": {}}, raw.get("grid") or {}
    change = raw.get("change") or {}
    if not (raw.get("cells") or grid):
        raise UserError(f"{file}: an ablation needs cells or a grid")
    for what, found in (("cells", cells), ("grid", grid), ("change", change)):
        if not isinstance(found, Mapping) or not all(isinstance(key, str) for key in found):
            raise UserError(f"{file}: {what} is {found!r}, not a dict with names")
    for name, own in cells.items():
        if not isinstance(own, Mapping) or not all(isinstance(key, str) for key in own):
            raise UserError(f"{file}: cell {name} is {own!r}, not a dict of keys to change")
    for what, values in [*grid.items(), ("seeds", raw.get("seeds") or [])]:
        if not isinstance(values, list | tuple):
            raise UserError(f"{file}: {what} is {values!r}, not a list of values")
    studied = {key for own in cells.values() for key in own} | set(grid)
    studied |= {"seed"} if raw.get("seeds") else set()
    for key in overrides or {}:
        same = [name for name in studied if f"{key}.".startswith(f"{name}.") or
                f"{name}.".startswith(f"{key}.")]  # fmt: skip
        if same:
            raise UserError(
                f"{file}: --config.{key} would undo {same[0]}, in which its cells differ"
            )
    budget = budget_of(file, raw.get("budget"))
    base_file, colon, base_argument = str(raw.get("base", "")).partition(":")
    if not base_file:
        raise UserError(f"{file}: an ablation needs a base, the path of a config file")
    base = read_file(f"{Path(file).parent / base_file}{colon}{base_argument}")

    made: dict[str, ConfigDict] = {}
    seeds = [("seed", seed) for seed in raw.get("seeds") or ()]
    axes = [[(key, value) for value in values] for key, values in grid.items()]
    for (name, own), *values in itertools.product(
        cells.items(), *axes, *([seeds] if seeds else ())
    ):
        named = values if len(seeds) != 1 else values[:-1]
        label = ",".join([*([name] if name else ()), *map(label_of, named)])
        if not re.fullmatch(r"[\w.=,+-]+", label):
            raise UserError(f"{file}: cell {label!r}: use letters, digits and .=,+-_ in names")
        if label.isdigit():
            raise UserError(
                f"{file}: cell {label!r}: a number is a cell's place; begin with a letter"
            )
        if label in made:
            raise UserError(f"{file}: two cells are called {label!r}")
        one = copy.deepcopy(base)
        for key, value in [*change.items(), *own.items(), *values]:
            section, last = section_of(one, key)
            section[last] = value
        for key, text in (overrides or {}).items():
            override(one, key, text)
        try:
            config = complete(one)
            if config.train.stop_at:
                raise UserError("train.stop_at would end it before its budget is spent")
            if budget[0] == "tokens":
                config = with_steps(config, steps_for(config, budget))
        except UserError as error:
            raise UserError(f"{file}: cell {label}: {error}") from None
        made[label] = config
    check_alike(sorted(studied), budget, {name: made[name].to_dict() for name in made})
    return Ablation(
        Path(file).stem + (f"-{argument}" if argument else ""),
        ast.get_docstring(ast.parse(Path(file).read_text())) or "",
        [Cell(name, config) for name, config in made.items()],
        tuple(sorted(studied)),
        budget,
    )


def budget_of(file: str, given: Any) -> tuple[str, float]:
    """The one budget; UserError unless there is one, above 0."""
    if not isinstance(given, Mapping) or len(given) != 1 or set(given) - set(BUDGETS):
        raise UserError(f"{file}: budget is {given!r}: give one of {', '.join(BUDGETS)}")
    ((unit, amount),) = given.items()
    if not isinstance(amount, int | float) or not 0 < amount < math.inf:
        raise UserError(f"{file}: budget.{unit} is {amount!r}: it must be above 0")
    return unit, float(amount)


def steps_for(
    config: ConfigDict, budget: tuple[str, float], *, flops: float = 0.0, seconds: float = 0.0
) -> int:
    """How many steps a budget pays for.

    Args:
        config: of the cell.
        budget: see `Ablation`.
        flops: of one step, where the budget is in those.
        seconds: of one step, likewise.

    Returns:
        The nearest number, at least 1.
    """
    unit, amount = budget
    tokens = config.data.batch_size * config.data.length
    return max(1, round(amount / {"tokens": tokens, "flops": flops, "seconds": seconds}[unit]))


def with_steps(config: ConfigDict, steps: int) -> ConfigDict:
    """The config with that many steps."""
    raw = config.to_dict()
    raw["train"]["steps"] = steps
    return complete(raw)


def check_alike(
    studied: Sequence[str], budget: tuple[str, float], configs: Mapping[str, Mapping[str, Any]]
) -> None:
    """Raises UserError where two cells differ in what is not studied.

    Args:
        studied: see `Ablation`.
        budget: likewise; one that is not in tokens sets the number of steps.
        configs: by the cell's name, nested.
    """
    free = {*studied, *(() if budget[0] == "tokens" else ("train.steps",))}
    if any(key.split(".")[0] == "data" for key in studied):  # other rows, so other steps
        free.add("train.steps")

    def held(config: Mapping[str, Any]) -> dict[str, Any]:
        return {
            key: value
            for key, value in flatten(config).items()
            if not any(key == name or key.startswith(f"{name}.") for name in free)
        }

    (first, reference), *rest = ((name, held(config)) for name, config in configs.items())
    for name, found in rest:
        for key in reference | found:
            if reference.get(key) != found.get(key):
                raise UserError(
                    f"cells {first} and {name} differ in {key} ({reference.get(key)!r}, "
                    f"{found.get(key)!r}), which this ablation does not study"
                )


def label_of(setting: tuple[str, Any]) -> str:
    """A key and its value in a cell's name."""
    key, value = setting
    if isinstance(value, Mapping):
        value = value.get("name") or value.get("preset") or "+".join(map(str, value))
    elif isinstance(value, list | tuple):
        value = "+".join(map(str, value))
    return f"{key.rpartition('.')[2]}={value}"
