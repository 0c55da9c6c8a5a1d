"""Told to stop: noted, agreed on by all processes, and over within the time that is given."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from jax.experimental import multihost_utils

from jaxpretrain.processes import is_together

# The exit status of a run that saved and stopped because it was told to: the "temporary failure" of
# BSD's sysexits.h, after which the same command is to be run again. (A process that SIGTERM kills
# before it can save has 143 in a shell.)
PREEMPTED = 75


class Preemption:
    """Whether the run has been told to stop, by SIGTERM.

    Args:
        grace_seconds: from the signal on, after which the process ends as it is: what was saved
            last is whole, since a checkpoint gets its name when it is.
    """

    def __init__(self, grace_seconds: float):
        self._told = False

        def late() -> None:
            print(
                "preempted: could not save within checkpoint.grace_seconds = "
                f"{grace_seconds:g}; the same command goes on from the last checkpoint",
                file=sys.stderr,
                flush=True,
            )
            os._exit(PREEMPTED)

        self._timer = threading.Timer(grace_seconds, late)
        self._timer.daemon = True

    def tell(self, *_: object) -> None:
        """Notes that the run is to stop."""
        if not self._told:
            self._told = True
            self._timer.start()

    def at(self, step: int) -> bool:
        """Whether to stop after this step; every process asks after every step.

        Where there are several, the one that is told lets the others know, and all stop after the
        same step.
        """
        if is_together() and multihost_utils.reached_preemption_sync_point(step):
            self.tell()
        return self._told

    @property
    def is_urgent(self) -> bool:
        """Whether what is under way may be given up. Alone only: others would wait for us."""
        return self._told and not is_together()

    def over(self) -> None:
        """The run has ended; there is no hurry any more."""
        self._timer.cancel()
        if self._told:
            self._timer.join()


@contextmanager
def preemptible() -> Iterator[None]:
    """Within, a SIGTERM ends the process with `PREEMPTED`, for what can be done once more."""

    def stop(*_: object) -> None:
        raise SystemExit(PREEMPTED)

    alone = not is_together() and threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, stop) if alone else None
    try:
        yield
    finally:
        if alone:
            signal.signal(signal.SIGTERM, before)


@contextmanager
def preemption(grace_seconds: float) -> Iterator[Preemption]:
    """Within, a SIGTERM is noted instead of ending the process at once.

    Args:
        grace_seconds: what the scheduler leaves between SIGTERM and SIGKILL, or less.
    """
    noted = Preemption(grace_seconds)
    alone = not is_together()  # else `jax.distributed` has the signal
    main = threading.current_thread() is threading.main_thread()  # others cannot have signals
    before = signal.signal(signal.SIGTERM, noted.tell) if alone and main else None
    try:
        yield noted
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
        noted.over()
