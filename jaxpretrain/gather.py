"""From the folders of an ablation's cells to its results: what `report` shows and judges."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxpretrain.ablation import Ablation, check_alike
from jaxpretrain.data.duplicates import near_duplicates
from jaxpretrain.data.store import Store
from jaxpretrain.errors import UserError
from jaxpretrain.evaluation.measures import interval, noise_of
from jaxpretrain.metrics import read_metrics
from jaxpretrain.report.results import CellResult, Column, Data, Interval, Results, Row
from jaxpretrain.schema import flatten
from jaxpretrain.storage import AnyPath, access
from jaxpretrain.workdir import is_free, read_json

RESULT = "result.json"  # of a cell that is done
# Settings that say where and how often, not what: no part of what was compared.
UNSHOWN = (
    *("store.path", "store.cache", "store.workers", "data.loader", "data.prefetch"),
    *("track.to", "track.project", "track.name", "train.stop_at"),
)
# Settings of objectives that enter the training only: held-out losses do not depend on them.
TRAINING_ONLY = ("mask_rate", "final_mask_rate", "mask_share", "random_share", "whole_words") + (
    ("mode", "measure_every", "alarm_share", "alarm_after")
)
LEAST_SHARE = 0.01  # of the tokens read, below which a source was as good as not read
NOT_HELD_OUT = ("split", "checkpoint", "step", "loss_interval", "train", "by_source", "others") + (
    "tasks",
    "samples",
    "replicates",
    "asked",
)
Replicates = Mapping[str, np.ndarray]


def is_done(folder: AnyPath) -> bool:
    """Whether a cell has been trained and measured; a look at it in between does not count."""
    with access(f"read {folder}"):
        return (folder / RESULT).exists()


def gather(ablation: Ablation, workdir: AnyPath, stores: Mapping[str, Store]) -> Results:
    """The results of the cells that are done.

    Args:
        ablation: what was run.
        workdir: of the whole.
        stores: token stores by the names of cells.

    Raises:
        UserError: the stored configs differ in what is not studied.
    """
    done = {
        cell.name: workdir / "cells" / cell.name
        for cell in ablation.cells
        if is_done(workdir / "cells" / cell.name)
    }
    cells = {name: read_cell(name, folder, ablation.name) for name, folder in done.items()}
    if cells:
        held = {
            name: {key: value for key, value in cell["settings"].items() if not is_free(key)}
            for name, cell in cells.items()
        }
        check_alike(ablation.studied, ablation.budget, held)
        asked = {name: read_json(folder / RESULT).get("asked") for name, folder in done.items()}
        first = next(iter(asked))
        for name, one in asked.items():
            if one != asked[first]:
                raise UserError(
                    f"cells {first} and {name} were not measured at the same downstream tasks in "
                    "the same way: run ablate again without --cell"
                )
    equal, varied = equal_and_varied(cells)
    drawn = {name: read_replicates(folder) for name, folder in done.items()}
    groups: dict[str, list[str]] = {}
    for name, cell in cells.items():
        groups.setdefault(cell["group"], []).append(name)
    by_group = {group: together([drawn[name] for name in names]) for group, names in groups.items()}
    rows = [
        Row(
            group=group,
            cells=names,
            varied={key: cells[names[0]]["settings"].get(key) for key in varied if key != "seed"},
            values=values_of([cells[name] for name in names], by_group[group]),
        )
        for group, names in groups.items()
    ]
    return Results(
        name=ablation.name,
        about=ablation.about,
        budget=dict([ablation.budget]),
        studied=list(ablation.studied),
        equal=equal,
        columns=columns(cells, rows, by_group),
        rows=rows,
        cells=cells,
        data=data_of(cells, stores),
        missing=[cell.name for cell in ablation.cells if cell.name not in cells],
    )


def read_cell(name: str, folder: AnyPath, ablation: str) -> CellResult:
    """A cell's numbers from the files in its folder."""
    summary, tested = read_json(folder / "summary.json"), read_json(folder / RESULT)
    settings = {
        key: value
        for key, value in flatten(read_json(folder / "config.json")).items()
        if key not in UNSHOWN
    }
    per_step = summary["flops"] / summary["steps"]
    log = [entry | {"flops": per_step * entry["step"]} for entry in read_metrics(folder)]
    shown = ("step", "tokens", "flops", "seconds", "loss")
    curve = [
        {
            key: value
            for key, value in entry.items()
            if value is not None and (key in shown or key.startswith(("eval_", "task/")))
        }
        for entry in log
    ]
    shares = [
        {
            key: value
            for key, value in entry.items()
            if key == "step" or key.startswith(("gradient_share/", "gradient_cosine/"))
        }
        for entry in log
    ]
    kept = {key: value for key, value in tested.items() if key not in NOT_HELD_OUT}
    low, high = tested["loss_interval"]
    return CellResult(
        group=",".join(p for p in name.split(",") if not p.startswith("seed=")) or ablation,
        seed=settings["seed"],
        settings=settings,
        versions={
            "jaxpretrain": summary["version"],
            "jax": summary["jax"],
            "device": summary["device"],
        },
        curve=[entry for entry in curve if len(entry.keys() - set(shown[:4]))],
        balance=[entry for entry in shares if len(entry) > 1],
        validation={k: v for k, v in summary["eval"].items() if k not in NOT_HELD_OUT},
        train=tested["train"],
        test=kept,
        test_loss=Interval(mean=tested["loss"], low=low, high=high),
        **{key: tested[key] for key in ("by_source", "others", "tasks", "samples")},
        **{
            key: summary[key] for key in ("parameters", "steps", "tokens", "flops", "train_seconds")
        },
    )


def read_replicates(folder: AnyPath) -> Replicates:
    """What the bootstrap gave for a cell, by column."""
    tested = read_json(folder / RESULT)
    found = {name: np.array(values) for name, values in tested["replicates"].items()}
    if tested["bits_per_byte"] is not None:
        found["bits_per_byte"] = found["loss"] * (tested["bits_per_byte"] / tested["loss"])
    return found


def together(cells: list[Replicates]) -> Replicates:
    """The replicates of a group of cells, which differ in the seed: their mean, with its noise."""
    shared = [key for key in cells[0] if all(key in cell for cell in cells)]
    found = {}
    for key in shared:
        values = np.stack([cell[key] for cell in cells])
        found[key] = values.mean(axis=0) + noise_of(values.mean(axis=1), values.shape[1])
    return found


def values_of(cells: list[CellResult], drawn: Replicates) -> dict[str, Interval]:
    """The numbers of a group by column."""

    def mean(key: str) -> float:
        if key in ("loss", "bits_per_byte"):
            return float(np.mean([cell["test"][key] for cell in cells]))
        return float(np.mean([cell["tasks"][key]["mean"] for cell in cells]))

    found = {}
    for key, values in drawn.items():
        low, high = interval(values)
        found[key] = Interval(mean=mean(key), low=low, high=high)
    return found


def columns(
    cells: dict[str, CellResult], rows: list[Row], drawn: dict[str, Replicates]
) -> list[Column]:
    """What the groups are compared by, and which of them is the best, where one is."""
    made = []
    keys = list(dict.fromkeys(key for row in rows for key in row["values"]))
    keys.sort(key=lambda key: {"loss": 0, "bits_per_byte": 1}.get(key, 2))
    for key in keys:
        having = [row["group"] for row in rows if key in row["values"]]
        if key in ("loss", "bits_per_byte"):
            column = loss_column(key, cells)
        else:
            task = next(c["tasks"][key] for c in cells.values() if key in c["tasks"])
            column = Column(
                key=key,
                label=key,
                unit=task["metric"],
                better="higher",
                chance=task["chance"],
                best=None,
                comparable=True,
                note="",
            )
        if column["comparable"]:
            values = {group: drawn[group][key] for group in having}
            column["best"] = best_of(values, column["better"])
        made.append(column)
    return made


def best_of(drawn: Mapping[str, np.ndarray], better: str) -> str | None:
    """The group that is better than each other one beyond doubt: the 95 % interval of each
    difference, replicate by replicate, leaves out 0. None for one group alone, or where there was
    nothing to resample."""
    sign = 1 if better == "higher" else -1
    # The median: Student's t of two seeds has no mean.
    best = max(drawn, key=lambda group: sign * np.median(drawn[group]), default=None)
    others = [values for group, values in drawn.items() if group != best]
    if not others or not all(values.std() > 0 for values in drawn.values()):
        return None
    above = (interval(sign * (drawn[best] - values))[0] > 0 for values in others)
    return best if all(above) else None


def loss_column(key: str, cells: dict[str, CellResult]) -> Column:
    """The loss, or bits per byte; comparable where the same is predicted of the same text."""
    settings = [cell["settings"] for cell in cells.values()]

    def differ(*starts: str) -> bool:
        found = [  # but for the weights of sources
            {k: v for k, v in each.items() if k.startswith(starts) and not k.endswith(".weight")}
            for each in settings
        ]
        return any(one != found[0] for one in found)

    names = [
        sorted((k, v) for k, v in each.items() if k.startswith("objective.") and k.endswith("name"))
        for each in settings
    ]
    weighed = [
        {
            k: v
            for k, v in each.items()
            if k.startswith("objective.") and k.rpartition(".")[2] not in TRAINING_ONLY
        }
        for each in settings
    ]
    couples = {"simcse", "crops"} & {v for one in names for _, v in one}
    note = ""
    if differ("source.", "store.validation", "store.test"):
        note = "the test documents are not the same"
    elif key == "loss" and any(one != names[0] for one in names):
        note = "different objectives predict different things"
    elif key == "loss" and any(one != weighed[0] for one in weighed):
        note = "settings of the objective differ that enter its loss"
    elif key == "loss" and couples and differ("data.batch_size"):
        note = "each row is told apart from more or fewer others"
    elif key == "loss" and differ("tokenizer."):
        note = "the tokens are not the same"
    elif key == "loss" and differ("data.length", "data.view"):
        note = "rows of another length hold other context"
    tests = [cell["test"] for cell in cells.values()]
    tokens = all(test["loss"] == test["token_loss"] for test in tests)
    unit = "bits" if key == "bits_per_byte" else "nats per token" if tokens else "nats"
    return Column(
        key=key,
        label="bits per byte" if key == "bits_per_byte" else "test loss",
        unit=unit,
        better="lower",
        chance=None,
        best=None,
        comparable=not note,
        note=note,
    )


def equal_and_varied(cells: dict[str, CellResult]) -> tuple[dict[str, Any], list[str]]:
    """Settings that all cells have alike, and keys of the others."""
    settings = [cell["settings"] for cell in cells.values()]
    keys = dict.fromkeys(key for each in settings for key in each)
    alike = {
        key: settings[0][key]
        for key in keys
        if all(key in each and each[key] == settings[0].get(key) for each in settings)
    }
    return alike, [key for key in keys if key not in alike]


def data_of(cells: dict[str, CellResult], stores: Mapping[str, Store]) -> list[Data]:
    """What is known of the text that cells read, for each token store and mix of its sources."""
    diets: dict[str, list[str]] = {}
    for name, cell in cells.items():
        weights = [v for k, v in sorted(cell["settings"].items()) if k.endswith(".weight")]
        diets.setdefault(f"{stores[name].path} {weights}", []).append(name)
    known: dict[str, float | None] = {}
    found = []
    for names in diets.values():
        store, settings = stores[names[0]], cells[names[0]]["settings"]
        sets = store.sets("train")
        if str(store.path) not in known:
            known[str(store.path)] = near_duplicates(sets)
        weights = {one.name: settings.get(f"source.parts.{one.name}.weight", 1.0) for one in sets}
        read = {name: weight / sum(weights.values()) for name, weight in weights.items()}
        found.append(
            Data(
                cells=names,
                documents=sum(one.documents for one in sets),
                near_duplicates=known[str(store.path)],
                sources={
                    name: round(cells[names[0]]["tokens"] * share)
                    for name, share in read.items()
                    if share >= LEAST_SHARE
                },
            )
        )
    return found
