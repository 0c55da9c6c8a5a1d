"""Results of ablations that never ran: valid, deterministic, and with everything a report shows."""

import copy
import math
import random
from typing import Any, NamedTuple

from jaxpretrain.report.results import (
    CellResult,
    Column,
    Interval,
    Results,
    Row,
    Sample,
    TaskResult,
)

NASTY = "<script>&alert('x')|*_`"


class Told(NamedTuple):
    """A finding with the fields of `jaxpretrain.report.findings.Finding`."""

    title: str
    evidence: str
    advice: str
    kind: str


FINDINGS = [
    Told(
        "A mask rate of 0.3 is best",
        "Its test loss is lower than each other's; the nearest is 0.5, by 0.11 [0.08, 0.14].",
        "Mask more than 15 %, and look again at more tokens.",
        "best",
    ),
    Told(
        "2 < 3 & so on",
        "The probe of trec is at chance in 0.05.",
        "Read nothing into it.",
        "caveat",
    ),
]


def interval(mean: float, half: float) -> Interval:
    return {"mean": mean, "low": mean - half, "high": mean + half}


def task(rng: random.Random, mean: float, seeds: int = 2, **changes: Any) -> TaskResult:
    half = rng.uniform(0.01, 0.03)
    made: TaskResult = {
        "kind": "classification",
        "method": "probe",
        "metric": "accuracy",
        "mean": mean,
        "low": mean - half,
        "high": mean + half,
        "seeds": [mean + rng.uniform(-half, half) for _ in range(seeds)],
        "chance": 0.5,
        "more": {"f1": mean - 0.02},
        "rows": {"train": 2000, "dev": 400, "test": 1000},
        "learning_rate": None,
        "grid": {},
        "shuffled": {"mean": 0.503, "low": 0.47, "high": 0.53, "chance": 0.5, "at_chance": True},
        "groups": {},
    }
    return made | changes


def pairs(rng: random.Random, mean: float) -> TaskResult:
    kinds = ["agreement", "anaphora", "argument structure", "binding", "filler-gap", "islands"]
    return task(
        rng,
        mean,
        kind="minimal_pairs",
        method="likelihood",
        shuffled=None,
        more={},
        rows={"test": 6000},
        groups={kind: mean + rng.uniform(-0.15, 0.15) for kind in kinds},
    )


def held_out(loss: float) -> dict[str, Any]:
    return {
        "loss": loss,
        "accuracy": math.exp(-loss / 2),
        "unigram_loss": 6.243,
        "token_loss": loss,
        "bits_per_byte": None,
        "bits_per_hidden_byte": loss / 3,
        "predicted": 12345,
        "parts": {"mlm": loss},
    }


def curve(rng: random.Random, last: float, tokens: int, flops: float, seconds: float):
    entries = []
    for number in range(1, 31):
        part = number / 30
        entry = {
            "step": 50 * number,
            "tokens": tokens * part,
            "flops": flops * part,
            "seconds": seconds * part,
            "loss": last + 4 * math.exp(-6 * part) + rng.uniform(-0.1, 0.1),
        }
        if number % 2 == 0:
            entry["eval_loss"] = last + 4 * (math.exp(-6 * part) - math.exp(-6))
        if number % 10 == 0:
            entry["task/sst2"] = 0.5 + 0.25 * part + rng.uniform(-0.02, 0.02)
        entries.append(entry)
    return entries


def samples(word: str) -> list[Sample]:
    return [
        {
            "given": f"The old {word} stood at the end of the [MASK], and nobody went there. " * 3,
            "made": "street (0.41), road (0.22), garden (0.08), world (0.03)",
            "truth": "lane",
        },
        {"given": "Once upon a time", "made": f"there was a {word} who had none.", "truth": ""},
        {"given": f"{NASTY} [MASK]", "made": f"x (0.9), {NASTY}", "truth": "&amp;"},
        {"given": "a fourth", "made": "that is not shown", "truth": ""},
    ]


def cell(group: str, seed: int, loss: float, settings: dict, **changes: Any) -> CellResult:
    rng = random.Random(f"{group}/{seed}")
    tokens, flops, seconds = 3_000_000, 2.4e14 * rng.uniform(0.9, 1.3), 210 * rng.uniform(0.8, 1.5)
    made: CellResult = {
        "group": group,
        "seed": seed,
        "settings": EQUAL | settings | {"seed": seed},
        "versions": {"jaxpretrain": "0.4.0", "jax": "0.10.2", "python": "3.11", "device": "cpu"},
        "parameters": 5_243_136,
        "steps": 1500,
        "tokens": tokens,
        "flops": flops,
        "train_seconds": seconds,
        "curve": curve(rng, loss, tokens, flops, seconds),
        "balance": [],
        "validation": held_out(loss + 0.01),
        "train": held_out(loss - 0.2),
        "test": held_out(loss),
        "test_loss": interval(loss, 0.03),
        "by_source": {},
        "others": {},
        "tasks": {
            "sst2/probe": task(rng, 0.6 + rng.uniform(0, 0.2)),
            "trec/finetune": task(
                rng,
                0.4 + rng.uniform(0, 0.3),
                method="finetune",
                chance=0.226,
                shuffled=None,
                learning_rate=3e-4,
                grid={"0.0001": 0.41, "0.0003": 0.52},
            ),
        },
        "samples": samples(f"house of {group}"),
    }
    return made | changes


EQUAL = {
    "data.batch_size": 16,
    "data.length": 128,
    "model.heads": 4,
    "model.layers": 4,
    "model.width": 256,
    "optimizer.learning_rate": 0.002,
    "optimizer.schedule": "cosine",
    "source.name": "embedded",
    "store.path": "",
    "tokenizer.vocab_size": 8192,
    "train.steps": 1500,
} | {f"mesh.rules.axis{number}": "fsdp" for number in range(20)}


def column(key: str, label: str, unit: str, **changes: Any) -> Column:
    made: Column = {
        "key": key,
        "label": label,
        "unit": unit,
        "better": "higher",
        "chance": None,
        "best": None,
        "comparable": True,
        "note": "",
    }
    return made | changes


LOSS = column("loss", "test loss", "nats per token", better="lower")
TASKS = [
    column("sst2/probe", "sst2 (probe)", "accuracy", chance=0.5),
    column("trec/finetune", "trec (fine-tune)", "accuracy", chance=0.226),
]


def row(group: str, cells: dict[str, CellResult], varied: dict[str, Any]) -> Row:
    """The row of the cells of a group, with the means of what they have."""
    mine = {name: one for name, one in cells.items() if one["group"] == group}
    values = {"loss": [one["test_loss"] for one in mine.values()]}
    for one in mine.values():
        for name, found in one["tasks"].items():
            values.setdefault(name, []).append(found)
    return {
        "group": group,
        "cells": list(mine),
        "varied": varied,
        "values": {
            key: {e: sum(v[e] for v in found) / len(found) for e in ("mean", "low", "high")}
            for key, found in values.items()
        },
    }


def results(name: str, cells: dict, rows: list[Row], columns: list[Column], **more: Any) -> Results:
    made: Results = {
        "name": name,
        "about": "What it is about.",
        "budget": {"tokens": 3_000_000},
        "studied": [],
        "equal": EQUAL,
        "columns": columns,
        "rows": rows,
        "cells": cells,
        "data": [
            {
                "cells": list(cells),
                "documents": 12_345,
                "near_duplicates": 0.031,
                "sources": {"books": 9_000_000, "web": 4_500_000},
            }
        ],
        "missing": [],
    }
    return copy.deepcopy(made | more)


def mask_rates() -> Results:
    """Five mask rates with two seeds each; a rate of 0.3 is best in loss, and a cell is missing."""
    losses = {0.05: 6.09, 0.15: 4.34, 0.3: 3.87, 0.5: 3.98, 0.8: 4.27}
    cells, rows = {}, []
    for rate, loss in losses.items():
        group = f"mask_rate={rate}"
        for seed in (0, 1):
            if (rate, seed) != (0.8, 1):
                settings = {"objective.mask_rate": rate, "objective.name": "mlm"}
                cells[f"{group},seed={seed}"] = cell(group, seed, loss + 0.01 * seed, settings)
        rows.append(row(group, cells, {"objective.mask_rate": rate}))
    return results(
        "mask_rate",
        cells,
        rows,
        [LOSS | {"best": "mask_rate=0.3"}, *TASKS],
        about="How much to mask: an encoder at five masking rates, equal tokens.\n\nEvery cell is "
        "measured with 15 % of the test documents' tokens hidden, whatever it was trained with.",
        studied=["objective.mask_rate", "seed"],
        equal=EQUAL | {"objective.name": "mlm"},
        missing=["mask_rate=0.8,seed=1"],
    )


OBJECTIVES = {
    "clm": 4.61, "mlm": 4.34, "span_mlm": 4.52, "span_corruption": 4.9, "prefix_lm": 4.7,
    "fim": 4.65, "masked_diffusion": 5.6, "mtp-with-four-heads-and-half-the-weight": 9.3,
    "rtd-generator-of-a-quarter-of-the-width-of-the-discriminator": 0.42, "simcse": 1.2,
    "ul2-of-three-denoisers-in-equal-parts": 5.1, f"odd-{NASTY}": 2.2,
}  # fmt: skip


def objectives() -> Results:
    """Twelve objectives, some with long names, whose losses are not of the same thing."""
    cells, rows = {}, []
    for number, (group, loss) in enumerate(OBJECTIVES.items()):
        rng = random.Random(number)
        made = cell(group, 0, loss, {"objective.name": group, f"objective.own_{number}": number})
        made["tasks"] |= {
            "stsb/cosine": task(
                rng, rng.uniform(0.1, 0.6), method="cosine", metric="spearman", chance=None,
                kind="similarity", shuffled=None, more={},
            )
        }  # fmt: skip
        if number < 7:
            made["tasks"]["blimp/likelihood"] = pairs(rng, rng.uniform(0.52, 0.7))
        if group == "fim":
            made["tasks"]["sst2/probe"]["shuffled"] = {
                "mean": 0.62, "low": 0.58, "high": 0.66, "chance": 0.5, "at_chance": False,
            }  # fmt: skip
        made["others"] = {n: held_out(loss + i) for i, n in enumerate(("clm", "mlm", "fim"))}
        made["by_source"] = {"books": loss - 0.13, "web": loss + 0.21}
        made["versions"] |= {"device": "cpu" if number else "gpu"}
        cells[group] = made
        rows.append(row(group, cells, {"objective.name": group, "objective.own": number}))
    note = "each objective predicts other tokens from another context."
    return results(
        "objectives",
        cells,
        rows,
        [
            LOSS | {"comparable": False, "note": note},
            *TASKS,
            column("stsb/cosine", "stsb (cosine)", "spearman", best="simcse"),
            column("blimp/likelihood", "minimal pairs", "accuracy", chance=0.5),
        ],
        studied=["objective"],
        budget={"seconds": 3600.0},
    )


def mixture() -> Results:
    """Two mixtures whose balance was logged."""
    cells, rows = {}, []
    for group, start in (("equal", 0.7), ("balanced", 0.4)):
        made = cell(group, 0, 4.4 + start / 10, {"objective.balance": group})
        made["balance"] = [
            {
                "step": 50 * n,
                "gradient_share/mlm": start + 0.2 * (n / 30) ** 2,
                "gradient_share/simcse": 1 - start - 0.2 * (n / 30) ** 2,
                "gradient_cosine/mlm~simcse": math.sin(n / 5) / 2,
            }
            for n in range(30)
        ]
        cells[group] = made
        rows.append(row(group, cells, {"objective.balance": group}))
    return results("mixture", cells, rows, [LOSS, *TASKS], studied=["objective.balance"])


ALL = {"mask_rates": mask_rates, "objectives": objectives, "mixture": mixture}
