"""Fine-tuning: a linear head on the backbone's stream, trained with all of it or alone."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from jaxpretrain.evaluation.reading import Rows, in_batches, stream, trimmed
from jaxpretrain.objectives.base import Objective
from jaxpretrain.objectives.contrastive import pool
from jaxpretrain.optim import make_optimizer
from jaxpretrain.settings import DownstreamSettings

POOL = 16  # batches that are sorted together
HEAD_ALONE = 10.0  # times the learning rates of the grid, where the backbone is frozen
Loss = Callable[[dict, Rows, Any, jax.Array], jax.Array]


class Learner:
    """Trains a head, and the backbone with it, on rows; compiled once for all rates and seeds.

    AdamW with a linear warmup over a tenth of the steps and a linear decay to 0 (Devlin et al.
    2019, arXiv:1810.04805, appendix A.3).

    Args:
        objective: that the backbone was trained by.
        params: pretrained, not changed.
        outputs: scores of a row or of a position.
        loss: of the parameters (the head's under "task_head"), rows, their labels (a pytree with a
            leading axis of rows) and a key for each row.
        rows: how many there are to train on.
        settings: epochs and batch size.
        frozen: train the head alone.
    """

    def __init__(
        self,
        objective: Objective,
        params: dict,
        outputs: int,
        loss: Loss,
        rows: int,
        settings: DownstreamSettings,
        *,
        frozen: bool = False,
    ):
        self._width, self._outputs = objective.backbone.config.width, outputs
        self._params = {name: params[name] for name in objective.backbone.axes()}
        self._frozen = frozen
        self._batch = min(settings.batch_size, rows)
        self._epochs, self._rows = settings.epochs, rows
        steps = max(self._epochs * (rows // self._batch), 2)
        # At a rate of 1: an update is proportional to the rate, which is so an argument.
        rule = make_optimizer(
            total_steps=steps,
            learning_rate=1.0,
            schedule="linear",
            warmup_steps=steps // 10,
            final_fraction=0.0,
            beta2=0.999,
        ).update_rule
        self._start = jax.jit(rule.init)

        @jax.jit
        def step(trained, fixed, opt_state, rows, labels, keys, rate):
            def mean(trained):
                return loss(fixed | trained, rows, labels, None if frozen else keys)

            grads = jax.grad(mean)(trained)
            updates, opt_state = rule.update(grads, opt_state, trained)
            scaled = jax.tree.map(lambda update: rate * update, updates)
            return optax.apply_updates(trained, scaled), opt_state

        self._step = step

    def fit(self, rows: Rows, labels: Any, *, learning_rate: float, seed: int) -> dict:
        """The parameters after training on rows; the seed is that of head, order and dropout."""
        key = jax.random.key(seed)
        head = 0.02 * jax.random.normal(key, (self._width, self._outputs))
        trained = {"task_head": {"kernel": head, "bias": jnp.zeros(self._outputs)}}
        fixed = self._params
        if not self._frozen:
            trained, fixed = fixed | trained, {}
        opt_state = self._start(trained)
        rng, number = np.random.default_rng(seed), 0
        lengths = rows.segments.sum(axis=1)
        for _ in range(self._epochs):
            for chosen in batches(lengths, self._batch, rng):
                part, known = jax.tree.map(lambda x: x[chosen], (rows, labels))  # noqa: B023
                keys = jax.random.split(jax.random.fold_in(key, number), self._batch)
                trained, opt_state = self._step(
                    trained, fixed, opt_state, trimmed(part), known, keys, learning_rate
                )
                number += 1
        return fixed | trained


def batches(lengths: np.ndarray, size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Row numbers of the batches of an epoch, in random order; what does not fill one is left out.

    Batches are cut from sixteen of them at a time, sorted by length, so that rows of like length go
    together.
    """
    order = rng.permutation(len(lengths))
    order = order[: len(order) // size * size]
    runs = [order[at : at + POOL * size] for at in range(0, len(order), POOL * size)]
    runs = [run[np.argsort(lengths[run], kind="stable")] for run in runs]
    cut = np.concatenate(runs).reshape(-1, size)
    return [*cut[rng.permutation(len(cut))]]


def head_scores(params: dict, x: jax.Array) -> jax.Array:
    """Scores float32 ``[..., outputs]`` of vectors ``[..., width]``."""
    head = params["task_head"]
    return x.astype(jnp.float32) @ head["kernel"] + head["bias"]


def rates(settings: DownstreamSettings, *, frozen: bool) -> list[float]:
    """The grid of learning rates, the same for every objective."""
    return [rate * (HEAD_ALONE if frozen else 1.0) for rate in settings.learning_rates]


def chosen_rate(
    grid: Sequence[float], value: Callable[[float], tuple[float, Any]]
) -> tuple[float, dict[str, float], Any]:
    """The rate with the best value on the dev rows, all of them, and what came with the best.

    Args:
        grid: rates; one alone needs no choice.
        value: of a rate, on the dev rows, and anything that comes with it.
    """
    tried = {rate: value(rate) for rate in watched(grid, "learning rates")}
    best = max(tried, key=lambda rate: np.nan_to_num(tried[rate][0], nan=-np.inf))
    return best, {f"{rate:g}": found for rate, (found, _) in tried.items()}, tried[best][1]


def watched(each: Sequence, what: str) -> Iterable:
    """The same; on a terminal it shows how many are done, and how long the others may take."""
    return tqdm(each, desc=f"  fine-tuning: {what}", leave=False, disable=None)


class Labeller:
    """Fine-tunes for classes or numbers, by the pooled vector of a text or of a pair in one row.

    Args:
        objective: that the backbone was trained by.
        params: pretrained.
        classes: how many; 0 for numbers.
        rows: how many there are to train on.
        settings: epochs, batch size and pooling.
        whole: sharding of what every process has.
    """

    def __init__(
        self,
        objective: Objective,
        params: dict,
        classes: int,
        rows: int,
        settings: DownstreamSettings,
        whole=None,
    ):
        self._classes = classes

        def scores(params, rows, keys=None):
            hidden = stream(objective, params, rows, keys)
            return head_scores(params, pool(hidden, rows.segments, settings.pooling))

        def loss(params, rows, labels, keys):
            found = scores(params, rows, keys)
            if classes:
                return optax.softmax_cross_entropy_with_integer_labels(found, labels).mean()
            return jnp.mean((found[:, 0] - labels) ** 2)

        self._scores = jax.jit(scores, out_shardings=whole)
        self._learner = Learner(objective, params, classes or 1, loss, rows, settings)

    def fit(self, rows: Rows, labels: np.ndarray, *, learning_rate: float, seed: int) -> Callable:
        """Trains; what it gives takes rows and gives predictions ``[rows]``."""
        mean, spread = (0.0, 1.0) if self._classes else (labels.mean(), labels.std() or 1.0)
        known = labels if self._classes else ((labels - mean) / spread).astype(np.float32)
        params = self._learner.fit(rows, known, learning_rate=learning_rate, seed=seed)

        def predict(rows: Rows) -> np.ndarray:
            found = in_batches(self._scores, params, rows)
            return found.argmax(-1) if self._classes else found[:, 0] * spread + mean

        return predict
