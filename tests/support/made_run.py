"""A run's folder without the training: a model at random, saved as if it were at some step."""

import json
from pathlib import Path

import jax
import numpy as np

from jaxpretrain.assemble import build
from jaxpretrain.checkpoint import Checkpoints
from jaxpretrain.config import complete
from jaxpretrain.data.tokenizer import Tokenizer
from jaxpretrain.workdir import OPEN, claim_workdir
from support.small import at_random

STEP = 7
SMALL = {"width": 24, "layers": 2, "heads": 4, "mlp_width": 36, "max_length": 64}
SMALL |= {"dtype": "float32"}
LENGTH, ROWS = 40, 8


def make_run(
    workdir: Path,
    tokenizer: Tokenizer,
    preset: str,
    objective: str | dict,
    source: dict | None = None,
    **model: object,
) -> Path:
    """Writes config, tokenizer, checkpoint and a summary; returns the folder.

    Args:
        workdir: of the run.
        tokenizer: of the run.
        preset: of the model.
        objective: its name, or its section.
        source: its section; None is the embedded corpus.
        model: keys of the model section, on top of `SMALL`.
    """
    raw = {
        "source": source or {"name": "embedded"},
        "model": {"preset": preset} | SMALL | model,
        "objective": {"name": objective} if isinstance(objective, str) else objective,
        "data": {"length": LENGTH, "batch_size": ROWS},
    }
    config = complete(raw)
    # On one device: of each array that several have, Orbax has each save a slice of its own, and
    # each slice is a program to compile.
    pieces = build(config, tokenizer.vocab, devices=jax.devices()[:1])
    identity = {"tokenizer": tokenizer.sha256, "token store": OPEN}
    claim_workdir(workdir, config.to_dict(), tokenizer, identity)
    # Nothing trains on, so the moments can be left out: their checksums would be compiled too.
    abstract = pieces.abstract._replace(opt_state=())
    state = at_random(abstract, spread=0.3)._replace(step=np.int32(STEP))
    checkpoints = Checkpoints(workdir / "checkpoints", pieces.placement)
    checkpoints.save(jax.device_put(state, jax.tree.map(lambda like: like.sharding, abstract)))
    checkpoints.close()
    held = {"loss": 2.5, "accuracy": None, "split": "validation", "step": STEP}
    summary = {"steps": 2 * STEP, "flops": 4e9, "parameters": 99, "device": "1 x thing"}
    summary |= {"version": "9.9", "eval": held}
    (workdir / "summary.json").write_text(json.dumps(summary))
    return workdir
