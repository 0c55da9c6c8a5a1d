"""Runs the tasks of `prepare`, one part each, in this process or in several."""

import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import NamedTuple

from jaxpretrain.data.progress import Progress
from jaxpretrain.data.shards import write_part
from jaxpretrain.data.sources_base import Part
from jaxpretrain.data.store import TOKENIZER
from jaxpretrain.data.tokenizer_base import AnyTokenizer
from jaxpretrain.data.tokenizer_load import load_tokenizer
from jaxpretrain.errors import UserError

_READY, _REPORT, _DONE, _FAILED = "ready", "report", "done", "failed"  # what a worker says


class Task(NamedTuple):
    """One part to write, with the fingerprint that it must still have afterwards."""

    source: str
    number: int
    part: Part
    fingerprint: str


def write_parts(
    path: Path,
    tasks: Sequence[Task],
    tokenizer: AnyTokenizer,
    split: dict[str, float],
    workers: int,
    shown: Progress,
) -> Iterator[tuple[Task, dict]]:
    """Writes the parts and yields each with its record, in any order.

    Args:
        path: the store's folder, with the tokenizer and the sources' folders in it.
        split: the fractions that `shards.split_of` takes.
        workers: processes, 0 for one on each core. One worker, or one task, needs no process.

    Raises:
        UserError: the first that a part raised, or that a worker died. Parts that were finished
            stay; the others are given up at once.
    """
    workers = min(workers or _cores(), len(tasks))
    if workers <= 1:
        yield from _write_here(path, tasks, tokenizer, split, shown)
    else:
        yield from _write_in_processes(path, tasks, split, workers, shown)


def _cores() -> int:
    """Cores that this process may use, where the system tells."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Totals:
    """Counts what the tasks report, and shows it."""

    def __init__(self, shown: Progress):
        self._shown = shown
        self._documents = self._text_bytes = 0

    def report(self, documents: int, text_bytes: int) -> None:
        self._documents += documents
        self._text_bytes += text_bytes
        self.show()

    def show(self, parts: int = 0) -> None:
        self._shown.update(parts=parts, documents=self._documents, text_bytes=self._text_bytes)


def _write_here(path, tasks, tokenizer, split, shown) -> Iterator[tuple[Task, dict]]:
    totals = _Totals(shown)
    for task in tasks:
        yield task, _write(path, task, tokenizer, split, totals.report)
        totals.show(parts=1)


def _write_in_processes(path, tasks, split, workers, shown) -> Iterator[tuple[Task, dict]]:
    """Each worker has a connection of its own, over which it gets one task at a time.

    Nothing is shared, so that a worker that is killed takes no lock with it; its connection ends.
    """
    context = multiprocessing.get_context("spawn")  # a fork would copy the threads' locks, not them
    totals = _Totals(shown)
    processes: list[multiprocessing.Process] = []
    connections: list[Connection] = []
    doing: dict[Connection, Task] = {}
    coming = iter(tasks)
    unfinished = len(tasks)
    try:
        for _ in range(workers):
            ours, theirs = context.Pipe()
            connections.append(ours)
            process = context.Process(target=_work, args=(theirs, path, split), daemon=True)
            with theirs:
                process.start()
            processes.append(process)
        while unfinished:
            for connection in wait(connections):
                kind, *content = connection.recv()
                if kind == _REPORT:
                    totals.report(*content)
                    continue
                if kind == _FAILED:
                    raise content[0]
                if kind == _DONE:
                    yield doing.pop(connection), content[0]
                    unfinished -= 1
                    totals.show(parts=1)
                if (task := next(coming, None)) is not None:
                    doing[connection] = task
                    connection.send(task)
    except (EOFError, ConnectionError):
        raise UserError(
            "a worker process died (killed, perhaps for lack of memory); run prepare again, which "
            "goes on with what is missing, with fewer workers"
        ) from None
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.join()
        for connection in connections:
            connection.close()


def _work(connection: Connection, path: Path, split: dict[str, float]) -> None:
    """A worker process: writes the tasks that come until it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process stops the workers
    threading.Thread(target=_die_with_parent, daemon=True).start()
    try:
        tokenizer = load_tokenizer(path / TOKENIZER)
        connection.send((_READY,))
        while True:
            record = _write(
                path, connection.recv(), tokenizer, split, lambda *n: connection.send((_REPORT, *n))
            )
            connection.send((_DONE, record))
    except UserError as error:
        failure = error
    except Exception:  # whatever it is, and whether or not it can be pickled
        failure = RuntimeError(f"in a worker process:\n{traceback.format_exc()}")
    with contextlib.suppress(ConnectionError):  # the main process is gone
        connection.send((_FAILED, failure))


def _die_with_parent() -> None:
    """A worker whose parent was killed would write on, beside those of the next prepare."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _write(
    path: Path,
    task: Task,
    tokenizer: AnyTokenizer,
    split: dict[str, float],
    report: Callable[[int, int], None],
) -> dict:
    return write_part(
        path / task.source,
        task.number,
        task.part,
        fingerprint=task.fingerprint,
        tokenizer=tokenizer,
        report=report,
        **split,
    )
