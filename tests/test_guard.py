"""Bad steps: left out, logged so that they can be replayed, and what the run does about them."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpretrain.assemble import assemble, identity, training_batches
from jaxpretrain.checkpoint import Checkpoints
from jaxpretrain.errors import UserError
from jaxpretrain.guard import Guard
from jaxpretrain.main import main
from jaxpretrain.metrics import read_metrics
from jaxpretrain.objectives import OBJECTIVES
from jaxpretrain.optim import make_optimizer
from jaxpretrain.state import abstract_state, init_state
from jaxpretrain.step import jit_train_step, progress_at, run_key
from jaxpretrain.train import train
from jaxpretrain.workdir import claim_workdir
from support import tiny_run
from support.small import small_batch, small_vocab
from support.truth import ONE_DEVICE, tiny_backbone

VOCAB = small_vocab()


@pytest.mark.parametrize("limit", [0.0, 1e-3])
def test_a_bad_step_changes_nothing_but_the_count(limit):
    objective = OBJECTIVES["clm"]().bind(tiny_backbone(VOCAB), VOCAB)
    optimizer = make_optimizer(total_steps=10, warmup_steps=0)
    abstract = abstract_state(objective, optimizer, ONE_DEVICE)
    step = jit_train_step(
        objective, optimizer, abstract, ONE_DEVICE,
        total_steps=10, microbatches=1, largest_grad_norm=limit,
    )  # fmt: skip
    state = init_state(objective, optimizer, 0, abstract)
    if not limit:  # a gradient that is not a number
        state.params["tokens"]["embedding"] = (
            state.params["tokens"]["embedding"].at[30, 0].set(jnp.inf)
        )
    before = jax.device_get(state)
    after, metrics = jax.device_get(step(state, small_batch(0, VOCAB), np.uint32(0)))
    assert metrics["left_out"] == 1 and after.step == 1
    assert limit == 0 or metrics["grad_norm"] > limit
    jax.tree.map(np.testing.assert_array_equal, before._replace(step=after.step), after)


BAD = {"left_out": 1.0, "loss": float("nan"), "grad_norm": 2.0}
GOOD = {"left_out": 0.0, "loss": 1.0, "grad_norm": 1.0}


def guard(policy):
    return Guard(policy=policy, largest_grad_norm=1.5, allowed=2)


def test_stopping_says_step_numbers_and_command():
    with pytest.raises(UserError) as error:
        guard("stop").see(7, BAD, "jaxpretrain replay --step=7")
    for part in ("nan at step 7", "norm of 2", "largest_grad_norm is 1.5", "replay --step=7"):
        assert part in str(error.value)


def test_skipping_allows_so_many_in_a_row(capsys):
    skip = guard("skip")
    for values in (BAD, BAD, GOOD, BAD, BAD):
        assert not skip.see(1, values, "")
    assert capsys.readouterr().out.count("its update is left out") == 4
    with pytest.raises(UserError, match="bad step number 3 in a row, and guard.allowed is 2"):
        skip.see(9, BAD, "")


def test_rolling_back_allows_so_many_in_all():
    back = guard("roll_back")
    assert [back.see(1, values, "") for values in (BAD, GOOD, BAD)] == [True, False, True]
    with pytest.raises(UserError, match="bad step number 3 since the run was started"):
        back.see(9, BAD, "")


OPTIONS = {
    "objective__name": "mlm",
    "mesh__fsdp": 8,
    "mesh__data": 1,
    "train__log_every": 1,
    "evaluate__every": 0,
}


@pytest.fixture(scope="module")
def plain(tiny_config_file, tmp_path_factory):
    """The workdir of the undisturbed run."""
    workdir = tmp_path_factory.mktemp("runs") / "plain"
    train(tiny_run.config(tiny_config_file, **OPTIONS), workdir)
    return workdir


@pytest.fixture(scope="module")
def norms(plain):
    """Gradient norms of the undisturbed run, by step."""
    return {row["step"]: row["grad_norm"] for row in read_metrics(plain) if "loss" in row}


def test_a_run_goes_on_without_the_updates_of_bad_steps(norms, tiny_config_file, tmp_path, capsys):
    limit = sorted(norms.values())[-2]  # the step with the largest norm is bad
    bad = max(norms, key=norms.get)
    config = tiny_run.config(
        tiny_config_file, guard__policy="skip", guard__largest_grad_norm=limit, **OPTIONS
    )
    train(config, tmp_path)
    rows = {row["step"]: row for row in read_metrics(tmp_path) if "loss" in row}
    assert sorted(rows) == list(range(1, 9))
    assert rows[bad]["left_out"] == 1 and len(rows[bad]["rows"]) == 8
    assert f"at step {bad}" in capsys.readouterr().out


def test_rolling_back_goes_on_with_the_rows_after_the_bad_step(
    plain, norms, tiny_config_file, tmp_path, capsys
):
    late = {step: norm for step, norm in norms.items() if step > 4}  # the checkpoint is of step 4
    bad = max(late, key=late.get)
    shutil.copytree(plain, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "checkpoints/8")
    config = tiny_run.config(
        tiny_config_file,
        **OPTIONS,
        guard__policy="roll_back",
        guard__largest_grad_norm=late[bad] * (1 - 1e-5),
    )
    train(config, tmp_path)
    assert "rolling back" in capsys.readouterr().out
    rows = read_metrics(tmp_path)
    back = next(row for row in rows if "rolled_back_from" in row)
    assert (back["step"], back["rolled_back_from"], back["passed_over"]) == (4, bad, bad - 4)
    steps = [row["step"] for row in rows if "loss" in row]
    assert steps == list(range(1, 9))
    over = rows[-1].get("passed_over", back["passed_over"])
    pieces = assemble(config)
    checkpoints = Checkpoints(tmp_path / "checkpoints", pieces.placement, read_only=True)
    final = checkpoints.restore(8, pieces.abstract)
    assert int(final.passed_over) >= over and int(final.step) == 8

    # What `replay` shows of a step is what that step read, before and after the place it jumped.
    for step, passed_over in ((4, 0), (5, int(final.passed_over))):
        [batch] = training_batches(pieces, step - 1 + passed_over, step + passed_over)
        key, progress = run_key(config.seed), progress_at(jnp.int32(step - 1), config.train.steps)
        example, _ = pieces.objective.example(batch, key, train=True, progress=progress)
        assert main(["replay", f"--workdir={tmp_path}", f"--step={step}"]) == 0
        out = capsys.readouterr().out
        assert f"step {step}, batch {step - 1 + passed_over} of the stream, 8 rows" in out
        assert f"row {batch.row_ids[0]}, epoch" in out and "targets" in out
        arrays = np.load(tmp_path / f"replay-{step}.npz")
        np.testing.assert_array_equal(arrays["batch.tokens"], batch.tokens)
        np.testing.assert_array_equal(arrays["example.inputs"], example.inputs)
        np.testing.assert_array_equal(arrays["example.slots"], example.slots)


def test_replay_of_what_is_not_there(tiny_config_file, tmp_path, capsys):
    config = tiny_run.config(tiny_config_file)
    assert main(["replay", f"--workdir={tmp_path}", "--step=1"]) == 2
    assert "holds no run" in capsys.readouterr().err
    pieces = assemble(config)
    claim_workdir(tmp_path, config.to_dict(), pieces.store.tokenizer, identity(pieces))
    for options, message in (
        (["--step=0"], "--step is 0: this run has the steps 1 to 8"),
        (["--step=9"], "--step is 9"),
        (["--step=2", "--passed-over=-1"], "--passed-over is -1"),
    ):
        assert main(["replay", f"--workdir={tmp_path}", *options]) == 2
        assert message in capsys.readouterr().err
    assert json.loads((tmp_path / "config.json").read_text())["train"]["steps"] == 8
