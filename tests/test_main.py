"""The command line as a user meets it: three commands, and wrong input."""

import json
import os

import pytest

from jaxpretrain import compile_cache
from jaxpretrain.main import main, take_overrides
from support import tiny_run


@pytest.fixture(scope="module")
def finished(tiny_config_file, tmp_path_factory):
    workdirs = {}
    for name in ("mlm", "clm"):
        workdirs[name] = tmp_path_factory.mktemp("runs") / name
        arguments = [
            "train", f"--config={tiny_config_file}", f"--workdir={workdirs[name]}",
            f"--config.objective.name={name}", "--verify",
        ]  # fmt: skip
        assert main(arguments) == 0
    return workdirs


def test_prepare_again_says_that_it_is_done(tiny_config_file, capsys):
    assert main(["prepare", f"--config={tiny_config_file}"]) == 0
    assert "already prepared" in capsys.readouterr().err


def test_evaluate_prints_numbers_and_examples(finished, capsys):
    for name, word in (("mlm", "[MASK]"), ("clm", "→")):
        assert main(["evaluate", f"--workdir={finished[name]}", "--split=test"]) == 0
        out = capsys.readouterr().out
        for expected in ("loss", "unigram model", "bits per byte", "loss.png", word):
            assert expected in out
        found = json.loads((finished[name] / "evaluation.json").read_text())
        assert found["split"] == "test" and f"{found['loss']:.4f}" in out


def test_evaluating_gives_the_stored_numbers(finished):
    for name in ("mlm", "clm"):
        arguments = [f"--workdir={finished[name]}", "--split=validation", "--checkpoint=latest"]
        assert main(["evaluate", *arguments]) == 0
        found = json.loads((finished[name] / "evaluation.json").read_text())
        summary = json.loads((finished[name] / "summary.json").read_text())["eval"]
        assert summary["loss"] == found["loss"]
        assert summary["unigram_loss"] == found["unigram_loss"]


def test_overrides_are_taken_in_both_spellings():
    rest, overrides = take_overrides(
        ["train", "--config=a.py", "--config.x.y=1=2", "--config.z", "-3", "--verify"]
    )
    assert rest == ["train", "--config=a.py", "--verify"]
    assert overrides == {"x.y": "1=2", "z": "-3"}


TASKS = (
    "objective.tasks.a.name=mlm",
    "objective.tasks.a.weight=0",
    "objective.tasks.b.name=clm",
)


def objective(name, *settings):
    """Arguments that train another objective with some settings."""
    settings = (f"objective.name={name}", *settings)
    return ["train", "--config={file}", *(f"--config.{setting}" for setting in settings)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--config={file}", "--config.objective.mask_rat=0.3"], "did you mean"),
        (["train", "--config={file}", "--config.objective.mask_rate"], "has no value"),
        (["train", "--config=nowhere.py"], "no config file nowhere.py"),
        (["train", "--config={file}", "--config.store.path={tmp}/none"], "jaxpretrain prepare"),
        (["train", "--config={file}", "--config.data.batch_size=9"], "batch_size is 9.* 8 devices"),
        (["train", "--config={file}", "--config.train.microbatches=3"], "8 devices .* x 3"),
        (["train", "--config={file}", "--config.mesh.fsdp=3"], "mesh.fsdp 3.* 8 devices"),
        (["train", "--config={file}", "--config.mesh.rules.width=up"], "'up'.*data.*fsdp"),
        (["train", "--config={file}", "--config.tokenizer.kind=word"], "unigram"),
        (["train", "--config={file}", "--config.tokenizer.vocab_size=500"], "700.* 500"),
        (["train", "--config={file}", "--config.store.test_fraction=.2"], "0.1.* 0.2"),
        (["train", "--config={file}", "--config.tokenizer.vocab_size=0"], "is 0: .*370"),
        (["train", "--config={file}", "--config.mesh.rules.widht=fsdp"], "did you mean .*width"),
        (["train", "--config={file}", "--config.mesh.rules=fsdp"], "it is a section"),
        (["train", "--config={file}", "--config.model=base"], "'base': it is a section"),
        (["train", "--config={file}", "--config.seed.x=1"], "whole number"),
        (["train", "--config={file}", "--config.seed=1e30"], "seed is 1000"),
        (["train", "--config={file}", "--config.model.attention=cudnn"], "needs an NVIDIA GPU"),
        (["train", "--config={file}", "--config.store.validation_fraction=0"], "0.1.* 0.0"),
        (["train", "--config=setup.cfg"], "setup.cfg is no config file"),
        (objective("nsp", "data.view=packed", "model.token_types=2"), "needs 'document' rows"),
        (objective("bert"), "set model.token_types=2"),
        (objective("rtd", "objective.generator_size=2"), "generator_size is 2.0"),
        (objective("span_corruption", "objective.noise_density=.9"), "only 3 stay visible"),
        (objective("mlm", "model.decoder_layers=2"), "set model.decoder_layers=0"),
        (objective("crops", "train.microbatches=2", "data.batch_size=16"), "objective.chunks"),
        (objective("simcse", "model.dropout=0"), "set model.dropout=0.1"),
        (objective("mixture"), "objective.tasks is empty"),
        (objective("mixture", *TASKS, "objective.tasks.b.weight=0"), "sum to zero"),
        (objective("mixture", *TASKS, "objective.tasks.b.wait=0"), "did you mean .*weight"),
        (objective("mixture", *TASKS, "objective.tasks.b.name=mixture"), "must be one of"),
        (objective("mixture", *TASKS, "objective.tasks.a.mask_rate=3"), "tasks.a.mask_rate is 3"),
        (objective("mixture", *TASKS, "objective.mod=all"), "did you mean objective.mode"),
        (["evaluate", "--workdir={tmp}"], "holds no run"),
        (["evaluate", "--config=none.py"], "no config file none.py"),
        (["evaluate"], "--workdir"),
        (["evaluate", "--workdir="], "a path is empty"),
        (["evaluate", "--split=all"], "--split: invalid choice: 'all'.*; see jaxpretrain evaluate"),
        (["score", "--workdir={tmp}"], "required: text; see jaxpretrain score --help"),
        (["evalute"], "invalid choice: 'evalute'.*; see jaxpretrain --help"),
        (["ablate", "--config={file}"], "config of one run.* no get_ablation"),
    ],
    ids=str,
)
def test_wrong_input_is_one_line_and_status_2(
    arguments, message, tiny_config_file, tmp_path, capsys
):
    import re

    filled = [a.format(file=tiny_config_file, tmp=tmp_path) for a in arguments]
    filled += [f"--workdir={tmp_path / 'run'}"] if filled[0] == "train" else []
    assert main(filled) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and error[0].startswith("error: ")
    assert re.search(message, error[0]), error[0]
    assert not (tmp_path / "run").exists()


def test_a_damaged_store_is_named(tmp_path, capsys):
    file = tiny_run.write(tmp_path)
    assert main(["prepare", f"--config={file}"]) == 0
    shard = next((tmp_path / "store" / "text").glob("*-train.tokens"))
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    capsys.readouterr()
    command = ["train", f"--config={file}", f"--workdir={tmp_path / 'run'}", "--verify"]
    assert main(command) == 2
    assert f"{shard.name} is damaged" in capsys.readouterr().err


def test_running_out_of_memory_is_one_line(tiny_config_file, tmp_path, capsys, monkeypatch):
    def exhausted(*_, **__):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes.\nmore")

    monkeypatch.setattr("jaxpretrain.train.train", exhausted)
    assert main(["train", f"--config={tiny_config_file}", f"--workdir={tmp_path}"]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: Out of memory allocating 99 bytes: lower data.batch_size")
    assert "\n" not in error


def test_prepare_warns_of_an_empty_split(tmp_path, capsys):
    file = tiny_run.write(tmp_path)
    assert main(["prepare", f"--config={file}", "--config.store.test_fraction=0"]) == 0
    assert "warning: the test split has no documents" in capsys.readouterr().err


def test_what_was_compiled_is_kept_where_the_user_keeps_such_things(tmp_path, monkeypatch):
    variable = "JAX_COMPILATION_CACHE_DIR"

    def folder(**environment):
        monkeypatch.delenv(variable, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, str(value))
        compile_cache.ask()
        return os.environ.get(variable)

    monkeypatch.delenv("JAX_COMPILATION_CACHE_MAX_SIZE", raising=False)
    here = folder(XDG_CACHE_HOME=tmp_path)
    assert os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] == str(4 * 2**30)
    assert here.startswith(f"{tmp_path}/jaxpretrain/compiled-") and folder() == here
    # What the user said stands, also that nothing be kept.
    assert folder(**{variable: ""}) == ""
    # A place that cannot be written keeps nothing, and is no error.
    (tmp_path / "file").touch()
    assert folder(XDG_CACHE_HOME=tmp_path / "file") is None
