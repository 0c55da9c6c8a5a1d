"""Ablations: what their files say, and that the cells are run on equal terms."""

import json
import re
from pathlib import Path

import pytest

from jaxpretrain import ablation as ablation_lib
from jaxpretrain.ablate import ablate, prepare_stores, results, with_budget
from jaxpretrain.assemble import assemble
from jaxpretrain.config import complete
from jaxpretrain.errors import UserError
from jaxpretrain.main import main
from jaxpretrain.train import train


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
    assert [cell["test"]["step"] for cell in found.values()] == [4, 4]
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
    assert (result["steps"], result["test"]["split"], result["test"]["step"]) == (4, "test", 4)
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
    for file in files:
        assert len(ablation_lib.load(str(file)).cells) > 1
