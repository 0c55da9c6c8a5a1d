"""All objectives on one architecture, equal tokens, compared downstream.

    jaxpretrain ablate --config=configs/ablations/objectives.py

The losses are of different things; the probe's accuracy is what can be compared. At this size the
objectives over pairs and views have seen little; see their own configs for settings that suit them.

Measured on two CPU cores (jax 0.10.2): 18 min 10 s in all, with light work beside it. Accuracy on
the package of a docstring by a probe (chance 0.247; one seed, 95 % intervals over test rows):

    span_mlm   0.594 (0.557-0.635)    clm                0.535 (0.496-0.572)
    albert     0.590 (0.552-0.633)    span_corruption    0.531 (0.493-0.574)
    sop        0.587 (0.546-0.629)    prefix_lm          0.522 (0.482-0.563)
    nsp        0.577 (0.537-0.618)    ul2                0.522 (0.483-0.563)
    mlm        0.568 (0.530-0.609)    crops              0.517 (0.476-0.555)
    bert       0.559 (0.517-0.601)    mtp                0.509 (0.469-0.550)
    fim        0.546 (0.509-0.585)    masked_diffusion   0.506 (0.465-0.544)
    rtd        0.470 (0.432-0.509)    simcse             0.341 (0.303-0.380)

This ranks nothing yet: nsp and sop are at chance in their own task (0.693 nats) and among the best
here, and networks that were not trained at all (train.steps=1, a learning rate of 1e-9) have 0.585
(0.544-0.627) and, from another start, 0.522 (0.482-0.563). After so few tokens no objective is seen
to add to what random vectors of the words tell; mlm_vs_clm.py trains longer.
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
