"""All objectives on one architecture, equal tokens, compared downstream.

    jaxpretrain ablate --config=configs/ablations/objectives.py

The losses are of different things; the probe's accuracy is what can be compared. At this size the
objectives over pairs and views have seen little; see their own configs for settings that suit them.
"""

NAMES = (
    ("mlm", "span_mlm", "masked_diffusion", "rtd", "bert", "albert", "nsp", "sop")
    + ("clm", "fim", "mtp", "prefix_lm", "span_corruption", "ul2")
    + ("simcse", "crops")
)


def get_ablation(size: str = "cpu") -> dict:
    """A cell for each objective; with ":gpu", 110M parameters and 300M tokens each."""
    gpu = size == "gpu"
    return {
        "base": "../base_110m.py" if gpu else "../quickstart.py",
        "change": {
            "model.token_types": 2,  # for pairs
            "model.dropout": 0.1,  # for simcse
            "optimizer.learning_rate": 5e-4 if gpu else 1e-3,
        },
        "cells": {name: {"objective": {"name": name}} for name in NAMES},
        "budget": {"tokens": 300_000_000 if gpu else 600_000},
    }
