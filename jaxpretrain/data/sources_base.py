"""What every source of documents shares: the contract, and what happens to bad input.

A source names its input and divides it into parts; a part is read by one worker, alone, and gives
the same documents in the same order whenever it is read. Input that cannot become a document is
either an error that names the place or is counted under a short reason: never silently lost.
"""

import difflib
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, NoReturn, Protocol, TypeVar, get_args

from jaxpretrain.errors import UserError

LARGEST_PART = 64 << 20
SMALLEST_PART = 4 << 20
PARTS_WANTED = 64

OnError = Literal["error", "skip"]
Piece = TypeVar("Piece")


class Document(NamedTuple):
    """One text, in UTF-8, and where it came from (for messages only)."""

    utf8: bytes
    where: str

    @property
    def text(self) -> str:
        return self.utf8.decode()


class Part(Protocol):
    """A piece of a source that one worker reads alone. Picklable."""

    @property
    def name(self) -> str:
        """For people, e.g. ``wiki.jsonl[0:67108864]``."""
        ...

    def fingerprint(self) -> str:
        """A short hash that changes when the input or an option that matters changes. Cheap."""
        ...

    def documents(self, skipped: Counter) -> Iterator[Document]:
        """Reads the documents in a fixed order and counts in `skipped`, by reason, what it skips.

        Raises:
            UserError: bad input, unless the source has ``on_error='skip'``.
        """
        ...


class Source(Protocol):
    """A frozen keyword-only dataclass whose fields are the keys of the config."""

    def parts(self) -> Sequence[Part]:
        """Divides the input into parts, in a fixed order.

        Raises:
            UserError: there is nothing to read.
        """
        ...


class Rejected(Exception):
    """Input that cannot become a document.

    Attributes:
        reason: a few words, to count by.
        detail: one line, for the message.
        line: lines between the start of the document and the fault.
    """

    def __init__(self, reason: str, detail: str, line: int = 0):
        super().__init__(reason, detail, line)
        self.reason, self.detail, self.line = reason, detail, line


@dataclass(frozen=True, kw_only=True)
class InputRules:
    """The options that all sources of outside text share.

    Attributes:
        on_error: ``error`` stops at the first bad input with a message that names the place;
            ``skip`` leaves it out and counts it by reason.
        max_document_bytes: the longest document that is accepted, in bytes of UTF-8. Also bounds
            the memory that a reader uses: a longer line is never held whole.
    """

    on_error: OnError = "error"
    max_document_bytes: int = 10_000_000

    def __post_init__(self):
        check_choice("on_error", self.on_error, OnError)
        if self.max_document_bytes < 1:
            raise UserError(f"max_document_bytes is {self.max_document_bytes}; it must be positive")

    def reject(self, error: Rejected, where: str, skipped: Counter) -> None:
        """Counts bad input in `skipped`, or raises UserError, as `on_error` says."""
        if self.on_error == "error":
            raise UserError(
                f"{where}: {error.detail}; mend it, or set source.on_error=skip to count it and "
                "go on"
            )
        skipped[error.reason] += 1

    def accept(
        self,
        value: str | bytes | None,
        where: str,
        skipped: Counter,
        place: Callable[[int], str] | None = None,
    ) -> Iterator[Document]:
        """Gives one document, or none and a count.

        The text is kept exactly as it is, but for CRLF line ends, which become LF.

        Args:
            value: text, or UTF-8, or None for what is known to be too long.
            where: the document's place.
            skipped: counts of what is left out, by reason.
            place: a better place for an error in the given line of the document (from 0), where
                that costs too much to have always.
        """
        try:
            if value is None:
                raise too_long(self.max_document_bytes)
            utf8, text = (encode(value), value) if isinstance(value, str) else (value, None)
            if len(utf8) > self.max_document_bytes:
                raise too_long(self.max_document_bytes)
            if text is None:
                text = decode(utf8)
        except Rejected as error:
            self.reject(error, place(error.line) if place else where, skipped)
        else:
            if not text or text.isspace():
                skipped["empty"] += 1
            else:
                yield Document(utf8.replace(b"\r\n", b"\n"), where)

    def options(self) -> dict[str, Any]:
        """The fields that change which documents an input gives (not where the input is)."""
        return {k: v for k, v in asdict(self).items() if k not in ("path", "data_dir", "download")}


def encode(text: str) -> bytes:
    """UTF-8; raises Rejected."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise Rejected(
            "invalid text", f"lone surrogate U+{code:04X} at character {error.start}"
        ) from None


def decode(data: bytes) -> str:
    """Strict UTF-8; raises Rejected."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        before = data[: error.start]
        byte, column = data[error.start], error.start - before.rfind(b"\n")
        detail = f"invalid UTF-8 (0x{byte:02x} at byte {column} of the line)"
        raise Rejected("invalid UTF-8", detail, before.count(b"\n")) from None


def too_long(limit: int) -> Rejected:
    return Rejected("too long", f"longer than max_document_bytes={limit:,}")


def check_choice(key: str, value: Any, literal: Any) -> None:
    """Raises UserError unless `value` is one of the values of a `Literal`."""
    choices = get_args(literal)
    if value not in choices:
        raise UserError(f"{key} is {value!r}; choose from {', '.join(map(repr, choices))}")


def nearest(name: str, known: Iterable[str]) -> str:
    """``'; did you mean 'text'?'``, or the known names where none is near, to end a message."""
    known = [str(k) for k in known]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {near[0]!r}?"
    shown = ", ".join(map(repr, known[:8])) + (", …" if len(known) > 8 else "")
    return f"; there is {shown}" if known else ""


def missing_package(package: str, extra: str) -> NoReturn:
    """Raises the UserError for an optional package that is not installed."""
    command = f"pip install 'jaxpretrain[{extra}]'"
    raise UserError(f"{package} is not installed; run: {command}") from None


def digest(*things: Any) -> str:
    """A short hash of values whose repr is stable."""
    data = repr(things).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def part_bytes(total: int) -> int:
    """The size to make parts of: enough parts for many workers, none too large or too small.

    A function of the input alone, so that the parts do not depend on the machine.
    """
    return min(max(total // PARTS_WANTED, SMALLEST_PART), LARGEST_PART)


def gather(pieces: Sequence[Piece], sizes: Sequence[int], size: int) -> list[tuple[Piece, ...]]:
    """Joins consecutive pieces into groups of about `size` bytes, none of them empty."""
    groups: list[tuple[Piece, ...]] = []
    group: list[Piece] = []
    filled = 0
    for piece, piece_size in zip(pieces, sizes, strict=True):
        if group and filled + piece_size > size:
            groups.append(tuple(group))
            group, filled = [], 0
        group.append(piece)
        filled += piece_size
    if group:
        groups.append(tuple(group))
    return groups
