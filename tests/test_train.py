"""Whole runs: what they leave behind, and that they can be cut anywhere and go on."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxpretrain.assemble import assemble, prepare_store
from jaxpretrain.checkpoint import Checkpoints
from jaxpretrain.errors import UserError
from jaxpretrain.evaluate import evaluate
from jaxpretrain.evaluation.heldout import HeldOut
from jaxpretrain.metrics import read_metrics
from jaxpretrain.preemption import PREEMPTED
from jaxpretrain.schema import flatten
from jaxpretrain.sharding import Placement, make_mesh
from jaxpretrain.train import train
from jaxpretrain.workdir import is_free
from support import tiny_run

ROOT = Path(__file__).parents[1]


def final_state(config, workdir):
    pieces = assemble(config)
    checkpoints = Checkpoints(workdir / "checkpoints", pieces.placement)
    state = checkpoints.restore(checkpoints.latest(), pieces.abstract)
    checkpoints.close()
    return jax.device_get(state)


def saved(workdir):
    """The checkpoints of a run, to look at."""
    return Checkpoints(workdir / "checkpoints", Placement(make_mesh()), read_only=True)


def fake_held_out_losses(monkeypatch, losses):
    """Lets each evaluation of a run give the next of some losses."""
    following = iter(losses)

    class Faked:
        def __init__(self, *_):
            pass

        def __call__(self, params, limit=0, **_):
            return HeldOut(next(following), 0.0, 5.0, 2.0, None, 1.0, 10, {})

    monkeypatch.setattr("jaxpretrain.train.Evaluator", Faked)


def assert_same_bits(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y), a, b)


# Its factors are adapted at steps 0, 3 and 6, and are part of what is saved.
MIXTURE = {
    "objective__name": "mixture",
    "objective__mode": "shared",
    "objective__weighting": "equal_share",
    "objective__measure_every": 3,
    "objective__tasks__masked__name": "mlm",
    "objective__tasks__causal__name": "clm",
    "objective__tasks__causal__weight": 2.0,
}


@pytest.fixture(scope="module")
def straight(tiny_config_file, tmp_path_factory):
    """A run of 8 steps in one go, on one device, with dropout."""
    options = {"objective__name": "clm", "mesh__data": 1, "mesh__fsdp": 8}
    config = tiny_run.config(tiny_config_file, **options)
    workdir = tmp_path_factory.mktemp("runs") / "straight"
    return options, config, workdir, train(config, workdir)


@pytest.fixture(scope="module")
def _stopped(tiny_config_file, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "stopped"
    train(tiny_run.config(tiny_config_file, train__stop_at=2), workdir)
    return workdir


@pytest.fixture
def stopped(_stopped, tmp_path):
    """The workdir of a run that was stopped after 2 steps, the test's own."""
    return shutil.copytree(_stopped, tmp_path / "stopped")


def test_a_run_that_was_stopped_at_its_end_measures_its_last_checkpoint(
    tiny_config_file, tmp_path, monkeypatch
):
    config = tiny_run.config(tiny_config_file)
    train(config, tmp_path / "whole")
    real = Checkpoints.save

    def no_time(self, state, held_out_loss=None):
        real(self, state, None if int(state.step) == 8 else held_out_loss)

    monkeypatch.setattr(Checkpoints, "save", no_time)
    train(config, tmp_path / "cut")
    monkeypatch.setattr(Checkpoints, "save", real)
    log = (tmp_path / "cut/metrics.jsonl").read_text().splitlines()
    kept = [line for line in log if not (json.loads(line)["step"] == 8 and "eval_loss" in line)]
    (tmp_path / "cut/metrics.jsonl").write_text("\n".join(kept) + "\n")
    train(config, tmp_path / "cut")
    found = {}
    for name in ("whole", "cut"):
        pieces = assemble(config)
        checkpoints = Checkpoints(tmp_path / name / "checkpoints", pieces.placement, read_only=True)
        last = [e["eval_loss"] for e in read_metrics(tmp_path / name) if "eval_loss" in e][-1]
        found[name] = checkpoints.best(), last
        checkpoints.close()
    assert found["cut"] == found["whole"] == (8, found["whole"][1])


def test_resuming_gives_the_bits_of_the_uninterrupted_run(straight, tiny_config_file, tmp_path):
    options, config, workdir, _ = straight
    for stop in (4, 6, 0):
        half = tiny_run.config(tiny_config_file, train__stop_at=stop, **options)
        train(half, tmp_path)
        if stop:
            assert saved(tmp_path).latest() == stop
    assert_same_bits(final_state(config, workdir), final_state(config, tmp_path))
    straight_rows, resumed_rows = read_metrics(workdir), read_metrics(tmp_path)
    losses = [{r["step"]: r["loss"] for r in rows if "loss" in r}
              for rows in (straight_rows, resumed_rows)]  # fmt: skip
    shared = losses[0].keys() & losses[1].keys()
    assert shared >= {2, 4, 6, 8}
    assert all(losses[0][step] == losses[1][step] for step in shared)


def test_tf_and_threads_give_the_bits_of_the_same_run(straight, tiny_config_file, tmp_path):
    options, config, workdir, _ = straight
    train(tiny_run.config(tiny_config_file, data__loader="tf", **options), tmp_path)
    assert_same_bits(final_state(config, workdir), final_state(config, tmp_path))


def test_a_run_leaves_what_a_person_needs(straight):
    options, config, workdir, summary = straight
    assert json.loads((workdir / "summary.json").read_text()) == summary
    assert summary["config"] == json.loads((workdir / "config.json").read_text())
    assert summary["steps"] == 8 and summary["tokens"] == 8 * 8 * 32
    assert summary["tokens_per_second"] > 0 and summary["train_seconds"] > 0
    width, mlp, vocab = 16, 64, 700
    block = 4 * width * width + 2 * width * mlp + 2 * width
    assert summary["parameters"] == vocab * width + block + width
    objective = assemble(config).objective
    assert summary["flops"] == 8 * 8 * objective.flops(32)
    held = summary["eval"]
    assert held["unigram_loss"] > 0 and held["loss"] > 0 and held["predicted"] > 0
    assert held["bits_per_byte"] > 0 and held["bits_per_hidden_byte"] is None
    rows = read_metrics(workdir)
    assert (workdir / "tokenizer.model").exists()
    assert (workdir / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert list((workdir / "tensorboard").glob("events*"))
    assert [row["step"] for row in rows if "eval_loss" in row] == [4, 8]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 4, 6, 8]
    assert {"loss", "grad_norm", "learning_rate", "tokens", "seconds", "step_seconds",
            "tokens_per_second", "mfu"} <= rows[2].keys()  # fmt: skip


def test_a_mixture_measures_balances_and_resumes_bit_by_bit(tiny_config_file, tmp_path, capsys):
    config = tiny_run.config(tiny_config_file, **MIXTURE)
    summary = train(config, tmp_path / "whole")
    printed = capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        r"gradient shares: measured every 3 steps, \d+\.\d steps' time each, "
        r"\d+\.\d% of the training",
        next(line for line in printed if line.startswith("gradient shares")),
    )
    train(tiny_run.config(tiny_config_file, train__stop_at=4, **MIXTURE), tmp_path / "parts")
    train(config, tmp_path / "parts")
    assert_same_bits(
        final_state(config, tmp_path / "whole"), final_state(config, tmp_path / "parts")
    )

    held = summary["eval"]
    assert held["bits_per_byte"] is None and held["unigram_loss"] is None
    assert held["loss"] == pytest.approx(
        held["parts"]["masked/loss"] + 2 * held["parts"]["causal/loss"]
    )
    for part in ("whole", "parts"):
        rows = read_metrics(tmp_path / part)
        measured = [row for row in rows if "gradient_share/masked" in row]
        assert [row["step"] for row in measured] == [1, 4, 7]
        for row in measured:
            assert row["gradient_share/masked"] + row["gradient_share/causal"] == pytest.approx(1)
            assert -1 <= row["gradient_cosine/causal~masked"] <= 1
        assert measured[0]["gradient_share/causal"] == pytest.approx(2 / 3, abs=1e-4)


def test_a_finished_run_can_be_run_again(straight):
    _, config, workdir, summary = straight
    again = train(config, workdir)
    assert again["steps"] == 8 and again["eval"] == summary["eval"]


def test_resume_on_other_devices(straight, tiny_config_file, tmp_path):
    """Saved on a mesh of 8, restored on 2 × 4 and on 8 × 1: the same bits, the same stream."""
    options, config, workdir, _ = straight
    before = final_state(config, workdir)
    for shape in ({"mesh__data": 2, "mesh__fsdp": 4}, {"mesh__data": 8, "mesh__fsdp": 1}):
        other = tiny_run.config(tiny_config_file, **options | shape)
        assert_same_bits(before, final_state(other, workdir))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"objective__mask_rate": 0.4}, "objective.mask_rate = 0.15"),
        ({"train__steps": 16}, "train.steps = 8"),
        ({"data__batch_size": 16}, "data.batch_size = 8"),
    ],
)
def test_a_workdir_of_another_config_is_refused(tiny_config_file, stopped, change, named):
    with pytest.raises(UserError, match=named):
        train(tiny_run.config(tiny_config_file, **change), stopped)


def test_what_does_not_touch_the_parameters_may_change(tiny_config_file, stopped):
    train(tiny_run.config(tiny_config_file, train__log_every=1, train__stop_at=2), stopped)


def test_a_workdir_of_another_tokenizer_or_store_is_refused(tiny_config_file, stopped, tmp_path):
    other = tiny_run.config(
        tiny_config_file, store__path=tmp_path / "store", store__test_fraction=0.2
    )
    prepare_store(other)
    with pytest.raises(UserError, match="another (tokenizer|token store)"):
        train(other, stopped)


def test_tensorflow_reads_from_the_board_what_the_log_has(tiny_config_file, tmp_path):
    from tensorflow.compat.v1.train import summary_iterator

    train(tiny_run.config(tiny_config_file), tmp_path / "run")
    [file] = (tmp_path / "run/tensorboard").glob("events*")
    events = list(summary_iterator(str(file)))
    assert events[0].file_version == "brain.Event:2" and events[1].step == 1
    board = {(e.step, v.tag): v.simple_value for e in events for v in e.summary.value}
    rows = read_metrics(tmp_path / "run")
    logged = {
        (row["step"], key): value
        for row in rows
        for key, value in row.items()
        if key != "step" and isinstance(value, int | float)
    }
    assert {(1, "loss"), (8, "eval_loss")} <= logged.keys() == board.keys()
    np.testing.assert_allclose([board[k] for k in logged], list(logged.values()), rtol=1e-6)


def test_a_workdir_may_be_relative(tiny_config_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(tiny_run.config(tiny_config_file, train__stop_at=4), Path("runs/x"))
    assert train(tiny_run.config(tiny_config_file), Path("runs/x"))["steps"] == 8
    assert evaluate(Path("runs/x"), overrides={})["step"] in (4, 8)


def test_sigterm_saves_and_the_next_start_goes_on(tiny_config_file, tmp_path):
    command = [
        sys.executable, "-m", "jaxpretrain.main", "train", f"--config={tiny_config_file}",
        f"--workdir={tmp_path / 'run'}", "--config.train.steps=100000",
        "--config.evaluate.every=0", "--config.checkpoint.every=0", "--config.train.log_every=1",
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    deadline = time.monotonic() + 120
    while len(read_metrics(tmp_path / "run")) < 3 and time.monotonic() < deadline:
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == PREEMPTED, output
    assert "stopped by SIGTERM" in output and "Traceback" not in output
    stopped = saved(tmp_path / "run").latest()
    assert stopped >= 2 and f"step {stopped}" in output


def test_keeps_the_best_and_the_latest(tiny_config_file, tmp_path, monkeypatch):
    fake_held_out_losses(monkeypatch, [3.0, 1.0, 2.0, 2.5])
    config = tiny_run.config(
        tiny_config_file, evaluate__every=2, evaluate__batches=0, checkpoint__every=2
    )
    train(config, tmp_path)
    kept = saved(tmp_path)
    assert (kept.best(), kept.latest()) == (4, 8)
    folders = {p.name for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()}
    assert folders == {"4", "6", "8"}


def test_metrics_of_steps_that_were_not_saved_are_dropped(tiny_config_file, stopped):
    with (stopped / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 6, "loss": 1.0, "tokens": 1, "seconds": 1.0}) + "\n")
        file.write('{"step": 7, "lo')
    train(tiny_run.config(tiny_config_file), stopped)
    steps = [row["step"] for row in read_metrics(stopped) if "loss" in row]
    assert steps == sorted(set(steps)) and steps[-1] == 8


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_good_checkpoint(
    tiny_config_file, tmp_path, monkeypatch
):
    fake_held_out_losses(monkeypatch, [3.0, float("nan"), float("nan")])
    config = tiny_run.config(
        tiny_config_file,
        train__stop_at=6,
        evaluate__every=2,
        evaluate__batches=0,
        checkpoint__every=2,
    )
    train(config, tmp_path)
    assert saved(tmp_path).best() == 2
    monkeypatch.undo()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["eval"]["loss"] is None  # JSON has no NaN
    diverging = tiny_run.config(
        tiny_config_file, optimizer__learning_rate=1e30, optimizer__clip_norm=0
    )
    with pytest.raises(UserError, match="at step [2-8], with a gradient norm of (nan|inf)"):
        train(diverging, tmp_path / "diverging")


def test_only_what_does_not_touch_the_parameters_is_free(tiny_config_file):
    flat = flatten(tiny_run.config(tiny_config_file).to_dict())
    free = {key for key in flat if is_free(key)}
    fixed = {key.split(".")[0] for key in flat.keys() - free}
    assert fixed == {"seed", "data", "model", "objective", "optimizer", "train"}
    assert {key for key in free if key.split(".")[0] in fixed} == {
        "data.loader", "data.prefetch", "train.stop_at", "train.log_every", "model.attention",
        "model.scan_layers", "model.remat", "model.loss_block",
    }  # fmt: skip
    assert not is_free("source.parts.a.weight") and is_free("source.parts.a.path")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda run: (run / "run.json").unlink(), "no run.json"),
        (lambda run: (run / "run.json").write_text("[]"), "run.json is damaged"),
        (lambda run: (run / "config.json").write_text("{bad"), "config.json is damaged"),
        (lambda run: (run / "config.json").unlink(), "cannot read .*config.json"),
        (lambda run: shutil.rmtree(run / "checkpoints" / "2" / "default"), "checkpoint 2"),
    ],
    ids=["no run.json", "run.json", "config.json", "no config.json", "checkpoint"],
)
def test_a_damaged_workdir_is_named(tiny_config_file, stopped, harm, message):
    harm(stopped)
    with pytest.raises(UserError, match=message):
        train(tiny_run.config(tiny_config_file, train__stop_at=2), stopped)


def test_a_workdir_that_cannot_be_made_and_one_beyond_stop_at(tiny_config_file, stopped, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the workdir"):
        train(tiny_run.config(tiny_config_file, train__stop_at=2), tmp_path / "file")
    with pytest.raises(UserError, match="stop_at is 1, .* at step 2 already"):
        train(tiny_run.config(tiny_config_file, train__stop_at=1), stopped)


def test_a_store_without_validation_documents_is_refused_before_training(tmp_path):
    file = tiny_run.write(tmp_path)
    config = tiny_run.config(file, store__validation_fraction=0)
    prepare_store(config)
    with pytest.raises(UserError, match="validation split .* raise store.validation_fraction"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_evaluate_reads_a_run_without_touching_what_is_being_saved(straight, tiny_config_file):
    _, _, workdir, _ = straight
    being_saved = workdir / "checkpoints" / "9.orbax-checkpoint-tmp"
    being_saved.mkdir()
    evaluate(workdir, overrides={})
    # Neither the optimizer's settings nor its state matter to an evaluation.
    evaluate(workdir, overrides={"optimizer.clip_norm": "0"})
    assert being_saved.exists()
    with pytest.raises(UserError, match="checkpoint 8 .* of another model"):
        evaluate(workdir, overrides={"model.width": "32"})
    being_saved.rmdir()


def test_evaluate_refuses_another_store(tiny_config_file, stopped, tmp_path):
    other = {"store.path": str(tmp_path / "store"), "store.test_fraction": "0.2"}
    prepare_store(
        tiny_run.config(
            tiny_config_file, store__path=other["store.path"], store__test_fraction="0.2"
        )
    )
    with pytest.raises(UserError, match="another (tokenizer|token store)"):
        evaluate(stopped, overrides=other)


def test_a_broken_line_of_metrics_costs_only_itself(tiny_config_file, stopped):
    path = stopped / "metrics.jsonl"
    before = path.read_text().splitlines()
    path.write_text("\n".join(['{"step": 1, "lo', "5", '{"loss": 1}', "\udcff", *before]) + "\n",
                    errors="surrogateescape")  # fmt: skip
    train(tiny_run.config(tiny_config_file), stopped)
    assert path.read_text().splitlines()[: len(before)] == before


def test_the_signal_handler_is_put_back(tiny_config_file, stopped):
    before = signal.getsignal(signal.SIGTERM)
    train(tiny_run.config(tiny_config_file, train__stop_at=4), stopped)
    assert signal.getsignal(signal.SIGTERM) is before
