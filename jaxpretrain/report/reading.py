"""Numbers of an ablation, collected by group."""

from collections.abc import Callable, Iterable
from typing import Any

from jaxpretrain.report.results import CellResult, Column, Results, Row


def cells_of(results: Results, row: Row) -> list[CellResult]:
    """The cells of a group that are done."""
    return [results["cells"][name] for name in row["cells"] if name in results["cells"]]


def mean_over_cells(
    results: Results, row: Row, number_of: Callable[[CellResult], float | None]
) -> float | None:
    """A number of the cells of a group, averaged; None where no cell has it."""
    found = [number_of(cell) for cell in cells_of(results, row)]
    found = [value for value in found if value is not None]
    return sum(found) / len(found) if found else None


def names(found: Iterable[Iterable[str]]) -> list[str]:
    """All the names, each once, in the order in which they come."""
    return list(dict.fromkeys(name for some in found for name in some))


def column(results: Results, key: str) -> Column | None:
    """The column of that key."""
    return next((c for c in results["columns"] if c["key"] == key), None)


def loss_unit(results: Results) -> str:
    """What held-out losses are in."""
    found = column(results, "loss")
    return found["unit"] if found else "nats"


def not_comparable(results: Results) -> str:
    """Why the groups' losses are not to be compared; "" if they are."""
    found = column(results, "loss")
    if not found or found["comparable"]:
        return ""
    note = f" ({found['note'].rstrip('.')})" if found["note"] else ""
    return f"The groups' losses are not comparable{note}: compare a line with itself only."


def task_columns(results: Results) -> list[Column]:
    """The columns that are of downstream tasks."""
    tasks = set(names(cell["tasks"] for cell in results["cells"].values()))
    return [c for c in results["columns"] if c["key"] in tasks]


def differing(settings: Iterable[dict[str, Any]]) -> list[str]:
    """Keys whose values are not the same everywhere."""
    settings = list(settings)
    return [
        key
        for key in names(settings)
        if any(key not in one or one[key] != settings[0].get(key) for one in settings)
    ]


def swept(results: Results) -> tuple[str, list[float]] | None:
    """The one key that varies and its values by row, if there is one and these are numbers."""
    varied = [{k: v for k, v in row["varied"].items() if k != "seed"} for row in results["rows"]]
    keys = differing(varied) if varied else []
    if len(keys) != 1:
        return None
    values = [one.get(keys[0]) for one in varied]
    if any(isinstance(v, bool) or not isinstance(v, int | float) for v in values):
        return None
    return keys[0], values
