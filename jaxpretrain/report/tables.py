"""The tables of an ablation's report."""

from collections.abc import Callable
from typing import Any

from jaxpretrain.report.blocks import (
    BEST,
    Cell,
    Fold,
    Table,
    Text,
    count,
    duration,
    flops,
    interval,
    number,
    setting,
)
from jaxpretrain.report.reading import (
    differing,
    loss_unit,
    mean_over_cells,
    names,
    not_comparable,
)
from jaxpretrain.report.results import CellResult, Column, Results, Row

MANY = 8  # rows or columns; more are folded or told in words

# Settings that say what kind of run it was; shown first.
_IMPORTANT = (
    "objective.name",
    "model.layers",
    "model.width",
    "model.heads",
    "data.length",
    "data.batch_size",
    "train.steps",
    "optimizer.learning_rate",
    "optimizer.schedule",
    "tokenizer.vocab_size",
    "source.name",
    "store.path",
    "seed",
)


def comparison(results: Results) -> list[Any]:
    """A row for each group and a column for each number, with what to know about them."""
    heads = [Cell("group"), *(Cell(c["label"], _about(c)) for c in results["columns"])]
    rows = [
        [row["group"], *(_value(row, column) for column in results["columns"])]
        for row in results["rows"]
    ]
    several = any(len(row["cells"]) > 1 for row in results["rows"])
    notes = [
        "Means over pretraining seeds, with 95 % intervals over test rows and seeds."
        if several
        else "One pretraining seed each: the 95 % intervals are over test rows alone."
    ]
    if any(c["best"] is not None for c in results["columns"]):
        notes.append(
            f"{BEST} best: better than each other group by a difference whose 95 % interval "
            "leaves out 0 (paired by test rows; their own intervals may overlap all the same)."
        )
    apart: dict[str, list[str]] = {}
    for column in results["columns"]:
        if not column["comparable"]:
            apart.setdefault(column["note"], []).append(column["label"])
    for note, labels in apart.items():
        notes.append(f"Not comparable between groups: {', '.join(labels)}"
                     + (f": {note}" if note else "."))  # fmt: skip
    return [Table(heads, rows, tuple(notes))]


def _about(column: Column) -> tuple[str, ...]:
    said = [
        column["unit"],
        f"{'↓' if column['better'] == 'lower' else '↑'} {column['better']} is better",
    ]
    if column["chance"] is not None:
        said.append(f"chance {number(column['chance'])}")
    if not column["comparable"]:
        said.append("not comparable")
    return tuple(said)


def _value(row: Row, column: Column) -> Cell:
    value = row["values"].get(column["key"])
    if value is None:
        return Cell("–")
    best = column["best"] == row["group"]
    mean = number(value["mean"])
    return Cell(
        f"{BEST} {mean}" if best else mean,
        (interval(value["low"], value["high"]),),
        "best" if best else "",
    )


def varied(results: Results) -> Table:
    """What distinguishes each group, of the settings that it has at all."""

    def said(row: Row) -> str:
        own = {key: value for key, value in row["varied"].items() if value is not None}
        return ", ".join(f"{key} = {setting(value)}" for key, value in own.items()) or "–"

    rows = [[row["group"], said(row)] for row in results["rows"]]
    return Table(["group", "what varies"], rows, prose=True)


def equal(results: Results) -> list[Any]:
    """The settings that all cells share: those that matter most, and all of them."""
    found = results["equal"]
    if not found:
        return [Text("No setting is the same in all runs.")]
    shown = [f"{key} = {setting(found[key])}" for key in _IMPORTANT if found.get(key, "") != ""]
    rows = [[key, setting(value)] for key, value in found.items()]
    return [
        *([Text(", ".join(shown) + ".")] if shown else []),
        Fold(
            f"All {len(rows)} settings that are equal",
            [Table(["setting", "value"], rows, prose=True)],
        ),
    ]


def costs(results: Results) -> Table:
    """Parameters, tokens, operations and time of each group."""
    columns: list[tuple[str, str, Callable[[float], str]]] = [
        ("parameters", "parameters", count),
        ("steps", "updates", count),
        ("tokens", "tokens read", count),
        ("flops", "FLOPs of training", flops),
        ("train_seconds", "time of training", duration),
    ]
    rows = []
    for row in results["rows"]:
        means = [mean_over_cells(results, row, lambda c, k=key: c[k]) for key, _, _ in columns]
        texts = [
            "–" if mean is None else way(mean)
            for mean, (_, _, way) in zip(means, columns, strict=True)
        ]
        rows.append([row["group"], *texts])
    return Table(["group", *(label for _, label, _ in columns)], rows)


def mean_of(values: list[float]) -> float:
    return sum(values) / len(values)


def balance(results: Results) -> Table:
    """The mean share of the gradient in the first and the last quarter of the training."""
    cells = {n: cell for n, cell in results["cells"].items() if cell["balance"]}
    keys = names(entry for cell in cells.values() for entry in cell["balance"])
    keys = [key for key in keys if key.startswith(("gradient_share/", "gradient_cosine/"))]
    rows = []
    for name, cell in cells.items():
        quarter = max(1, len(cell["balance"]) // 4)
        rows.append([name, *(_first_to_last(cell["balance"], key, quarter) for key in keys)])
    heads = [
        Cell(key.split("/", 1)[1].replace("~", " with "),
             ("share" if key.startswith("gradient_share/") else "cosine",))
        for key in keys
    ]  # fmt: skip
    note = "Means over the first and the last quarter of what was logged."
    return Table(["run", *heads], rows, (note,))


def _first_to_last(entries: list[dict[str, float]], key: str, quarter: int) -> str:
    values = [entry[key] for entry in entries if key in entry]
    if not values:
        return "–"
    return f"{number(mean_of(values[:quarter]))} → {number(mean_of(values[-quarter:]))}"


def fit(results: Results) -> list[Any]:
    """Loss on training, validation and test documents."""
    splits = ("train", "validation", "test")
    rows = []
    for row in results["rows"]:
        means = [
            mean_over_cells(results, row, lambda c, s=split: (c[s] or {}).get("loss"))
            for split in splits
        ]
        means.append(mean_over_cells(results, row, lambda c: c["test"].get("unigram_loss")))
        rows.append([row["group"], *map(number, means)])
    heads = ["group", "training documents", "validation", "test", "unigram model on test"]
    return [Table(heads, rows, _loss_notes(results))]


def others(results: Results) -> list[Any]:
    """Held-out losses of each group under each objective."""
    kinds = names(cell["others"] for cell in results["cells"].values())
    if not kinds:
        return []
    rows = matrix(results, kinds, lambda c, kind: c["others"].get(kind, {}).get("loss"))
    note = "On the test documents, in nats; a column is one objective: compare within it."
    return [Table(["group", *kinds], rows, (note,))]


def by_source(results: Results) -> list[Any]:
    """Loss on the test documents of each source."""
    kinds = names(cell["by_source"] for cell in results["cells"].values())
    if not kinds:
        return []
    rows = matrix(results, kinds, lambda c, kind: c["by_source"].get(kind))
    return [Table(["group", *kinds], rows, _loss_notes(results))]


def _loss_notes(results: Results) -> tuple[str, ...]:
    apart = not_comparable(results).replace("a line", "a row")
    return (f"In {loss_unit(results)}, means over seeds.", *([apart] if apart else []))


def matrix(
    results: Results, kinds: list[str], number_of: Callable[[CellResult, str], float | None]
) -> list[list[str]]:
    """A row for each group, a column for each kind."""
    return [
        [
            row["group"],
            *(number(mean_over_cells(results, row, lambda c, k=k: number_of(c, k))) for k in kinds),
        ]
        for row in results["rows"]
    ]


def data(results: Results) -> list[Any]:
    """The text that was read."""
    rows = []
    for one in results["data"]:
        share = one["near_duplicates"]
        rows.append(
            [
                _few(one["cells"], len(results["cells"])),
                f"{one['documents']:,}",
                "not measured" if share is None else f"{100 * share:.1f} %",
                ", ".join(f"{name} {count(tokens)}" for name, tokens in one["sources"].items()),
            ]
        )
    heads = ["read by", "training documents", "with a near-duplicate", "tokens by source"]
    return [Table(heads, rows, prose=True)] if rows else []


def _few(found: list[str], of: int) -> str:
    return "all cells" if len(found) == of else ", ".join(found)


def settings(results: Results) -> list[Any]:
    """What differs between the cells, and all there is of each."""
    cells = results["cells"]
    if not cells:
        return []
    blocks: list[Any] = []
    versions = [cell["versions"] for cell in cells.values()]
    apart = differing(versions)
    alike = ", ".join(f"{k} {v}" for k, v in versions[0].items() if k not in apart)
    if alike:
        blocks.append(Text(f"All cells: {alike}."))
    keys = differing(cell["settings"] for cell in cells.values())
    found = {
        name: [
            *((key, setting(cell["settings"].get(key, "–"))) for key in keys),
            *((key, str(cell["versions"].get(key, "–"))) for key in apart),
        ]
        for name, cell in cells.items()
    }
    if 0 < len(keys) + len(apart) <= MANY:
        rows = [[name, *(value for _, value in pairs)] for name, pairs in found.items()]
        note = "Only what differs; – where a cell has no such setting."
        blocks.append(Table(["cell", *keys, *apart], rows, (note,)))
    elif keys or apart:
        rows = [
            [name, ", ".join(f"{key} = {value}" for key, value in pairs if value != "–")]
            for name, pairs in found.items()
        ]
        blocks.append(Table(["cell", "what differs"], rows, prose=True))
    folds = []
    for name, cell in cells.items():
        every = [[k, setting(v)] for k, v in cell["settings"].items()]
        every += [[k, str(v)] for k, v in cell["versions"].items()]
        folds.append(Fold(name, [Table(["setting", "value"], every, prose=True)]))
    return [*blocks, Fold("All settings of each cell", folds)]
