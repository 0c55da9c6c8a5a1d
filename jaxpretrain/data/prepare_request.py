"""What a store is prepared from, written down so that a later `prepare` can tell if it is the same.

The request (sources with the fingerprints of their parts, tokenizer, split fractions) is the first
file of a store. A `prepare` with an equal request resumes; one with another request must say that
it means to overwrite.
"""

import dataclasses
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from jaxpretrain.data.shards import write_json
from jaxpretrain.data.sources_base import Part, Source
from jaxpretrain.data.store import FORMAT, MANIFEST, REQUEST, TOKENIZER, read_manifest
from jaxpretrain.data.tokenizer import SMALLEST_VOCAB
from jaxpretrain.data.tokenizer_load import load_tokenizer
from jaxpretrain.errors import UserError

_SOURCE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def make_request(
    sources: Mapping[str, Source],
    parts: Mapping[str, Sequence[Part]],
    *,
    split: dict[str, float],
    tokenizer: dict,
) -> dict:
    """The request, in values that JSON keeps as they are."""
    return {
        "format": FORMAT,
        "split": split,
        "tokenizer": tokenizer,
        "sources": {name: _describe(source, parts[name]) for name, source in sources.items()},
    }


def check_arguments(
    sources: Mapping[str, Source], *, validation_fraction: float, test_fraction: float, workers: int
) -> None:
    """Raises UserError for arguments of `prepare` that make no sense."""
    if not sources:
        raise UserError("there is no source to prepare from; name at least one")
    for name in sources:
        if not _SOURCE_NAME.fullmatch(name):
            raise UserError(
                f"source name {name!r} cannot be a folder's name; use letters, digits, _ . -"
            )
    if min(validation_fraction, test_fraction) < 0 or validation_fraction + test_fraction >= 1:
        raise UserError(
            f"validation_fraction {validation_fraction} and test_fraction {test_fraction} must be "
            "at least 0 and together less than 1"
        )
    if workers < 0:
        raise UserError(f"workers is {workers}; give a number of processes, or 0 for all cores")


def tokenizer_request(
    *,
    vocab_size: int = 8192,
    kind: Literal["unigram", "bpe"] = "unigram",
    character_coverage: float = 0.9995,
    train_bytes: int = 20_000_000,
    file: str = "",
) -> tuple[dict, str]:
    """What identifies the tokenizer, and the file to load it from if there is one."""
    if file:
        return {"file_sha256": load_tokenizer(file).sha256}, file
    if vocab_size < SMALLEST_VOCAB:
        raise UserError(
            f"tokenizer.vocab_size is {vocab_size}: special pieces, newline and bytes alone are "
            f"{SMALLEST_VOCAB}, and text needs some more"
        )
    if train_bytes < 1:
        raise UserError(f"tokenizer.train_bytes is {train_bytes}; it must be positive")
    arguments = {"vocab_size": vocab_size, "kind": kind, "character_coverage": character_coverage}
    return {**arguments, "train_bytes": train_bytes}, ""


def _describe(source: Source, parts: Sequence[Part]) -> dict:
    options = dataclasses.asdict(source) if dataclasses.is_dataclass(source) else {}
    return {
        "type": type(source).__name__,
        "options": json.loads(json.dumps(options, default=str)),
        "parts": [[part.name, part.fingerprint()] for part in parts],
    }


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Makes the folder and keeps a second `prepare` out of it; the lock dies with the process."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"cannot make the token store {path}: {error.strerror}") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another prepare is at work on {path}; wait for it") from None
        except OSError:
            pass  # some network file systems have no locks
        yield
    finally:
        os.close(descriptor)


def begin(path: Path, request: dict, overwrite: bool) -> bool:
    """Checks that the folder is this request's, or makes it so. True if a manifest is there."""
    earlier = _earlier_request(path)
    if earlier is None:
        if any(not entry.name.endswith(".tmp") for entry in path.iterdir()):
            raise UserError(f"{path} is not empty and holds no token store; choose another folder")
    elif earlier == request:
        for left in path.glob("*/*.tmp"):
            left.unlink()
        if not (path / REQUEST).exists():
            write_json(path / REQUEST, request)
        return (path / MANIFEST).exists()
    elif (path / MANIFEST).exists() and not overwrite:
        raise UserError(
            f"token store {path} was prepared from something else: "
            f"{_difference(earlier, request)}; choose another folder, or give --overwrite"
        )
    else:  # a store that was never finished is begun anew: its input was mended, say
        (path / MANIFEST).unlink(missing_ok=True)
        for name in filter(_SOURCE_NAME.fullmatch, earlier["sources"]):
            shutil.rmtree(path / name, ignore_errors=True)
        (path / TOKENIZER).unlink(missing_ok=True)
    write_json(path / REQUEST, request)
    return False


def _earlier_request(path: Path) -> dict | None:
    try:
        return json.loads((path / REQUEST).read_bytes())
    except (OSError, ValueError):
        pass
    try:
        return read_manifest(path)["request"]
    except UserError:
        return None


def _difference(earlier: dict, request: dict) -> str:
    """The first difference between two requests, in words."""
    for name in sorted(earlier["sources"].keys() | request["sources"].keys()):
        if name not in earlier["sources"]:
            return f"source {name!r} was not in it"
        if name not in request["sources"]:
            return f"it has a source {name!r}"
        old, new = earlier["sources"][name], request["sources"][name]
        for key in ("type", "options"):
            if old[key] != new[key]:
                return f"source {name!r} was {old['type']} {old['options']}"
        if len(old["parts"]) != len(new["parts"]):
            return f"source {name!r} had {len(old['parts'])} parts, now {len(new['parts'])}"
        for was, now in zip(old["parts"], new["parts"], strict=True):
            if was != now:
                return f"{now[0]} of source {name!r} has changed"
    for group in ("tokenizer", "split", "format"):
        if earlier[group] != request[group]:
            return f"{group} was {earlier[group]}, now {request[group]}"
    return "the order of the sources"
