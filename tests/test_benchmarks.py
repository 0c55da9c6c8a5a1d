"""The benchmarks run, at the smallest size: what they find is for a quiet machine to tell."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
TINY = ["data.batch_size=8", "data.length=16", "model.width=32", "tokenizer.vocab_size=512"]


def run(module, *arguments):
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_a_training_step_alone(tmp_path):
    out = run(
        "train",
        "--config=benchmarks/configs.py:mlm-small",
        "--against=nothing",
        "--rounds=2",
        "--steps=1",
        f"--json={tmp_path / 'found.json'}",
        *(f"--config.{change}" for change in TINY),
    )
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["tokens"] == 128 and f"{found['parameters']:,} parameters" in out
    (side,) = found["sides"]
    assert side["side"] == "jaxpretrain" and side["ratio"] == 1
    assert side["tokens_per_second"] == pytest.approx(128 / side["milliseconds"] * 1e3)


def test_the_pipeline(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.data import main

    arguments = ["--tokens=200000", "--rows=8", "--length=64", "--rounds=1"]
    monkeypatch.setattr("sys.argv", ["data", *arguments])
    main()
    out = capsys.readouterr().out
    assert "| reading, one core |" in out and "| loader threads |" in out


@pytest.mark.parametrize("name", ["mlm", "clm", "bert", "span_corruption", "rtd", "simcse"])
def test_what_the_peer_is_given_is_what_we_train_on(name, monkeypatch):
    """Labels where our targets are, and the same tokens everywhere else."""
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.made_up import text, vocabulary
    from benchmarks.ours import peer_batch
    from jaxpretrain.objectives import OBJECTIVES
    from jaxpretrain.step import progress_at
    from support.small import small_backbone

    vocab = vocabulary(512)
    switches = {"layers": 1, "width": 16, "heads": 2, "dropout": 0.1, "token_types": 2}
    switches |= {"decoder_layers": 1} if name == "span_corruption" else {}
    objective = OBJECTIVES[name]().bind(small_backbone(vocab, **switches), vocab)
    batch = text(4, 32, vocab)
    example = jax.jit(
        lambda batch: objective.example(
            batch, jax.random.key(0), train=True, progress=progress_at(jnp.int32(0), 1)
        )[0]
    )(batch)
    given = peer_batch(name, jax.device_get(example))
    if name == "simcse":
        np.testing.assert_array_equal(given["input_ids"], example.inputs)
        return
    weights, targets = np.asarray(example.weights), np.asarray(example.targets)
    wanted = sorted(targets[weights > 0])
    assert sorted(given["labels"][given["labels"] >= 0]) == wanted and len(wanted) > 8
    if name == "clm":
        np.testing.assert_array_equal(given["labels"][:, 1:], batch.tokens[:, 1:])
        return
    if name == "span_corruption":
        np.testing.assert_array_equal(given["decoder_input_ids"], example.inputs)
        np.testing.assert_array_equal(given["input_ids"], example.source.inputs)
        return
    assert sorted(given["slot_labels"][given["slot_labels"] >= 0]) == wanted
    visible = given["labels"] < 0
    if name in ("mlm", "rtd"):
        np.testing.assert_array_equal(given["input_ids"][visible], batch.tokens[visible])
        np.testing.assert_array_equal(given["labels"][~visible], batch.tokens[~visible])
