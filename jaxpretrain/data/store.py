"""The token store: what `prepare` wrote, read through memory maps.

    manifest.json
    tokenizer.model                   of either kind: `tokenizer_load` tells by the content
    prepare.json                      what `prepare` was asked for
    <source>/<part>-<split>.tokens    uint16 or uint32: documents end to end, [bos] tokens [eos]
    <source>/<part>-<split>.ends      int64 [documents]: where each ends in the shard, in tokens
    <source>/<part>-<split>.counts    int64 [vocabulary]: how often each id occurs in the shard
    <source>/<part>.json              the part's record, from which `prepare` resumes

All numbers are little-endian. The manifest names every other file with its size and SHA-256, and
carries its own SHA-256. It is written last, so a store with a manifest is complete.
"""

import hashlib
import json
import os
from bisect import bisect_right
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from jaxpretrain.data.shards import SPLITS
from jaxpretrain.data.tokenizer_base import AnyTokenizer
from jaxpretrain.data.tokenizer_load import load_tokenizer
from jaxpretrain.errors import UserError

FORMAT = 1
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.model"
REQUEST = "prepare.json"

Split = Literal["train", "validation", "test"]


class TokenSet:
    """One source × one split: documents end to end, each as ``[bos] tokens [eos]``.

    Attributes:
        name: the source's name in the config.
        split: ``train``, ``validation`` or ``test``.
        tokens_total: tokens, bos and eos included.
        documents: how many.
        text_bytes: bytes of UTF-8 text that the documents had; exact.
    """

    def __init__(
        self, folder: Path, name: str, split: str, parts: list[dict], dtype: str, vocab_size: int
    ):
        """Reads nothing yet.

        Args:
            folder: where the source's shards lie.
            parts: the totals of each part in this split, in order of their numbers.
            dtype: of the tokens.
        """
        self.name, self.split = name, split
        self.tokens_total = sum(part["tokens"] for part in parts)
        self.documents = sum(part["documents"] for part in parts)
        self.text_bytes = sum(part["text_bytes"] for part in parts)
        self._dtype, self._vocab_size = np.dtype(dtype), vocab_size
        filled = [number for number, part in enumerate(parts) if part["tokens"]]
        self._stems = [str(folder / f"{number:05d}-{split}") for number in filled]
        sizes = [parts[number]["tokens"] for number in filled]
        self._starts = np.cumsum([0, *sizes], dtype=np.int64).tolist()
        self._shards: list[np.ndarray | None] = [None] * len(filled)

    def __repr__(self) -> str:
        return (
            f"TokenSet({self.name!r}, {self.split!r}, documents={self.documents}, "
            f"tokens={self.tokens_total})"
        )

    @cached_property
    def doc_ends(self) -> np.ndarray:
        """int64 [documents]: where each document ends, the shards being laid end to end."""
        ends = np.empty(self.documents, np.int64)
        filled = 0
        for stem, start in zip(self._stems, self._starts[:-1], strict=True):
            shard = np.fromfile(f"{stem}.ends", "<i8")
            ends[filled : filled + len(shard)] = shard + start
            filled += len(shard)
        return ends

    @cached_property
    def vocab_counts(self) -> np.ndarray:
        """int64 [vocabulary]: how often each id occurs, bos and eos included."""
        counts = np.zeros(self._vocab_size, np.int64)
        for stem in self._stems:
            counts += np.fromfile(f"{stem}.counts", "<i8")
        return counts

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop), which may span shards.

        Returns:
            uint16 or uint32 [stop - start]; a read-only view where one shard has them all.

        Raises:
            IndexError: outside the set.
        """
        if not 0 <= start <= stop <= self.tokens_total:
            raise IndexError(f"tokens [{start}, {stop}) of {self.tokens_total}")
        if start == stop:
            return np.zeros(0, self._dtype)
        number = bisect_right(self._starts, start) - 1
        pieces = []
        while start < stop:
            first, end = self._starts[number], min(stop, self._starts[number + 1])
            pieces.append(self._shard(number)[start - first : end - first])
            start, number = end, number + 1
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _shard(self, number: int) -> np.ndarray:
        shard = self._shards[number]
        if shard is None:
            shard = np.memmap(f"{self._stems[number]}.tokens", self._dtype, "r").view(np.ndarray)
            self._shards[number] = shard
        return shard


class Store:
    """A prepared token store. Open one with `Store.open`.

    Attributes:
        path: its folder.
        manifest: as read; ``manifest["sha256"]`` identifies the store.
        tokenizer: the `AnyTokenizer` it was written with.
    """

    def __init__(self, path: Path, manifest: dict, tokenizer: AnyTokenizer):
        self.path, self.manifest, self.tokenizer = path, manifest, tokenizer
        self._sets = {
            split: [
                TokenSet(
                    path / name,
                    name,
                    split,
                    [part["splits"][split] for part in source["parts"]],
                    manifest["dtype"],
                    manifest["vocab_size"],
                )
                for name, source in manifest["sources"].items()
            ]
            for split in SPLITS
        }

    @classmethod
    def open(cls, path: str | os.PathLike, *, verify: bool = False) -> "Store":
        """Opens a store; cheap, since the tokens are only mapped when read.

        Args:
            path: the store's folder.
            verify: read every file and compare its SHA-256 with the manifest's.

        Raises:
            UserError: no store, an unfinished one, another format, or files that are missing or
                damaged, by name.
        """
        path = Path(path)
        manifest = read_manifest(path)
        faults = [
            fault
            for name, file in manifest["files"].items()
            if (fault := _size_fault(path / name, name, file["bytes"]))
        ]
        if verify and not faults:
            faults = _checksum_faults(path, manifest["files"])
        if faults:
            more = f" (and {len(faults) - 3} more)" if len(faults) > 3 else ""
            raise UserError(
                f"token store {path}: {', '.join(faults[:3])}{more}; delete what is damaged and "
                "run prepare again, which writes only what is missing"
            )
        return cls(path, manifest, load_tokenizer(path / TOKENIZER))

    def sets(self, split: Split) -> list[TokenSet]:
        """The sets of a split, one for each source in the config's order; some may be empty."""
        if split not in self._sets:
            raise UserError(f"split {split!r} is unknown; choose from {', '.join(SPLITS)}")
        return list(self._sets[split])


def read_manifest(path: Path, name: str = MANIFEST) -> dict:
    """Reads and checks the manifest alone.

    Raises:
        UserError: see `Store.open`.
    """
    try:
        manifest = json.loads((path / name).read_bytes())
        version = manifest["format"]
    except FileNotFoundError:
        if (path / REQUEST).exists():
            raise UserError(
                f"token store {path} is unfinished; run the same prepare again, which resumes"
            ) from None
        raise UserError(f"there is no token store at {path}; run prepare first") from None
    except OSError as error:
        raise UserError(f"cannot read {path / MANIFEST}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError):
        raise UserError(_damaged_manifest(path)) from None
    if version != FORMAT:
        raise UserError(
            f"token store {path} has format {version}, this program reads format {FORMAT}; "
            "prepare it again with overwrite"
        )
    if manifest.get("sha256") != manifest_sha256(manifest):
        raise UserError(_damaged_manifest(path))
    return manifest


def manifest_sha256(manifest: dict) -> str:
    """SHA-256 of the manifest's contents, its own ``sha256`` left out."""
    contents = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()


def _damaged_manifest(path: Path) -> str:
    return f"{path / MANIFEST} is damaged; delete it and run prepare again"


def _size_fault(path: Path, name: str, size: int) -> str:
    try:
        found = path.stat().st_size
    except OSError:
        return f"{name} is missing"
    return "" if found == size else f"{name} is damaged ({found:,} bytes, not {size:,})"


def _checksum_faults(path: Path, files: dict[str, dict]) -> list[str]:
    def fault(name: str) -> str:
        try:
            with open(path / name, "rb") as file:
                same = hashlib.file_digest(file, "sha256").hexdigest() == files[name]["sha256"]
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
        return "" if same else f"{name} is damaged (its SHA-256 differs)"

    with ThreadPoolExecutor() as pool:
        return [found for found in pool.map(fault, files) if found]
