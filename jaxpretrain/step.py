"""The pure train and eval steps. Nothing here knows the objective or the number of devices."""

from collections.abc import Callable, Hashable, Mapping
from functools import lru_cache

import jax
import jax.numpy as jnp
import optax

from jaxpretrain import compiler
from jaxpretrain.objectives.base import Objective, split_rows, total_loss
from jaxpretrain.optim import Optimizer
from jaxpretrain.sharding import Placement
from jaxpretrain.state import Placed, TrainState
from jaxpretrain.types import Array, Batch, Progress, Sums

Metrics = dict[str, Array]
Update = Callable[[TrainState, Batch, Array], tuple[TrainState, Metrics]]

# Held-out losses are measured on the same masks in every run, whatever its own seed.
EVAL_SEED = 0


def train_step(
    state: TrainState,
    batch: Batch,
    seed: Array,
    *,
    objective: Objective,
    optimizer: Optimizer,
    total_steps: int,
    microbatches: int,
    largest_grad_norm: float = 0.0,
) -> tuple[TrainState, Metrics]:
    """One update, or none where the loss or the gradient is no finite number or too large.

    The gradient is that of ``sum of losses / sum of weights`` over the whole step, whatever the
    microbatches and devices.

    Args:
        state: before the update.
        batch: rows of the step.
        seed: of the run, a uint32 scalar.
        objective: bound to its backbone.
        optimizer: see `make_optimizer`.
        total_steps: updates in the whole run, for schedules.
        microbatches: into how many parts the rows are divided, one after another.
        largest_grad_norm: above it, parameters and optimizer state stay as they are; 0 for none.

    Returns:
        The state after the update and float32 scalars: the mean of each sum of the objective (not
        a number where its weight is 0), ``loss`` (the sum of its terms), ``grad_norm`` (before
        clipping), ``learning_rate``, ``predicted`` (the weight of the first term: tokens, or rows),
        ``left_out`` (1 where there was no update, else 0).
    """
    progress = progress_at(state.step, total_steps)
    coefficients = objective.balanced(objective.coefficients(progress), state.balance)
    gradient, sums, weights = gradient_and_sums(
        state.params,
        batch,
        objective=objective,
        coefficients=coefficients,
        seed=seed,
        progress=progress,
        microbatches=microbatches,
    )
    updates, opt_state = optimizer.update_rule.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    # A task whose turn it was not has no loss, rather than one of 0.
    metrics = {k: jnp.where(v.weight == 0, jnp.nan, v.mean()) for k, v in sums.items()}
    metrics["loss"] = total_loss(coefficients, sums)
    metrics["grad_norm"] = optax.tree.norm(gradient)
    good = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
    if largest_grad_norm:
        good &= metrics["grad_norm"] <= largest_grad_norm
    params, opt_state = jax.tree.map(
        lambda new, old: jnp.where(good, new, old),
        (params, opt_state),
        (state.params, state.opt_state),
    )
    metrics["left_out"] = 1.0 - good
    metrics["learning_rate"] = jnp.asarray(optimizer.schedule(state.step), jnp.float32)
    metrics["predicted"] = sums[objective.token_term or next(iter(coefficients))].weight
    return state._replace(step=state.step + 1, params=params, opt_state=opt_state), metrics


def gradient_and_sums(
    params: dict,
    batch: Batch,
    *,
    objective: Objective,
    coefficients: Mapping[str, Array | float],
    seed: Array,
    progress: Progress,
    microbatches: int,
) -> tuple[dict, Sums, dict[str, Array]]:
    """The gradient of the sum of the terms' means, times their coefficients.

    The rows of the whole step are corrupted at once, so that rows can be paired with any other,
    and the weight of each term is known before the rows are divided into microbatches.

    Returns:
        The gradient, the sums of the objective, and the weight of each term.
    """
    example, keys = objective.example(batch, run_key(seed), train=True, progress=progress)
    weights = objective.term_weights(example)
    scale = {t: factor / jnp.maximum(weights[t], 1e-9) for t, factor in coefficients.items()}

    def loss(params, example, keys):
        sums = objective.loss(params, example, keys, train=True, progress=progress)
        return sum(factor * sums[term].total for term, factor in scale.items()), sums

    def accumulate(carry, part):
        (_, sums), gradient = jax.value_and_grad(loss, has_aux=True)(params, *part)
        return jax.tree.map(jnp.add, carry, (gradient, sums)), None

    if microbatches == 1:
        (_, sums), gradient = jax.value_and_grad(loss, has_aux=True)(params, example, keys)
        return gradient, sums, weights
    parts = jax.tree.map(lambda x: split_rows(x, microbatches), (example, keys))
    first = jax.tree.map(lambda x: x[0], parts)
    shapes = jax.eval_shape(lambda: loss(params, *first)[1])
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (params, shapes))
    (gradient, sums), _ = jax.lax.scan(accumulate, zeros, parts)
    return gradient, sums, weights


def eval_step(params: dict, batch: Batch, *, objective: Objective) -> tuple[Sums, Array]:
    """Held-out sums of one batch, with the evaluation's own corruption and no dropout.

    Returns:
        The sums, and how often each token was a target, float32 ``[vocab]`` (from which the bytes
        predicted and a unigram model's loss on the same targets follow); all 0 for an objective
        that predicts no tokens.
    """
    progress = Progress(jnp.int32(0), jnp.float32(1.0))
    key = jax.random.key(EVAL_SEED)
    example, keys = objective.example(batch, key, train=False, progress=progress)
    sums = objective.loss(params, example, keys, train=False, progress=progress)
    counts = jnp.zeros(objective.vocab.size, jnp.float32)
    if objective.token_term is not None:
        tokens, weights = objective.scored(example)
        counts = counts.at[tokens].add(weights)
    return sums, counts


def progress_at(step: Array, total_steps: int) -> Progress:
    """How far the training is after so many updates."""
    return Progress(step, step.astype(jnp.float32) / total_steps)


def jit_train_step(
    objective: Objective,
    optimizer: Optimizer,
    abstract: TrainState,
    placement: Placement,
    *,
    total_steps: int,
    microbatches: int,
    largest_grad_norm: float = 0.0,
) -> Update:
    """`train_step` under `jax.jit`, placed on the mesh, the old state donated.

    The same arguments give the same function, so that runs of one process which differ in their
    seeds alone, as in an ablation, are traced and compiled once.
    """
    return jit_update(
        train_step,
        abstract,
        placement,
        objective=objective,
        optimizer=optimizer,
        total_steps=total_steps,
        microbatches=microbatches,
        largest_grad_norm=largest_grad_norm,
    )


def jit_update(
    function: Callable[..., tuple[TrainState, Metrics]],
    abstract: TrainState,
    placement: Placement,
    **more: Hashable,
) -> Update:
    """What makes of a state, a batch and a seed another state and metrics, under `jax.jit`.

    Args:
        function: pure.
        abstract: how the state is placed, before and after; the old one is donated.
        placement: of the batch and of the activations.
        more: arguments of the function, by name.
    """
    return _jit_update(function, Placed.like(abstract), placement, **more)


@lru_cache(maxsize=8)
def _jit_update(
    function: Callable[..., tuple[TrainState, Metrics]],
    placed: Placed,
    placement: Placement,
    **more: Hashable,
) -> Update:
    def update(state, batch, seed):
        with placement.of_activations():
            return function(state, batch, seed, **more)

    return jax.jit(
        update,
        in_shardings=(placed.tree, placement.batch, placement.whole),
        out_shardings=(placed.tree, placement.whole),
        donate_argnums=0,
        compiler_options=compiler.options(placement.platform),
    )


def jit_eval_step(
    objective: Objective, abstract_params: dict, placement: Placement
) -> Callable[[dict, Batch], tuple[Sums, Array]]:
    """`eval_step` under `jax.jit`, placed on the mesh; the same for the same arguments."""
    return _jit_eval_step(objective, Placed.like(abstract_params), placement)


@lru_cache(maxsize=8)
def _jit_eval_step(objective: Objective, placed: Placed, placement: Placement) -> Callable:
    def step(params, batch):
        with placement.of_activations():
            return eval_step(params, batch, objective=objective)

    return jax.jit(
        step,
        in_shardings=(placed.tree, placement.batch),
        out_shardings=placement.whole,
        compiler_options=compiler.options(placement.platform),
    )


def run_key(seed: Array | int) -> Array:
    """The key that the randomness of training (masks, dropout) comes from."""
    return jax.random.fold_in(jax.random.key(seed), 1)
