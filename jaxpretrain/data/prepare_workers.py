"""Runs the tasks of `prepare`, one part each, in this process or in several."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for_end
from pathlib import Path
from typing import Any, NamedTuple

from jaxpretrain.data.progress import Progress
from jaxpretrain.data.shards import Stopped, write_part
from jaxpretrain.data.sources_base import Part
from jaxpretrain.data.store import TOKENIZER
from jaxpretrain.data.tokenizer import Tokenizer
from jaxpretrain.errors import UserError

_DOCUMENTS, _TEXT_BYTES, _STOP = range(3)
_SECONDS_BETWEEN_LOOKS = 0.5

_worker: dict[str, Any] = {}  # what `_start_worker` sets up, once in each worker process


class Task(NamedTuple):
    """One part to write, with the fingerprint that it must still have afterwards."""

    source: str
    number: int
    part: Part
    fingerprint: str


def write_parts(
    path: Path,
    tasks: Sequence[Task],
    tokenizer: Tokenizer,
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


def _write_here(path, tasks, tokenizer, split, shown) -> Iterator[tuple[Task, dict]]:
    totals = [0, 0]

    def report(documents: int, text_bytes: int) -> None:
        totals[_DOCUMENTS] += documents
        totals[_TEXT_BYTES] += text_bytes
        shown.update(documents=totals[_DOCUMENTS], text_bytes=totals[_TEXT_BYTES])

    for task in tasks:
        yield task, _write(path, task, tokenizer, split, report)
        shown.update(parts=1, documents=totals[_DOCUMENTS], text_bytes=totals[_TEXT_BYTES])


def _write_in_processes(path, tasks, split, workers, shown) -> Iterator[tuple[Task, dict]]:
    context = multiprocessing.get_context("spawn")  # a fork would copy the threads' locks, not them
    counters = context.Array("q", 3)
    executor = ProcessPoolExecutor(
        workers, context, initializer=_start_worker, initargs=(path, split, counters, tasks)
    )
    try:
        # By number: where a worker dies, a thread that writes it a large task waits for ever
        # (CPython issue 94777, in Debian 12), and the main process with it.
        waiting = {executor.submit(_run_task, n): task for n, task in enumerate(tasks)}
        while waiting:
            done, _ = wait(waiting, _SECONDS_BETWEEN_LOOKS, FIRST_COMPLETED)
            for future in done:
                yield waiting.pop(future), future.result()
            documents, text_bytes, _ = counters[:]
            shown.update(parts=len(done), documents=documents, text_bytes=text_bytes)
    except BrokenProcessPool:
        raise UserError(
            "a worker process died (killed, perhaps for lack of memory); run prepare again, which "
            "goes on with what is missing, with fewer workers"
        ) from None
    finally:
        counters[_STOP] = 1
        executor.shutdown(cancel_futures=True)


def _start_worker(path: Path, split: dict[str, float], counters, tasks: list[Task]) -> None:
    """Sets up a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process stops the workers
    threading.Thread(target=_die_with_parent, daemon=True).start()

    def report(documents: int, text_bytes: int) -> None:
        with counters.get_lock():
            counters[_DOCUMENTS] += documents
            counters[_TEXT_BYTES] += text_bytes
            if counters[_STOP]:
                raise Stopped

    tokenizer = Tokenizer.load(path / TOKENIZER)
    _worker.update(path=path, tasks=tasks, tokenizer=tokenizer, split=split, report=report)


def _die_with_parent() -> None:
    """A worker whose parent was killed would wait for tasks for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for_end([parent.sentinel])
        os._exit(1)


def _run_task(number: int) -> dict:
    task = _worker["tasks"][number]
    return _write(_worker["path"], task, _worker["tokenizer"], _worker["split"], _worker["report"])


def _write(
    path: Path,
    task: Task,
    tokenizer: Tokenizer,
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
