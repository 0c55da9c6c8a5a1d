"""Tasks measured on a tiny untrained model: what is reported, and that all of it follows."""

import dataclasses
import functools

import numpy as np
import pytest

from jaxpretrain.assemble import build
from jaxpretrain.data.store import Store
from jaxpretrain.data.tasks import FileTask, MinimalPairsTask
from jaxpretrain.data.tasks_rows import Answer, Item, TaskRows
from jaxpretrain.errors import UserError
from jaxpretrain.evaluation import downstream, finetune, measures
from jaxpretrain.evaluation.downstream import Model, glance, judged, load, measure
from jaxpretrain.objectives import OBJECTIVES, Mixture, Task
from jaxpretrain.report.results import TaskResult
from jaxpretrain.settings import DownstreamSettings
from support import tiny_run
from support.small import at_random

WORDS = "class name object function module value type list".split()
SETTINGS = DownstreamSettings(
    seeds=2, learning_rates=[1e-3, 5e-3], epochs=1, batch_size=8, pooling="mean"
)


@pytest.fixture(scope="module")
def model(tiny_config_file):
    @functools.cache
    def make(name):
        config = tiny_run.config(tiny_config_file, objective__name=name)
        tokenizer = Store.open(config.store.path).tokenizer
        pieces = build(config, tokenizer.vocab)
        return Model(pieces.objective, at_random(pieces.abstract.params), tokenizer, 32)

    return make


def made(kind, sizes=(40, 12, 24)):
    """Rows of three words: whether they have "class" in them, or how many letters."""
    rng = np.random.default_rng(0)

    def item(number):
        words = rng.choice(WORDS, 3).tolist()
        text = " ".join(words)
        if kind == "question_answering":
            found = (Answer(words[1], text.index(" ") + 1),) if number % 4 else ()
            return Item(("Which one?", text), found)
        if kind == "classification":
            return Item((text,), int("class" in words or "name" in words))
        return Item((text, " ".join(words[::-1])), float(len(text)))

    return TaskRows(*([item(n) for n in range(size)] for size in sizes))


TASKS = {
    "classes": FileTask(method="both", train_rows=24),
    # One seed: scikit-learn takes milliseconds for each F1 of the bootstrap.
    "f1": FileTask(metric="f1", train_rows=0),
    "numbers": FileTask(kind="regression", method="both", train_rows=0),
    "questions": FileTask(kind="question_answering", method="both", train_rows=16),
    "similarity": FileTask(kind="similarity"),
}
METHODS = {"f1": {"probe"}, "similarity": {"cosine"}}


@pytest.fixture(scope="module")
def measured(model):
    @functools.cache
    def find(name):
        task = TASKS[name]
        rows = made(task.kind)
        rows = rows._replace(classes=("0", "1")) if task.kind == "classification" else rows
        return task, rows, measure(task, rows, model("mlm"), SETTINGS)

    return find


@pytest.mark.parametrize("name", TASKS)
def test_results_say_what_they_are_of(measured, name):
    task, rows, found = measured(name)
    assert found.keys() == METHODS.get(name, {"probe", "finetune"})
    for method, (result, replicates) in found.items():
        assert result.keys() == TaskResult.__annotations__.keys()
        assert result["kind"] == task.kind and result["method"] == method
        assert (result["metric"], *result["more"]) == task.metrics
        assert result["mean"] == pytest.approx(np.mean(result["seeds"]))
        assert result["low"] <= result["high"] and result["groups"] == {}
        assert replicates.shape == (measures.RESAMPLES,)
        assert (result["low"], result["high"]) == pytest.approx(
            tuple(np.percentile(replicates, [2.5, 97.5]))
        )
        learns = name != "similarity"
        train = min(task.train_rows or 40, 40)
        assert result["rows"] == {"train": train * learns, "dev": 12 * learns, "test": 24}
        # A probe of all the rows has no randomness, so one seed is all.
        whole = (name, method) in (("numbers", "probe"), ("f1", "probe"))
        seeds = 1 if method == "cosine" or whole else 2
        assert len(result["seeds"]) == seeds
        tuned = method == "finetune" or name == "questions"
        assert (result["learning_rate"] is not None) == tuned
        factor = 10 if (name, method) == ("questions", "probe") else 1
        assert list(result["grid"]) == [f"{r * factor:g}" for r in [1e-3, 5e-3] if tuned]
        if tuned:
            best = max(result["grid"].values())
            assert result["grid"][f"{result['learning_rate']:g}"] == best
        probed = method == "probe" and name != "questions"
        assert (result["shuffled"] is not None) == probed


@pytest.mark.parametrize(("name", "method"), [("classes", "finetune"), ("questions", "probe")])
def test_the_same_asked_twice_is_the_same(measured, model, name, method):
    _, rows, found = measured(name)
    task = dataclasses.replace(TASKS[name], method=method)
    [again] = measure(task, rows, model("mlm"), SETTINGS).values()
    assert again.result == found[method].result
    np.testing.assert_array_equal(again.replicates, found[method].replicates)


def test_chance_is_what_one_answer_for_all_has(measured):
    _, rows, found = measured("classes")
    train = [item.label for item in rows.train]
    common = int(2 * sum(train) > len(train))
    share = np.mean([item.label == common for item in rows.test])
    assert found["probe"].result["chance"] == found["finetune"].result["chance"] == share
    truth = np.array([item.label for item in rows.test])
    expected = 2 * truth.sum() / (truth.sum() + len(truth))  # of always class 1
    assert measured("f1")[2]["probe"].result["chance"] == pytest.approx(expected)
    assert measured("numbers")[2]["probe"].result["chance"] == 0
    assert measured("questions")[2]["probe"].result["chance"] is None


@pytest.mark.parametrize("name", ["classes", "f1", "numbers", "similarity"])
def test_a_glance_is_the_first_seed_of_the_cheapest_method(measured, model, name):
    task, rows, found = measured(name)
    result = found["cosine" if name == "similarity" else "probe"].result
    seen = glance(task, rows, model("mlm"), SETTINGS)
    assert seen == pytest.approx(result["seeds"][0], abs=1e-6)


def test_what_takes_a_fine_tune_is_not_glanced_at(model):
    tuned = FileTask(method="finetune"), FileTask(kind="question_answering"), MinimalPairsTask()
    for task in tuned:
        assert glance(task, made("classification"), model("mlm"), SETTINGS) is None


def test_similarity_is_the_cosine_of_the_vectors_of_each_text(model):
    objective, params, tokenizer, *_ = model("simcse")
    items = [Item(("Is it?", "Is it?"), 1.0), Item(("Is it?", "A class here."), 0.0)]
    found = downstream.cosines(model("simcse"), items, "cls")
    assert found[0] == pytest.approx(1, abs=1e-5) and found[1] < 0.9999
    from jaxpretrain.evaluation.scoring import similarity

    if objective.pooling == "cls":
        expected = similarity(objective, params, tokenizer, *items[1].texts, length=32)
        assert found[1] == pytest.approx(expected, abs=1e-5)


PAIRS = [
    (("aaaa", "aaa"), "long", (4.0, 3.5)),  # 1 nat a byte against 1.17: wins by bytes alone
    (("aaa", "aaa"), "long", (3.0, 4.0)),  # wins
    (("aaa", "aaaa"), "short", (3.0, 4.0)),  # a tie by bytes, a win as a whole
    (("éé", "aaaa"), "short", (2.0, 2.0)),  # 4 bytes each: ties
    (("aaa", "aaa"), "short", (3.0, 1.0)),  # loses
]


def test_minimal_pairs_are_counted_by_bytes_and_ties_are_halves(monkeypatch):
    rows = TaskRows([], [], [Item(texts, group=group) for texts, group, _ in PAIRS])
    asked = []

    def nats(objective, params, tokenizer, texts, *, length):
        asked.extend(texts)
        return np.array([x for _, _, both in PAIRS for x in both])

    monkeypatch.setattr(downstream, "sentence_nats", nats)
    found = judged(MinimalPairsTask(), rows, Model(None, {}, None, 32))
    assert asked == [text for texts, *_ in PAIRS for text in texts]
    result = found.result
    assert result["mean"] == pytest.approx((1 + 1 + 0.5 + 0.5 + 0) / 5)
    assert result["more"] == {"whole_sentence": pytest.approx((0 + 1 + 1 + 0.5 + 0) / 5)}
    assert result["groups"] == {"long": 1.0, "short": pytest.approx(1 / 3)}
    assert result["chance"] == 0.5 and result["method"] == "likelihood"
    assert result["rows"] == {"train": 0, "dev": 0, "test": 5} and result["seeds"] == [0.6]
    assert result["low"] < 0.6 < result["high"]


def test_the_first_part_that_gives_a_likelihood_judges_and_without_one_nobody(model, monkeypatch):
    judges = []

    def nats(objective, params, tokenizer, texts, *, length):
        judges.append(objective.name)
        return np.arange(len(texts), dtype=float)

    monkeypatch.setattr(downstream, "sentence_nats", nats)
    rows = TaskRows([], [], [Item(("a b", "b a"), group="x")] * 3)
    bound = model("mlm")

    def asked(*names):
        tasks = tuple(Task(name=name, objective=OBJECTIVES[name]()) for name in names)
        objective = Mixture(tasks=tasks) if len(names) > 1 else tasks[0].objective
        objective = objective.bind(bound.objective.backbone, bound.objective.vocab)
        return measure(MinimalPairsTask(), rows, bound._replace(objective=objective), SETTINGS)

    assert asked("simcse") == asked("prefix_lm") == asked("simcse", "prefix_lm") == {}
    assert asked("clm")["likelihood"].result["mean"] == 1.0
    assert asked("prefix_lm", "mlm").keys() == asked("clm", "mlm").keys() == {"likelihood"}
    assert judges == ["clm", "mlm", "clm"]


def drawn_by_probe(monkeypatch, model, task, rows, seeds):
    """The training labels that each fit of a probe sees."""
    seen = []

    def probed(train, dev, test, **_):
        seen.append(train[1].tolist())
        return np.zeros(len(test)), 1.0

    monkeypatch.setattr(downstream, "probed", probed)
    settings = DownstreamSettings(seeds=seeds)
    downstream.probe(task, rows, model("mlm"), settings, check=False)
    return seen


def numbered(count):
    return TaskRows(*([Item((WORDS[n % 8],), float(n)) for n in range(count)] for _ in range(3)))


def test_each_seed_draws_its_own_training_rows_as_many_as_are_asked_for(monkeypatch, model):
    task, rows = FileTask(kind="regression", train_rows=10), numbered(30)
    seen = drawn_by_probe(monkeypatch, model, task, rows, 3)
    assert [len(draw) for draw in seen] == [len(set(draw)) for draw in seen] == [10] * 3
    assert len({tuple(draw) for draw in seen}) == 3
    assert drawn_by_probe(monkeypatch, model, task, rows, 2) == seen[:2]
    every = drawn_by_probe(monkeypatch, model, FileTask(kind="regression"), rows, 3)
    assert every == [[float(n) for n in range(30)]]


def test_a_probe_s_vectors_are_those_of_its_rows(monkeypatch, model):
    """Each number's vector is that of its own text, whatever is drawn."""
    by_word = {}

    def probed(train, dev, test, **_):
        for x, y in zip(*train, strict=True):
            np.testing.assert_allclose(by_word.setdefault(y % 8, x), x, rtol=1e-4, atol=1e-5)
        for x, number in zip(test, range(30), strict=True):
            if number % 8 in by_word:
                np.testing.assert_allclose(by_word[number % 8], x, rtol=1e-4, atol=1e-5)
        return np.zeros(len(test)), 1.0

    monkeypatch.setattr(downstream, "probed", probed)
    task = FileTask(kind="regression", train_rows=10)
    downstream.probe(task, numbered(30), model("mlm"), SETTINGS, check=False)
    assert len(by_word) > 4
    one, two = list(by_word.values())[:2]
    assert np.abs(one - two).max() > 1e-3


def test_a_fine_tune_draws_too_and_chooses_its_rate_with_the_first_seed(monkeypatch, model):
    fits = []

    def fit(self, rows, labels, *, learning_rate, seed):
        fits.append((seed, learning_rate, len(labels), tuple(labels)))
        value = 1.0 if learning_rate == 5e-3 else 0.0
        return lambda rows: np.arange(len(rows.ids)) * (1 if value else -1)

    monkeypatch.setattr(finetune.Labeller, "fit", fit)
    task = FileTask(kind="regression", train_rows=10, method="finetune")
    found = measure(task, numbered(30), model("mlm"), SETTINGS)["finetune"].result
    assert [(seed, rate, rows) for seed, rate, rows, _ in fits] == [
        (0, 1e-3, 10), (0, 5e-3, 10), (1, 5e-3, 10),
    ]  # fmt: skip
    assert fits[0][3] == fits[1][3] != fits[2][3]
    assert found["learning_rate"] == 5e-3 and found["grid"] == {"0.001": -1.0, "0.005": 1.0}


def test_dev_and_test_rows_are_drawn_once_in_their_order(tmp_path):
    lines = "text\tlabel\n" + "".join(f"text {n}\t{n % 2}\n" for n in range(50))
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}.tsv").write_text(lines)
    task = FileTask(path=str(tmp_path), test_rows=12)
    rows, again, other = load("t", task), load("t", task), load("t", task, seed=1)
    numbers = [[int(item.texts[0].split()[1]) for item in part] for part in rows[:3]]
    assert numbers[0] == list(range(50)) and len(numbers[1]) == len(set(numbers[2])) == 12
    assert numbers[1] == sorted(numbers[1]) and numbers[2] == sorted(numbers[2])
    assert numbers[1] != numbers[2] and again == rows and other.test != rows.test
    assert all(item.label == n % 2 for item, n in zip(rows.test, numbers[2], strict=True))
    whole = FileTask(path=str(tmp_path), test_rows=0)
    assert len(load("t", whole).test) == 50


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": "nowhere"}, "task mine: there is no test.jsonl"),
        ({"train": "none"}, "task mine: there are no rows to train on"),
        ({"dev": "none", "method": "both"}, "task mine: there are no dev rows to choose"),
        ({"dev": "none", "kind": "question_answering"}, "task mine: there are no dev rows"),
    ],
    ids=str,
)
def test_what_is_wrong_with_a_task_is_said_with_its_name(tmp_path, settings, message):
    import json

    row = {"question": "q", "context": "c", "sentence": "", "answers": []}
    lines = "".join(json.dumps(row | {"label": n % 2}) + "\n" for n in range(8))
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}.jsonl").write_text(lines)
    with pytest.raises(UserError) as caught:
        load("mine", FileTask(**({"path": str(tmp_path)} | settings)))
    assert str(caught.value).startswith(message)
    assert load("mine", FileTask(path=str(tmp_path), dev="none")).dev == []
