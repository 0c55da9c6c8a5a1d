"""What a trained backbone is worth downstream: each task, by each method, over seeds, with
intervals."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import NamedTuple

import numpy as np

from jaxpretrain.data.tasks import TaskSource
from jaxpretrain.data.tasks_rows import Item, TaskRows
from jaxpretrain.data.tokenizer_base import AnyTokenizer
from jaxpretrain.errors import UserError
from jaxpretrain.evaluation import answers, measures
from jaxpretrain.evaluation.finetune import Labeller, chosen_rate, rates, watched
from jaxpretrain.evaluation.minimal_pairs import can_judge, sentence_nats
from jaxpretrain.evaluation.probe import joined, probed, shuffled
from jaxpretrain.evaluation.reading import alike, rows_of, vectors
from jaxpretrain.evaluation.summaries import (
    Learned,
    Measured,
    answer_values,
    labels,
    of_rows,
    summed_up,
)
from jaxpretrain.objectives.base import Objective
from jaxpretrain.settings import DownstreamSettings


class Model(NamedTuple):
    """What is measured.

    Attributes:
        objective: that the backbone was trained by, bound.
        params: the parameters.
        tokenizer: of the run.
        length: of a row in training, the most tokens that are read of a text.
        whole: sharding of what every process has; None where there is one process.
    """

    objective: Objective
    params: dict
    tokenizer: AnyTokenizer
    length: int
    whole: object = None


def load(name: str, task: TaskSource, seed: int = 0) -> TaskRows:
    """The rows of a task, those to choose by and to test on drawn down to `TaskSource.test_rows`.

    Raises:
        UserError: see `TaskSource.load`, with the name of the task.
    """
    try:
        rows = task.load()
        learns = task.kind in ("classification", "regression", "question_answering")
        if learns and not rows.train:
            raise UserError("there are no rows to train on")
        chooses = task.method != "probe" or task.kind == "question_answering"
        if learns and chooses and not rows.dev:
            raise UserError("there are no dev rows to choose the learning rate by")
    except UserError as error:
        raise UserError(f"task {name}: {error}") from None
    return rows._replace(
        dev=_drawn(rows.dev, task.test_rows, [seed, 1]),
        test=_drawn(rows.test, task.test_rows, [seed, 2]),
    )


def measure(
    task: TaskSource, rows: TaskRows, model: Model, settings: DownstreamSettings
) -> dict[str, Measured]:
    """A task by each of its methods, by the method's name; none where the objective can not do it.

    Everything follows from the arguments: the same ones give the same numbers.

    Args:
        task: as declared.
        rows: see `load`.
        model: what is measured.
        settings: how tasks are learned.
    """
    if task.kind == "minimal_pairs":
        judge = next((one for one in model.objective.parts() if can_judge(one)), None)
        return {"likelihood": judged(task, rows, model._replace(objective=judge))} if judge else {}
    if task.kind == "similarity":
        found = Learned([cosines(model, rows.test, settings.pooling)])
        return {"cosine": summed_up(task, "cosine", rows, found)}
    methods = ("probe", "finetune") if task.method == "both" else (task.method,)
    learn = {
        ("probe", False): probe,
        ("finetune", False): finetune,
        ("probe", True): partial(answer, frozen=True),
        ("finetune", True): partial(answer, frozen=False),
    }
    asks = task.kind == "question_answering"
    return {
        method: summed_up(task, method, rows, learn[method, asks](task, rows, model, settings))
        for method in methods
    }


def glance(
    task: TaskSource, rows: TaskRows, model: Model, settings: DownstreamSettings
) -> float | None:
    """The metric of a task by the cheapest method, one seed: to watch while training.

    None where that is a fine-tune, or where the objective can not do the task.
    """
    settings = DownstreamSettings(**(vars(settings) | {"seeds": 1}))
    if task.kind == "similarity":
        truth = np.array([item.label for item in rows.test])
        return measures.score(task.metrics[0], truth, cosines(model, rows.test, settings.pooling))
    if task.kind not in ("classification", "regression") or task.method == "finetune":
        return None
    found = probe(task, rows, model, settings, check=False).predictions[0]
    return measures.score(task.metrics[0], labels(rows.test), found)


def probe(
    task: TaskSource,
    rows: TaskRows,
    model: Model,
    settings: DownstreamSettings,
    *,
    check: bool = True,
) -> Learned:
    """A linear model on the vectors of the texts, each text read alone; see `probe`."""
    classes = task.kind == "classification"

    def read(items: Sequence[Item]) -> np.ndarray:
        if not items:
            return np.zeros((0, 1))
        texts = list(zip(*(item.texts for item in items), strict=True))
        each = [
            rows_of(model.objective, model.tokenizer, [(text,) for text in column], model.length)
            for column in texts
        ]
        return joined(
            [
                vectors(
                    model.objective, model.params, one, pooling=settings.pooling, whole=model.whole
                )
                for one in each
            ]
        )

    draws = _draws(rows.train, task.train_rows, settings.seeds)
    used = sorted(set().union(*(draw.tolist() for draw in draws)))
    x = read([rows.train[i] for i in used])
    place = {number: at for at, number in enumerate(used)}
    y = labels(rows.train)
    dev, test = (read(rows.dev), labels(rows.dev)), read(rows.test)
    found, strength, first = [], 0.0, None
    for draw in draws:
        train = x[[place[i] for i in draw.tolist()]], y[draw]
        predicted, chosen = probed(train, dev, test, metric=task.metrics[0], classes=classes)
        found.append(predicted)
        first, strength = (first, strength) if first else (train, chosen)
    again = None
    if check:
        known = test, labels(rows.test)
        again = shuffled(first, known, classes=classes, strength=strength)
    return Learned(found, shuffled=again)


def finetune(
    task: TaskSource, rows: TaskRows, model: Model, settings: DownstreamSettings
) -> Learned:
    """All of the backbone and a head, a pair of texts in one row; see `finetune.Labeller`."""
    objective = model.objective
    classes = len(rows.classes) if task.kind == "classification" else 0
    texts = [[item.texts for item in items] for items in rows[:3]]
    made = [rows_of(objective, model.tokenizer, part, model.length) for part in texts]
    train, dev, test = alike(*made, pad=objective.vocab.pad)
    known = labels(rows.train)
    draws = _draws(rows.train, task.train_rows, settings.seeds, always=True)
    learner = Labeller(objective, model.params, classes, len(draws[0]), settings, model.whole)

    def fit(seed: int, rate: float) -> Callable:
        part = type(train)(*(x[draws[seed]] for x in train))
        return learner.fit(part, known[draws[seed]], learning_rate=rate, seed=seed)

    def on_dev(rate: float) -> tuple[float, Callable]:
        predict = fit(0, rate)
        return measures.score(task.metrics[0], labels(rows.dev), predict(dev)), predict(test)

    rate, grid, first = chosen_rate(rates(settings, frozen=False), on_dev)
    others = watched(range(1, settings.seeds), "other seeds")
    rest = [fit(seed, rate)(test) for seed in others]
    return Learned([first, *rest], rate, grid)


def answer(
    task: TaskSource,
    rows: TaskRows,
    model: Model,
    settings: DownstreamSettings,
    *,
    frozen: bool,
) -> Learned:
    """Pointing at answers in a context; see `answers.Answerer`."""
    cut = partial(answers.windows, model.objective, model.tokenizer, length=model.length)
    dev, test = cut(rows.dev), cut(rows.test)
    may_be_none = any(not item.label for item in rows.train)
    draws = _draws(rows.train, task.train_rows, settings.seeds, always=True)

    @cache
    def learner(seed: int) -> answers.Answerer:
        train = cut([rows.train[i] for i in draws[seed]])
        return answers.Answerer(
            model.objective,
            model.params,
            train,
            settings,
            frozen=frozen,
            may_be_none=may_be_none,
            whole=model.whole,
        )

    def on_dev(rate: float) -> tuple[float, list[str]]:
        predict = learner(0).fit(learning_rate=rate, seed=0)
        values = answer_values(task.metrics[0], rows.dev, predict(rows.dev, dev))
        return float(values.mean()), predict(rows.test, test)

    rate, grid, first = chosen_rate(rates(settings, frozen=frozen), on_dev)
    rest = [
        learner(seed).fit(learning_rate=rate, seed=seed)(rows.test, test)
        for seed in watched(range(1, settings.seeds), "other seeds")
    ]
    return Learned([first, *rest], rate, grid)


def cosines(model: Model, items: Sequence[Item], pooling: str) -> np.ndarray:
    """The cosine of the pooled vectors of each pair of texts, ``[rows]``."""
    u, v = (
        vectors(
            model.objective,
            model.params,
            rows_of(model.objective, model.tokenizer, [(i.texts[n],) for i in items], model.length),
            pooling=pooling,
            whole=model.whole,
        )
        for n in (0, 1)
    )
    lengths = np.linalg.norm(u, axis=1) * np.linalg.norm(v, axis=1)
    return np.sum(u * v, axis=1) / np.maximum(lengths, 1e-30)


def judged(task: TaskSource, rows: TaskRows, model: Model) -> Measured:
    """Minimal pairs by the likelihood of each sentence, per byte of its text so that the shorter
    one has no advantage; ``whole_sentence`` is without that, as BLiMP counts. A tie counts half."""
    texts = [text for item in rows.test for text in item.texts]
    found = sentence_nats(
        model.objective, model.params, model.tokenizer, texts, length=model.length
    ).reshape(-1, 2)
    sizes = np.array([len(text.encode()) for text in texts]).reshape(-1, 2)

    def wins(nats: np.ndarray) -> np.ndarray:
        return (nats[:, 0] < nats[:, 1]) + 0.5 * (nats[:, 0] == nats[:, 1])

    fair = wins(found / sizes)
    kinds = np.array([item.group for item in rows.test])
    measured = of_rows(task, "likelihood", rows, [fair], {}, Learned([]))
    more = {"whole_sentence": float(wins(found).mean())}
    groups = {kind: float(fair[kinds == kind].mean()) for kind in sorted(set(kinds.tolist()))}
    return measured._replace(result=measured.result | {"more": more, "groups": groups})


def _drawn(items: list[Item], most: int, seed: list[int]) -> list[Item]:
    if not most or len(items) <= most:
        return items
    chosen = np.random.default_rng(seed).permutation(len(items))[:most]
    return [items[i] for i in sorted(chosen.tolist())]


def _draws(items: list[Item], most: int, seeds: int, *, always: bool = False) -> list[np.ndarray]:
    """Which rows each seed trains on; where that is all of them, one draw is enough for a probe,
    which has no other randomness."""
    if not most or len(items) <= most:
        return [np.arange(len(items))] * (seeds if always else 1)
    return [
        np.sort(np.random.default_rng([seed, 3]).permutation(len(items))[:most])
        for seed in range(seeds)
    ]
