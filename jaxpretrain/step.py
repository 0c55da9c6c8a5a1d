"""The pure train and eval steps. Nothing here knows the objective or the number of devices."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding

from jaxpretrain.objectives.base import Objective
from jaxpretrain.optim import Optimizer
from jaxpretrain.sharding import batch_sharding, replicated
from jaxpretrain.state import TrainState
from jaxpretrain.types import Array, Batch, Sums

Metrics = dict[str, Array]

# Held-out losses are measured on the same masks in every run, whatever its own seed.
EVAL_SEED = 0


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    objective: Objective,
    optimizer: Optimizer,
    seed: int,
    total_steps: int,
    microbatches: int,
) -> tuple[TrainState, Metrics]:
    """One update.

    The gradient is that of ``sum of losses / sum of weights`` over the whole step: sums are added
    over microbatches (and, by the compiler, over devices) and divided once.

    Args:
        state: before the update.
        batch: rows of the step.
        objective: bound to its backbone.
        optimizer: see `make_optimizer`.
        seed: of the run.
        total_steps: updates in the whole run, for schedules.
        microbatches: into how many parts the rows are divided, one after another.

    Returns:
        The state after the update and float32 scalars: the mean of each sum of the objective,
        ``grad_norm`` (before clipping), ``learning_rate``, ``predicted`` (the loss's weight).
    """
    progress = state.step.astype(jnp.float32) / total_steps
    key = run_key(seed)

    def loss(params, rows):
        sums = objective.loss(params, rows, key, train=True, progress=progress)
        return sums["loss"].total, sums

    def accumulate(carry, rows):
        (_, sums), gradient = jax.value_and_grad(loss, has_aux=True)(state.params, rows)
        return jax.tree.map(jnp.add, carry, (gradient, sums)), None

    if microbatches == 1:
        (_, sums), gradient = jax.value_and_grad(loss, has_aux=True)(state.params, batch)
    else:
        parts = jax.tree.map(lambda x: split_rows(x, microbatches), batch)
        first = jax.tree.map(lambda x: x[0], parts)
        shapes = jax.eval_shape(lambda: loss(state.params, first)[1])
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (state.params, shapes))
        (gradient, sums), _ = jax.lax.scan(accumulate, zeros, parts)

    weight = sums["loss"].weight
    gradient = jax.tree.map(lambda g: g / jnp.maximum(weight, 1e-9), gradient)
    updates, opt_state = optimizer.update_rule.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = {name: value.mean() for name, value in sums.items()}
    metrics["grad_norm"] = optax.tree.norm(gradient)
    metrics["learning_rate"] = jnp.asarray(optimizer.schedule(state.step), jnp.float32)
    metrics["predicted"] = weight
    return TrainState(state.step + 1, params, opt_state), metrics


def eval_step(params: dict, batch: Batch, *, objective: Objective) -> tuple[Sums, Array]:
    """Held-out sums of one batch, with the evaluation's own corruption and no dropout.

    Returns:
        The sums, and how often each token was a target, float32 ``[vocab]`` (from which the bytes
        predicted and a unigram model's loss on the same targets follow).
    """
    key = jax.random.key(EVAL_SEED)
    one = jnp.ones((), jnp.float32)
    sums = objective.loss(params, batch, key, train=False, progress=one)
    example = objective.example(batch, key, train=False, progress=one)
    counts = jnp.zeros(objective.vocab.size, jnp.float32)
    return sums, counts.at[example.targets].add(example.weights)


def jit_train_step(
    objective: Objective,
    optimizer: Optimizer,
    abstract: TrainState,
    *,
    seed: int,
    total_steps: int,
    microbatches: int,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """`train_step` under `jax.jit`, sharded as the abstract state says, the old state donated."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    mesh = shardings.step.mesh

    def step(state, batch):
        return train_step(
            state,
            batch,
            objective=objective,
            optimizer=optimizer,
            seed=seed,
            total_steps=total_steps,
            microbatches=microbatches,
        )

    return jax.jit(
        step,
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )


def jit_eval_step(
    objective: Objective, param_shardings: dict[str, NamedSharding]
) -> Callable[[dict, Batch], tuple[Sums, Array]]:
    """`eval_step` under `jax.jit`."""
    mesh = jax.tree.leaves(param_shardings)[0].mesh
    return jax.jit(
        lambda params, batch: eval_step(params, batch, objective=objective),
        in_shardings=(param_shardings, batch_sharding(mesh)),
        out_shardings=replicated(mesh),
    )


def run_key(seed: int) -> Array:
    """The key that the randomness of training (masks, dropout) comes from."""
    return jax.random.fold_in(jax.random.key(seed), 1)


def split_rows(x: Array, parts: int) -> Array:
    """``[rows, ...]`` to ``[parts, rows / parts, ...]``, every part from all over the rows.

    Strided, so that rows divided over devices stay on their device.
    """
    return jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1)
