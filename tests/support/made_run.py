"""A run's folder without the training: a model at random, saved as if it were at some step."""

import json
from pathlib import Path

import jax.numpy as jnp

from jaxpretrain.assemble import build
from jaxpretrain.checkpoint import Checkpoints
from jaxpretrain.config import complete
from jaxpretrain.data.tokenizer import Tokenizer
from jaxpretrain.state import init_state
from jaxpretrain.workdir import OPEN, claim_workdir

STEP = 7
SMALL = {"width": 24, "layers": 2, "heads": 4, "mlp_width": 36, "max_length": 64}
# Large enough that the scores of tokens differ.
SMALL |= {"init_scale": 0.3, "dtype": "float32"}
LENGTH, ROWS = 40, 8


def make_run(
    workdir: Path, tokenizer: Tokenizer, preset: str, objective: str, **model: object
) -> Path:
    """Writes config, tokenizer, checkpoint and a summary; returns the folder.

    Args:
        workdir: of the run.
        tokenizer: of the run.
        preset: of the model.
        objective: with its defaults.
        model: keys of the model section, on top of `SMALL`.
    """
    raw = {
        "source": {"name": "embedded"},
        "model": {"preset": preset} | SMALL | model,
        "objective": {"name": objective},
        "data": {"length": LENGTH, "batch_size": ROWS},
    }
    config = complete(raw)
    pieces = build(config, tokenizer.vocab)
    identity = {"tokenizer": tokenizer.sha256, "token store": OPEN}
    claim_workdir(workdir, config.to_dict(), tokenizer, identity)
    state = init_state(pieces.objective, pieces.optimizer, 0, pieces.abstract)
    checkpoints = Checkpoints(workdir / "checkpoints", pieces.placement)
    checkpoints.save(state._replace(step=jnp.int32(STEP)))
    checkpoints.close()
    held = {"loss": 2.5, "accuracy": None, "split": "validation", "step": STEP}
    summary = {"steps": 2 * STEP, "flops": 4e9, "parameters": 99, "device": "1 x thing"}
    summary |= {"version": "9.9", "eval": held}
    (workdir / "summary.json").write_text(json.dumps(summary))
    return workdir
