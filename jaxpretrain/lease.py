"""A lock where the file system has none: a file that whoever holds it keeps renewing."""

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from jaxpretrain.storage import AnyPath, write

SECONDS = 60.0  # a holder that has not renewed for so long is dead


class Held(Exception):
    """Somebody else holds the lease; the message says who."""


@contextmanager
def lease(
    path: AnyPath,
    owner: str,
    *,
    seconds: float = SECONDS,
    say: Callable[[str], None] = print,
) -> Iterator[Callable[[], bool]]:
    """Holds the lease that a file stands for, and deletes the file at the end.

    A file that is there already is watched for as long as a lease lasts. If it changes meanwhile,
    its holder lives; otherwise the holder died without letting go, and the lease is taken over.
    Clocks of different machines are never compared.

    Args:
        path: of the file.
        owner: in words, for whoever finds it held.
        seconds: how long a lease lasts without renewal.
        say: is told that there is something to wait for.

    Yields:
        A function that says whether the lease is still ours: one that was not renewed in time,
        because the machine slept for example, may have been taken over.

    Raises:
        Held: another has it.
        Exception: of the file system or the object store; see `storage.access`.
    """
    ours = uuid.uuid4().hex
    found = _read(path)
    if found:
        who = found.get("owner", "unknown")
        say(f"{path} is of {who}: watching for {seconds:.0f} s whether it is still at work")
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            time.sleep(seconds / 12)
            if _read(path) not in (found, {}):
                raise Held(who)
    count = 0

    def renew() -> None:
        nonlocal count
        count += 1
        write(path, json.dumps({"id": ours, "owner": owner, "count": count}) + "\n")

    def is_ours() -> bool:
        return _read(path).get("id") == ours

    def keep() -> None:
        while not done.wait(seconds / 6):
            try:
                if not is_ours():
                    return
                renew()
            except Exception:  # out of reach for a while: the next time, or too late and then seen
                continue

    renew()
    # Of two that come at once, the one that wrote last has it.
    time.sleep(seconds / 60)
    if not is_ours():
        raise Held(_read(path).get("owner", "unknown"))
    done = threading.Event()
    thread = threading.Thread(target=keep, daemon=True)
    thread.start()
    try:
        yield is_ours
    finally:
        done.set()
        thread.join()
        with suppress(Exception):  # it ends by itself, if later
            if is_ours():
                path.unlink()


def _read(path: AnyPath) -> dict:
    """What the file says; empty if there is none. A damaged one is of an unknown owner."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return {}
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError):
        return {"text": text}
