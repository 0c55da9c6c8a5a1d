"""Where the numbers of a run go: the terminal, ``metrics.jsonl`` and trackers."""

import json
import math
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax

from jaxpretrain.chips import chip_of
from jaxpretrain.processes import is_first
from jaxpretrain.storage import AnyPath, access, copy, is_remote, write
from jaxpretrain.trackers import Tracker

FLUSH_EVERY = 60.0  # seconds: to the trackers' files, and to an object store


def peak_flops() -> float | None:
    """Peak 16-bit operations per second of all the devices together; None where unknown."""
    chip = chip_of(jax.devices()[0].device_kind)
    return chip.flops * jax.device_count() if chip else None


class MetricsLog:
    """Writes one JSON object per logged step to ``metrics.jsonl``, and tells the trackers the same.

    A file in an object store cannot grow: there the log is kept on this machine, and copied now
    and then.

    Args:
        workdir: folder of the run.
        step: the step that the run starts from; lines after it, of a run that was cut off before
            it could save, are dropped, so that no step is logged twice. An evaluated step
            has a second line, with the held-out numbers.
        trackers: opens them, for a folder on this machine that their files go to.
        check: called before anything is copied to an object store; raises if that is not to be.
    """

    def __init__(
        self,
        workdir: AnyPath,
        step: int,
        trackers: Callable[[Path], list[Tracker]],
        check: Callable[[], None] | None = None,
    ):
        self._check = check
        self._workdir = workdir
        self._spool = TemporaryDirectory() if is_remote(workdir) else None
        self._folder = Path(self._spool.name) if self._spool else workdir
        self._trackers = trackers(self._folder)
        self._begin(read_metrics(workdir), step)

    def _begin(self, rows: list[dict], step: int) -> None:
        self._flushed = time.monotonic()
        kept, void = [], defaultdict(set)
        for row in rows:
            if row["step"] <= step:
                kept.append(row)
            else:
                void[row["step"]] |= row.keys()
        path = self._folder / "metrics.jsonl"
        with access(f"write the workdir {self._workdir}"):
            write(path, "".join(json.dumps(row) + "\n" for row in kept))
            self._file = path.open("a")
            for tracker in self._trackers:
                tracker.begin(step, void)
        self.seconds = next((row["seconds"] for row in reversed(kept) if "seconds" in row), 0.0)

    def rewind(self, step: int) -> None:
        """Goes back to a step; what was logged after it is dropped."""
        self._file.close()
        self._begin(read_metrics(self._folder), step)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Appends the values of a step; what is no finite number is null, and not tracked."""
        values = finite(values)
        numbers = {name: x for name, x in values.items() if isinstance(x, int | float)}
        with access(f"write the workdir {self._workdir}"):
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
            for tracker in self._trackers:
                tracker.scalars(step, numbers)
        if time.monotonic() - self._flushed >= FLUSH_EVERY:
            self.flush()

    def summary(self, step: int, values: Mapping[str, float | None]) -> None:
        """Tells the trackers what came out in the end, measured after a step."""
        numbers = {name: x for name, x in finite(values).items() if x is not None}
        for tracker in self._trackers:
            tracker.summary(step, numbers)

    def flush(self) -> None:
        """Returns when all that was written is in the workdir."""
        self._flushed = time.monotonic()
        with access(f"write the workdir {self._workdir}"):
            for tracker in self._trackers:
                tracker.flush()
            if not self._spool:
                return
            if self._check:
                self._check()
            for file in (self._folder / "metrics.jsonl", *self._folder.glob("tensorboard/*")):
                target = self._workdir / file.relative_to(self._folder).as_posix()
                target.parent.mkdir(parents=True, exist_ok=True)
                copy(file, target)

    def close(self, *, done: bool = False) -> None:
        """Flushes and closes the files and the trackers; again, does nothing.

        Args:
            done: whether the run has come to its end, or else was cut off.
        """
        if self._file.closed:
            return
        with access(f"write the workdir {self._workdir}"):
            self._file.close()
            try:
                self.flush()
            finally:
                for tracker in self._trackers:
                    tracker.close(done=done)
        if self._spool:
            self._spool.cleanup()


class SilentLog:
    """A log that keeps nothing, for the processes that do not write."""

    seconds = 0.0

    def rewind(self, step: int) -> None:
        """Has nothing to drop."""

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Keeps nothing."""

    def summary(self, step: int, values: Mapping[str, float | None]) -> None:
        """Keeps nothing."""

    def flush(self) -> None:
        """Has nothing to write."""

    def close(self, *, done: bool = False) -> None:
        """Has nothing to close."""


def open_log(
    workdir: AnyPath,
    step: int,
    trackers: Callable[[Path], list[Tracker]],
    check: Callable[[], None] | None = None,
) -> MetricsLog | SilentLog:
    """The log of a run from a step on, which only the first process writes; see `MetricsLog`."""
    return MetricsLog(workdir, step, trackers, check) if is_first() else SilentLog()


def read_metrics(workdir: AnyPath) -> list[dict]:
    """The lines of a run's ``metrics.jsonl`` that are whole: a run may die while it writes one."""
    path = workdir / "metrics.jsonl"
    rows = []
    with access(f"read {path}"):
        text = path.read_bytes().decode(errors="replace") if path.exists() else ""
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def finite(value: Any) -> Any:
    """Values, nested or not, with None for what JSON has no number for."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Clock:
    """Seconds spent training, over all parts of a run.

    Args:
        seconds: of the parts before.
    """

    def __init__(self, seconds: float):
        self._start = time.perf_counter() - seconds
        self._stopped: float | None = None
        self._last, self._last_step = seconds, None

    @property
    def seconds(self) -> float:
        """Up to now, or to the beginning of the pause."""
        return (self._stopped or time.perf_counter()) - self._start

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A context in which the clock stands still."""
        self._stopped = time.perf_counter()
        try:
            yield
        finally:
            self._start += time.perf_counter() - self._stopped
            self._stopped = None

    def speed(self, step: int, tokens: int, flops: int, peak: float | None) -> dict[str, Any]:
        """The numbers of a step about time, with the speed since the last time that it was asked.

        Args:
            step: number of the step.
            tokens: of a step.
            flops: of a step.
            peak: of the devices, in operations per second; None if unknown.
        """
        seconds = self.seconds
        values: dict[str, Any] = {"tokens": step * tokens, "seconds": seconds}
        if self._last_step is None:
            self._last_step = step - 1 if seconds > self._last else step
        if step > self._last_step:
            each = (seconds - self._last) / (step - self._last_step)
            values |= {"step_seconds": each, "tokens_per_second": tokens / each}
            values["mfu"] = flops / each / peak if peak else None
        self._last, self._last_step = seconds, step
        return values


class Progress:
    """A progress bar in a terminal, plain lines elsewhere.

    Args:
        total: steps of the run.
        step: the step that it starts from.
        every: seconds between two plain lines, at least.
        quiet: show nothing.
    """

    def __init__(self, total: int, step: int, every: float = 5.0, *, quiet: bool = False):
        from tqdm import tqdm

        self._quiet = quiet
        self._terminal = sys.stderr.isatty() and not quiet
        self._bar = tqdm(
            total=total, initial=step, unit="step", disable=not self._terminal, dynamic_ncols=True
        )
        self._total, self._every, self._last = total, every, 0.0

    def advance(self) -> None:
        """One more step is under way."""
        self._bar.update(1)

    def show(self, step: int, values: Mapping[str, float | None], *, always: bool = False) -> None:
        """Shows the values of a step."""
        text = "  ".join(f"{k} {_short(v)}" for k, v in values.items() if v is not None)
        if self._terminal:
            self._bar.set_postfix_str(text)
        elif self._quiet:
            return
        elif always or time.monotonic() - self._last >= self._every:
            self._last = time.monotonic()
            print(f"step {step}/{self._total}  {text}", flush=True)

    def rewind(self, step: int) -> None:
        """Goes back to a step."""
        self._bar.n = step
        self._bar.refresh()

    def close(self) -> None:
        """Ends the bar."""
        self._bar.close()


def _short(value: float) -> str:
    if value == 0 or 0.001 <= abs(value) < 10_000:
        return f"{value:.4g}"
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.2e}"
