"""What trackers are told: by files that TensorBoard's, W&B's and MLflow's own formats define."""

import importlib.util
import json
import time
from importlib.machinery import ModuleSpec
from threading import Event

import pytest

from jaxpretrain import trackers
from jaxpretrain.config import complete
from jaxpretrain.errors import UserError
from jaxpretrain.evaluate import evaluate
from jaxpretrain.metrics import MetricsLog, read_metrics
from jaxpretrain.schema import flatten
from jaxpretrain.train import train
from support import tiny_run

INSTALLED = [name for name in trackers.SERVICES if importlib.util.find_spec(name)]


class Service(trackers.Tracker):
    """A service that remembers what it is told, and may be down."""

    down = False

    def __init__(self, workdir, project, name, known):
        if Service.down:
            raise ConnectionError("nobody\nis there")
        self.id, self.told, self.status = known or "7", [], None
        Service.last = self

    def scalars(self, step, values):
        if Service.down:
            raise ConnectionError("nobody\nis there")
        self.told += [(step, name, value) for name, value in values.items()]

    def close(self, *, done):
        self.status = done


@pytest.fixture
def service(monkeypatch):
    monkeypatch.setattr(Service, "down", False)
    monkeypatch.setitem(trackers.SERVICES, "wandb", Service)
    return Service


def open_log(workdir, step, to="wandb"):
    workdir.mkdir(exist_ok=True)
    return MetricsLog(workdir, step, lambda folder: trackers.open_trackers(
        folder, workdir, {"a": {"b": 1}}, to=to))  # fmt: skip


def test_a_service_is_told_each_step_once_however_often_a_run_is_cut_off(service, tmp_path):
    log = open_log(tmp_path, 0)
    for step in range(1, 7):
        log.write(step, {"loss": step, "rows": [1], "mfu": float("nan")})
    log.close()
    assert service.last.status is False
    told = service.last.told
    assert told == [(step, "loss", step) for step in range(1, 7)]

    log = open_log(tmp_path, 4)  # the evaluation after step 6 was cut off; now step 5 is
    log.write(5, {"loss": 5})
    log.close()
    assert service.last.id == "7" and service.last.told == []

    log = open_log(tmp_path, 4)
    for step in range(5, 9):
        log.write(step, {"loss": step})
        if step in (6, 8):
            log.write(step, {"eval_loss": step})
    log.rewind(6)  # a bad step: what follows has been told, and cannot be taken back
    log.write(6, {"rolled_back_from": 8})
    for step in (7, 8, 9):
        log.write(step, {"loss": 10 * step})
    log.close(done=True)
    assert service.last.status is True
    assert service.last.told == [
        (6, "eval_loss", 6), (7, "loss", 7), (8, "loss", 8), (8, "eval_loss", 8), (9, "loss", 90)
    ]  # fmt: skip
    rows = read_metrics(tmp_path)
    assert [row["loss"] for row in rows if "loss" in row] == [1, 2, 3, 4, 5, 6, 70, 80, 90]


def test_a_service_that_is_new_to_a_run_is_told_what_comes(service, tmp_path):
    log = open_log(tmp_path, 0, to="tensorboard")
    for step in (1, 2, 3):
        log.write(step, {"loss": step})
    log.close()
    log = open_log(tmp_path, 1)
    log.write(2, {"loss": 2})
    log.close()
    assert service.last.told == [(2, "loss", 2)]
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1


def test_a_service_that_fails_is_passed_over_with_one_warning(service, tmp_path, capsys):
    log = open_log(tmp_path, 0)
    for step in range(1, 6):
        service.down = step in (2, 3)
        log.write(step, {"loss": step})
        time.sleep(0.2)  # for the thread to meet it
    log.close()
    assert [step for step, *_ in service.last.told] == [1, 4, 5]
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4, 5]
    [warning] = capsys.readouterr().out.splitlines()
    assert warning.startswith("warning: wandb misses numbers of this run (nobody is there)")


def test_a_service_that_cannot_be_reached_stops_only_what_has_not_begun(service, tmp_path, capsys):
    service.down = True
    with pytest.raises(UserError, match="wandb cannot begin a run: nobody is there"):
        open_log(tmp_path, 0)
    service.down = False
    open_log(tmp_path, 0).close()
    service.down = True
    log = open_log(tmp_path, 0)
    log.write(1, {"loss": 1})
    log.close()
    [warning] = capsys.readouterr().out.splitlines()
    assert "wandb misses numbers of this run (nobody is there)" in warning


def test_the_training_does_not_wait_for_a_service(service, tmp_path, capsys, monkeypatch):
    answer = Event()
    monkeypatch.setattr(service, "scalars", lambda *_: answer.wait(60))
    monkeypatch.setattr(trackers, "CLOSE_SECONDS", 0.1)
    log = open_log(tmp_path, 0)
    begun = time.monotonic()
    for step in range(1, 50):
        log.write(step, {"loss": 1.0})
    log.flush()
    log.close()
    assert time.monotonic() - begun < 30 and not answer.is_set()
    assert "not taken all of them 0.1 s after the end" in capsys.readouterr().out
    answer.set()


def test_a_tracker_that_is_not_installed_is_said_before_anything_is_done(
    tiny_config_file, tmp_path, monkeypatch
):
    found = importlib.util.find_spec
    for spec in (None, ModuleSpec("mlflow", None)):  # as of a folder of this name
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda n, *a, s=spec: s if n == "mlflow" else found(n, *a)
        )
        with pytest.raises(UserError, match=r"pip install 'jaxpretrain\[mlflow\]'"):
            train(tiny_run.config(tiny_config_file, track__to="mlflow"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_names_of_trackers_are_checked_with_the_config():
    for to in ("", "wandb, tensorboard"):
        assert complete({"track": {"to": to}}).track.to == to
    with pytest.raises(UserError, match="track.to is 'tensorboad': .*did you mean tensorboard"):
        complete({"track": {"to": "tensorboad"}})


def test_damaged_ids_are_named(service, tmp_path):
    for text in ("[", '{"wandb": {"id": "x"}}'):
        (tmp_path / "trackers.json").write_text(text)
        with pytest.raises(UserError, match=r"trackers.json is damaged: delete it"):
            open_log(tmp_path, 0)


# What follows needs the libraries themselves: pip install '.[wandb,mlflow]'.


@pytest.fixture(scope="module")
def tracked(tiny_config_file, tmp_path_factory):
    """Workdir of a run in two parts that was evaluated, and what the trackers had of the first."""
    if not INSTALLED:
        pytest.skip("neither wandb nor mlflow is installed")
    folder = tmp_path_factory.mktemp("tracked")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("MLFLOW_TRACKING_URI", f"file://{folder}/mlruns")
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # its database takes ten seconds to make
        workdir, to = folder / "run", ",".join(["tensorboard", *INSTALLED])
        options = {"track__to": to, "track__project": "ours"}
        train(tiny_run.config(tiny_config_file, train__stop_at=5, **options), workdir)
        first = json.loads((workdir / "trackers.json").read_text())
        # As if it had been cut off later: steps that were told and were not saved.
        with (workdir / "metrics.jsonl").open("a") as log:
            log.write(json.dumps({"step": 6, "loss": 0.0}) + "\n")
        train(tiny_run.config(tiny_config_file, **options), workdir)
        tested = evaluate(workdir)
        yield workdir, first, tested


def told_to_trackers(workdir):
    """The numbers that a run has logged, less the one that was told before."""
    return [
        (row["step"], name, value)
        for row in read_metrics(workdir)
        for name, value in row.items()
        if name != "step" and isinstance(value, int | float) and (row["step"], name) != (6, "loss")
    ]


def wandb_records(file):
    """The records of a W&B file: a log in LevelDB's format of messages in protobuf's."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, whole = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length = int.from_bytes(data[place + 4 : place + 6], "little")
        kind = data[place + 6]  # 1 whole, 2 first, 3 middle, 4 last
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield Record.FromString(whole)
            whole = b""


def test_wandb_has_the_numbers_of_a_run(tracked):
    pytest.importorskip("wandb")
    workdir, first, tested = tracked
    files = sorted(workdir.glob("wandb/offline-run-*/*.wandb"))
    assert {file.stem for file in files} == {f"run-{first['wandb']['id']}"} and len(files) == 3
    history, config, summary = [], {}, {}
    for file in files:
        for record in wandb_records(file):
            if record.HasField("run"):
                assert record.run.project == "ours" and record.run.display_name == "run"
            for item in record.config.update:
                config[item.key or tuple(item.nested_key)] = json.loads(item.value_json)
            for item in record.summary.update:
                summary[item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
            for item in record.history.item:
                name = item.key or ".".join(item.nested_key)
                if not name.startswith("_"):
                    history.append((record.history.step.num, name, json.loads(item.value_json)))
    steps = [step for step, *_ in history]
    assert steps == sorted(steps)
    assert len({(step, name) for step, name, _ in history}) == len(history)
    last = {(step, name): value for step, name, value in told_to_trackers(workdir)}
    assert {(step, name): value for step, name, value in history} == last
    stored = json.loads((workdir / "config.json").read_text())
    assert config["optimizer"] == stored["optimizer"] and config["model"] == stored["model"]
    assert summary["test_loss"] == tested["loss"]
    done = json.loads((workdir / "summary.json").read_text())
    assert summary["validation_loss"] == done["eval"]["loss"]
    assert summary["parameters"] == done["parameters"]


def test_mlflow_has_the_numbers_of_a_run(tracked):
    pytest.importorskip("mlflow")
    from mlflow import MlflowClient

    workdir, first, tested = tracked
    client = MlflowClient()
    [run] = client.search_runs([client.get_experiment_by_name("ours").experiment_id])
    assert run.info.run_id == first["mlflow"]["id"]
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    told = told_to_trackers(workdir)
    history = [
        (one.step, name, one.value)
        for name in {name for _, name, _ in told}
        for one in client.get_metric_history(run.info.run_id, name)
    ]
    assert sorted(history) == sorted(told)
    assert run.data.metrics["test_loss"] == pytest.approx(tested["loss"])
    flat = flatten(json.loads((workdir / "config.json").read_text()))
    assert run.data.params == {key: str(value) for key, value in flat.items()}


def test_mlflow_takes_any_name_and_any_length(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlruns")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    one = trackers.MLflow(tmp_path, "", "name", "")
    one.config({"tasks": {"one:two~": {"path": "x" * 7000, "none": ""}}})

    one.scalars(3, {"cosine/causal~masked": 0.5, "n" * 300: 1.0})
    one.close(done=False)
    assert MlflowClient().get_run(one.id).info.status == "KILLED"
    again = trackers.MLflow(tmp_path, "", "name", one.id)
    again.config({"tasks": {"one:two~": {"path": "y"}}})
    assert again.id == one.id
    run = MlflowClient().get_run(one.id)
    assert run.data.params == {"tasks.one_two_.path": "x" * 6000, "tasks.one_two_.none": ""}
    assert run.data.metrics == {"cosine/causal_masked": 0.5, "n" * 250: 1.0}
    assert trackers.MLflow(tmp_path, "", "name", "0" * 32).id != one.id  # another server


def test_mlflow_is_sent_no_more_at_a_time_than_a_server_takes(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    from mlflow import MlflowClient
    from mlflow.utils.validation import MAX_METRICS_PER_BATCH, MAX_PARAMS_TAGS_PER_BATCH

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlruns")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # which takes more, unlike a server
    sent, log_batch = [], MlflowClient.log_batch

    def watched(self, run_id, metrics=(), params=()):
        sent.append((len(metrics), len(params)))
        return log_batch(self, run_id, metrics=metrics, params=params)

    monkeypatch.setattr(MlflowClient, "log_batch", watched)
    one = trackers.MLflow(tmp_path, "", "name", "")
    one.config({f"key{number}": number for number in range(201)})
    one.scalars(1, {f"name{number}": 1.0 for number in range(1001)})
    assert sum(params for _, params in sent) == 201 and sum(m for m, _ in sent) == 1001
    assert max(params for _, params in sent) == MAX_PARAMS_TAGS_PER_BATCH
    assert max(metrics for metrics, _ in sent) == MAX_METRICS_PER_BATCH
    data = MlflowClient().get_run(one.id).data
    assert len(data.params) == 201 and len(data.metrics) == 1001
