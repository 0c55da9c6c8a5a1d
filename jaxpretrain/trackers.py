"""Who shows the numbers of a run: TensorBoard, Weights & Biases or MLflow, by one interface.

TensorBoard reads a file and forgets what a run that goes on has left behind. The other two are
services that keep what they were told: they are told by a thread of their own, so that the training
never waits for a network, and each step only once.
"""

import importlib.util
import json
import os
import re
import time
import uuid
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

from jaxpretrain.errors import UserError
from jaxpretrain.processes import say
from jaxpretrain.schema import did_you_mean, flatten
from jaxpretrain.storage import AnyPath, access, is_remote, write

CLOSE_SECONDS = 10.0  # for a service to take what is left, less than a preempted run has
IDS = "trackers.json"


class Tracker:
    """Shows the numbers of a run; one that has no use for some of them leaves its method out."""

    def begin(self, step: int, void: Mapping[int, set[str]]) -> None:
        """The run begins, goes on or goes back.

        Args:
            step: after which it goes on.
            void: names of the numbers that were given after it, by step, and will be given again.
        """

    def config(self, values: Mapping[str, Any]) -> None:
        """Takes the config, nested."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Takes numbers of a step, all of them finite; a step may come in several parts."""

    def summary(self, step: int, values: Mapping[str, float]) -> None:
        """Takes what came out in the end, measured after a step."""

    def flush(self) -> None:
        """Returns when all that was given is in the file, if there is one."""

    def close(self, *, done: bool) -> None:
        """Ends; again, does nothing.

        Args:
            done: whether the run has come to its end, or else was cut off.
        """


class TensorBoard(Tracker):
    """An event file for each start of a run, by tensorboardX but without its thread.

    Args:
        folder: of the files, made if it does not exist.
    """

    def __init__(self, folder: Path):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2, summary_pb2

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        self._start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._folder, self._open, self._writer = folder, EventsWriter, None

    def begin(self, step: int, void: Mapping[int, set[str]]) -> None:
        """Opens a file, at whose beginning TensorBoard drops what it knows after the step."""
        self.close(done=False)
        self._folder.mkdir(parents=True, exist_ok=True)
        # Two starts may come in one second.
        suffix = f".{step}.{time.time_ns() % 10**9}"
        self._writer = self._open(str(self._folder / "events"), suffix)
        self._writer.write_event(self._event(step=step + 1, session_log=self._start))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds an event."""
        scalars = [self._summary.Value(tag=k, simple_value=v) for k, v in values.items()]
        self._writer.write_event(
            self._event(wall_time=time.time(), step=step, summary=self._summary(value=scalars))
        )

    def flush(self) -> None:
        """Returns when all that was added is in the file."""
        self._writer.flush()

    def close(self, *, done: bool) -> None:
        """Flushes and closes the file."""
        if self._writer:
            self._writer.close()
            self._writer = None


class Wandb(Tracker):
    """A run of Weights & Biases, which its own variables (``WANDB_MODE``, …) say more about.

    Args:
        workdir: of the run; where it is local, W&B's files are there unless ``WANDB_DIR`` is set.
        project: "" means ``WANDB_PROJECT``, or "jaxpretrain".
        name: that people read.
        known: the id of the run to go on with; "" begins one.
    """

    def __init__(self, workdir: AnyPath, project: str, name: str, known: str):
        import wandb

        self.id = known or uuid.uuid4().hex[:12]
        self._run = wandb.init(
            project=project or os.environ.get("WANDB_PROJECT") or "jaxpretrain",
            name=name,
            id=self.id,
            resume="allow",
            dir=None if is_remote(workdir) or "WANDB_DIR" in os.environ else str(workdir),
            reinit="create_new",  # an ablation trains several runs in one process
            settings={"finish_timeout": CLOSE_SECONDS - 1},
        )

    def config(self, values: Mapping[str, Any]) -> None:
        """Sets the config; what may change between two parts of a run is as of the last."""
        self._run.config.update(dict(values), allow_val_change=True)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Logs a step, unless the service has it already: it takes steps in order only."""
        if step >= self._run.starting_step:
            self._run.log(dict(values), step=step)

    def summary(self, step: int, values: Mapping[str, float]) -> None:
        """Sets numbers of the summary."""
        self._run.summary.update(dict(values))

    def close(self, *, done: bool) -> None:
        """Uploads what is left and ends the run."""
        self._run.finish(exit_code=0 if done else 1)


class MLflow(Tracker):
    """A run of MLflow, at ``MLFLOW_TRACKING_URI``; unset, MLflow uses ``mlflow.db`` here.

    Args:
        workdir: not used.
        project: the experiment; "" means ``MLFLOW_EXPERIMENT_NAME``, or "jaxpretrain".
        name: that people read.
        known: the id of the run to go on with, if it is there; "" begins one.
    """

    def __init__(self, workdir: AnyPath, project: str, name: str, known: str):
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param
        from mlflow.exceptions import MlflowException

        self._client, self._metric, self._param = MlflowClient(), Metric, Param
        self._params: set[str] = set()
        if known:
            try:
                self._params = set(self._client.get_run(known).data.params)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
            else:
                self.id = known
                self._client.update_run(known, status="RUNNING")
                return
        project = project or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "jaxpretrain"
        experiment = self._client.get_experiment_by_name(project)
        number = experiment.experiment_id if experiment else self._client.create_experiment(project)
        self.id = self._client.create_run(number, run_name=name).info.run_id

    def config(self, values: Mapping[str, Any]) -> None:
        """Logs parameters: they cannot be changed, so those of the first part of a run stay."""
        params = {mlflow_name(key): str(value)[:6000] for key, value in flatten(values).items()}
        new = [self._param(k, v) for k, v in params.items() if k not in self._params]
        for first in range(0, len(new), 100):  # the service's limit for one request
            self._client.log_batch(self.id, params=new[first : first + 100])

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Logs a step."""
        now = int(time.time() * 1000)
        metrics = [self._metric(mlflow_name(k), v, now, step) for k, v in values.items()]
        for first in range(0, len(metrics), 1000):
            self._client.log_batch(self.id, metrics=metrics[first : first + 1000])

    def summary(self, step: int, values: Mapping[str, float]) -> None:
        """Logs the numbers as of the step."""
        self.scalars(step, values)

    def close(self, *, done: bool) -> None:
        """Ends the run."""
        self._client.set_terminated(self.id, "FINISHED" if done else "KILLED")


SERVICES: dict[str, type[Wandb] | type[MLflow]] = {"wandb": Wandb, "mlflow": MLflow}
TRACKERS = ("tensorboard", *SERVICES)


def mlflow_name(text: str) -> str:
    """A name as MLflow takes it: at most 250 of the characters that it allows."""
    return re.sub(r"[^\w\-. /]", "_", text)[:250]


class InBackground(Tracker):
    """A service, told by a thread of its own, whose failures are said once and then passed over.

    Args:
        service: name of it.
        tracker: it.
        workdir: of the run, which keeps what the service has been told.
        known: what the workdir has kept so far; {} if the service is new to the run.
    """

    def __init__(self, service: str, tracker: Wandb | MLflow, workdir: AnyPath, known: dict):
        self._service, self._tracker, self._workdir = service, tracker, workdir
        self._new = known.get("id") != tracker.id
        # The last step of which it was told, in parts of the run that were cut off, and what.
        self._step = -1 if self._new else known["step"]
        self._names = set() if self._new else set(known["names"])
        self._failed = self._closed = False
        self._calls: SimpleQueue = SimpleQueue()
        self._thread = Thread(target=self._work, name=f"tracker {service}", daemon=True)
        self._thread.start()
        self._keep()

    def begin(self, step: int, void: Mapping[int, set[str]]) -> None:
        """Notes what the service has been told already, since it cannot take it back."""
        last = max(void, default=-1)
        if last >= max(self._step, 0) and not self._new:
            self._names = void[last] | (self._names if last == self._step else set())
            self._step = last
            self._keep()
        self._new = False

    def config(self, values: Mapping[str, Any]) -> None:
        """Passes the config on."""
        self._calls.put(partial(self._tracker.config, values))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Passes on what the service has not been told."""
        if step == self._step:
            values = {name: value for name, value in values.items() if name not in self._names}
        if values and step >= self._step:
            self._calls.put(partial(self._tracker.scalars, step, values))

    def summary(self, step: int, values: Mapping[str, float]) -> None:
        """Passes the numbers on."""
        self._calls.put(partial(self._tracker.summary, step, values))

    def close(self, *, done: bool) -> None:
        """Returns when the service has ended, or after `CLOSE_SECONDS`."""
        if self._closed:
            return
        self._closed = True
        self._calls.put(partial(self._tracker.close, done=done))
        self._calls.put(None)
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            self._warn(f"it has not taken all of them {CLOSE_SECONDS:g} s after the end")

    def _work(self) -> None:
        while call := self._calls.get():
            try:
                call()
            except Exception as error:
                self._warn(reason_of(error))

    def _warn(self, reason: str) -> None:
        if not self._failed:
            self._failed = True
            say(missing(self._service, reason))

    def _keep(self) -> None:
        mine = {"id": self._tracker.id, "step": self._step, "names": sorted(self._names)}
        kept = read_ids(self._workdir) | {self._service: mine}
        with access(f"write the workdir {self._workdir}"):
            write(self._workdir / IDS, json.dumps(kept, indent=2) + "\n")


def names_of(to: str) -> list[str]:
    """The trackers in a list with commas.

    Raises:
        UserError: there is none of such a name.
    """
    names = [name.strip() for name in to.split(",") if name.strip()]
    for name in names:
        if name not in TRACKERS:
            raise UserError(
                f"track.to is {to!r}: it must be some of {', '.join(TRACKERS)}, with commas, or "
                f"nothing{did_you_mean(name, TRACKERS)}"
            )
    return list(dict.fromkeys(names))


def check_installed(to: str) -> None:
    """Raises UserError unless the libraries of the trackers are there."""
    for name in names_of(to):
        spec = importlib.util.find_spec(name) if name in SERVICES else None
        # A folder of the name, such as W&B leaves, would be found too, but has no origin.
        if name in SERVICES and not (spec and spec.origin):
            raise UserError(
                f"track.to is {to!r}, and {name} is not installed: pip install "
                f"'jaxpretrain[{name}]', or set track.to to another"
            )


def open_trackers(
    folder: Path,
    workdir: AnyPath,
    config: Mapping[str, Any],
    *,
    to: str = "tensorboard",
    project: str = "",
    name: str = "",
) -> list[Tracker]:
    """The trackers of a run, which have its config; a run that goes on has those it had.

    Args:
        folder: on this machine, for files.
        workdir: of the run; keeps under which ids the services know it.
        config: nested.
        to: names, with commas.
        project: that the services put it into; "" means what their variables say.
        name: of the run; "" means the workdir's.

    Raises:
        UserError: a service cannot be opened for a run that it does not know yet. A run that it
            knows goes on without.
    """
    found: list[Tracker] = []
    for service in names_of(to):
        if service == "tensorboard":
            found.append(TensorBoard(folder / "tensorboard"))
            continue
        known = read_ids(workdir).get(service, {})
        try:
            made = SERVICES[service](workdir, project, name or workdir.name, known.get("id", ""))
        except Exception as error:
            if not known:
                raise UserError(
                    f"{service} cannot begin a run: {reason_of(error)}; mend that, or set track.to "
                    "to another"
                ) from error
            say(missing(service, reason_of(error)))
            continue
        found.append(InBackground(service, made, workdir, known))
    for tracker in found:
        tracker.config(config)
    return found


def read_ids(workdir: AnyPath) -> dict[str, dict]:
    """Under which ids the services know a run, and what they have been told.

    Raises:
        UserError: the file is damaged.
    """
    path = workdir / IDS
    with access(f"read {path}"):
        text = path.read_bytes() if path.exists() else b"{}"
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(
        isinstance(one, dict) and {"id", "step", "names"} <= one.keys() for one in found.values()
    ):
        raise UserError(f"{path} is damaged: delete it, and the trackers begin new runs")
    return found


def missing(service: str, reason: str) -> str:
    """The warning that a service was not told everything."""
    return (
        f"warning: {service} misses numbers of this run ({reason}); training goes on, and "
        "metrics.jsonl has all of them"
    )


def reason_of(error: Exception) -> str:
    """The beginning of what an error says, in one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__
