"""How the tasks of a mixture share the gradient: measured, balanced, and said aloud.

The one idea: what a task does to the backbone is its gradient, not its loss. So one gradient per
task is computed on a batch now and then, and their norms and the cosines between them tell whether
a task drowns out the others, or works against them.
"""

import itertools

import jax.numpy as jnp
import optax

from jaxpretrain.objectives.mixture import Mixture
from jaxpretrain.sharding import Placement
from jaxpretrain.state import TrainState
from jaxpretrain.step import Metrics, Update, gradient_and_sums, jit_update, progress_at
from jaxpretrain.types import Array, Batch

# How far the factors of a mixture that balances itself go towards what one measurement asks for,
# in the logarithm: a single batch is noisy.
ADAPT = 0.5


def measure(
    state: TrainState,
    batch: Batch,
    seed: Array,
    *,
    mixture: Mixture,
    total_steps: int,
    microbatches: int,
) -> tuple[TrainState, Metrics]:
    """The gradient of each task on one batch.

    Args:
        state: its factors are adapted if the mixture balances itself; nothing else changes.
        batch: rows of a step.
        seed: of the run, a uint32 scalar.
        mixture: bound to its backbone.
        total_steps: updates in the whole run.
        microbatches: as in training.

    Returns:
        The state, and float32 scalars: ``gradient_share/TASK``, the norm of the task's weighted
        gradient with respect to the backbone over the sum of these norms;
        ``gradient_cosine/TASK~TASK`` for each pair; ``task_weight/TASK``, the weight with all
        factors.
    """
    progress = progress_at(state.step, total_steps)
    coefficients = mixture.coefficients(progress)
    backbone = mixture.backbone.axes().keys()
    names = [task.name for task in mixture.tasks]

    def gradient(name: str):
        own = {t: c for t, c in coefficients.items() if t.partition("/")[0] == name}
        found, _, _ = gradient_and_sums(
            state.params,
            batch,
            objective=mixture.measured(),
            coefficients=own,
            seed=seed,
            progress=progress,
            microbatches=microbatches,
        )
        return {key: found[key] for key in backbone}

    gradients = {name: gradient(name) for name in names}
    norms = {name: optax.tree.norm(gradients[name]) for name in names}
    weights = {task.name: jnp.float32(task.weight_at(progress)) for task in mixture.tasks}
    balance = state.balance
    if balance:
        balance = adapted(balance, norms, weights, first=state.step == 0)
    metrics = {}
    factors = {name: balance.get(name, jnp.ones(())) for name in names}
    learned = mixture.learned_factors(state.params)  # which the norms have in them
    total = sum(factors[name] * norms[name] for name in names)
    for name in names:
        metrics[f"gradient_share/{name}"] = factors[name] * norms[name] / jnp.maximum(total, 1e-30)
        metrics[f"task_weight/{name}"] = factors[name] * learned[name] * weights[name]
    for a, b in itertools.combinations(names, 2):
        product = optax.tree.vdot(gradients[a], gradients[b])
        metrics[f"gradient_cosine/{a}~{b}"] = product / jnp.maximum(norms[a] * norms[b], 1e-30)
    return state._replace(balance=balance), metrics


def adapted(
    balance: dict[str, Array], norms: dict[str, Array], weights: dict[str, Array], *, first: Array
) -> dict[str, Array]:
    """Factors that bring the shares of the gradient closer to the proportion of the weights.

    Args:
        balance: the factors by now.
        norms: of the tasks' gradients with their weights, without the factors.
        weights: of the tasks.
        first: whether this is the first measurement, which is taken at its word.

    Returns:
        New factors; the weights times the factors have the sum of the weights. A task that has no
        gradient on this batch, or no weight by now, keeps its factor.
    """
    seen = {name: (norms[name] > 0) & (weights[name] > 0) for name in balance}
    # A task's norm over its weight is what one unit of weight moves; the factor is its inverse.
    wanted = {
        name: jnp.where(seen[name], weights[name] / jnp.where(seen[name], norms[name], 1.0), 0.0)
        for name in balance
    }
    # What the tasks that are seen have together stays theirs.
    before = sum(weights[name] * balance[name] * seen[name] for name in balance)
    after = sum(weights[name] * wanted[name] for name in balance)
    scale = before / jnp.where(after > 0, after, 1.0)
    pace = jnp.where(first, 1.0, ADAPT)
    stepped = {
        name: jnp.where(
            seen[name], balance[name] ** (1 - pace) * (scale * wanted[name]) ** pace, balance[name]
        )
        for name in balance
    }
    return _normalised(stepped, weights)


def _normalised(factors: dict[str, Array], weights: dict[str, Array]) -> dict[str, Array]:
    whole = sum(weights.values())
    product = sum(weights[name] * factors[name] for name in factors)
    scale = jnp.where(product > 0, whole / jnp.where(product > 0, product, 1.0), 1.0)
    return {name: factor * scale for name, factor in factors.items()}


def jit_measure(
    mixture: Mixture,
    abstract: TrainState,
    placement: Placement,
    *,
    total_steps: int,
    microbatches: int,
) -> Update:
    """`measure` under `jax.jit`, placed on the mesh."""
    sizes = {"total_steps": total_steps, "microbatches": microbatches}
    return jit_update(measure, abstract, placement, mixture=mixture, **sizes)


class Watch:
    """Says so when a task of a mixture has held too much of the gradient for a while.

    Args:
        mixture: with its `alarm_share` and `alarm_after`.
    """

    def __init__(self, mixture: Mixture):
        self._mixture = mixture
        self._in_a_row: dict[str, int] = {}
        self._said: set[str] = set()

    def see(self, metrics: dict[str, float]) -> str | None:
        """Takes one measurement; gives a line to print once per task that drowns out the others."""
        mixture = self._mixture
        for task in mixture.tasks:
            share = metrics[f"gradient_share/{task.name}"]
            above = share > mixture.alarm_share
            self._in_a_row[task.name] = self._in_a_row.get(task.name, 0) + 1 if above else 0
            if self._in_a_row[task.name] >= mixture.alarm_after and task.name not in self._said:
                self._said.add(task.name)
                fair = (1 - share) / (len(mixture.tasks) - 1)
                lower = (
                    f"lower objective.tasks.{task.name}.weight from {task.weight:.3g} to about "
                    f"{max(task.weight * fair / share, 1e-6):.2g}"
                )
                balanced = mixture.weighting == "equal_share"
                advice = lower if balanced else f"set objective.weighting=equal_share, or {lower}"
                return (
                    f"warning: {task.name} has held {share:.0%} of the gradient at the last "
                    f"{mixture.alarm_after} measurements, so the other tasks hardly train: {advice}"
                )
        return None
