"""Masked against causal language modelling on one and the same architecture, equal tokens.

    jaxpretrain ablate --config=configs/ablations/mlm_vs_clm.py

Their losses are of different things and are not compared; what each backbone is worth downstream
is, by a probe and by fine-tuning.
"""


def get_ablation(size: str = "cpu") -> dict:
    """Two objectives, three seeds; with ":gpu", 110M parameters and 300M tokens each."""
    gpu = size == "gpu"
    return {
        "base": "../base_110m.py" if gpu else "../quickstart.py",
        "change": {
            "downstream.seeds": 2,
            "tasks": {"packages": {"name": "embedded", "method": "both"}},
        },
        "cells": {"mlm": {"objective": {"name": "mlm"}}, "clm": {"objective": {"name": "clm"}}},
        "seeds": [0, 1, 2],
        "budget": {"tokens": 300_000_000 if gpu else 1_800_000},
    }
