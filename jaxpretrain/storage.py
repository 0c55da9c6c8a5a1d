"""Folders and files, on a disk or in an object store (``gs://``), by one interface.

In an object store a file appears whole or not at all; it cannot be appended to, mapped into memory
or locked. What needs these has a local copy (`data.store_copy`, `metrics`) or a lease (`lease`).
"""

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from etils import epath

from jaxpretrain.errors import UserError

AnyPath = Path | epath.Path

# epath looks at this at its first use: one client for gs://, with TensorFlow installed or not.
os.environ.setdefault("EPATH_USE_TF", "false")

# Whose errors say that an object store could not be reached or would not do it.
_CLIENTS = {"gcsfs", "google", "aiohttp", "requests", "fsspec"}


def path_of(text: str | os.PathLike) -> AnyPath:
    """A path of a disk, or of an object store where the text is a URL.

    Raises:
        UserError: another kind of URL, or the library that opens it is not installed.
    """
    text = os.fspath(text)
    if not text:
        raise UserError("a path is empty: is a variable of the shell not set?")
    scheme, colon, _ = text.partition("://")
    if not colon:
        return Path(text)
    if scheme != "gs":  # Orbax writes to no other
        raise UserError(
            f"{text}: a path is local or begins with gs://; other object stores can be mounted as "
            "folders"
        )
    _client()
    return epath.Path(text)


def is_remote(path: AnyPath) -> bool:
    """Whether a path is of an object store."""
    return "://" in os.fspath(path)


def is_of_client(error: Exception) -> bool:
    """Whether an error comes from the client of an object store."""
    return type(error).__module__.split(".")[0] in _CLIENTS


@contextmanager
def access(what: str) -> Iterator[None]:
    """Within, a failure of the disk or the object store is a UserError: "cannot WHAT: reason"."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, OSError) and not is_of_client(error):
            raise
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        raise UserError(f"cannot {what}: {reason or type(error).__name__}") from error


def copy(source: AnyPath, target: AnyPath) -> None:
    """Copies a file, from or to wherever; a local target appears whole or not at all."""
    if is_remote(target):
        with source.open("rb") as read, target.open("wb") as write:
            shutil.copyfileobj(read, write, 1 << 23)
        return
    with source.open("rb") as read, _whole(target) as write:
        shutil.copyfileobj(read, write, 1 << 23)


def move(folder: AnyPath, target: AnyPath) -> None:
    """Moves a folder to where there is none, within one disk or object store."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not is_remote(folder):
        folder.rename(target)
        return
    from fsspec.core import url_to_fs

    files, source = url_to_fs(os.fspath(folder))
    _, there = url_to_fs(os.fspath(target))
    names = files.find(source)
    for name in names:
        files.cp_file(name, there + name.removeprefix(source))
    for name in names:
        files.rm_file(name)


def json_object(path: AnyPath, advice: str = "") -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        path: of the file.
        advice: what to do where it holds something else, as the end of the message.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    with access(f"read {path}"):
        text = path.read_bytes().decode(errors="replace")
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged: it is not a JSON object{advice}")
    return value


def write(path: AnyPath, data: str | bytes) -> None:
    """Writes a file whole or not at all; text as UTF-8."""
    data = data.encode() if isinstance(data, str) else data
    if is_remote(path):
        path.write_bytes(data)
        return
    with _whole(path) as file:
        file.write(data)


@contextmanager
def _whole(path: Path) -> Iterator[BinaryIO]:
    """A local file that gets its name when it is whole, however many write it at a time."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def cache_folder() -> Path:
    """Where this machine keeps copies: ``$XDG_CACHE_HOME/jaxpretrain``, or in ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "jaxpretrain"


@cache
def _client() -> None:
    """Sees to it that gs:// can be opened."""
    try:
        import fsspec
        import gcsfs  # noqa: F401
    except ImportError:
        raise UserError("gs:// paths need gcsfs: pip install 'jaxpretrain[gcs]'") from None
    # Other processes, and Orbax, write too: what was listed a while ago is not what is there.
    for name in ("gs", "gcs"):
        fsspec.config.conf.setdefault(name, {})["use_listings_cache"] = False
