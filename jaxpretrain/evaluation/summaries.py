"""From the predictions of a method to what is reported: metrics, intervals, chance."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxpretrain.data.tasks import TaskSource
from jaxpretrain.data.tasks_rows import Item, TaskRows
from jaxpretrain.evaluation import measures
from jaxpretrain.report.results import Shuffled, TaskResult


class Measured(NamedTuple):
    """A result, and what the bootstrap gave, ``[resamples]``, to compare it with another."""

    result: TaskResult
    replicates: np.ndarray


class Learned(NamedTuple):
    """What a method gives.

    Attributes:
        predictions: of each seed, on the test rows.
        rate: the learning rate, or None.
        grid: the metric on the dev rows by rate.
        shuffled: of a probe, or None.
    """

    predictions: list
    rate: float | None = None
    grid: dict[str, float] = {}
    shuffled: Shuffled | None = None


def summed_up(task: TaskSource, method: str, rows: TaskRows, learned: Learned) -> Measured:
    """Metrics of predictions, over the seeds, with the bootstrap over test rows and seeds."""
    first, *others = task.metrics
    if task.kind == "question_answering":
        values = [answer_values(first, rows.test, found) for found in learned.predictions]
        more = {
            name: float(
                np.mean([answer_values(name, rows.test, p).mean() for p in learned.predictions])
            )
            for name in others
        }
        return of_rows(task, method, rows, values, more, learned)
    truth = labels(rows.test)
    if first == "accuracy":
        values = [(truth == found).astype(float) for found in learned.predictions]
        more = {name: _mean_score(name, truth, learned.predictions) for name in others}
        return of_rows(task, method, rows, values, more, learned)
    seeds = [measures.score(first, truth, found) for found in learned.predictions]

    def again(seed: int, chosen: np.ndarray) -> float:
        predicted, classes = learned.predictions[seed][chosen], len(rows.classes)
        return measures.score(first, truth[chosen], predicted, classes=classes)

    replicates = measures.resampled(again, len(seeds), len(truth))
    more = {name: _mean_score(name, truth, learned.predictions) for name in others}
    return _result(task, method, rows, seeds, replicates, more, learned)


def of_rows(task, method, rows, values: list[np.ndarray], more: dict, learned: Learned) -> Measured:
    """The same for a metric that is the mean of a value for each row."""
    replicates = measures.resampled(
        lambda seed, chosen: float(values[seed][chosen].mean()), len(values), len(values[0])
    )
    seeds = [float(each.mean()) for each in values]
    return _result(task, method, rows, seeds, replicates, more, learned)


def _result(task, method, rows, seeds, replicates, more, learned: Learned) -> Measured:
    low, high = measures.interval(replicates)
    train = min(len(rows.train), task.train_rows or len(rows.train))
    nothing = task.kind in ("similarity", "minimal_pairs")
    return Measured(
        TaskResult(
            kind=task.kind,
            method=method,
            metric=task.metrics[0],
            mean=float(np.mean(seeds)),
            low=low,
            high=high,
            seeds=seeds,
            chance=_chance(task, rows),
            more=more,
            rows={
                "train": 0 if nothing else train,
                "dev": 0 if nothing else len(rows.dev),
                "test": len(rows.test),
            },
            learning_rate=learned.rate,
            grid=learned.grid,
            shuffled=learned.shuffled,
            groups={},
        ),
        replicates,
    )


def _chance(task: TaskSource, rows: TaskRows) -> float | None:
    """The metric of an answer that does not look at the text."""
    if task.kind == "minimal_pairs":
        return 0.5
    if task.kind == "question_answering":
        return None
    if task.kind != "classification":
        return 0.0
    truth = labels(rows.test)

    def always(label: int) -> float:
        return measures.score(task.metrics[0], truth, np.full(len(truth), label))

    if task.metrics[0] == "accuracy":
        return always(np.bincount(labels(rows.train)).argmax())
    return max(always(label) for label in range(len(rows.classes)))


def answer_values(metric: str, items: Sequence[Item], predicted: Sequence[str]) -> np.ndarray:
    """F1 or exact match of each answer, ``[rows]``."""
    function = measures.answer_f1 if metric == "f1" else measures.exact_match
    return np.array(
        [
            function(found, [a.text for a in item.label])
            for item, found in zip(items, predicted, strict=True)
        ]
    )


def _mean_score(metric: str, truth: np.ndarray, predictions: list[np.ndarray]) -> float:
    return float(np.mean([measures.score(metric, truth, found) for found in predictions]))


def labels(items: Sequence[Item]) -> np.ndarray:
    """The labels of rows, ``[rows]``."""
    return np.array([item.label for item in items])
