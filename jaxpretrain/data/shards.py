"""Writes one part of a source as token shards; this is what the workers of `prepare` run.

A part gives nine files, three for each split, and then one record of them. Every file appears under
its name only when it is whole, and the record appears last: a part with a record is finished.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxpretrain.data.sources_base import Part
from jaxpretrain.data.tokenizer_base import AnyTokenizer
from jaxpretrain.errors import UserError
from jaxpretrain.storage import write

SPLITS = ("train", "validation", "test")
KINDS = ("tokens", "ends", "counts")

_FLUSH_BYTES = 1 << 19


def token_dtype(vocab_size: int) -> str:
    """The smallest little-endian dtype that holds every id."""
    return "<u2" if vocab_size <= 1 << 16 else "<u4"


def split_of(text: bytes, *, validation_fraction: float, test_fraction: float) -> str:
    """The split of a document: a function of its UTF-8 text alone, so copies stay together."""
    digest = hashlib.blake2b(text, digest_size=8, person=b"jaxpretrain").digest()
    place = int.from_bytes(digest, "little") / 2**64
    if place < test_fraction:
        return "test"
    return "validation" if place < test_fraction + validation_fraction else "train"


def write_json(path: Path, value: Any) -> None:
    """Writes JSON, whole or not at all."""
    write(path, json.dumps(value, indent=1))


def write_part(
    folder: Path,
    number: int,
    part: Part,
    *,
    fingerprint: str,
    tokenizer: AnyTokenizer,
    validation_fraction: float,
    test_fraction: float,
    report: Callable[[int, int], None] = lambda documents, text_bytes: None,
) -> dict:
    """Reads, tokenizes and writes one part.

    Each document is stored as ``[bos] tokens [eos]``; an empty one is left out and counted.

    Args:
        folder: where the source's shards lie.
        number: of the part in its source; begins the names of its files.
        fingerprint: the part's, from when the store was begun.
        report: told now and then of documents and bytes of text that are done.

    Returns:
        The record: name, fingerprint, tokenizer, splits (documents, tokens, text_bytes of each),
        files (bytes, sha256 by file name), skipped (documents by reason).

    Raises:
        UserError: bad input, or the part changed since the store was begun.
    """
    shards = {s: _Shard(folder / f"{number:05d}-{s}", tokenizer, report) for s in SPLITS}
    skipped: Counter = Counter()
    for text, _ in part.documents(skipped):
        if text:
            split = split_of(
                text, validation_fraction=validation_fraction, test_fraction=test_fraction
            )
            shards[split].add(text)
        else:
            skipped["empty"] += 1
    if part.fingerprint() != fingerprint:
        raise UserError(f"{part.name} changed while it was read; run prepare again")
    files = [file for shard in shards.values() for file in shard.finish()]
    for file in files:
        file.publish()
    record = {
        "name": part.name,
        "fingerprint": fingerprint,
        "tokenizer": tokenizer.sha256,
        "splits": {split: shard.totals for split, shard in shards.items()},
        "files": {file.path.name: file.summary for file in files},
        "skipped": dict(sorted(skipped.items())),
    }
    write_json(record_path(folder, number), record)
    return record


def record_path(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.json"


def finished_record(
    folder: Path, number: int, *, fingerprint: str, tokenizer_sha256: str
) -> dict | None:
    """The record of a part that an earlier run finished, if its files are still in place."""
    try:
        record = json.loads(record_path(folder, number).read_bytes())
        same = record["fingerprint"] == fingerprint and record["tokenizer"] == tokenizer_sha256
        sizes = [(folder / name).stat().st_size for name in record["files"]]
        whole = sizes == [file["bytes"] for file in record["files"].values()]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return record if same and whole else None


class HashedFile:
    """A file that is written under a temporary name, hashed on the way, and then published."""

    def __init__(self, path: Path):
        self.path = path
        self.summary: dict[str, Any] = {}
        self._temporary = path.with_name(path.name + ".tmp")
        self._file = open(self._temporary, "wb")
        self._hash = hashlib.sha256()

    def write(self, data: bytes | np.ndarray) -> None:
        self._file.write(data)
        self._hash.update(data)

    def finish(self) -> None:
        """Brings the file to the disk, closes it, and fills in `summary`."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self.summary = {"bytes": self._file.tell(), "sha256": self._hash.hexdigest()}
        self._file.close()

    def publish(self) -> None:
        """Gives the finished file its name."""
        os.replace(self._temporary, self.path)


class _Shard:
    """The three files of one part × split. Texts are tokenized many at a time."""

    def __init__(self, stem: Path, tokenizer: AnyTokenizer, report: Callable[[int, int], None]):
        self.totals = {"documents": 0, "tokens": 0, "text_bytes": 0}
        self._tokenizer, self._report = tokenizer, report
        self._vocab = tokenizer.vocab
        self._dtype = token_dtype(self._vocab.size)
        self._files = {kind: HashedFile(stem.with_name(f"{stem.name}.{kind}")) for kind in KINDS}
        self._counts = np.zeros(self._vocab.size, np.int64)
        self._texts: list[bytes] = []
        self._bytes = 0

    def add(self, text: bytes) -> None:
        self._texts.append(text)
        self._bytes += len(text)
        if self._bytes >= _FLUSH_BYTES:
            self._flush()

    def finish(self) -> list[HashedFile]:
        self._flush()
        self._files["counts"].write(self._counts.astype("<i8"))
        for file in self._files.values():
            file.finish()
        return list(self._files.values())

    def _flush(self) -> None:
        if not self._texts:
            return
        stream, ends = framed(
            *self._tokenizer.encode_flat(self._texts), self._vocab.bos, self._vocab.eos
        )
        self._counts += np.bincount(stream, minlength=self._vocab.size)
        self._files["tokens"].write(stream.astype(self._dtype))
        self._files["ends"].write((ends + self.totals["tokens"]).astype("<i8"))
        self.totals["documents"] += len(ends)
        self.totals["tokens"] += len(stream)
        self.totals["text_bytes"] += self._bytes
        self._report(len(ends), self._bytes)
        self._texts, self._bytes = [], 0


def framed(flat: np.ndarray, ends: np.ndarray, bos: int, eos: int) -> tuple[np.ndarray, np.ndarray]:
    """Puts bos before and eos after each document of a flat stream.

    Args:
        flat: [tokens] the documents' ids end to end.
        ends: [documents] where each ends.

    Returns:
        The same with the two ids added: [tokens + 2 documents], [documents].
    """
    last = ends + 2 * np.arange(1, len(ends) + 1) - 1
    first = np.concatenate([[0], last[:-1] + 1])
    stream = np.empty(len(flat) + 2 * len(ends), flat.dtype)
    content = np.ones(len(stream), bool)
    content[first] = content[last] = False
    stream[content] = flat
    stream[first], stream[last] = bos, eos
    return stream, last + 1
