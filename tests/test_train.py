"""Whole runs: what they leave behind, and that they can be cut anywhere and go on."""

import json
import re
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxpretrain.assemble import assemble, identity, prepare_store
from jaxpretrain.checkpoint import Checkpoints
from jaxpretrain.errors import UserError
from jaxpretrain.evaluate import evaluate
from jaxpretrain.evaluation.heldout import HeldOut
from jaxpretrain.metrics import read_metrics
from jaxpretrain.schema import flatten
from jaxpretrain.sharding import Placement, make_mesh
from jaxpretrain.train import train
from jaxpretrain.workdir import claim_workdir, is_free
from support import tiny_run


def final_state(config, workdir):
    pieces = assemble(config)
    checkpoints = Checkpoints(workdir / "checkpoints", pieces.placement, read_only=True)
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
def made(tiny_config_file):
    """Makes the config of the runs here, of one program that compiles once, with some changes."""

    def make(**changes):
        options = {"objective__name": "clm", "mesh__data": 1, "mesh__fsdp": 8}
        return tiny_run.config(tiny_config_file, **options | changes)

    return make


@pytest.fixture(scope="module")
def straight(made, tmp_path_factory):
    """A run of 8 steps in one go, on eight devices, with dropout."""
    config = made()
    workdir = tmp_path_factory.mktemp("runs") / "straight"
    return config, workdir, train(config, workdir)


@pytest.fixture(scope="module")
def _stopped(made, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "stopped"
    train(made(train__stop_at=2), workdir)
    return workdir


@pytest.fixture
def stopped(_stopped, tmp_path):
    """The workdir of a run that was stopped after 2 steps, the test's own."""
    return shutil.copytree(_stopped, tmp_path / "stopped")


def test_a_run_that_was_stopped_at_its_end_measures_its_last_checkpoint(
    made, stopped, tmp_path, monkeypatch
):
    config = made(train__stop_at=2, checkpoint__every=1)
    real = Checkpoints.save

    def no_time(self, state, held_out_loss=None):
        real(self, state, None if int(state.step) == 2 else held_out_loss)

    monkeypatch.setattr(Checkpoints, "save", no_time)
    cut = tmp_path / "cut"
    train(config, cut)
    monkeypatch.setattr(Checkpoints, "save", real)
    assert saved(cut).best() == 1  # the other has no loss
    log = (cut / "metrics.jsonl").read_text().splitlines()
    kept = [line for line in log if not (json.loads(line)["step"] == 2 and "eval_loss" in line)]
    assert len(kept) == len(log) - 1
    (cut / "metrics.jsonl").write_text("\n".join(kept) + "\n")
    train(config, cut)
    assert saved(cut).best() == 2
    found, whole = (
        [(row["step"], row["eval_loss"]) for row in read_metrics(at) if "eval_loss" in row][-1]
        for at in (cut, stopped)
    )
    assert found == whole and whole[0] == 2


def test_a_stopped_run_goes_on_to_the_bits_of_the_uninterrupted_one(
    straight, made, stopped, monkeypatch
):
    """With the other loader for a while, logged more often, and from a relative path."""
    config, workdir, _ = straight
    monkeypatch.chdir(stopped.parent)
    there = Path(stopped.name)
    train(made(train__stop_at=6, data__loader="tf", train__log_every=1), there)
    assert saved(there).latest() == 6
    train(config, there)
    assert_same_bits(final_state(config, workdir), final_state(config, there))
    straight_rows, resumed_rows = read_metrics(workdir), read_metrics(there)
    losses = [{r["step"]: r["loss"] for r in rows if "loss" in r}
              for rows in (straight_rows, resumed_rows)]  # fmt: skip
    assert losses[0].keys() == {1, 2, 4, 6, 8} and losses[1].keys() == {1, 2, 3, 4, 5, 6, 8}
    assert all(losses[0][step] == losses[1][step] for step in losses[0])


def test_a_run_leaves_what_a_person_needs(straight):
    config, workdir, summary = straight
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
    # As a death after its first checkpoint leaves it.
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts/checkpoints/8")
    train(config, tmp_path / "parts")
    assert "steps 4 to 8" in capsys.readouterr().out
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


def test_a_finished_run_can_be_run_again_and_leaves_the_signal_handler_as_it_was(straight):
    config, workdir, summary = straight
    before = signal.getsignal(signal.SIGTERM)
    again = train(config, workdir)
    assert again["steps"] == 8 and again["eval"] == summary["eval"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_resume_on_other_devices(straight, made):
    """Saved on 1 × 8, restored on 2 × 4 and on 8 × 1: the same bits."""
    config, workdir, _ = straight
    before = final_state(config, workdir)
    for data, fsdp in ((2, 4), (8, 1)):
        assert_same_bits(before, final_state(made(mesh__data=data, mesh__fsdp=fsdp), workdir))


def test_a_workdir_of_another_config_is_refused(made, stopped):
    with pytest.raises(UserError) as error:
        train(made(seed=1, train__steps=16, data__batch_size=16), stopped)
    assert "config.data.batch_size = 8, and now it is 16" in str(error.value)
    assert "(seed, train.steps differ too)" in str(error.value)


def test_a_workdir_of_another_tokenizer_or_store_is_refused(made, stopped, tmp_path):
    store = {"store.path": str(tmp_path / "store"), "store.test_fraction": "0.2"}
    other = made(**{key.replace(".", "__"): value for key, value in store.items()})
    prepare_store(other)
    with pytest.raises(UserError, match="another (tokenizer|token store)"):
        train(other, stopped)
    with pytest.raises(UserError, match="another (tokenizer|token store)"):
        evaluate(stopped, overrides=store)


def test_tensorflow_reads_from_the_board_what_the_log_has(stopped):
    from tensorflow.compat.v1.train import summary_iterator

    [file] = (stopped / "tensorboard").glob("events*")
    events = list(summary_iterator(str(file)))
    assert events[0].file_version == "brain.Event:2" and events[1].step == 1
    board = {(e.step, v.tag): v.simple_value for e in events for v in e.summary.value}
    logged = {
        (row["step"], key): value
        for row in read_metrics(stopped)
        for key, value in row.items()
        if key != "step" and isinstance(value, int | float)
    }
    assert {(1, "loss"), (2, "loss"), (2, "eval_loss")} <= logged.keys() == board.keys()
    np.testing.assert_allclose([board[k] for k in logged], list(logged.values()), rtol=1e-6)


def test_the_best_and_the_latest_are_kept_and_a_loss_that_is_no_number_is_not_the_best(
    made, tmp_path, monkeypatch
):
    fake_held_out_losses(monkeypatch, [3.0, 1.0, 2.0, float("nan")])
    train(made(evaluate__every=2, evaluate__batches=0, checkpoint__every=2), tmp_path)
    kept = saved(tmp_path)
    assert (kept.best(), kept.latest()) == (4, 8)
    folders = {p.name for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()}
    assert folders == {"4", "6", "8"}
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["eval"]["loss"] is None  # JSON has no NaN


def test_a_training_loss_that_is_no_number_stops_the_run(made, tmp_path):
    diverging = made(optimizer__learning_rate=1e30, optimizer__clip_norm=0)
    with pytest.raises(UserError, match="at step [2-8], with a gradient norm of (nan|inf)"):
        train(diverging, tmp_path)


def test_the_log_goes_on_after_what_was_saved_and_a_broken_line_costs_only_itself(made, stopped):
    path = stopped / "metrics.jsonl"
    before = path.read_text().splitlines()
    unsaved = json.dumps({"step": 6, "loss": 1.0, "tokens": 1, "seconds": 1.0})
    lines = ['{"step": 1, "lo', "5", '{"loss": 1}', "\udcff", *before, unsaved, '{"step": 7, "lo']
    path.write_text("\n".join(lines), errors="surrogateescape")
    train(made(train__stop_at=4), stopped)
    assert path.read_text().splitlines()[: len(before)] == before
    assert [row["step"] for row in read_metrics(stopped) if "loss" in row] == [1, 2, 4]


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


@pytest.fixture(scope="module")
def claim(made):
    """What `train` does to claim a workdir."""
    config = made()
    pieces = assemble(config)
    tokenizer = pieces.store.tokenizer
    return lambda workdir: claim_workdir(workdir, config.to_dict(), tokenizer, identity(pieces))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda run: (run / "run.json").unlink(), "no run.json"),
        (lambda run: (run / "run.json").write_text("[]"), "run.json is damaged"),
        (lambda run: (run / "config.json").write_text("{bad"), "config.json is damaged"),
        (lambda run: (run / "config.json").unlink(), "cannot read .*config.json"),
    ],
    ids=["no run.json", "run.json", "config.json", "no config.json"],
)
def test_a_damaged_workdir_is_named(claim, stopped, harm, message):
    harm(stopped)
    with pytest.raises(UserError, match=message):
        claim(stopped)


def test_a_damaged_checkpoint_is_named(made, stopped):
    shutil.rmtree(stopped / "checkpoints/2/default")
    with pytest.raises(UserError, match="checkpoint 2"):
        train(made(train__stop_at=2), stopped)


def test_a_workdir_beyond_stop_at_is_refused(made, stopped):
    with pytest.raises(UserError, match="stop_at is 1, .* at step 2 already"):
        train(made(train__stop_at=1), stopped)


def test_a_store_without_validation_documents_is_refused_before_training(tmp_path):
    file = tiny_run.write(tmp_path)
    config = tiny_run.config(file, store__validation_fraction=0)
    prepare_store(config)
    with pytest.raises(UserError, match="validation split .* raise store.validation_fraction"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_evaluate_reads_a_run_without_touching_what_is_being_saved(straight, monkeypatch):
    _, workdir, _ = straight
    being_saved = workdir / "checkpoints" / "9.orbax-checkpoint-tmp"
    being_saved.mkdir()
    # Neither the optimizer's settings nor its state matter to an evaluation, nor where it is run.
    monkeypatch.chdir(workdir.parent)
    here = Path(workdir.name)
    assert evaluate(here, overrides={"optimizer.clip_norm": "0"})["step"] in (4, 8)
    assert being_saved.exists()
    with pytest.raises(UserError, match="with config.model.width = .*, and now it is 32: leave"):
        evaluate(here, overrides={"model.width": "32"})
    being_saved.rmdir()
