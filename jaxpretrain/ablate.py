"""The ``ablate`` command: the cells of an ablation, one after another, each on equal terms."""

import json
import time

from ml_collections import ConfigDict

from jaxpretrain.ablation import Ablation, Cell, steps_for, with_steps
from jaxpretrain.assemble import assemble, open_store, prepare_store, store_path
from jaxpretrain.config import complete, downstream_tasks
from jaxpretrain.data import store_copy
from jaxpretrain.errors import UserError
from jaxpretrain.evaluate import evaluate
from jaxpretrain.evaluation import downstream
from jaxpretrain.gather import RESULT, gather, is_done
from jaxpretrain.metrics import finite
from jaxpretrain.preemption import preemptible
from jaxpretrain.processes import is_first, of_first, say, wait_for_all
from jaxpretrain.report.findings import findings
from jaxpretrain.report.results import Results
from jaxpretrain.report.write import write_report
from jaxpretrain.schema import flatten
from jaxpretrain.storage import AnyPath, access, write
from jaxpretrain.train import train
from jaxpretrain.workdir import check_same_config, read_json

CALIBRATION_STEPS = 30


def ablate(ablation: Ablation, workdir: AnyPath, *, only: str = "") -> Results:
    """Trains and evaluates the cells that are not done yet, and shows what came out.

    Each cell is a run in ``cells/NAME`` of the workdir. Cells on the same text with the same
    tokenizer share a token store.

    Args:
        ablation: what to run.
        workdir: of the whole.
        only: the name or the number of one cell; "" runs all of them.

    Returns:
        What ``results.json`` in the workdir then holds: the cells that are done.

    Raises:
        UserError: a cell cannot be run, or the workdir is of another ablation.
    """
    cells = [ablation.find(only)] if only else ablation.cells
    with preemptible():
        return run(ablation, workdir, cells)


def run(ablation: Ablation, workdir: AnyPath, cells: list[Cell]) -> Results:
    """The running itself; see `ablate`."""
    claim(ablation, workdir)
    check_tasks([cell for cell in cells if not is_done(workdir / "cells" / cell.name)])
    prepare_stores(cells)
    begun, trained = time.monotonic(), 0
    for number, cell in enumerate(cells):
        folder = workdir / "cells" / cell.name
        asked = {key: cell.config[key].to_dict() for key in ("tasks", "downstream")}
        if is_done(folder):
            try:
                config = with_budget(ablation, cell, folder)
                check_same_config(folder, flatten(config.to_dict()))
            except UserError as error:
                raise UserError(f"cell {cell.name} was run as something else: {error}") from None
            if read_json(folder / RESULT).get("asked") == asked:
                continue
            say(f"\ncell {cell.name} was measured at other tasks: measuring again")
        left = ""
        if trained:
            seconds = (time.monotonic() - begun) / trained * (len(cells) - number)
            left = f", about {seconds / 60:.0f} min left"
        say(f"\ncell {number + 1} of {len(cells)}: {cell.name}{left}")
        try:
            config = with_budget(ablation, cell, folder)
            train(config, folder)
            wait_for_all("trained")
            others = [one.config.objective.name for one in ablation.cells]
            tested = evaluate(folder, tasks=["all"], others=others, for_report=True, sections=asked)
            if is_first():
                with access(f"write {folder}"):
                    write(folder / RESULT, json.dumps(finite(tested | {"asked": asked})) + "\n")
            wait_for_all("evaluated")
        except UserError as error:
            raise UserError(f"cell {cell.name}: {error}") from None
        trained += 1
    found = results(ablation, workdir)
    if is_first():
        for line in table(ablation, found):
            print(line)
        for one in findings(found):
            print(f"\n{one.title}\n  {one.evidence}\n  {one.advice}")
        print(f"\nreport     {workdir}/report.html")
    return found


def check_tasks(cells: list[Cell]) -> None:
    """Reads the downstream tasks of the cells once, so that what is wrong with them is said now.

    Raises:
        UserError: what is wrong with a task.
    """
    tasks = [item for cell in cells for item in downstream_tasks(cell.config).items()]
    for name, task in dict.fromkeys(tasks):
        downstream.load(name, task)


def prepare_stores(cells: list[Cell]) -> None:
    """Prepares the token stores of the cells that are not there yet."""
    if is_first():
        for path, config in {store_path(cell.config): cell.config for cell in cells}.items():
            if not store_copy.exists(path):
                prepare_store(config)
    wait_for_all("stores")


def claim(ablation: Ablation, workdir: AnyPath) -> None:
    """Writes what the ablation is, or checks that the workdir is of the same.

    Raises:
        UserError: it is of another one.
    """
    what = {
        "name": ablation.name,
        "budget": dict([ablation.budget]),
        "studied": list(ablation.studied),
        "cells": [cell.name for cell in ablation.cells],
    }
    path = workdir / "ablation.json"
    with access(f"write the workdir {workdir}"):
        there = path.exists()
        if not there and is_first():
            workdir.mkdir(parents=True, exist_ok=True)
            write(path, json.dumps(what, indent=2) + "\n")
    if there:
        known = read_json(path)
        for key, value in what.items():
            if known.get(key) != value:
                raise UserError(
                    f"{workdir} holds an ablation with {key} {known.get(key)}, and now it is "
                    f"{value}: give another --workdir"
                )


def with_budget(ablation: Ablation, cell: Cell, folder: AnyPath) -> ConfigDict:
    """The config of a cell with as many steps as its budget pays for.

    Operations follow from the model. Seconds are measured: a short run beside the cell's own, on
    the machine that trains it. A run that has begun keeps its number.
    """
    unit, _ = ablation.budget
    if unit == "tokens":
        return cell.config
    with access(f"read {folder}"):
        begun = (folder / "config.json").exists()
    if begun:
        return with_steps(cell.config, read_json(folder / "config.json")["train"]["steps"])
    if unit == "flops":
        objective, rows = assemble(cell.config).objective, cell.config.data.batch_size
        flops = objective.flops(cell.config.data.length) * rows
        return with_steps(cell.config, steps_for(cell.config, ablation.budget, flops=flops))
    say(f"measuring how long a step takes: {CALIBRATION_STEPS} of them")
    raw = cell.config.to_dict()
    raw["train"]["stop_at"] = CALIBRATION_STEPS
    raw["train"]["steps"] = max(raw["train"]["steps"], CALIBRATION_STEPS)
    raw["evaluate"]["batches"] = 1
    raw["track"]["to"] = ""
    summary = train(complete(raw), folder / "calibration")
    seconds = of_first(summary["train_seconds"] / summary["steps"])
    return with_steps(cell.config, steps_for(cell.config, ablation.budget, seconds=seconds))


def results(ablation: Ablation, workdir: AnyPath) -> Results:
    """The numbers of the cells that are done; writes ``results.json`` and the report.

    Raises:
        UserError: the stored configs differ in what is not studied.
    """
    stores = {cell.name: open_store(cell.config) for cell in ablation.cells}
    done = gather(ablation, workdir, stores)
    if is_first():
        with access(f"write the workdir {workdir}"):
            done = finite(done)
            write(workdir / "results.json", json.dumps(done, indent=2) + "\n")
            write_report(workdir, done, findings(done))
    return done


def table(ablation: Ablation, found: Results) -> list[str]:
    """The results as lines to read."""
    unit, amount = ablation.budget
    lines = ["", f"{found['name']}: {amount:,.0f} {unit} each, on the test documents"]
    width = max([5, *(len(row["group"]) for row in found["rows"])])
    columns = found["columns"]
    heads = [f"{one['label']}" for one in columns]
    wide = [max(len(head), 26) for head in heads]
    lines.append("  ".join([" " * (width + 2), *map(str.ljust, heads, wide)]).rstrip())
    for row in found["rows"]:
        shown = []
        for column, space in zip(columns, wide, strict=True):
            value = row["values"].get(column["key"])
            text = ""
            if value is not None:
                text = f"{value['mean']:.4f} ({value['low']:.4f}-{value['high']:.4f})"
                text += " *" if column["best"] == row["group"] else ""
            shown.append(text.ljust(space))
        lines.append("  ".join([f"  {row['group']:<{width}}", *shown]).rstrip())
    if any(column["best"] for column in columns):
        lines.append("  * better than each of the others, beyond its 95 % interval")
    lines += [
        f"  {one['label']} is not comparable: {one['note']}" for one in columns if one["note"]
    ]
    if found["missing"]:
        lines.append(f"  not done yet: {', '.join(found['missing'])}")
    return lines
