"""Ablations: what their files say, and that the cells are run on equal terms."""

import contextlib
import functools
import io
import itertools
import json
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from jaxpretrain import ablate as ablate_lib
from jaxpretrain import ablation as ablation_lib
from jaxpretrain.ablate import ablate, results, with_budget
from jaxpretrain.assemble import assemble
from jaxpretrain.checkpoint import Checkpoints
from jaxpretrain.config import make_objective, model_config
from jaxpretrain.data.vocab import blank_vocab
from jaxpretrain.errors import UserError
from jaxpretrain.evaluate import evaluate
from jaxpretrain.gather import best_of, data_of, loss_column
from jaxpretrain.main import main
from jaxpretrain.models.transformer import Backbone
from jaxpretrain.train import train
from support.memory_set import MemorySet


def write(folder, **keys):
    """Writes an ablation; returns its path."""
    keys = {"budget": {"tokens": 1024}} | keys
    file = folder / "study.py"
    file.write_text(f"def get_ablation():\n    return {keys!r}\n")
    return str(file)


@pytest.fixture
def written(tiny_config_file, tmp_path):
    """Writes an ablation over the tiny config; returns its path."""
    return functools.partial(write, tmp_path, base=str(tiny_config_file))


def test_cells_grid_and_seeds_multiply(written):
    found = ablation_lib.load(
        written(
            cells={"mlm": {"objective": {"name": "mlm"}}, "clm": {"objective": {"name": "clm"}}},
            grid={"model.layers": [1, 2], "optimizer.learning_rate": [0.1]},
            seeds=[3, 4],
            change={"train.log_every": 1},
        ),
        {"data.batch_size": "4"},
    )
    assert [cell.name for cell in found.cells[:3]] == [
        "mlm,layers=1,learning_rate=0.1,seed=3",
        "mlm,layers=1,learning_rate=0.1,seed=4",
        "mlm,layers=2,learning_rate=0.1,seed=3",
    ]
    assert len(found.cells) == 8
    last = found.cells[-1].config
    assert (last.objective.name, last.model.layers, last.seed) == ("clm", 2, 4)
    assert (last.train.log_every, last.data.batch_size) == (1, 4)
    assert {cell.config.train.steps for cell in found.cells} == {1024 // (4 * 32)}
    assert found.find("3") is found.cells[3] and found.find(found.cells[3].name) is found.cells[3]
    with pytest.raises(UserError, match="no cell 'x': it has mlm.*, or 0 to 7"):
        found.find("x")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"grid": {}}, "needs cells or a grid"),
        ({"grids": {}}, "no key 'grids' in an ablation; did you mean grid"),
        ({"grid": {"seed": [1]}, "base": ""}, "needs a base"),
        ({"grid": {"seed": [1]}, "base": "none.py"}, "there is no config file"),
        ({"grid": {"seed": [1]}, "budget": {"hours": 1}}, "give one of tokens, flops, seconds"),
        ({"grid": {"seed": [1]}, "budget": {"tokens": 0}}, "budget.tokens is 0"),
        ({"grid": {"seed": [1, 1]}}, "two cells are called 'seed=1'"),
        ({"grid": {"objective.mask_rte": [1]}}, "cell mask_rte=1: .*mask_rte.*mask_rate"),
        ({"cells": {"a b": {}}}, "cell 'a b': use letters"),
        ({"cells": ["a"]}, "cells is .'a'., not a dict"),
        ({"cells": {"a": 3}}, "cell a is 3, not a dict"),
        ({"cells": {"1": {}, "2": {}}}, "cell '1': a number is a cell's place"),
        ({"set": {}}, "no key .set. in an ablation; there is base, change, cells"),
        ({"grid": {"seed": 0.3}}, "seed is 0.3, not a list"),
        ({"grid": {"model.layers": [1]}, "seeds": 3}, "seeds is 3, not a list"),
        ({"grid": {"seed": [1]}, "change": {"train.stop_at": 1}}, "stop_at would end it before"),
        ({"grid": {"train.steps.x": [1]}}, "steps has no keys below it"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(written, keys, message, capsys):
    assert main(["ablate", f"--config={written(**keys)}", "--list"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error), error


def timeless(workdir: Path) -> dict:
    """The results in a workdir without what depends on the clock."""
    results = json.loads((workdir / "results.json").read_text())
    for cell in results["cells"].values():
        del cell["train_seconds"]
        for entry in cell["curve"]:
            entry.pop("seconds", None)
    return results


class Study(NamedTuple):
    """An ablation that was run: one cell by its number, as a machine of a sweep does, then all."""

    keys: dict
    file: str
    workdir: Path
    said: list[str]
    changed: list[int]  # when the cell that was run first was written, after each


@pytest.fixture(scope="module")
def study(tiny_config_file, tmp_path_factory):
    """A study of two mask rates with a task that is easy: does the text speak of cats?"""
    folder = tmp_path_factory.mktemp("study")
    (folder / "cats").mkdir()
    for split, rows in (("train", 60), ("dev", 20), ("test", 40)):
        lines = [
            json.dumps({"text": f"number {i} is a {('dog', 'cat')[i % 2]}", "label": i % 2})
            for i in range(rows)
        ]
        (folder / f"cats/{split}.jsonl").write_text("\n".join(lines))
    change = {
        "tasks": {"cats": {"name": "files", "path": str(folder / "cats")}},
        "downstream.every": 2,
        "checkpoint.every": 2,
        "seed": 5,
    }
    grid = {"objective.mask_rate": [0.1, 0.4]}
    keys = {"base": str(tiny_config_file), "grid": grid, "change": change}
    file, workdir = write(folder, **keys), folder / "runs"
    found = Study(keys, file, workdir, [], [])
    for more in (["--cell=1"], []):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            assert main(["ablate", f"--config={file}", f"--workdir={workdir}", *more]) == 0
        found.said.append(out.getvalue())
        summary = workdir / "cells/mask_rate=0.4/summary.json"
        found.changed.append(summary.stat().st_mtime_ns)
    return found


def test_each_cell_is_trained_once_on_equal_terms_and_taken_up_again(study):
    first, then = study.said
    assert "not done yet: mask_rate=0.1" in first
    assert "study: 1,024 tokens each" in then and "not done yet" not in then
    assert study.changed[0] == study.changed[1]

    found = json.loads((study.workdir / "results.json").read_text())["cells"]
    assert [cell["tokens"] for cell in found.values()] == [1024, 1024]
    assert [cell["steps"] for cell in found.values()] == [4, 4]
    cells = study.workdir / "cells"
    stored = [json.loads((cells / name / "config.json").read_text()) for name in found]
    assert [config["objective"].pop("mask_rate") for config in stored] == [0.1, 0.4]
    assert stored[0] == stored[1]


def test_results_do_not_hide_that_a_cell_was_made_otherwise(study, tmp_path, capsys):
    workdir = shutil.copytree(study.workdir, tmp_path / "runs")
    config = json.loads((workdir / "cells/mask_rate=0.4/config.json").read_text())
    config["optimizer"]["learning_rate"] = 1.0
    (workdir / "cells/mask_rate=0.4/config.json").write_text(json.dumps(config))
    assert main(["ablate", f"--config={study.file}", f"--workdir={workdir}"]) == 2
    error = capsys.readouterr().err
    assert "cell mask_rate=0.4 was run as something else" in error
    assert "config.optimizer.learning_rate = 1.0" in error
    with pytest.raises(UserError, match="differ in optimizer.learning_rate"):
        results(ablation_lib.load(study.file), workdir)


def test_a_cell_that_was_begun_as_a_part_is_not_told_from_the_others(study, tmp_path):
    """By `train` in its folder, with `train.stop_at`, which then stays in its config."""
    workdir = shutil.copytree(study.workdir, tmp_path / "runs")
    file = workdir / "cells/mask_rate=0.4/config.json"
    config = json.loads(file.read_text())
    config["train"]["stop_at"] = 2
    file.write_text(json.dumps(config))
    found = results(ablation_lib.load(study.file), workdir)
    assert [list(row["varied"]) for row in found["rows"]] == [["objective.mask_rate"]] * 2


def test_an_ablation_that_was_killed_half_way_ends_in_the_same_report(
    study, written, tmp_path, monkeypatch, capsys
):
    """Its second cell is cut off in the training, looked at, and then killed in the measuring."""
    cut = shutil.copytree(study.workdir, tmp_path / "cut")
    shutil.rmtree(cut / "cells/mask_rate=0.4")
    for name in ("results.json", "report.html", "report.md"):
        (cut / name).unlink()
    arguments = ["ablate", f"--config={study.file}", f"--workdir={cut}"]
    cell, save = cut / "cells/mask_rate=0.4", Checkpoints.save

    def killed(*_, **__):
        raise KeyboardInterrupt

    def killed_at_4(self, state, loss=None):
        (killed if state.step == 4 else save)(self, state, loss)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", killed_at_4)
        assert main(arguments) == 130
    evaluate(cell, split="validation")
    assert json.loads((cell / "evaluation.json").read_text())["step"] == 2
    with monkeypatch.context() as patch:
        patch.setattr(ablate_lib, "evaluate", killed)
        assert main(arguments) == 130
    assert not (cut / "results.json").exists()
    assert main(arguments) == 0
    one, other = timeless(study.workdir), timeless(cut)
    assert one == other
    for name in ("report.html", "report.md"):
        assert (study.workdir / name).exists() and (cut / name).exists()
    measured = json.loads((cell / "result.json").read_text())
    assert (measured["split"], measured["step"]) == ("test", 4)
    assert one["cells"]["mask_rate=0.4"]["test"]["loss"] == measured["loss"]

    # Another look changes nothing, other settings that touch no parameter neither.
    evaluate(cell, split="validation")
    assert main([*arguments, "--config.train.log_every=3"]) == 0
    assert timeless(cut) == other

    # Other tasks are measured again, all of them, and nothing is trained again.
    before = (cell / "metrics.jsonl").read_text()
    study.keys["change"]["tasks"]["cats"]["metric"] = "f1"
    arguments = ["ablate", f"--config={written(**study.keys)}", f"--workdir={cut}"]
    capsys.readouterr()
    assert main([*arguments, "--cell=1"]) == 2
    assert "were not measured at the same downstream tasks" in capsys.readouterr().err
    assert main(arguments) == 0
    assert "cell mask_rate=0.1 was measured at other tasks" in capsys.readouterr().out
    found = json.loads((cut / "results.json").read_text())
    assert {cell["tasks"]["cats/probe"]["metric"] for cell in found["cells"].values()} == {"f1"}
    assert (cell / "metrics.jsonl").read_text() == before


def test_what_was_found_is_in_the_results(study):
    found = json.loads((study.workdir / "results.json").read_text())
    cells = found["cells"]
    assert cells.keys() == {"mask_rate=0.1", "mask_rate=0.4"} and not found["missing"]
    for cell in cells.values():
        assert cell["tasks"]["cats/probe"]["rows"] == {"train": 60, "dev": 20, "test": 40}
        assert [entry["step"] for entry in cell["curve"] if "task/cats" in entry] == [2, 4]
        assert cell["train"]["loss"] != cell["test"]["loss"]
        low, high = cell["test_loss"]["low"], cell["test_loss"]["high"]
        assert low < cell["test"]["loss"] < high
    assert [row["varied"] for row in found["rows"]] == [
        {"objective.mask_rate": 0.1},
        {"objective.mask_rate": 0.4},
    ]
    assert "objective.mask_rate" not in found["equal"] and found["equal"]["seed"] == 5
    assert [column["key"] for column in found["columns"]] == ["loss", "cats/probe"]
    assert all(column["comparable"] for column in found["columns"])


def test_a_task_that_cannot_be_read_is_said_before_anything_is_trained(written, tmp_path, capsys):
    change = {"tasks": {"cats": {"name": "files", "path": "none"}}}
    file = written(grid={"objective.mask_rate": [0.1, 0.4]}, change=change)
    assert main(["ablate", f"--config={file}", f"--workdir={tmp_path / 'runs'}"]) == 2
    assert "task cats: there is no test.jsonl" in capsys.readouterr().err
    assert not (tmp_path / "runs/cells").exists()


@pytest.mark.parametrize(
    ("key", "one", "other", "note"),
    [
        ("objective.mask_rate", 0.1, 0.4, ""),
        ("seed", 0, 1, ""),
        ("source.parts.web.weight", 0.1, 0.4, ""),
        ("objective.tasks.clm.weight", 1.0, 30.0, "enter its loss"),
        ("objective.eval_mask_rate", 0.1, 0.4, "enter its loss"),
        ("objective.name", "mlm", "clm", "different objectives"),
        ("source.path", "a", "b", "the test documents are not the same"),
        ("tokenizer.vocab_size", 100, 200, "the tokens are not the same"),
        ("data.length", 32, 64, "rows of another length"),
    ],
)
def test_losses_are_compared_where_they_are_of_the_same_thing(key, one, other, note):
    test = {"loss": 1.0, "token_loss": 1.0}
    cells = {
        str(value): {"settings": {"objective.name": "mlm", key: value}, "test": test}
        for value in (one, other)
    }
    column = loss_column("loss", cells)
    assert column["comparable"] == (not note) and note in column["note"]


def test_seeds_are_one_group_and_losses_of_other_objectives_are_not_compared(written, tmp_path):
    cells = {"mlm": {"objective": {"name": "mlm"}}, "clm": {"objective": {"name": "clm"}}}
    ablation = ablation_lib.load(written(cells=cells, seeds=[0, 1]))
    for one in ("mlm,seed=0", "clm,seed=0", "clm,seed=1"):
        found = ablate(ablation, tmp_path / "runs", only=one)
    assert found == json.loads((tmp_path / "runs/results.json").read_text())
    rows = {row["group"]: row["cells"] for row in found["rows"]}
    assert rows == {"mlm": ["mlm,seed=0"], "clm": ["clm,seed=0", "clm,seed=1"]}
    assert found["missing"] == ["mlm,seed=1"]
    losses = [found["cells"][f"clm,seed={seed}"]["test"]["loss"] for seed in (0, 1)]
    clm = next(row for row in found["rows"] if row["group"] == "clm")["values"]
    assert losses[0] != losses[1] and clm["loss"]["mean"] == pytest.approx(sum(losses) / 2)
    assert clm["loss"]["low"] <= min(losses) and clm["loss"]["high"] >= max(losses)
    assert clm["bits_per_byte"]["mean"] > 0
    loss, bits = found["columns"]
    assert (loss["key"], loss["comparable"], loss["best"]) == ("loss", False, None)
    assert "different objectives" in loss["note"] and bits["comparable"]
    assert found["cells"]["clm,seed=0"]["others"].keys() == {"mlm"}
    assert found["cells"]["mlm,seed=0"]["others"].keys() == {"clm"}


def test_a_source_that_was_as_good_as_not_read_is_not_of_the_diet():
    class Stored:
        path = "store"

        def sets(self, split):
            assert split == "train"
            return [MemorySet(name, [[20, 21, 22]] * 5) for name in ("a", "b")]

    def cell(a, b):
        weights = {"source.parts.a.weight": a, "source.parts.b.weight": b}
        return {"settings": weights, "tokens": 1000}

    cells = {"one": cell(1.0, 0.001), "both": cell(1.0, 3.0), "again": cell(1.0, 3.0)}
    found = data_of(cells, dict.fromkeys(cells, Stored()))
    assert [diet["cells"] for diet in found] == [["one"], ["both", "again"]]
    assert [diet["sources"] for diet in found] == [{"a": 999}, {"a": 250, "b": 750}]
    assert [diet["documents"] for diet in found] == [10, 10]


def test_best_is_who_is_better_beyond_the_noise_of_paired_rows():
    rng = np.random.default_rng(0)
    shared = rng.normal(size=1000)  # the rows, which are the same for all
    near = {"a": shared, "b": shared + 0.1 + 0.01 * rng.normal(size=1000)}
    assert best_of(near, "higher") == "b" and best_of(near, "lower") == "a"
    apart = {"a": rng.normal(size=1000), "b": rng.normal(size=1000) + 0.1}
    assert best_of(apart, "higher") is None
    assert best_of(near | {"c": apart["b"]}, "higher") is None
    assert best_of({"a": shared}, "higher") is None
    # A wild draw of one, as Student's t has them for two seeds, does not make it the candidate.
    wild = near | {"c": shared}
    wild["c"] = shared - 3 + 0.01 * np.random.default_rng(1).standard_t(1, 1000)
    wild["c"][0] = 1e9
    assert best_of(wild, "higher") == "b"


def test_what_its_cells_set_cannot_be_overridden(written):
    cells = {"a": {"data": {"length": 32, "batch_size": 8}}}
    file = written(grid={"objective.mask_rate": [0.1, 0.4]}, cells=cells)
    for key in ("objective.mask_rate", "data.length", "objective"):
        with pytest.raises(UserError, match=f"--config.{key} would undo"):
            ablation_lib.load(file, {key: "0.3"})
    ablation_lib.load(file, {"model.layers": "2"})


def test_a_budget_of_operations_gives_a_deeper_model_fewer_steps(written, tmp_path):
    found = ablation_lib.load(written(grid={"model.layers": [1, 4]}, budget={"flops": 3e8}))
    steps = []
    for cell in found.cells:
        objective = assemble(cell.config).objective
        each = objective.flops(32) * 8
        steps.append(with_budget(found, cell, tmp_path).train.steps)
        assert abs(steps[-1] * each - 3e8) <= each / 2
    assert steps[1] < steps[0]


def test_a_budget_of_seconds_is_measured_once(written, tmp_path, monkeypatch, capsys):
    file = written(grid={"seed": [1]}, budget={"seconds": 1}, change={"evaluate.every": 0})
    cell, steps = tmp_path / "runs/cells/seed=1", []

    def begun(config, folder):  # only the measuring goes to its end
        if folder != cell:
            return train(config, folder)
        steps.append(config.train.steps)
        (cell / "config.json").write_text(json.dumps(config.to_dict()))
        raise KeyboardInterrupt

    monkeypatch.setattr(ablate_lib, "train", begun)
    for said in (True, False):  # taken up again, it keeps what it began with
        with pytest.raises(KeyboardInterrupt):
            ablate(ablation_lib.load(file), tmp_path / "runs")
        assert ("measuring how long" in capsys.readouterr().out) == said
    calibration = json.loads((cell / "calibration/summary.json").read_text())
    assert calibration["steps"] == ablate_lib.CALIBRATION_STEPS
    each = calibration["train_seconds"] / calibration["steps"]
    assert steps == [max(1, round(1 / each))] * 2


def test_a_workdir_of_another_ablation_is_refused(written, tmp_path):
    workdir = tmp_path / "runs"
    first = ablation_lib.load(written(grid={"seed": [1]}))
    ablate_lib.claim(first, workdir)
    with pytest.raises(UserError, match="holds an ablation with budget.*another --workdir"):
        ablate(first._replace(budget=("tokens", 9.0)), workdir)


def test_the_ablations_of_this_project_can_be_read():
    files = sorted((Path(__file__).parents[1] / "configs/ablations").glob("*.py"))
    assert files
    backbones = {}
    for file, size in itertools.product(files, ("", ":gpu")):
        found = ablation_lib.load(f"{file}{size}")
        assert len(found.cells) > 1 and found.about.count("\n") > 2
        for cell in found.cells:  # each objective takes the backbone
            vocab = blank_vocab(cell.config.tokenizer.vocab_size)
            model = model_config(cell.config, vocab.size)
            if repr(model) not in backbones:
                backbones[repr(model)] = Backbone(model)
            make_objective(cell.config).bind(backbones[repr(model)], vocab)
