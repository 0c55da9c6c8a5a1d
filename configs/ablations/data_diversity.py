"""Diversity of the data: one kind of text, the other, or both, equal tokens.

    jaxpretrain ablate --config=configs/ablations/data_diversity.py

The language reference's topics are about a fifth of the embedded corpus, the docstrings of modules
the rest. All three cells are measured on the held-out documents of both.

Measured on two CPU cores beside other work (jax 0.10.2), 7.5 minutes, one seed; nats per hidden
token, and accuracy of the probe on the package of a docstring (chance 0.247):

    diet         topics  modules  both
    test loss    5.55    4.89     4.51
    packages     0.517   0.458    0.535
"""

NEXT_TO_NOTHING = 0.001  # one row in a thousand


def get_ablation(size: str = "cpu") -> dict:
    """Three diets; with ":gpu", 110M parameters and 100M tokens each."""
    gpu = size == "gpu"
    both = {
        "topics": {"name": "embedded", "part": "topics"},
        "modules": {"name": "embedded", "part": "modules"},
    }

    def weights(topics: float, modules: float) -> dict:
        return {"source.parts.topics.weight": topics, "source.parts.modules.weight": modules}

    return {
        "base": "../base_110m.py" if gpu else "../quickstart.py",
        "change": {"source": {"name": "mixture", "parts": both}},
        "cells": {
            "topics": weights(1.0, NEXT_TO_NOTHING),
            "modules": weights(NEXT_TO_NOTHING, 1.0),
            "both": weights(1.0, 4.0),
        },
        "budget": {"tokens": 100_000_000 if gpu else 1_800_000},
    }
