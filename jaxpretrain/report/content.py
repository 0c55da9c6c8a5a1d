"""What the report of an ablation says, section by section, for HTML and for Markdown."""

import re
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jaxpretrain.report import tables, task_tables
from jaxpretrain.report.blocks import (
    Fold,
    Heading,
    Plots,
    Section,
    Shown,
    Text,
    Told,
    count,
    duration,
    flops,
    number,
    plural,
)
from jaxpretrain.report.plots import Drawing
from jaxpretrain.report.reading import cells_of, swept, task_columns
from jaxpretrain.report.results import Results

if TYPE_CHECKING:
    from jaxpretrain.report.findings import Finding

SAMPLES = 3  # of each group
OPEN_SAMPLES = 2  # groups


def top(results: Results) -> list[Text]:
    """What comes before the sections: what is missing, what this is, and all of it in short."""
    blocks = []
    if results["missing"]:
        cells = plural(len(results["missing"]), "cell")
        blocks.append(
            Text(f"Not done, so not in here: {cells}: {', '.join(results['missing'])}.", "warning")
        )
    if results["about"]:
        blocks += _paragraphs(results["about"])
    blocks.append(Text(f"In short: {in_short(results)}", "short"))
    return blocks


def _paragraphs(about: str) -> list[Text]:
    """Paragraphs, and what is indented as it is."""
    parts = [part.strip("\n") for part in re.split(r"\n[ \t]*\n", about) if part.strip()]
    return [
        Text(textwrap.dedent(part), "code")
        if all(line.startswith(("  ", "\t")) for line in part.splitlines())
        else Text(" ".join(part.split()), "about")
        for part in parts
    ]


def in_short(results: Results) -> str:
    """A few sentences: how much was compared, and who is best in what."""
    rows = results["rows"]
    seeds = sorted({len(cells_of(results, row)) for row in rows})
    each = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}" if seeds else "0"
    said = [
        f"{plural(len(rows), 'group')} with {each} seed{'' if each == '1' else 's'} each, "
        f"{budget(results)} for each run."
    ]
    best: dict[str, list[str]] = {}
    for column in results["columns"]:
        if column["best"] is not None:
            best.setdefault(column["best"], []).append(column["label"])
    for group, labels in best.items():
        said.append(f"{group} is best in {', '.join(labels)}.")
    unclear = [c["label"] for c in results["columns"] if c["comparable"] and c["best"] is None]
    if unclear:
        said.append(f"No group is clearly best in {', '.join(unclear)}.")
    apart = [c["label"] for c in results["columns"] if not c["comparable"]]
    if apart:
        said.append(f"Not comparable between all groups: {', '.join(apart)}.")
    return " ".join(said)


def budget(results: Results) -> str:
    """What each cell has."""
    ways = {
        "tokens": lambda n: f"{count(n)} tokens",
        "flops": lambda n: f"{flops(n)} FLOPs",
        "seconds": lambda n: f"{duration(n)} of training",
    }
    return ", ".join(ways.get(k, lambda n, k=k: f"{number(n)} {k}")(n)
                     for k, n in results["budget"].items())  # fmt: skip


def sections(results: Results, findings: Sequence["Finding"]) -> list[Section]:
    """All the sections that these results have something for, in order."""
    drawing = Drawing()
    cells = results["cells"].values()
    made = [
        Section("findings", "Findings", _findings(findings)),
        Section("compared", "What was compared, and what was held equal", _compared(results)),
        Section("results", "Results", [*tables.comparison(results)]),
    ]
    if any(entry.get("eval_loss") is not None for cell in cells for entry in cell["curve"]):
        made.append(
            Section("curves", "Learning curves", [Plots(lambda: drawing.learning(results))])
        )
    if task_columns(results):
        made.append(Section("tasks", "Downstream tasks", _tasks(results, drawing)))
    if swept(results):
        title = f"Results against {swept(results)[0]}"
        made.append(Section("sweep", title, [Plots(lambda: drawing.sweep(results))]))
    if any(cell["balance"] for cell in cells):
        balance = [Plots(lambda: drawing.balance(results)), tables.balance(results)]
        made.append(Section("balance", "Balance of the mixture", balance))
    for name, title, blocks in (
        ("shuffled", "Check: probes of shuffled labels", task_tables.shuffled(results)),
        ("pairs", "Minimal pairs by phenomenon", task_tables.phenomena(results)),
        ("samples", "Sample predictions", _samples(results)),
        ("fit", "Training and held-out loss", tables.fit(results)),
        ("others", "Held-out loss under other objectives", tables.others(results)),
        ("sources", "Held-out loss by source", tables.by_source(results)),
        ("data", "The text", tables.data(results)),
        ("settings", "Settings and versions", tables.settings(results)),
    ):
        if blocks:
            made.append(Section(name, title, blocks))
    return made


def _findings(findings: Sequence["Finding"]) -> list[Any]:
    if not findings:
        return [Text("None: the numbers support no finding.")]
    return [Told(f.title, f.evidence, f.advice) for f in findings]


def _compared(results: Results) -> list[Any]:
    studied = ", ".join(results["studied"]) or "nothing"
    said = f"The runs differ in {studied}. Each has {budget(results)}."
    return [
        Text(said),
        tables.varied(results),
        Heading("Held equal"),
        *tables.equal(results),
        Heading("What each group cost"),
        tables.costs(results),
    ]


def _tasks(results: Results, drawing: Drawing) -> list[Any]:
    return [Plots(lambda: drawing.tasks(results)), *task_tables.tasks(results)]


def _samples(results: Results) -> list[Any]:
    shown = []
    for row in results["rows"]:
        cell = next((c for c in cells_of(results, row) if c["samples"]), None)
        if cell:
            samples = [Shown(s["given"], s["made"], s["truth"]) for s in cell["samples"][:SAMPLES]]
            shown.append((row["group"], samples))
    blocks: list[Any] = []
    for group, samples in shown[:OPEN_SAMPLES]:
        blocks += [Heading(group), *samples]
    rest = [
        block for group, samples in shown[OPEN_SAMPLES:] for block in (Heading(group), *samples)
    ]
    if rest:
        others = plural(len(shown) - OPEN_SAMPLES, "other group")
        blocks.append(Fold(f"Samples of {others}", rest))
    return blocks
