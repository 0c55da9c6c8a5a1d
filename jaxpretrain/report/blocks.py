"""What a report is made of, before it is HTML or Markdown, and how its numbers are written."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

BEST = "★"


class Cell(NamedTuple):
    """A cell of a table.

    Attributes:
        text: of it.
        small: lines below the text.
        mark: "best", "bad" or "".
    """

    text: str
    small: tuple[str, ...] = ()
    mark: str = ""


class Table(NamedTuple):
    """A table; its first column names the rows.

    Attributes:
        heads: of the columns.
        rows: of cells, or plain texts.
        notes: lines below.
        prose: whether the cells are sentences rather than numbers.
    """

    heads: Sequence[Cell | str]
    rows: Sequence[Sequence[Cell | str]]
    notes: tuple[str, ...] = ()
    prose: bool = False


class Text(NamedTuple):
    """A paragraph.

    Attributes:
        text: of it.
        kind: "", "about", "code" (lines that stay as they are), "short" or "warning".
    """

    text: str
    kind: str = ""


class Told(NamedTuple):
    """A finding, as `findings.Finding` without its kind."""

    title: str
    evidence: str
    advice: str


class Shown(NamedTuple):
    """A prediction, as `results.Sample`."""

    given: str
    made: str
    truth: str


class Picture(NamedTuple):
    """A plot: an ``<svg>`` and its title."""

    svg: str
    title: str


class Drawn(NamedTuple):
    """Plots that share a legend.

    Attributes:
        pictures: the plots.
        legend: an ``<svg>`` and a name for each series; empty where the plots name them.
        caption: what to know when reading them.
    """

    pictures: list[Picture]
    legend: list[tuple[str, str]]
    caption: str


class Plots(NamedTuple):
    """Plots that are drawn where they can be shown."""

    draw: Callable[[], Drawn]


class Heading(NamedTuple):
    """A heading inside a section."""

    text: str


class Fold(NamedTuple):
    """Blocks that are hidden until asked for."""

    title: str
    blocks: Sequence[Any]


class Section(NamedTuple):
    """A section of the report.

    Attributes:
        name: for links.
        title: to read.
        blocks: of it.
    """

    name: str
    title: str
    blocks: list[Any]


def cell_of(cell: Cell | str) -> Cell:
    """A plain text as a cell."""
    return cell if isinstance(cell, Cell) else Cell(cell)


def number(value: float | None) -> str:
    """A measured number, to three decimals or three significant digits."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return str(value)
    if value and not 0.001 <= abs(value) < 1e5:
        return f"{value:.3g}"
    return f"{value:,.3f}" if abs(value) < 100 else f"{value:,.1f}"


def interval(low: float, high: float) -> str:
    """A 95 % interval."""
    return f"[{number(low)}, {number(high)}]"


def count(value: float) -> str:
    """A count: in full when small, else in a unit."""
    for size, unit in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:,.0f}"


def flops(value: float) -> str:
    """Operations, as a power of ten."""
    return f"{value:.2e}".replace("e+", "e")


def duration(seconds: float) -> str:
    """A time in the unit that one can read."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def setting(value: Any) -> str:
    """A value of a config."""
    if value == "":
        return '""'
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def plural(number_of: int, noun: str) -> str:
    """A number of things."""
    return f"{number_of:,} {noun}{'' if number_of == 1 else 's'}"
