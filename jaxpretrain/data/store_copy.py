"""Token stores in an object store: each machine reads its own copy, which it maps into memory."""

import fcntl
import hashlib
import json
import re
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from jaxpretrain.data.store import MANIFEST, read_manifest
from jaxpretrain.errors import UserError
from jaxpretrain.storage import AnyPath, access, cache_folder, copy, is_remote

_AT_ONCE = 16


def folder_of(path: AnyPath, cache: str = "") -> Path:
    """Where on this machine a store is read and prepared.

    Args:
        path: of the store, anywhere.
        cache: folder for copies; "" means the user's cache.

    Returns:
        The path itself if it is local.
    """
    if not is_remote(path):
        return path
    name = re.sub(r"\W+", "-", str(path).partition("://")[2]).strip("-")
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:10]
    return (Path(cache) if cache else cache_folder() / "stores") / f"{name[-60:]}-{digest}"


def exists(path: AnyPath) -> bool:
    """Whether there is a finished store at a path."""
    with access(f"look for a token store at {path}"):
        return (path / MANIFEST).exists()


def fetch(path: AnyPath, folder: Path) -> None:
    """Makes a folder a copy of a store, of which it may have a part, or an earlier state.

    Every file is compared with the SHA-256 in the manifest as it arrives.

    Raises:
        UserError: the store cannot be read or is damaged, or the disk has no room.
    """
    if not is_remote(path):
        return
    with _alone(folder):
        with access(f"read the token store {path}"):
            raw = (path / MANIFEST).read_bytes()
        new = folder / f"{MANIFEST}.tmp"
        with access(f"write {folder}"):
            new.write_bytes(raw)
            files = read_manifest(folder, new.name)["files"]
            same = (folder / MANIFEST).exists() and (folder / MANIFEST).read_bytes() == raw
            # What another store has left, or a copy that was cut off, is only known by its sums.
            missing = {
                name: file
                for name, file in files.items()
                if not _is_there(folder / name, file, by_size=same)
            }
            if missing:
                (folder / MANIFEST).unlink(missing_ok=True)
        if missing:
            _fetch_files(path, folder, missing)
        new.replace(folder / MANIFEST)


def publish(folder: Path, path: AnyPath) -> None:
    """Makes a path a copy of a finished store; files that are there already are left.

    Raises:
        UserError: it cannot be written.
    """
    if not is_remote(path):
        return
    raw = (folder / MANIFEST).read_bytes()
    files = read_manifest(folder)["files"]
    with access(f"write the token store {path}"):
        old: dict[str, dict] = {}
        if (path / MANIFEST).exists():
            if (path / MANIFEST).read_bytes() == raw:
                return
            old = json.loads((path / MANIFEST).read_bytes()).get("files", {})
            (path / MANIFEST).unlink()
        new = [name for name, file in files.items() if old.get(name) != file]
        _say(f"writing {_size(files[name] for name in new)} to {path}")
        for name in {name.rpartition("/")[0] for name in new}:
            (path / name).mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(lambda name: copy(folder / name, path / name), new))
        for name in old.keys() - files.keys():
            (path / name).unlink(missing_ok=True)
        (path / MANIFEST).write_bytes(raw)  # last: what has a manifest is whole


def _fetch_files(path: AnyPath, folder: Path, files: dict[str, dict]) -> None:
    need, free = sum(file["bytes"] for file in files.values()), shutil.disk_usage(folder).free
    if need > free:
        raise UserError(
            f"the token store {path} needs {need / 1e9:.1f} GB here, and {folder} has "
            f"{free / 1e9:.1f} GB free: make room, or set store.cache to another folder"
        )
    _say(f"copying {_size(files.values())} of {path} to {folder}")

    def one(name: str) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        copy(path / name, folder / name)
        if not _is_there(folder / name, files[name]):
            (folder / name).unlink()
            raise UserError(f"token store {path}: {name} is damaged (its SHA-256 differs)")

    with access(f"read the token store {path}"), ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(one, files))


def _is_there(path: Path, file: dict, *, by_size: bool = False) -> bool:
    if not path.is_file() or path.stat().st_size != file["bytes"]:
        return False
    if by_size:
        return True
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest() == file["sha256"]


def _size(files) -> str:
    files = list(files)
    return f"{len(files)} files ({sum(file['bytes'] for file in files) / 1e6:,.1f} MB)"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Makes the folder; the processes of one machine take turns."""
    with access(f"write {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder.parent / f"{folder.name}.lock").open("w")
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
