"""Small models trained on text whose answer is known exactly, and what they come to."""

import jax
import numpy as np

from jaxpretrain.data.vocab import Vocab
from jaxpretrain.models.transformer import Backbone
from jaxpretrain.optim import make_optimizer
from jaxpretrain.sharding import Placement, make_mesh
from jaxpretrain.state import abstract_state, init_state
from jaxpretrain.step import jit_eval_step, jit_train_step
from jaxpretrain.types import Batch
from support.small import SPECIAL, small_backbone

# Programs that run long are worth more compiling than `conftest.py` allows: from some 250 steps on.
OPTIMISED = {"xla_backend_optimization_level": 2, "xla_llvm_disable_expensive_passes": False}
ONE_DEVICE = Placement(make_mesh(devices=jax.devices()[:1]))
HELD_OUT = 10**6  # seed of the first held-out batch; training counts from 0


def tiny_backbone(vocab: Vocab, **switches) -> Backbone:
    """One layer of width 32, unless a switch says otherwise: what a chain of few symbols needs."""
    return small_backbone(vocab, **{"layers": 1, "heads": 2, "scan_layers": "off"} | switches)


def as_batch(symbols: np.ndarray, first: int = 0) -> Batch:
    """Rows of symbols 0, 1, … as full rows of one document each."""
    rows, length = symbols.shape
    return Batch(
        tokens=(symbols + SPECIAL).astype(np.int32),
        segments=np.ones((rows, length), np.int32),
        positions=np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
        row_ids=np.arange(first, first + rows, dtype=np.int32),
        epochs=np.zeros(rows, np.int32),
        documents=np.arange(first, first + rows, dtype=np.int32),
    )


def trained(objective, text, *, steps: int, learning_rate: float = 3e-3) -> dict:
    """Parameters of a bound objective after so many steps on fresh text.

    Args:
        objective: bound.
        text: from a seed to a Batch.
        steps: updates.
        learning_rate: the peak.
    """
    optimizer = make_optimizer(
        total_steps=steps, learning_rate=learning_rate, warmup_steps=50, weight_decay=0.0
    )
    abstract = abstract_state(objective, optimizer, ONE_DEVICE)
    state = init_state(objective, optimizer, 0, abstract)
    step = jit_train_step(
        objective, optimizer, abstract, ONE_DEVICE, total_steps=steps, microbatches=1
    )
    options, seed = OPTIMISED if steps > 250 else None, np.uint32(0)
    step = step.lower(state, text(0), seed).compile(compiler_options=options)
    for number in range(steps):
        state, _ = step(state, text(number), seed)
    return state.params


def held_out(objective, params: dict, text, *, batches: int) -> dict[str, float]:
    """Means of all the sums over held-out batches."""
    evaluate = jit_eval_step(objective, params, ONE_DEVICE)
    found = [
        jax.tree.map(np.float64, jax.device_get(evaluate(params, text(HELD_OUT + n))[0]))
        for n in range(batches)
    ]
    total = jax.tree.map(lambda *parts: np.sum(parts), *found)
    return {name: float(value.total / value.weight) for name, value in total.items()}
