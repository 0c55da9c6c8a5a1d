"""Several objectives at once, on one backbone."""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxpretrain.errors import UserError
from jaxpretrain.models.flops import forward_flops
from jaxpretrain.objectives.base import Objective, require, row_keys
from jaxpretrain.objectives.shared_pass import can_share, merge, shared_visibility
from jaxpretrain.types import Array, Batch, Example, Progress, Sum, Sums


@dataclass(frozen=True, kw_only=True)
class Task:
    """One objective of a mixture.

    Attributes:
        name: of the task, as its losses are called.
        objective: what it trains.
        weight: factor on its loss at the beginning.
        final_weight: factor at the end of training, reached linearly; negative keeps `weight`.
        share: how many of the rows (or steps) are the task's, in proportion to the other shares.

    Raises:
        UserError: a negative weight, or a share below 1.
    """

    name: str = field(metadata={"config": False})
    objective: Objective = field(metadata={"config": False})
    weight: float = 1.0
    final_weight: float = -1.0
    share: int = 1

    def __post_init__(self):
        require(f"tasks.{self.name}.weight", self.weight, self.weight >= 0, "0 or more")
        require(f"tasks.{self.name}.share", self.share, self.share >= 1, "at least 1")

    def weight_at(self, progress: Progress) -> Array | float:
        """The factor at a point of the training."""
        if self.final_weight < 0:
            return self.weight
        done = progress.fraction
        return (1 - done) * self.weight + done * self.final_weight


@contextmanager
def settings_of_task(name: str) -> Iterator[None]:
    """Lets errors about the settings of an objective say where the task's are."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace("objective.", f"objective.tasks.{name}.")) from None


@dataclass(frozen=True, kw_only=True)
class Mixture(Objective):
    """A weighted sum of the losses of several objectives that train the same backbone.

    What each reads of a step is decided by `mode`. In held-out evaluation every task reads every
    row, on the masks of a run with its objective alone; "loss" is the sum with the weights at the
    end of the training (and learned factors, but not those of "equal_share").

    Attributes:
        tasks: the objectives, with their weights and shares.
        mode: "split" gives each task rows of its own and a forward pass of its own; "shared" draws
            a task for each row and makes one pass for all, which takes objectives that are a
            cross-entropy over tokens of a single stack; "alternate" gives each step to one task,
            in turn; "all" lets every task read every row.
        weighting: "fixed" weights (that may be scheduled); "uncertainty" learns a factor for each
            task (Kendall et al. 2018, arXiv:1705.07115); "equal_share" keeps the tasks' shares of
            the gradient norm in the proportion of their weights, whatever the sizes of their
            losses (after GradNorm: Chen et al. 2018, arXiv:1711.02257, without its loss ratios).
        measure_every: steps between two measurements of the gradients of the tasks; 0 means never.
        alarm_share: share of the gradient norm above which a task is said to drown out the others.
        alarm_after: measurements in a row above it until it is said.

    Raises:
        UserError: no tasks, weights that sum to zero, tasks that cannot be mixed in this mode.
    """

    name = "mixture"
    token_term = None

    tasks: tuple[Task, ...] = field(default=(), metadata={"config": False})
    mode: Literal["split", "shared", "alternate", "all"] = "split"
    weighting: Literal["fixed", "uncertainty", "equal_share"] = "fixed"
    measure_every: int = 100
    alarm_share: float = 0.9
    alarm_after: int = 3

    def __post_init__(self):
        if len(self.tasks) < 2:
            raise UserError(
                f"objective.tasks has {len(self.tasks)} sections: a mixture has at least two, each "
                "with its name, its keys and a weight"
            )
        weights = {task.name: task.weight for task in self.tasks}
        ends = {t.name: t.weight if t.final_weight < 0 else t.final_weight for t in self.tasks}
        for when, values in (("weights", weights), ("final weights", ends)):
            if sum(values.values()) == 0:
                raise UserError(
                    f"the {when} of objective.tasks are {values}, which sum to zero: nothing would "
                    "be trained"
                )
        require("measure_every", self.measure_every, self.measure_every >= 0, "0 or more")
        require("alarm_share", self.alarm_share, 0 < self.alarm_share < 1, "between 0 and 1")
        require("alarm_after", self.alarm_after, self.alarm_after >= 1, "at least 1")
        if self.weighting == "equal_share" and not self.measure_every:
            raise UserError(
                "objective.weighting is 'equal_share' and objective.measure_every 0: the shares "
                "are balanced when they are measured, every 20 steps, say"
            )

    def parts(self):
        """See `Objective.parts`."""
        return [task.objective for task in self.tasks]

    @property
    def views(self):
        """Rows that all the tasks can read."""
        first, *rest = (task.objective.views for task in self.tasks)
        return tuple(view for view in first if all(view in views for views in rest))

    @property
    def visibility(self):
        """Of the shared pass."""
        return shared_visibility([task.objective for task in self.tasks])

    @property
    def couples_rows(self):
        """Whether any of the tasks does."""
        return any(task.objective.couples_rows for task in self.tasks)

    def bind(self, backbone, vocab):
        """See `Objective.bind`."""
        bound = []
        for task in self.tasks:
            with settings_of_task(task.name):
                bound.append(replace(task, objective=task.objective.bind(backbone, vocab)))
        return replace(super().bind(backbone, vocab), tasks=tuple(bound))

    def check_model(self) -> None:
        """See `Objective.check_model`: the tasks have their own say when they are bound."""

    def check_run(
        self, *, length: int, batch_size: int, devices: int = 1, microbatches: int = 1
    ) -> None:
        """See `Objective.check_run`."""
        period, parts = sum(task.share for task in self.tasks), devices * microbatches
        if self.mode == "split" and batch_size % (period * parts):
            shares = " + ".join(f"{task.share} ({task.name})" for task in self.tasks)
            raise UserError(
                f"data.batch_size is {batch_size}, which does not divide into the shares {shares} "
                f"on {devices} devices x {microbatches} microbatches: make it a multiple of "
                f"{period * parts}"
            )
        alone = [t.name for t in self.tasks if not can_share(t.objective)]
        if self.mode == "shared" and alone:
            raise UserError(
                f"objective.mode is 'shared', and {', '.join(alone)} cannot share one forward "
                "pass: only cross-entropies over the tokens of a single stack can; use mode=split"
            )
        for task in self.tasks:
            own = batch_size * task.share // period if self.mode == "split" else batch_size
            for rows in {own, batch_size}:  # in training, and in held-out evaluation
                with settings_of_task(task.name):
                    task.objective.check_run(
                        length=length, batch_size=rows, devices=devices, microbatches=microbatches
                    )

    def longest_input(self, length: int, rows: int) -> int:
        """See `Objective.longest_input`: of all the tasks."""
        return max(task.objective.longest_input(length, rows) for task in self.tasks)

    def init(self, key: Array) -> dict:
        """See `Objective.init`: each task's own parameters under its name."""
        params = self.backbone.init(key)
        own = {}
        for task in self.tasks:
            task_key = jax.random.fold_in(key, zlib.crc32(task.name.encode()))
            own[task.name] = self._own(task.objective.init(task_key))
        return params | self._assembled(own, lambda: jnp.zeros(()))

    def axes(self) -> dict:
        """See `Objective.axes`."""
        own = {task.name: self._own(task.objective.axes()) for task in self.tasks}
        return self.backbone.axes() | self._assembled(own, tuple)

    def example(self, batch: Batch, key: Array, *, train: bool, progress: Progress) -> Any:
        """See `Objective.example`: examples and keys by task, or one for the shared pass."""

        def keys_for(purpose: str) -> dict[str, Array]:
            keys = {}
            for number, task in enumerate(self.tasks):
                # Held out, a task is measured as a run with its objective alone would be.
                code = zlib.crc32(task.name.encode())
                task_key = jax.random.fold_in(key, code) if train else key
                rows = self._rows_of(batch, number, train)
                keys[task.name] = row_keys(task_key, f"{task.objective.name}/{purpose}", rows)
            return keys

        example = self.corrupt(keys_for("corrupt"), batch, train=train, progress=progress)
        if not (train and self.mode == "shared"):
            return example, keys_for("loss")
        odds = jnp.log(jnp.array([task.share for task in self.tasks], jnp.float32))
        lots = row_keys(key, self.name + "/task", batch)
        drawn = jax.vmap(lambda key: jax.random.categorical(key, odds))(lots)
        visibilities = [task.objective.visibility for task in self.tasks]
        merged = merge(list(example.values()), visibilities, drawn, self.vocab.pad)
        return merged, row_keys(key, self.name + "/loss", batch)

    def corrupt(self, keys: dict[str, Array], batch: Batch, *, train: bool, progress) -> dict:
        """The examples of the tasks, each of the rows that it reads.

        Args:
            keys: by task, one PRNG key per row that it reads.
            batch: all the rows of a step.
            train: as for `Objective.corrupt`.
            progress: as for `Objective.corrupt`.

        Returns:
            What the tasks' own `corrupt` gives, by task.
        """
        return {
            task.name: task.objective.corrupt(
                keys[task.name],
                self._rows_of(batch, number, train),
                train=train,
                progress=progress,
            )
            for number, task in enumerate(self.tasks)
        }

    def coefficients(self, progress: Progress) -> dict[str, Array | float]:
        """See `Objective.coefficients`: weight times coefficient, for each term of each task."""
        found = {}
        for task in self.tasks:
            weight = task.weight_at(progress)
            for term, factor in task.objective.coefficients(progress).items():
                found[f"{task.name}/{term}"] = weight * factor
        if self.weighting != "uncertainty":
            return found
        weighted = {f"{name}/weighted": factor for name, factor in found.items()}
        return weighted | {f"{t.name}/log_variance": t.weight_at(progress) for t in self.tasks}

    def initial_balance(self) -> dict[str, Array]:
        """See `Objective.initial_balance`."""
        balancing = self.weighting == "equal_share"
        return {task.name: jnp.ones(()) for task in self.tasks} if balancing else {}

    def balanced(self, coefficients, balance):
        """See `Objective.balanced`."""
        return {
            name: factor * balance.get(name.partition("/")[0], 1.0)
            for name, factor in coefficients.items()
        }

    def learned_factors(self, params: dict) -> dict[str, Array]:
        """What each task's loss is multiplied by beside its weight, where that is learned: else 1.

        Args:
            params: parameters, with the log variance s of each task: the factor is ``exp(-s)``.

        Returns:
            float32 scalars by task.
        """
        learned = params.get("log_variance", {})
        return {t.name: jnp.exp(-learned.get(t.name, jnp.zeros(()))) for t in self.tasks}

    def term_weights(self, example: Any) -> dict[str, Array]:
        """See `Objective.term_weights`."""
        if isinstance(example, Example):
            tasks = example.extra["task"]
            raw = {
                f"{task.name}/loss": jnp.sum(example.counts * (tasks == number))
                for number, task in enumerate(self.tasks)
            }
        else:
            raw = {}
            for task in self.tasks:
                for term, weight in task.objective.term_weights(example[task.name]).items():
                    raw[f"{task.name}/{term}"] = weight
        if self.weighting != "uncertainty":
            return raw
        weights = {f"{name}/weighted": weight for name, weight in raw.items()}
        first = {t.name: raw[self._terms(t)[0]] for t in self.tasks}
        return weights | {f"{name}/log_variance": weight for name, weight in first.items()}

    def loss(self, params, example: Any, keys, *, train: bool, progress: Progress) -> Sums:
        """See `Objective.loss`; every name is that of the task, a slash, and that of the sum."""
        if isinstance(example, Example):
            hidden = self.encode(params, example, keys if train else None)
            tasks = example.extra["task"]
            groups = {f"{t.name}/loss": tasks == number for number, t in enumerate(self.tasks)}
            sums = self.token_sums(params, hidden, example, groups, each=True)
            sums = {name: sums[name] for name in (*groups, "accuracy")}
        elif train and self.mode == "alternate":
            sums = self._alternate(params, example, keys, progress)
        else:
            sums = {}
            for task in self.tasks:
                sums |= self._task_sums(task, params, example, keys, train, progress)

        if self.weighting == "uncertainty":
            # With the log variance s of a task, exp(-s) * loss + s is minimised, times its weight.
            factors = self.learned_factors(params)
            for task in self.tasks:
                terms = self._terms(task)
                for name in terms:
                    total, weight = sums[name]
                    sums[f"{name}/weighted"] = Sum(factors[task.name] * total, weight)
                s, weight = params["log_variance"][task.name], sums[terms[0]].weight
                sums[f"{task.name}/log_variance"] = Sum(s * weight, weight)
        return sums

    def flops(self, length: int) -> int:
        """See `Objective.flops`: a mean over rows that different tasks read."""
        period = sum(task.share for task in self.tasks)
        if self.mode == "shared":
            merged = self.shapes(length, rows=1)
            return 3 * forward_flops(
                self.backbone.config,
                length=merged.inputs.shape[1],
                slots=merged.targets.shape[1],
                visibility=self.visibility,
            )
        if self.mode == "all":
            return sum(task.objective.flops(length) for task in self.tasks)
        return sum(task.objective.flops(length) * task.share for task in self.tasks) // period

    def measured(self) -> "Mixture":
        """The mixture whose gradients are measured: in one batch every task has to be seen."""
        return replace(self, mode="all") if self.mode == "alternate" else self

    def _rows_of(self, batch: Batch, number: int, train: bool) -> Batch:
        """The rows that a task reads: split, so many of each `period` rows, on whatever device."""
        if not train or self.mode != "split":
            return batch
        shares = [task.share for task in self.tasks]
        period, first = sum(shares), sum(shares[:number])

        def take(x):
            x = x.reshape(x.shape[0] // period, period, *x.shape[1:])
            return x[:, first : first + shares[number]].reshape(-1, *x.shape[2:])

        return jax.tree.map(take, batch)

    def _task_sums(self, task: Task, params, example, keys, train, progress) -> Sums:
        own = {name: part for name, part in params.items() if name != "tasks"}
        own |= params.get("tasks", {}).get(task.name, {})
        sums = task.objective.loss(
            own, example[task.name], keys[task.name], train=train, progress=progress
        )
        return {f"{task.name}/{name}": value for name, value in sums.items()}

    def _alternate(self, params, example, keys, progress: Progress) -> Sums:
        """The sums of the task whose turn it is; those of the others are 0 of 0."""
        turns = [number for number, task in enumerate(self.tasks) for _ in range(task.share)]
        turn = jnp.array(turns)[progress.step % len(turns)]

        def branch(task):
            return lambda: self._task_sums(task, params, example, keys, True, progress)

        shapes = [jax.eval_shape(branch(task)) for task in self.tasks]
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        nothing = {name: value for sums in nothing for name, value in sums.items()}
        return jax.lax.switch(turn, [lambda t=task: nothing | branch(t)() for task in self.tasks])

    def _own(self, tree: dict) -> dict:
        """The parts of an objective's parameters that are not the backbone's."""
        return {name: part for name, part in tree.items() if name not in self.backbone.axes()}

    def _assembled(self, own: dict, log_variance) -> dict:
        trees = {"tasks": {name: parts for name, parts in own.items() if parts}}
        if self.weighting == "uncertainty":
            trees["log_variance"] = {task.name: log_variance() for task in self.tasks}
        return {name: tree for name, tree in trees.items() if tree}

    def _terms(self, task: Task) -> list[str]:
        """The names of a task's terms, as its losses are reported."""
        return [f"{task.name}/{term}" for term in task.objective.coefficients(_START)]


_START = Progress(0, 0.0)
