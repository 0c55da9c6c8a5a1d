"""Ablations: what their files say, and that the cells are run on equal terms."""

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest

from jaxpretrain import ablate as ablate_lib
from jaxpretrain import ablation as ablation_lib
from jaxpretrain.ablate import ablate, prepare_stores, results, with_budget
from jaxpretrain.assemble import assemble
from jaxpretrain.config import complete, make_objective, model_config
from jaxpretrain.data.vocab import blank_vocab
from jaxpretrain.errors import UserError
from jaxpretrain.gather import best_of, data_of, loss_column
from jaxpretrain.main import main
from jaxpretrain.models.transformer import Backbone
from jaxpretrain.train import train
from support.memory_set import MemorySet


@pytest.fixture
def written(tiny_config_file, tmp_path):
    """Writes an ablation over the tiny config; returns its path."""

    def write(**keys):
        keys = {"base": str(tiny_config_file), "budget": {"tokens": 1024}} | keys
        file = tmp_path / "study.py"
        file.write_text(f"def get_ablation():\n    return {keys!r}\n")
        return str(file)

    return write


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


def test_each_cell_is_trained_once_on_equal_terms_and_taken_up_again(written, tmp_path, capsys):
    file = written(grid={"objective.mask_rate": [0.1, 0.4]})
    workdir = tmp_path / "runs"
    # A machine of a sweep runs one cell, by its number.
    arguments = ["ablate", f"--config={file}", f"--workdir={workdir}"]
    assert main([*arguments, "--cell=1"]) == 0
    assert "not done yet: mask_rate=0.1" in capsys.readouterr().out
    before = (workdir / "cells/mask_rate=0.4/summary.json").stat().st_mtime_ns
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "study: 1,024 tokens each" in out and "not done yet" not in out
    assert (workdir / "cells/mask_rate=0.4/summary.json").stat().st_mtime_ns == before

    found = json.loads((workdir / "results.json").read_text())["cells"]
    assert [cell["tokens"] for cell in found.values()] == [1024, 1024]
    assert [cell["steps"] for cell in found.values()] == [4, 4]
    stored = [json.loads((workdir / f"cells/{name}/config.json").read_text()) for name in found]
    assert [config["objective"].pop("mask_rate") for config in stored] == [0.1, 0.4]
    assert stored[0] == stored[1]
    # Results do not hide that a cell was made otherwise.
    config = json.loads((workdir / "cells/mask_rate=0.4/config.json").read_text())
    config["optimizer"]["learning_rate"] = 1.0
    (workdir / "cells/mask_rate=0.4/config.json").write_text(json.dumps(config))
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "was run as something else" in error and "config.optimizer.learning_rate = 1.0" in error
    with pytest.raises(UserError, match="differ in optimizer.learning_rate"):
        results(ablation_lib.load(file), workdir)


def timeless(results: dict) -> dict:
    """Results without what depends on the clock."""
    for cell in results["cells"].values():
        del cell["train_seconds"]
        for entry in cell["curve"]:
            entry.pop("seconds", None)
    return results


@pytest.fixture
def task_file(tmp_path):
    """A folder with a task that is easy: does the text speak of cats?"""
    folder = tmp_path / "cats"
    folder.mkdir()
    for split, rows in (("train", 60), ("dev", 20), ("test", 40)):
        lines = [
            json.dumps({"text": f"number {i} is a {('dog', 'cat')[i % 2]}", "label": i % 2})
            for i in range(rows)
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    return folder


def test_an_ablation_that_was_killed_half_way_ends_in_the_same_report(
    written, task_file, tmp_path, monkeypatch, capsys
):
    change = {
        "tasks": {"cats": {"name": "files", "path": str(task_file)}},
        "downstream.every": 2,
        "seed": 5,
    }
    file = written(grid={"objective.mask_rate": [0.1, 0.4]}, change=change)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main(["ablate", f"--config={file}", f"--workdir={whole}"]) == 0
    real = ablate_lib.evaluate

    def killed(folder, **keys):
        if folder.name == "mask_rate=0.4":
            raise KeyboardInterrupt
        return real(folder, **keys)

    monkeypatch.setattr(ablate_lib, "evaluate", killed)
    assert main(["ablate", f"--config={file}", f"--workdir={cut}"]) == 130
    assert not (cut / "results.json").exists()
    monkeypatch.setattr(ablate_lib, "evaluate", real)
    assert main(["ablate", f"--config={file}", f"--workdir={cut}"]) == 0
    one, other = (timeless(json.loads((at / "results.json").read_text())) for at in (whole, cut))
    assert one == other
    for name in ("report.html", "report.md"):
        assert (whole / name).exists() and (cut / name).exists()

    cells = one["cells"]
    assert cells.keys() == {"mask_rate=0.1", "mask_rate=0.4"} and not one["missing"]
    for cell in cells.values():
        assert cell["tasks"]["cats/probe"]["rows"] == {"train": 60, "dev": 20, "test": 40}
        assert [entry["step"] for entry in cell["curve"] if "task/cats" in entry] == [2, 4]
        assert cell["train"]["loss"] != cell["test"]["loss"]
        low, high = cell["test_loss"]["low"], cell["test_loss"]["high"]
        assert low < cell["test"]["loss"] < high
    assert [row["varied"] for row in one["rows"]] == [
        {"objective.mask_rate": 0.1},
        {"objective.mask_rate": 0.4},
    ]
    assert "objective.mask_rate" not in one["equal"] and one["equal"]["seed"] == 5
    assert [column["key"] for column in one["columns"]] == ["loss", "cats/probe"]
    assert all(column["comparable"] for column in one["columns"])

    # Other tasks are measured again, all of them, and nothing is trained again.
    before = (cut / "cells/mask_rate=0.4/metrics.jsonl").read_text()
    change["tasks"]["cats"]["metric"] = "f1"
    file = written(grid={"objective.mask_rate": [0.1, 0.4]}, change=change)
    capsys.readouterr()
    assert main(["ablate", f"--config={file}", f"--workdir={cut}", "--cell=1"]) == 2
    assert "were not measured at the same downstream tasks" in capsys.readouterr().err
    assert main(["ablate", f"--config={file}", f"--workdir={cut}"]) == 0
    assert "cell mask_rate=0.1 was measured at other tasks" in capsys.readouterr().out
    found = json.loads((cut / "results.json").read_text())
    assert {cell["tasks"]["cats/probe"]["metric"] for cell in found["cells"].values()} == {"f1"}
    assert (cut / "cells/mask_rate=0.4/metrics.jsonl").read_text() == before


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
    file = written(cells=cells, seeds=[0, 1])
    assert main(["ablate", f"--config={file}", f"--workdir={tmp_path / 'runs'}"]) == 0
    found = json.loads((tmp_path / "runs/results.json").read_text())
    rows = {row["group"]: row["cells"] for row in found["rows"]}
    assert rows == {"mlm": ["mlm,seed=0", "mlm,seed=1"], "clm": ["clm,seed=0", "clm,seed=1"]}
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


def test_a_cell_is_done_when_it_was_measured_here_and_is_what_it_was(written, tmp_path, capsys):
    arguments = ["ablate", f"--workdir={tmp_path / 'runs'}"]
    file = written(cells={"x": {"optimizer.learning_rate": 0.1}})
    cell = tmp_path / "runs/cells/x"
    found = ablation_lib.load(file)
    # Cut off half-way, and looked at.
    prepare_stores(found.cells)
    raw = found.cells[0].config.to_dict()
    raw["train"]["stop_at"] = 2
    train(complete(raw), cell)
    (cell / "summary.json").unlink()
    assert main(["evaluate", f"--workdir={cell}", "--split=validation"]) == 0
    assert main([*arguments, f"--config={file}"]) == 0
    result = json.loads((tmp_path / "runs/results.json").read_text())["cells"]["x"]
    whole = json.loads((cell / "result.json").read_text())
    assert (result["steps"], whole["split"], whole["step"]) == (4, "test", 4)
    assert result["test"]["loss"] == whole["loss"]
    # Another look changes nothing, other settings that touch no parameter neither.
    assert main(["evaluate", f"--workdir={cell}", "--split=validation"]) == 0
    assert main([*arguments, f"--config={file}", "--config.train.log_every=3"]) == 0
    again = json.loads((tmp_path / "runs/results.json").read_text())["cells"]["x"]
    assert again == result
    # The same name for something else is not taken for it.
    file = written(cells={"x": {"optimizer.learning_rate": 0.2}})
    capsys.readouterr()
    assert main([*arguments, f"--config={file}"]) == 2
    assert "cell x was run as something else" in capsys.readouterr().err


def test_a_budget_of_operations_gives_a_deeper_model_fewer_steps(written, tmp_path):
    found = ablation_lib.load(written(grid={"model.layers": [1, 4]}, budget={"flops": 3e8}))
    steps = []
    for cell in found.cells:
        objective = assemble(cell.config).objective
        each = objective.flops(32) * 8
        steps.append(with_budget(found, cell, tmp_path).train.steps)
        assert abs(steps[-1] * each - 3e8) <= each / 2
    assert steps[1] < steps[0]


def test_a_budget_of_seconds_is_measured_once(written, tmp_path, capsys):
    file = written(grid={"seed": [1]}, budget={"seconds": 1}, change={"evaluate.every": 0})
    found = ablate(ablation_lib.load(file), tmp_path / "runs")["cells"]["seed=1"]
    calibration = json.loads((tmp_path / "runs/cells/seed=1/calibration/summary.json").read_text())
    each = calibration["train_seconds"] / calibration["steps"]
    assert found["steps"] == max(1, round(1 / each))
    # Taken up again, it keeps what it began with.
    (tmp_path / "runs/cells/seed=1/result.json").unlink()
    capsys.readouterr()
    again = ablate(ablation_lib.load(file), tmp_path / "runs")["cells"]["seed=1"]
    assert again["steps"] == found["steps"] and "measuring" not in capsys.readouterr().out


def test_a_workdir_of_another_ablation_is_refused(written, tmp_path):
    workdir = tmp_path / "runs"
    first = ablation_lib.load(written(grid={"seed": [1]}))
    ablate(first, workdir)
    with pytest.raises(UserError, match="holds an ablation with budget.*another --workdir"):
        ablate(first._replace(budget=("tokens", 9.0)), workdir)


def test_the_ablations_of_this_project_can_be_read():
    files = sorted((Path(__file__).parents[1] / "configs/ablations").glob("*.py"))
    assert files
    for file, size in itertools.product(files, ("", ":gpu")):
        found = ablation_lib.load(f"{file}{size}")
        assert len(found.cells) > 1 and found.about.count("\n") > 2
        for cell in found.cells:  # each objective takes the backbone
            vocab = blank_vocab(cell.config.tokenizer.vocab_size)
            backbone = Backbone(model_config(cell.config, vocab.size))
            make_objective(cell.config).bind(backbone, vocab)
