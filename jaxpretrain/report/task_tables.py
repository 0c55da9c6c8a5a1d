"""The tables of an ablation's report that are about downstream tasks."""

from typing import Any

from jaxpretrain.report.blocks import (
    Cell,
    Fold,
    Table,
    Text,
    interval,
    number,
    plural,
)
from jaxpretrain.report.reading import (
    cells_of,
    names,
    task_columns,
)
from jaxpretrain.report.results import Results, TaskResult
from jaxpretrain.report.tables import MANY, matrix, mean_of


def tasks(results: Results) -> list[Any]:
    """How the tasks were measured, and what else was."""
    rows, more = [], []
    keys = [column["key"] for column in task_columns(results)]
    for key in keys:
        found = [cell["tasks"][key] for cell in results["cells"].values() if key in cell["tasks"]]
        one = found[0]
        rows.append(
            [
                key,
                one["kind"].replace("_", " "),
                one["method"],
                one["metric"],
                *(f"{one['rows'].get(split, 0):,}" for split in ("train", "dev", "test")),
                number(one["chance"]),
            ]
        )
        for row in results["rows"]:
            mine = [c["tasks"][key] for c in cells_of(results, row) if key in c["tasks"]]
            if any(task["more"] or task["learning_rate"] is not None for task in mine):
                more.append([row["group"], key, _seeds(mine), _more(mine), _rates(mine)])
    heads = ["task", "kind", "method", "metric", "train rows", "dev rows", "test rows", "chance"]
    blocks: list[Any] = [Fold("How the tasks were measured", [Table(heads, rows)])]
    if more:
        table = Table(
            ["group", "task", "by seed", "other metrics", "learning rate"], more, prose=True
        )
        blocks.append(Fold("Other metrics, and learning rates of the fine-tunes", [table]))
    return blocks


def _seeds(found: list[TaskResult]) -> str:
    return ", ".join(number(value) for task in found for value in task["seeds"])


def _more(found: list[TaskResult]) -> str:
    every = names(task["more"] for task in found)
    return ", ".join(
        f"{name} {number(mean_of([t['more'][name] for t in found if name in t['more']]))}"
        for name in every
    ) or "–"  # fmt: skip


def _rates(found: list[TaskResult]) -> str:
    said = []
    for task in found:
        if task["learning_rate"] is not None:
            tried = ", ".join(f"{rate}: {number(value)}" for rate, value in task["grid"].items())
            said.append(f"{task['learning_rate']:g}" + (f" (on dev, {tried})" if tried else ""))
    return "; ".join(dict.fromkeys(said)) or "–"


def shuffled(results: Results) -> list[Any]:
    """What the probes score when there is nothing to learn."""
    rows, bad = [], 0
    for name, cell in results["cells"].items():
        for task, found in cell["tasks"].items():
            check = found["shuffled"]
            if check is None:
                continue
            bad += not check["at_chance"]
            rows.append(
                [
                    Cell(task, (name,)),
                    number(check["mean"]),
                    interval(check["low"], check["high"]),
                    number(check["chance"]),
                    Cell("at chance")
                    if check["at_chance"]
                    else Cell("NOT at chance: something leaks", (), "bad"),
                ]
            )
    if not rows:
        return []
    rows.sort(key=lambda cells: (cells[-1].mark != "bad", cells[0].text))
    heads = ["task and cell", "mean", "95 % interval", "chance", "verdict"]
    note = "Balanced accuracy of classes, Pearson's correlation of numbers."
    of = f"{plural(len(rows), 'probe')} trained on shuffled labels"
    if not bad:
        blocks = [Text(f"Of {of}, each is at chance, as it must be.")]
    else:
        blocks = [Text(f"Of {of}, {bad} NOT at chance: something leaks.", "warning")]
    if len(rows) <= MANY:
        return [*blocks, Table(heads, rows, (note,))]
    if bad:
        blocks.append(Table(heads, rows[:bad], (note,)))
    return [*blocks, Fold(f"Each of the {len(rows)} probes", [Table(heads, rows, (note,))])]


def phenomena(results: Results) -> list[Any]:
    """Accuracies on minimal pairs, for each phenomenon and group."""
    blocks: list[Any] = []
    for task in names(cell["tasks"] for cell in results["cells"].values()):
        found = [
            c["tasks"][task]["groups"] for c in results["cells"].values() if task in c["tasks"]
        ]
        kinds = names(found)
        if not kinds:
            continue
        rows = matrix(
            results,
            kinds,
            lambda c, kind, t=task: c["tasks"].get(t, {}).get("groups", {}).get(kind),
        )
        note = (
            f"{task}: share of the pairs in which the right sentence is the likelier; chance 0.5."
        )
        blocks.append(_flipped(results, "phenomenon", kinds, rows, note))
    return blocks


def _flipped(
    results: Results, what: str, kinds: list[str], rows: list[list[str]], note: str
) -> Table:
    """The table with the longer side down."""
    if len(kinds) <= len(rows):
        return Table(["group", *kinds], rows, (note,))
    turned = [list(cells) for cells in zip(*rows, strict=True)]
    return Table(
        [what, *turned[0]],
        [[kind, *cells] for kind, cells in zip(kinds, turned[1:], strict=True)],
        (note,),
    )
