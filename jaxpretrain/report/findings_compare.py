"""What the detectors of findings share: when two numbers differ, and how to write them."""

import math
import statistics
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from jaxpretrain.report.results import CellResult, Column, Interval, Results, Row

# Smaller differences change no decision, however narrow the intervals of many test rows are: one
# percent of perplexity (or of a bit), and one point of accuracy or correlation.
LEAST_LOSS = 0.01
LEAST_SCORE = 0.01
# Standard errors on each side of a mean of measurements: Student's 95 % for five of them, and more
# than enough for more.
ERRORS = 2.78


class Finding(NamedTuple):
    """Something that an ablation shows.

    Attributes:
        title: in a few words.
        evidence: the numbers.
        advice: what to do, or to look at.
        kind: of the pattern.
    """

    title: str
    evidence: str
    advice: str
    kind: str


def is_number(value: Any) -> bool:
    """Whether it is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)


def finite(interval: Interval | None) -> Interval | None:
    """The interval, or None if any of its numbers is missing."""
    whole = interval and all(is_number(interval[key]) for key in ("mean", "low", "high"))
    return interval if whole else None


def value(row: Row, column: Column) -> Interval | None:
    """What a group has in a column; None if that is no number."""
    return finite(row["values"].get(column["key"]))


def having(rows: Iterable[Row], column: Column) -> list[Row]:
    """Those of the groups that have a number in a column."""
    return [row for row in rows if value(row, column)]


def width(interval: Interval) -> float:
    """From one end to the other."""
    return interval["high"] - interval["low"]


def apart(a: Interval, b: Interval) -> bool:
    """Whether two intervals do not overlap; two without any width say nothing of the noise."""
    return (a["low"] > b["high"] or b["low"] > a["high"]) and max(width(a), width(b)) > 0


def difference(column: Column, good: Row, bad: Row) -> float:
    """By how much one group is better than another; below 0 if it is worse."""
    sign = 1 if column["better"] == "higher" else -1
    return sign * (value(good, column)["mean"] - value(bad, column)["mean"])


def better(column: Column, good: Row, bad: Row) -> bool:
    """Whether one group is better than another by what counts and is beyond the noise.

    Args:
        column: a comparable one.
        good: the one group.
        bad: the other.
    """
    if len(having([good, bad], column)) < 2:
        return False
    least = LEAST_SCORE if column["better"] == "higher" else LEAST_LOSS
    if difference(column, good, bad) < least:
        return False
    return column["best"] == good["group"] or apart(value(good, column), value(bad, column))


def best(rows: list[Row], column: Column) -> Row:
    """The group with the best mean, of groups that have one."""
    sign = 1 if column["better"] == "higher" else -1
    return max(rows, key=lambda row: sign * value(row, column)["mean"])


def losses(results: Results) -> list[Column]:
    """Comparable columns of held-out losses."""
    return [c for c in results["columns"] if c["comparable"] and c["better"] == "lower"]


def downstream(results: Results) -> list[Column]:
    """Comparable columns of downstream tasks."""
    tasks = {key for cell in results["cells"].values() for key in cell["tasks"]}
    return [
        column
        for column in results["columns"]
        if column["comparable"] and column["better"] == "higher" and column["key"] in tasks
    ]


def cells_of(results: Results, row: Row) -> list[CellResult]:
    """The cells of a group that are done."""
    return [results["cells"][name] for name in row["cells"] if name in results["cells"]]


def objective(results: Results, row: Row) -> str:
    """The name of a group's objective; "" if it is not known."""
    names = [cell["settings"].get("objective.name") for cell in cells_of(results, row)]
    return next((name for name in [*names, row["varied"].get("objective.name")] if name), "")


def alike(rows: Iterable[Row], matters: Callable[[str], bool]) -> list[list[Row]]:
    """Groups sorted into those that are alike in all the keys that matter."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        rest = {key: value for key, value in row["varied"].items() if matters(key)}
        found.setdefault(repr(sorted(rest.items())), []).append(row)
    return list(found.values())


def mean_of(numbers: list[float]) -> Interval:
    """The mean of measurements with what their scatter leaves open."""
    mean = statistics.fmean(numbers)
    error = ERRORS * statistics.stdev(numbers) / math.sqrt(len(numbers)) if numbers[1:] else 0.0
    return {"mean": mean, "low": mean - error, "high": mean + error}


def shown(interval: Interval) -> str:
    """A mean with its interval, as text."""
    return f"{interval['mean']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]"


def versus(column: Column, good: Row, bad: Row) -> str:
    """Two groups with their numbers, as text."""
    return (
        f"{good['group']} has {shown(value(good, column))} against "
        f"{shown(value(bad, column))} of {bad['group']}"
    )


def count(number: int, what: str) -> str:
    """ "1 task" or "2 tasks"."""
    return f"{number} {what}" + ("" if number == 1 else "s")
