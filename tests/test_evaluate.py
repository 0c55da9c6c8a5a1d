"""The ``evaluate`` command beyond the loss: downstream tasks, other objectives."""

import json
import re

import numpy as np
import pytest

from jaxpretrain.config import complete
from jaxpretrain.evaluate import evaluate
from jaxpretrain.main import main
from jaxpretrain.metrics import read_metrics
from jaxpretrain.train import train
from support import tiny_run

CATS = ["--config.tasks.cats.name=files", "--config.tasks.cats.path={}"]


@pytest.fixture(scope="module")
def cats(tmp_path_factory):
    """A task: does the text speak of cats?"""
    folder = tmp_path_factory.mktemp("cats")
    for split, rows in (("train", 40), ("dev", 10), ("test", 30)):
        texts = [f"number {i} is a {('dog', 'cat')[i % 2]}\t{i % 2}\n" for i in range(rows)]
        (folder / f"{split}.tsv").write_text("text\tlabel\n" + "".join(texts))
    return folder


@pytest.fixture(scope="module")
def runs(tiny_config_file, tmp_path_factory):
    """Workdirs of short runs by objective."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("mlm", "clm"):
        raw = tiny_run.config(tiny_config_file).to_dict() | {"objective": {"name": name}}
        train(complete(raw), folder / name)
    return folder


def test_tasks_are_learned_and_printed_and_an_evaluation_is_deterministic(runs, cats, capsys):
    arguments = ["evaluate", f"--workdir={runs / 'mlm'}", "--tasks", CATS[0], CATS[1].format(cats)]
    found = []
    for _ in range(2):
        assert main(arguments) == 0
        found.append(json.loads((runs / "mlm/evaluation.json").read_text()))
    assert found[0] == found[1]
    result = found[0]["tasks"]["cats/probe"]
    assert result["chance"] == 0.5 and result["rows"]["test"] == 30
    assert result["low"] <= result["mean"] <= result["high"]
    out = capsys.readouterr().out
    assert f"cats/probe               accuracy {result['mean']:.3f}" in out
    assert f"({result['low']:.3f} to {result['high']:.3f}; chance 0.500)" in out


def test_the_loss_interval_is_that_of_the_batches(runs):
    found = evaluate(runs / "mlm")
    drawn = np.array(found["replicates"]["loss"])
    low, high = np.percentile(drawn, [2.5, 97.5])
    assert found["loss_interval"] == pytest.approx((low, high), abs=1e-5)
    assert low < found["loss"] < high
    assert drawn.mean() == pytest.approx(found["loss"], abs=3 * drawn.std())


def test_the_loss_under_another_objective_is_that_of_its_own_evaluation(runs, capsys):
    found = evaluate(runs / "mlm", others=["all"])["others"]
    assert {"clm", "prefix_lm", "fim"} <= found.keys()
    # Its own is there already, and what has parts that it has not trained cannot be measured.
    assert not {"mlm", "nsp", "rtd", "simcse", "mixture"} & found.keys()
    # The same parameters in a run of clm are measured the same.
    own = evaluate(runs / "mlm", overrides={"objective.name": "clm"})
    assert own["changed"] == {"objective.name": "clm"}
    assert "NOT as it was trained: config.objective.name = clm" in capsys.readouterr().out
    assert json.loads((runs / "mlm/evaluation.json").read_text())["changed"] == own["changed"]
    assert found["clm"]["loss"] == own["loss"] and found["clm"]["bits_per_byte"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--under=rtd"], "loss under rtd cannot be measured on this run: rtd needs "),
        (["--under=nsp"], "loss under nsp cannot be measured on this run"),
        (["--under=mlmm"], "must be one of .*did you mean mlm"),
        (["--tasks=dogs", CATS[0], CATS[1]], "no task 'dogs'; it has cats"),
        (["--tasks=cat", CATS[0], CATS[1]], "no task 'cat'; did you mean cats"),
        (["--tasks=dogs"], "no task 'dogs'; it has none: add --config.tasks.dogs.name"),
        ([CATS[0], CATS[1]], "config.tasks.cats.name is set, and no .*: add --tasks=cats"),
        (["--tasks", CATS[0], "--config.tasks.cats.path=none"], "task cats: there is no test"),
    ],
)
def test_what_cannot_be_measured_is_one_line(runs, cats, arguments, message, capsys):
    arguments = [text.format(cats) for text in arguments]
    assert main(["evaluate", f"--workdir={runs / 'mlm'}", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error), error


def test_minimal_pairs_need_a_likelihood(runs, tmp_path, capsys):
    pairs = tmp_path / "pairs.jsonl"
    row = {
        "sentence_good": "The name is bound.",
        "sentence_bad": "The bound name is.",
        "field": "x",
    }
    pairs.write_text(json.dumps(row) + "\n")
    blimp = ["--config.tasks.blimp.name=minimal_pairs", f"--config.tasks.blimp.path={pairs}"]
    assert main(["evaluate", f"--workdir={runs / 'clm'}", "--tasks", *blimp]) == 0
    found = json.loads((runs / "clm/evaluation.json").read_text())["tasks"]["blimp/likelihood"]
    assert found["mean"] in (0.0, 1.0) and found["groups"] == {"x": found["mean"]}
    capsys.readouterr()
    # The same parameters, asked for vectors of sentences.
    vectors = ["--config.objective.name=simcse", "--config.objective.projection=false"]
    assert main(["evaluate", f"--workdir={runs / 'mlm'}", "--tasks", *blimp, *vectors]) == 0
    assert "blimp: simcse gives no likelihood of a sentence" in capsys.readouterr().out
    assert json.loads((runs / "mlm/evaluation.json").read_text())["tasks"] == {}


def test_tasks_are_watched_while_training(runs, tiny_config_file, cats, tmp_path):
    raw = tiny_run.config(tiny_config_file).to_dict()
    raw["downstream"]["every"] = 3
    raw["tasks"] = {"cats": {"name": "files", "path": str(cats)}}
    train(complete(raw), tmp_path / "watched")
    log = read_metrics(tmp_path / "watched")
    watched = {entry["step"]: entry["task/cats"] for entry in log if "task/cats" in entry}
    assert watched.keys() == {3, 6} and all(0 <= value <= 1 for value in watched.values())
    # Watching changes nothing in what is trained.
    losses = [
        [entry["loss"] for entry in read_metrics(at) if "loss" in entry]
        for at in (tmp_path / "watched", runs / "mlm")
    ]
    assert losses[0] == losses[1]
