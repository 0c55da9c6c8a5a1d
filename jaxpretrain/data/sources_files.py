"""Documents from text and JSON Lines files, by glob.

The idea: a large file is divided into byte ranges that are read apart. A range owns the lines (or
paragraphs) that start inside it and reads the last of them past its end, so that the documents are
the same however a file is divided.
"""

import glob
import json
import os
import stat
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from jaxpretrain.data import sources_base as base
from jaxpretrain.data.sources_base import Document, InputRules, Rejected
from jaxpretrain.data.sources_lines import BOM, END_OF_GZIP, Lines, is_binary, open_bytes
from jaxpretrain.errors import UserError

Unit = Literal["file", "paragraph", "line"]


class FileRange(NamedTuple):
    """Bytes [start, stop) of a file."""

    path: str
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class TextFiles(InputRules):
    """UTF-8 text files; compressed with gzip where the name ends in ``.gz``.

    A byte order mark at a file's start is dropped and CRLF becomes LF; nothing else is changed.

    Attributes:
        path: a glob, or several with commas between; ``**`` goes into folders.
        document: what is one document: a ``file``, a ``paragraph`` (lines with no blank line
            between them), or a ``line``.
    """

    path: str
    document: Unit = "file"

    def __post_init__(self):
        super().__post_init__()
        base.check_choice("document", self.document, Unit)

    def parts(self) -> list["FilePart"]:
        """Byte ranges of large files, and small files together.

        Raises:
            UserError: `path` matches no file, or nothing but empty ones.
        """
        return _byte_parts(self, divide=self.document != "file")

    def read(self, piece: FileRange, skipped: Counter) -> Iterator[Document]:
        """Reads the documents that start inside `piece`."""
        if self.document == "file":
            yield from self._read_file(piece.path, skipped)
            return
        with Lines(*piece, self.max_document_bytes) as lines:
            if lines.binary:
                raise _binary()
            read = self._read_lines if self.document == "line" else self._read_paragraphs
            yield from read(lines, skipped)

    def _read_file(self, path: str, skipped: Counter) -> Iterator[Document]:
        with open_bytes(path) as file:
            if is_binary(file):
                raise _binary()
            data = file.read(self.max_document_bytes + len(BOM) + 1).removeprefix(BOM)
        yield from self.accept(data, path, skipped, lambda line: f"{path}:{line + 1}")

    def _read_lines(self, lines: Lines, skipped: Counter) -> Iterator[Document]:
        for offset, line in lines:
            if offset >= lines.stop:
                return
            yield from self.accept(line, lines.where(), skipped, _placer(lines))

    def _read_paragraphs(self, lines: Lines, skipped: Counter) -> Iterator[Document]:
        # A range owns the paragraphs whose preceding blank line starts inside it; the first range
        # owns the file's first paragraph, too.
        owned = lines.start == 0
        paragraph: bytearray | None = bytearray()  # None: it is too long
        where, place = "", _placer(lines)
        for offset, line in lines:
            if line is not None and not line.strip():
                if paragraph is None or paragraph:
                    yield from self.accept(_bytes(paragraph), where, skipped, place)
                paragraph = bytearray()
                owned = True
            elif owned:
                if paragraph is not None and not paragraph:
                    where, place = lines.where(), _placer(lines)
                if line is None or paragraph is None:
                    paragraph = None
                else:
                    paragraph += line + b"\n"
                    if len(paragraph) > self.max_document_bytes + 1:
                        paragraph = None
                continue
            if offset >= lines.stop:
                return
        if paragraph is None or paragraph:
            yield from self.accept(_bytes(paragraph), where, skipped, place)


@dataclass(frozen=True, kw_only=True)
class JsonLines(InputRules):
    """JSON Lines: one object a line, its text in one field; gzip where the name ends in ``.gz``.

    Attributes:
        path: a glob, or several with commas between; ``**`` goes into folders.
        field: the name of the field that has the text. `max_document_bytes` bounds the whole line.
    """

    path: str
    field: str = "text"

    def parts(self) -> list["FilePart"]:
        """Byte ranges of large files, and small files together.

        Raises:
            UserError: `path` matches no file, or nothing but empty ones.
        """
        return _byte_parts(self, divide=True)

    def read(self, piece: FileRange, skipped: Counter) -> Iterator[Document]:
        """Reads the lines that start inside `piece`."""
        with Lines(*piece, self.max_document_bytes) as lines:
            if lines.binary:
                raise _binary()
            for offset, line in lines:
                if offset >= lines.stop:
                    return
                place = _placer(lines)
                if line is not None and not line.strip():
                    skipped["empty"] += 1
                    continue
                try:
                    text = self._text_field(line)
                except Rejected as error:
                    self.reject(error, place(0), skipped)
                else:
                    yield from self.accept(text, lines.where(), skipped, place)

    def _text_field(self, line: bytes | None) -> str:
        if line is None:
            raise base.too_long(self.max_document_bytes)
        try:
            value = json.loads(base.decode(line))
        except json.JSONDecodeError as error:
            raise Rejected(
                "invalid JSON", f"invalid JSON ({error.msg} at column {error.colno})"
            ) from None
        except (ValueError, RecursionError) as error:  # a number too long, brackets too deep
            raise Rejected("invalid JSON", f"invalid JSON ({error})") from None
        if not isinstance(value, dict):
            raise Rejected("not an object", f"not a JSON object but {_kind(value)}")
        if self.field not in value:
            hint = base.nearest(self.field, value)
            raise Rejected("missing field", f"no field {self.field!r}{hint}")
        text = value[self.field]
        if not isinstance(text, str):
            raise Rejected("not text", f"field {self.field!r} is not text but {_kind(text)}")
        return text


@dataclass(frozen=True)
class FilePart:
    """Some ranges of files, and the source that knows how to read them."""

    source: TextFiles | JsonLines
    pieces: tuple[FileRange, ...]
    name: str

    def fingerprint(self) -> str:
        """Of the options, and the paths, sizes, times of change and ranges."""
        paths = [(os.path.abspath(p.path), file_state(p.path)) for p in self.pieces]
        ranges = [(p.start, p.stop) for p in self.pieces]
        return base.digest(type(self.source).__name__, self.source.options(), paths, ranges)

    def documents(self, skipped: Counter) -> Iterator[Document]:
        """Reads all ranges in order. See `Part.documents`."""
        for piece in self.pieces:
            try:
                yield from self.source.read(piece, skipped)
            except Rejected as error:  # the whole file: counted once, by its first range
                if piece.start == 0 or self.source.on_error == "error":
                    self.source.reject(error, piece.path, skipped)
            except (OSError, EOFError, zlib.error) as error:
                self.source.reject(unreadable(error), piece.path, skipped)


def find_files(path: str) -> list[str]:
    """The files that a comma-separated list of globs matches, each once, in order of name.

    Raises:
        UserError: a glob that matches no file, or something that is no file.
    """
    patterns = [path] if os.path.exists(path) else [p.strip() for p in path.split(",")]
    found: dict[str, None] = {}
    for pattern in filter(None, patterns):
        pattern = os.path.expanduser(pattern)
        matches = [pattern] if os.path.lexists(pattern) else glob.glob(pattern, recursive=True)
        files = sorted(match for match in matches if not os.path.isdir(match))
        if not files:
            hint = f", only folders; try '{pattern.rstrip('/')}/*'" if matches else ""
            raise UserError(f"no file matches {pattern!r} (in {os.getcwd()}){hint}")
        found.update(dict.fromkeys(files))
    if not found:
        raise UserError("path is empty; give a file or a glob, e.g. path='texts/*.txt'")
    for file in found:
        if os.path.exists(file) and not stat.S_ISREG(os.stat(file).st_mode):
            raise UserError(f"{file} is no regular file; only files can be read again")
    return list(found)


def file_state(path: str) -> tuple[int, int] | None:
    """Size and time of change, or None for a file that cannot be seen."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def unreadable(error: Exception) -> Rejected:
    """The rejection for an error of reading."""
    detail = getattr(error, "strerror", None) or " ".join(str(error).split())
    return Rejected("unreadable file", f"cannot be read ({detail or type(error).__name__})")


def part_name(paths: list[str], span: str = "") -> str:
    """A name for a part of one file or of several."""
    if len(set(paths)) == 1:
        return paths[0] + span
    return f"{paths[0]}…{paths[-1]} ({len(set(paths))} files)"


def _byte_parts(source: TextFiles | JsonLines, *, divide: bool) -> list[FilePart]:
    files = {path: file_state(path) for path in find_files(source.path)}
    sizes = {path: state[0] if state else 0 for path, state in files.items()}
    total = sum(sizes.values())
    if total == 0 and None not in files.values():
        raise UserError(f"{source.path!r} matches {len(files)} file(s), all of them empty")
    size = base.part_bytes(total)
    pieces = []
    for path in files:
        if path.endswith(".gz"):
            pieces.append(FileRange(path, 0, END_OF_GZIP))
        elif divide and sizes[path] > size:
            starts = range(0, sizes[path], size)
            pieces += [FileRange(path, s, min(s + size, sizes[path])) for s in starts]
        else:
            pieces.append(FileRange(path, 0, sizes[path]))
    lengths = [min(p.stop - p.start, sizes[p.path]) for p in pieces]
    parts = []
    for group in base.gather(pieces, lengths, size):
        first = group[0]
        divided = len(group) == 1 and first.stop - first.start < sizes[first.path]
        span = f"[{first.start}:{first.stop}]" if divided else ""
        parts.append(FilePart(source, group, part_name([p.path for p in group], span)))
    return parts


def _placer(lines: Lines):
    """The place of the line `n` lines after the one that `lines` is at now."""
    number = lines.number
    return lambda n: lines.place(number + n)


def _bytes(paragraph: bytearray | None) -> bytes | None:
    return None if paragraph is None else bytes(paragraph[:-1])


def _binary() -> Rejected:
    return Rejected("binary file", "a binary file (it has NUL bytes), not UTF-8 text")


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "a string", type(None): "null"}
    return names.get(type(value)) or f"{value!r:.40}"
