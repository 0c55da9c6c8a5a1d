"""Made-up results of ablations, with as little in them as a test of the findings needs."""

from typing import Any

from jaxpretrain.report.findings import Finding, findings
from jaxpretrain.report.results import (
    CellResult,
    Column,
    Interval,
    Results,
    Row,
    Shuffled,
    TaskResult,
)


def interval(mean: float, half: float = 0.02) -> Interval:
    """A mean and half the width of its interval."""
    return {"mean": mean, "low": mean - half, "high": mean + half}


def shuffled(mean: float, half: float = 0.02, chance: float = 0.5) -> Shuffled:
    """A probe with its labels shuffled."""
    return {**interval(mean, half), "chance": chance, "at_chance": abs(mean - chance) <= half}


def task(mean: float, half: float = 0.02, chance: float | None = 0.5, probe=None) -> TaskResult:
    """A task with a probe."""
    return {
        "kind": "classification",
        "method": "probe",
        "metric": "accuracy",
        **interval(mean, half),
        "seeds": [mean],
        "chance": chance,
        "more": {},
        "rows": {"train": 500, "dev": 100, "test": 500},
        "learning_rate": None,
        "grid": {},
        "shuffled": probe,
        "groups": {},
    }


def column(key: str, **changes: Any) -> Column:
    """A column of a loss if that is its key, else of a task."""
    loss = key == "loss"
    made = {
        "key": key,
        "label": key,
        "unit": "nats per token" if loss else "accuracy",
        "better": "lower" if loss else "higher",
        "chance": None if loss else 0.5,
        "best": None,
        "comparable": True,
        "note": "",
    }
    return made | changes


class Group:
    """A group of cells.

    Args:
        objective: its name.
        varied: by dotted key.
        seeds: how many cells.
        loss: of the test rows, mean and half width; None for a group without a loss.
        tasks: mean and half width by name.
        cell: what else is in each cell, or, by seed, a list of that.
    """

    def __init__(self, objective="mlm", varied=None, seeds=1, loss=(3.0, 0.02), tasks=(), cell=()):
        self.objective, self.seeds, self.loss = objective, seeds, loss
        self.varied = varied or {}
        self.tasks = dict(tasks)
        self.cells = cell if isinstance(cell, list) else [dict(cell)] * seeds

    def row(self, name: str) -> Row:
        """Of the table."""
        values = {key: interval(*numbers) for key, numbers in self.tasks.items()}
        if self.loss:
            values["loss"] = interval(*self.loss)
        cells = [f"{name},seed={seed}" for seed in range(self.seeds)]
        return {"group": name, "cells": cells, "varied": self.varied, "values": values}

    def cell(self, name: str, seed: int) -> CellResult:
        """One run."""
        loss, half = self.loss or (None, 0.0)
        made = {
            "group": name,
            "seed": seed,
            "settings": {"objective.name": self.objective, **self.varied},
            "versions": {},
            "parameters": 1000,
            "steps": 100,
            "tokens": 100_000,
            "flops": 1e9,
            "train_seconds": 1.0,
            "curve": [],
            "balance": [],
            "validation": held_out(loss),
            "train": None,
            "test": held_out(loss),
            "test_loss": interval(loss, half) if self.loss else dict.fromkeys(interval(0.0)),
            "by_source": {},
            "others": {},
            "tasks": {key: task(*numbers) for key, numbers in self.tasks.items()},
            "samples": [],
        }
        return made | self.cells[seed]


def held_out(loss: float | None) -> dict[str, Any]:
    """As `HeldOut`, of an objective that has nothing but a loss."""
    names = ("accuracy", "unigram_loss", "token_loss", "bits_per_byte", "bits_per_hidden_byte")
    return {"loss": loss, **dict.fromkeys(names), "predicted": 1000, "parts": {}}


def ablation(groups: dict[str, Group], columns=None, **changes: Any) -> Results:
    """An ablation of these groups; its columns are the loss and their tasks unless given."""
    keys = ["loss", *dict.fromkeys(key for group in groups.values() for key in group.tasks)]
    rows = {name: group.row(name) for name, group in groups.items()}
    made = {
        "name": "made_up",
        "about": "",
        "budget": {"tokens": 100_000.0},
        "studied": [],
        "equal": {},
        "columns": [column(key) for key in keys] if columns is None else columns,
        "rows": list(rows.values()),
        "cells": {
            cell: groups[name].cell(name, seed)
            for name, row in rows.items()
            for seed, cell in enumerate(row["cells"])
        },
        "data": [],
        "missing": [],
    }
    return made | changes


LOSS_APART = column("loss", comparable=False, note="not the same tokens")
SST2 = "sst2/probe"


def found(kind: str, results: Results) -> list[Finding]:
    """The findings of a kind."""
    return [finding for finding in findings(results) if finding.kind == kind]


def evidence(kind: str, results: Results) -> str:
    """That of the only finding of a kind."""
    (finding,) = found(kind, results)
    assert finding.title and finding.advice
    return finding.evidence
