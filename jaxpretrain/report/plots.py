"""The plots of an ablation's report: SVG to put into a page, the same bytes for the same results.

Series differ in colour (of Okabe and Ito's palette), in marker and in line style. Text is as large
as it must be to be read on a phone.
"""

import html
import io
import math
import re
from collections.abc import Callable, Iterable
from itertools import count as counter
from typing import Any

from jaxpretrain.report.blocks import Drawn, Picture, setting
from jaxpretrain.report.reading import (
    cells_of,
    column,
    loss_unit,
    names,
    not_comparable,
    swept,
    task_columns,
)
from jaxpretrain.report.results import Column, Interval, Results

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", "-.", ":")
MARKERS = "osD^vPX*<>phd8H|"
WIDTH = 4.6  # inches; one unit of the SVG is then about one pixel of a phone
_NAMED_AT_THE_SIDE = 18  # characters; longer names stand above their dots

_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "jaxpretrain",
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.labelsize": 11,
    "axes.titlesize": 11,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
}


class Drawing:
    """Draws the plots of one page; no two of its plots share an id."""

    def __init__(self):
        self.numbers = counter(1)

    def learning(self, results: Results) -> Drawn:
        """Held-out loss against tokens, FLOPs and time, and the tasks measured meanwhile."""
        pictures = []
        for key, what in (
            ("tokens", "tokens read"),
            ("flops", "training compute"),
            ("seconds", "training time"),
        ):
            lines = _curves(results, key, "eval_loss")
            if lines:
                label = f"held-out loss ({loss_unit(results)})"
                pictures.append(self._lines(lines, key, what, label, clip=True))
        for name in names(entry for cell in results["cells"].values() for entry in cell["curve"]):
            if name.startswith("task/"):
                task = name.removeprefix("task/")
                label = f"{task} ({_metric(results, task)})"
                lines = _curves(results, "tokens", name)
                pictures.append(self._lines(lines, "tokens", "tokens read", label))
        caption = "One line for each run" + (
            "; runs of a group differ in the seed and look alike. "
            if any(len(row["cells"]) > 1 for row in results["rows"])
            else ". "
        )
        caption += "The loss axis leaves out the first steps where they are far above the rest. "
        return Drawn(pictures, self._legend(_groups(results)), caption + not_comparable(results))

    def tasks(self, results: Results) -> Drawn:
        """A panel for each task: the groups' metrics with their intervals."""
        pictures = [self._dots(results, one) for one in task_columns(results)]
        caption = "Dots are means over seeds, bars 95 % intervals over test rows and seeds. "
        caption += _dashed(task_columns(results))
        return Drawn([picture for picture in pictures if picture.svg], [], caption)

    def sweep(self, results: Results) -> Drawn:
        """Held-out loss and each task against the value of the key that varies."""
        key, values = swept(results)
        loss = column(results, "loss")
        columns = ([loss] if loss else []) + task_columns(results)
        pictures = [self._against(results, key, values, one) for one in columns]
        caption = f"Bars are 95 % intervals. {_dashed(columns)}{not_comparable(results)}"
        return Drawn([picture for picture in pictures if picture.svg], [], caption.strip())

    def balance(self, results: Results) -> Drawn:
        """What each task of a mixture has of the gradient, and how these agree, over steps."""
        cells = [cell for cell in results["cells"].values() if cell["balance"]]
        keys = names(entry for cell in cells for entry in cell["balance"])
        parts = [k.split("/", 1)[1] for k in keys if k.startswith("gradient_share/")]
        pairs = [k.split("/", 1)[1] for k in keys if k.startswith("gradient_cosine/")]
        several = len(cells) > len({cell["group"] for cell in cells})
        pictures = []
        for cell in cells:
            run = cell["group"] + (f", seed {cell['seed']}" if several else "")
            for kind, members, label, limits in (
                ("gradient_share", parts, "share of the gradient (0 to 1)", (0, 1)),
                ("gradient_cosine", pairs, "cosine of the gradients (-1 to 1)", (-1, 1)),
            ):
                offset = 0 if kind == "gradient_share" else len(parts)
                lines = [
                    (offset + i, [(e["step"], e[f"{kind}/{one}"]) for e in cell["balance"]
                                  if f"{kind}/{one}" in e])
                    for i, one in enumerate(members)
                ]  # fmt: skip
                if any(points for _, points in lines):
                    title = f"{run}: {label.split(' (')[0]}"
                    pictures.append(self._lines(lines, "step", "step", label, limits, title=title))
        named = parts + [pair.replace("~", " with ") for pair in pairs]
        caption = (
            "The share is that of the summed norms of the tasks' weighted gradients; a cosine "
            "below 0 says that two tasks pull against each other."
            if pairs
            else "The share is that of the summed norms of the tasks' weighted gradients."
        )
        return Drawn(pictures, self._legend(named), caption)

    def _lines(
        self,
        lines: list[tuple[int, list[tuple[float, float]]]],
        key: str,
        what: str,
        label: str,
        limits: tuple[float, float] | None = None,
        title: str = "",
        clip: bool = False,
    ) -> Picture:
        """Lines, each with the number of its series."""
        factor, unit = _scale(key, max(x for _, points in lines for x, _ in points))

        def draw(axes):
            for number, points in lines:
                axes.plot(
                    [x / factor for x, _ in points],
                    [y for _, y in points],
                    markevery=max(1, math.ceil(len(points) / 6)),
                    linewidth=1.6,
                    **_series(number),
                )
            axes.set_xlabel(f"{what} ({unit})" if unit else what)
            axes.set_ylabel(label)
            if limits:
                axes.set_ylim(*limits)
            elif clip:
                _leave_out_the_start(axes, [points for _, points in lines])

        title = title or f"{label.split(' (')[0]} against {what}"
        return self._picture(draw, 2.9, title)

    def _dots(self, results: Results, one: Column) -> Picture:
        """A task: a dot for each group."""
        rows = [(i, row) for i, row in enumerate(results["rows"]) if one["key"] in row["values"]]
        if not rows:
            return Picture("", "")
        beside = max(len(row["group"]) for _, row in rows) <= _NAMED_AT_THE_SIDE
        step = 0.3 if beside else 0.46

        def draw(axes):
            for place, (number, row) in enumerate(rows):
                value = row["values"][one["key"]]
                _bar(axes, value, place, number)
                if not beside:
                    axes.annotate(
                        _short(row["group"]),
                        (0, place),
                        (2, 8),
                        xycoords=axes.get_yaxis_transform(),
                        textcoords="offset points",
                        annotation_clip=False,
                        bbox={"color": "white", "pad": 1, "alpha": 0.8},
                    ).set_in_layout(False)
            if one["chance"] is not None:
                axes.axvline(one["chance"], color="#555555", linestyle="--", linewidth=1)
            axes.set_ylim(len(rows) - 0.5, -0.6 if beside else -0.9)
            axes.set_yticks(range(len(rows)), [r["group"] for _, r in rows] if beside else [])
            axes.tick_params(axis="y", length=0)
            axes.margins(x=0.08)
            axes.set_xlabel(f"{one['label']} ({one['unit']})")

        return self._picture(draw, 0.75 + step * len(rows), f"{one['label']} by group")

    def _against(self, results: Results, key: str, values: list[float], one: Column) -> Picture:
        """A column against the value that varies."""
        rows = sorted(zip(values, results["rows"], strict=True), key=lambda pair: pair[0])
        points = [(x, row["values"][one["key"]]) for x, row in rows if one["key"] in row["values"]]
        if not points:
            return Picture("", "")

        def draw(axes):
            middle = [v["mean"] for _, v in points]
            xs = [x for x, _ in points]
            axes.errorbar(
                xs,
                middle,
                _reach([v for _, v in points]),
                color=COLOURS[0],
                marker="o",
                capsize=3,
                linewidth=1.6,
            )
            if one["chance"] is not None:
                axes.axhline(one["chance"], color="#555555", linestyle="--", linewidth=1)
            if min(xs) > 0 and max(xs) / min(xs) >= 20:
                axes.set_xscale("log")
                axes.set_xticks(xs, [setting(x) for x in xs])
                axes.minorticks_off()
            axes.set_xlabel(f"{key} (setting)")
            axes.set_ylabel(f"{one['label']}\n({one['unit']})")

        return self._picture(draw, 2.7, f"{one['label']} against {key}")

    def _legend(self, series: Iterable[str]) -> list[tuple[str, str]]:
        def key(number):
            def draw(axes):
                axes.plot([0, 0.5, 1], [0, 0, 0], markevery=[1], linewidth=1.6, **_series(number))
                axes.set_axis_off()

            return draw

        return [
            (self._svg(key(number), (0.55, 0.2), ""), name) for number, name in enumerate(series)
        ]

    def _picture(self, draw: Callable[[Any], None], height: float, title: str) -> Picture:
        def with_grid(axes):
            axes.grid(alpha=0.25)
            axes.set_axisbelow(True)
            draw(axes)

        return Picture(self._svg(with_grid, (WIDTH, height), title), title)

    def _svg(self, draw: Callable[[Any], None], size: tuple[float, float], title: str) -> str:
        import matplotlib
        from matplotlib.figure import Figure

        with matplotlib.rc_context(_STYLE):
            figure = Figure(figsize=size, layout="constrained" if title else "none")
            axes = figure.subplots() if title else figure.add_axes((0.05, 0, 0.9, 1))
            draw(axes)
            text = io.StringIO()
            figure.savefig(text, format="svg", transparent=not title, metadata={"Date": None})
        return for_page(text.getvalue(), f"plot{next(self.numbers)}", title)


def for_page(svg: str, prefix: str, title: str) -> str:
    """What matplotlib wrote, as an element of a page.

    Args:
        svg: a file.
        prefix: of its ids.
        title: for who cannot see it; "" hides it from them.
    """
    box = re.search(r'viewBox="[^"]*"', svg)[0]
    body = svg[re.search(r"<svg[^>]*>", svg).end() : svg.rindex("</svg>")]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", body, flags=re.S)
    body = re.sub(r"font-family: [^;\"]*;? ?", "", body)
    used = set(re.findall(r'(?:url\(|href=")#([^")]+)', body))
    body = re.sub(
        r' id="([^"]*)"', lambda m: f' id="{prefix}-{m[1]}"' if m[1] in used else "", body
    )
    body = re.sub(r'xlink:href="#', f'href="#{prefix}-', body)
    body = body.replace("url(#", f"url(#{prefix}-")
    body = re.sub(r"\s*\n\s*", " ", body)
    safe = html.escape(title)
    role = f'role="img" aria-label="{safe}"' if title else 'aria-hidden="true" class="key"'
    return f"<svg {role} {box}>{f'<title>{safe}</title>' if title else ''}{body}</svg>"


def _series(number: int) -> dict[str, Any]:
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": LINES[number % len(LINES)],
        "marker": MARKERS[number % len(MARKERS)],
        "markersize": 5,
    }


def _bar(axes: Any, value: Interval, place: int, number: int) -> None:
    """A dot with its interval, level."""
    axes.errorbar(
        [value["mean"]],
        [place],
        xerr=_reach([value]),
        capsize=3,
        linewidth=1.6,
        **_series(number) | {"linestyle": "none", "markersize": 6},
    )


def _reach(values: list[Interval]) -> tuple[list[float], list[float]]:
    """How far intervals reach below and above their means; not less than 0 by rounding."""
    below = [max(0.0, value["mean"] - value["low"]) for value in values]
    return below, [max(0.0, value["high"] - value["mean"]) for value in values]


def _dashed(columns: list[Column]) -> str:
    return "The dashed line is chance. " if any(c["chance"] is not None for c in columns) else ""


def _groups(results: Results) -> list[str]:
    return [row["group"] for row in results["rows"]]


def _curves(results: Results, x: str, y: str) -> list[tuple[int, list[tuple[float, float]]]]:
    """The points of each run, with the number of its group."""
    lines = [
        (number, [(e[x], e[y]) for e in cell["curve"] if _finite(e, x) and _finite(e, y)])
        for number, row in enumerate(results["rows"])
        for cell in cells_of(results, row)
    ]
    return [(number, points) for number, points in lines if points]


def _finite(entry: dict[str, float], key: str) -> bool:
    """Whether an entry of a log has a number there; a run that blew up has others."""
    return entry.get(key) is not None and math.isfinite(entry[key])


def _metric(results: Results, task: str) -> str:
    """The metric of a task that is measured while training."""
    for cell in results["cells"].values():
        for name, found in cell["tasks"].items():
            if task in (name, name.split("/")[0]):
                return found["metric"]
    return "metric"


def _leave_out_the_start(axes: Any, lines: list[list[tuple[float, float]]]) -> None:
    """Ends the axis above the losses after a seventh of the training, where the start is far."""
    end = max(x for points in lines for x, _ in points)
    rest = [y for points in lines for x, y in points if x >= end / 7]
    low, high = min(rest), max(rest)
    room = 0.06 * (high - low)
    if max(y for points in lines for _, y in points) > high + 4 * room:
        axes.set_ylim(low - room, high + room)


def _scale(key: str, most: float) -> tuple[float, str]:
    """What to divide by, and the unit that this makes."""
    if key == "seconds":
        for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
            if most >= 2 * size:
                return size, unit
        return 1, "seconds"
    if key == "flops":
        power = 3 * int(math.log10(most) // 3) if most > 0 else 0
        return (
            10.0**power,
            f"10{str(power).translate(str.maketrans('0123456789', '⁰¹²³⁴⁵⁶⁷⁸⁹'))} FLOPs",
        )
    if key == "tokens":
        for size, unit in ((1e9, "billions"), (1e6, "millions"), (1e3, "thousands")):
            if most >= size:
                return size, unit
        return 1, "count"
    return 1, "updates"


def _short(name: str, most: int = 46) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
