"""The lines of a byte range of a file, in bounded memory, with their places.

A range owns the lines that start inside it. A line that is longer than the limit is passed over in
small bites, never held; the number of the lines before a range is counted only when it is asked
for.
"""

import gzip
import sys
from collections.abc import Iterator
from typing import BinaryIO

BOM = b"\xef\xbb\xbf"
BITE = 1 << 16
END_OF_GZIP = sys.maxsize


def open_bytes(path: str) -> BinaryIO:
    """Opens a file to read, decompressed when its name ends in ``.gz``."""
    return gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb", buffering=1 << 18)


def is_binary(file: BinaryIO) -> bool:
    """Whether the 8 KiB ahead contain a NUL byte: git's rule. The position stays."""
    return b"\0" in file.peek(8192)[:8192]


class Lines:
    """The lines that start in bytes [start, stop) of a file, and, when asked for more, the next.

    Iterating gives, for each line, the byte offset where it starts and its content without the
    line end and without a byte order mark at the file's start; None for a line longer than `limit`
    bytes. Iteration goes on past `stop` (a paragraph may need it): stop when the offset says so.

    Attributes:
        binary: whether the file's first bytes say that it is no text.
        number: of the current line, from 1 for the range's first.
        length: of the current line's content, in bytes.
    """

    def __init__(self, path: str, start: int, stop: int, limit: int):
        self.path, self.start, self.stop, self.limit = path, start, stop, limit
        self.number = self.length = 0
        self._before: int | None = 0 if start == 0 else None
        self._file = open_bytes(path)
        try:
            self.binary = is_binary(self._file)
            self._first = self._offset = self._seek()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *_) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[tuple[int, bytes | None]]:
        file, limit = self._file, self.limit
        position = self._first
        if self.start and position >= self.stop:
            return  # one line fills the range, and an earlier range owns it
        while line := file.readline(limit + len(BOM) + len(b"\r\n")):
            self.number += 1
            self._offset, size = position, len(line)
            position += size
            ended = line.endswith(b"\n")
            line = line.removesuffix(b"\n").removesuffix(b"\r")
            if self._offset == 0:
                line = line.removeprefix(BOM)
            if not ended:
                position += self._pass_rest()
            self.length = len(line) if ended else position - self._offset
            yield self._offset, line if len(line) <= limit else None

    def where(self) -> str:
        """The current line's place, cheaply: by number, or by byte in a range further on."""
        if self.start == 0:
            return f"{self.path}:{self.number}"
        return f"{self.path}@{self._offset}"

    def place(self, number: int) -> str:
        """The place of a line of the range (from 1), by its number in the file.

        Reads all that comes before the range, once.
        """
        if self._before is None:
            self._before = _count_newlines(self.path, self._first)
        return f"{self.path}:{self._before + number}"

    def _seek(self) -> int:
        """Goes to the first line that starts at or after `start`; gives its offset."""
        if self.start == 0:
            return 0
        position = self.start - 1
        self._file.seek(position)
        while position < self.stop:
            bite = self._file.readline(BITE)
            position += len(bite)
            if not bite or bite.endswith(b"\n"):
                break
        return position

    def _pass_rest(self) -> int:
        passed = 0
        while bite := self._file.readline(BITE):
            passed += len(bite)
            if bite.endswith(b"\n"):
                break
        return passed


def _count_newlines(path: str, stop: int) -> int:
    count = 0
    with open(path, "rb") as file:
        while stop > 0 and (bite := file.read(min(BITE, stop))):
            count += bite.count(b"\n")
            stop -= len(bite)
    return count
