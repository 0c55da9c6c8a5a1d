"""Runs and stores in an object store: a server on loopback that speaks Google's protocol."""

import json
import sys
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxpretrain import lease as lease_module
from jaxpretrain import storage
from jaxpretrain.assemble import assemble, open_store, prepare_store
from jaxpretrain.checkpoint import Checkpoints
from jaxpretrain.data import store_copy
from jaxpretrain.data.store import Store
from jaxpretrain.errors import UserError
from jaxpretrain.lease import Held, lease
from jaxpretrain.main import main
from jaxpretrain.metrics import MetricsLog, read_metrics
from jaxpretrain.storage import AnyPath, path_of
from jaxpretrain.train import train
from jaxpretrain.workdir import sole_use
from support import object_store, tiny_run


@pytest.fixture(scope="module")
def _server():
    with object_store.serving() as environment, object_store.in_environment(environment):
        yield


@pytest.fixture
def bucket(_server, request):
    """A folder of its own in a bucket."""
    return f"gs://{object_store.BUCKET}/{request.node.name.replace('[', '/').replace(']', '')}"


def in_bucket(bucket, config_file, copies):
    """Makes the tiny config with its store in a bucket, where it is put, and a copy of it here."""
    local = tiny_run.config(config_file).store.path

    def config(**overrides):
        return tiny_run.config(
            config_file, store__path=f"{bucket}/store", store__cache=copies, **overrides
        )

    store_copy.publish(path_of(local), path_of(f"{bucket}/store"))
    return config


@pytest.fixture
def remote(bucket, tiny_config_file, tmp_path):
    """Makes the tiny config with its store in the bucket; the copy is below tmp_path."""
    return in_bucket(bucket, tiny_config_file, tmp_path / "copies")


class Run(NamedTuple):
    """A run in a bucket that was stopped after step 5 and went on."""

    config: Callable[..., ConfigDict]
    workdir: AnyPath
    summary: dict
    saves: list[tuple[int, set[int]]]  # steps of checkpoints, and those in the log at the time


@pytest.fixture(scope="module")
def run(_server, tiny_config_file, tmp_path_factory):
    bucket, saves, save = f"gs://{object_store.BUCKET}/shared", [], Checkpoints.save
    config = in_bucket(bucket, tiny_config_file, tmp_path_factory.mktemp("copies"))
    workdir = path_of(f"{bucket}/run")

    def watched(self, state, loss=None):
        saves.append((int(state.step), {row["step"] for row in read_metrics(workdir)}))
        save(self, state, loss)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", watched)
        train(config(train__stop_at=5), workdir)
        return Run(config, workdir, train(config(), workdir), saves)


def params_of(config, workdir):
    pieces = assemble(config)
    checkpoints = Checkpoints(path_of(workdir) / "checkpoints", pieces.placement, read_only=True)
    step = checkpoints.latest()
    found = checkpoints.restore_params(step, pieces.abstract.params)
    checkpoints.close()
    return step, found


def test_a_run_in_a_bucket_stops_resumes_and_is_that_on_a_disk(run, tiny_config_file, tmp_path):
    here, there = tmp_path / "run", run.workdir
    summary = train(tiny_run.config(tiny_config_file), here)
    assert run.summary["eval"] == summary["eval"]

    step, in_bucket = params_of(run.config(), there)
    _, on_disk = params_of(tiny_run.config(tiny_config_file), here)
    assert step == 8
    jax.tree.map(np.testing.assert_array_equal, in_bucket, on_disk)

    rows = [(row["step"], row["loss"]) for row in read_metrics(there) if "loss" in row]
    assert rows == sorted(rows) and len(rows) == len(set(rows))
    known = dict((row["step"], row["loss"]) for row in read_metrics(here) if "loss" in row)
    assert {step: loss for step, loss in rows if step in known} == known
    names = {path.name for path in there.iterdir()}
    assert {"config.json", "run.json", "tokenizer.model", "metrics.jsonl", "summary.json"} <= names
    assert (there / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((there / "tensorboard").iterdir())) == 2  # a file for each start
    assert "lease.json" not in names  # let go


def test_what_a_checkpoint_follows_is_in_the_log_of_the_bucket(run):
    """A run that dies after a save goes on from there, and writes no line before it again."""
    assert [step for step, _ in run.saves] == [4, 5, 8]
    assert all(step in steps for step, steps in run.saves)


def test_a_run_in_a_bucket_is_evaluated_and_replayed_from_the_command_line(run, capsys):
    there = run.workdir
    arguments = [f"--workdir={there}", "--split=validation", "--checkpoint=latest"]
    assert main(["evaluate", *arguments]) == 0
    assert "step 8" in capsys.readouterr().out
    assert main(["replay", f"--workdir={there}", "--step=2"]) == 0
    assert json.loads((there / "evaluation.json").read_text())["step"] == 8
    with (there / "replay-2.npz").open("rb") as file:
        assert np.load(file)["batch.tokens"].shape == (8, 32)


def test_the_newest_checkpoint_of_a_bucket_is_damaged(run, capsys):
    there = run.workdir
    data = max((there / "checkpoints/8/default/d").iterdir(), key=lambda file: file.stat().length)
    raw = bytearray(data.read_bytes())
    raw[len(raw) // 2] ^= 1
    data.write_bytes(bytes(raw))
    again = train(run.config(), there)
    assert "going on from checkpoint 5" in capsys.readouterr().out
    assert again["eval"] == run.summary["eval"]
    assert (there / "damaged/8-1/commit_success.txt").exists()


def test_a_store_is_copied_once_and_what_is_damaged_is_named(bucket, remote, tmp_path, capsys):
    config = remote()
    path = path_of(config.store.path)
    folder = store_copy.folder_of(path, config.store.cache)
    assert folder.parent == tmp_path / "copies"
    store_copy.fetch(path, folder)
    assert "copying" in capsys.readouterr().err
    names = Store.open(folder, verify=True).manifest["files"]
    store_copy.fetch(path, folder)
    assert capsys.readouterr().err == ""

    # A copy that lacks a file gets this one alone.
    lost = next(name for name in names if name.endswith("train.tokens"))
    (folder / lost).unlink()
    store_copy.fetch(path, folder)
    assert "copying 1 files" in capsys.readouterr().err
    Store.open(folder, verify=True)

    # What another store has left under the same name and size is not taken for this one's.
    (folder / "manifest.json").write_text("{}")
    other = bytearray((folder / lost).read_bytes())
    other[0] ^= 1
    (folder / lost).write_bytes(bytes(other))
    store_copy.fetch(path, folder)
    assert "copying 1 files" in capsys.readouterr().err
    Store.open(folder, verify=True)

    # Nobody trains on what is not what was published.
    raw = bytearray((path / lost).read_bytes())
    raw[0] ^= 1
    (path / lost).write_bytes(bytes(raw))
    (folder / lost).unlink()
    with pytest.raises(UserError, match=f"{lost} is damaged"):
        store_copy.fetch(path, folder)
    with pytest.raises(UserError, match="no token store|unfinished"):
        Store.open(folder)


def test_prepare_writes_to_a_bucket_and_finds_it_done_from_another_machine(
    bucket, tiny_config_file, tmp_path, capsys
):
    first = in_bucket(bucket, tiny_config_file, tmp_path / "one")()
    larger = {"tokenizer__vocab_size": 800, "store__path": f"{bucket}/store"}
    one, two = (
        tiny_run.config(tiny_config_file, store__cache=tmp_path / name, **larger)
        for name in ("one", "two")
    )
    found = prepare_store(first)
    assert found.manifest == open_store(tiny_run.config(tiny_config_file)).manifest
    assert "is already prepared" in capsys.readouterr().err
    with pytest.raises(UserError, match="prepared from something else"):
        prepare_store(two)
    other = prepare_store(two, overwrite=True)
    # A machine that has a copy of the earlier store gets the new one.
    assert other.manifest != found.manifest
    assert assemble(one).store.manifest == other.manifest


def test_a_store_does_not_fit_the_disk(bucket, remote, monkeypatch, tmp_path):
    config = remote()
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 1000}))
    with pytest.raises(UserError, match="0.0 GB free: make room, or set store.cache"):
        assemble(config)


def test_what_cannot_be_reached_is_one_line(bucket, tiny_config_file, capsys):
    config = tiny_run.config(tiny_config_file, store__path="gs://no-such-bucket/store")
    with pytest.raises(UserError, match="there is no token store at gs://no-such-bucket/store"):
        assemble(config)
    with pytest.raises(UserError, match="cannot write the workdir gs://no-such-bucket/run"):
        train(tiny_run.config(tiny_config_file), path_of("gs://no-such-bucket/run"))
    assert main(["evaluate", f"--workdir={bucket}/none"]) == 2
    assert "holds no run" in capsys.readouterr().err


def test_urls_that_cannot_be_opened(monkeypatch):
    with pytest.raises(UserError, match="s3://b/run: a path is local or begins with gs://"):
        path_of("s3://b/run")
    storage._client.cache_clear()
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UserError, match=r"need gcsfs: pip install 'jaxpretrain\[gcs\]'"):
        path_of("gs://bucket/run")


def test_a_run_that_lost_its_lease_leaves_the_log_of_the_other_alone(bucket):
    there = path_of(f"{bucket}/run")
    (there / "metrics.jsonl").write_text('{"step": 9}\n')
    lost = UserError("another run has taken over")

    def check():
        raise lost

    log = MetricsLog(there, 9, lambda folder: [], check)
    log.write(10, {"loss": 1.0})
    with pytest.raises(UserError, match="taken over"):
        log.close()
    assert read_metrics(there) == [{"step": 9}]


def test_two_may_write_one_file_at_a_time(tmp_path):
    def many(text):
        for _ in range(200):
            storage.write(tmp_path / "file", text)

    threads = [threading.Thread(target=many, args=(letter * 1000,)) for letter in "ab"]
    errors = []
    monitor, threading.excepthook = threading.excepthook, lambda what: errors.append(what)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    threading.excepthook = monitor
    assert not errors
    assert (tmp_path / "file").read_text() in ("a" * 1000, "b" * 1000)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# ------------------------------------------------------------------------------------ leases


@pytest.fixture(params=["disk", "bucket"])
def leased(request, tmp_path):
    """The path of a lease, on a file system and in a bucket."""
    if request.param == "disk":
        return tmp_path / "lease.json"
    return path_of(request.getfixturevalue("bucket")) / "lease.json"


def test_a_lease_is_refused_while_its_holder_lives_and_free_afterwards(leased):
    with lease(leased, "the first", seconds=2) as still_ours:
        with pytest.raises(Held, match="the first"), lease(leased, "the second", seconds=2):
            pytest.fail("it had it")
        assert still_ours()
    assert not leased.exists()
    with lease(leased, "the second", seconds=60) as still_ours:
        assert still_ours()


def test_a_lease_of_the_dead_is_taken_over_and_one_who_slept_hears_of_it(leased, monkeypatch):
    waited = []
    idle = threading.Thread(target=str)
    monkeypatch.setattr(lease_module.threading, "Thread", lambda **_: idle)
    asleep = lease(leased, "the sleeper", seconds=1)  # that does not renew
    sleeper_has_it = asleep.__enter__()
    monkeypatch.undo()
    start = time.monotonic()
    with lease(leased, "the next", seconds=1, say=waited.append) as still_ours:
        assert time.monotonic() - start >= 1
        assert "is of the sleeper: watching for 1 s" in waited[0]
        assert still_ours() and not sleeper_has_it()
        asleep.__exit__(None, None, None)
        assert still_ours()  # the sleeper has not deleted what is no longer its own


def test_two_runs_on_one_workdir_of_a_bucket(bucket):
    workdir = path_of(f"{bucket}/run")
    with sole_use(workdir, 2) as check:
        check()
        with pytest.raises(UserError, match="another run is training in gs://.*process"):
            sole_use(workdir, 2).__enter__()
        (workdir / "lease.json").write_text('{"id": "another"}')
        with pytest.raises(UserError, match="another run has taken over gs://"):
            check()
