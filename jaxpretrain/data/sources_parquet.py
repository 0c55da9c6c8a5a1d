"""Documents from one column of Parquet files; a part is a run of row groups.

Only the text column is read. pyarrow is imported here alone, when it is needed.
"""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxpretrain.data import sources_base as base
from jaxpretrain.data.sources_base import Document, InputRules, Rejected
from jaxpretrain.data.sources_files import file_state, find_files, part_name, unreadable
from jaxpretrain.errors import UserError

ROWS_AT_ONCE = 256
UNKNOWN = -1


class RowGroup(NamedTuple):
    """A row group of a file; UNKNOWN for a file that cannot be used (the reader says why)."""

    path: str
    index: int
    first_row: int


@dataclass(frozen=True, kw_only=True)
class Parquet(InputRules):
    """Parquet files with a column of text (strings, or bytes of UTF-8).

    Attributes:
        path: a glob, or several with commas between; ``**`` goes into folders.
        field: the column that has the text.
    """

    path: str
    field: str = "text"

    def parts(self) -> list["ParquetPart"]:
        """Runs of row groups.

        Raises:
            UserError: no file matches, none has a row, or (unless ``on_error='skip'``) a file
                is not Parquet or lacks the column; pyarrow is not installed.
        """
        pieces: list[RowGroup] = []
        sizes: list[int] = []
        files = find_files(self.path)
        for path in files:
            try:
                with open_parquet(path, self.field) as file:
                    groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
            except Rejected as error:
                self.reject(error, path, Counter())
                pieces.append(RowGroup(path, UNKNOWN, 0))
                sizes.append(0)
                continue
            row = 0
            for index, group in enumerate(groups):
                if group.num_rows:
                    pieces.append(RowGroup(path, index, row))
                    sizes.append(_column_bytes(group, self.field))
                row += group.num_rows
        if not pieces:
            raise UserError(f"{self.path!r} matches {len(files)} Parquet file(s) without any row")
        groups = base.gather(pieces, sizes, base.part_bytes(sum(sizes)))
        return [ParquetPart(self, group) for group in groups]


@dataclass(frozen=True)
class ParquetPart:
    """A run of row groups, of one file or of several small ones."""

    source: Parquet
    groups: tuple[RowGroup, ...]

    @property
    def name(self) -> str:
        first, last = self.groups[0], self.groups[-1]
        span = f"[row groups {first.index} to {last.index}]" if first.index != UNKNOWN else ""
        return part_name([group.path for group in self.groups], span)

    def fingerprint(self) -> str:
        """Of the options, and the paths, sizes, times of change and row groups."""
        state = [(os.path.abspath(g.path), g.index, file_state(g.path)) for g in self.groups]
        return base.digest("parquet", self.source.options(), state)

    def documents(self, skipped: Counter) -> Iterator[Document]:
        """Reads the rows in order; rows are numbered from 0 in each file."""
        for group in self.groups:
            try:
                yield from self._read(group, skipped)
            except Rejected as error:
                self.source.reject(error, group.path, skipped)

    def _read(self, group: RowGroup, skipped: Counter) -> Iterator[Document]:
        row = group.first_row
        with open_parquet(group.path, self.source.field) as file:
            for value in _values(file, group.index, self.source.field):
                where = f"{group.path}: row {row}"
                row += 1
                if value is None:
                    self.source.reject(
                        Rejected("not text", f"{self.source.field!r} is null"), where, skipped
                    )
                else:
                    yield from self.source.accept(value, where, skipped)


def open_parquet(path: str, field: str) -> Any:
    """Opens a file as a `pyarrow.parquet.ParquetFile`, once it is sure to have the column.

    Raises:
        Rejected: the file cannot be read, or has no such column of text.
        UserError: pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        base.missing_package("pyarrow", "parquet")
    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise unreadable(error) from None
    schema = file.schema_arrow
    if field not in schema.names:
        raise Rejected("missing field", f"no column {field!r}{base.nearest(field, schema.names)}")
    kind = schema.field(field).type
    content = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not str(content).removeprefix("large_").startswith(("string", "binary")):
        raise Rejected("not text", f"column {field!r} is not text but {kind}")
    return file


def _values(file: Any, group: int, field: str) -> Iterator[bytes | None]:
    """The column's values as bytes, so that only this project judges whether they are UTF-8."""
    import pyarrow as pa

    batches = file.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=[field])
    while True:
        try:
            batch = next(batches, None)
            if batch is None:
                return
            column = batch.column(0)
            if pa.types.is_dictionary(column.type):
                column = column.dictionary_decode()
            column = column.cast(pa.large_binary())
        except (OSError, pa.ArrowException) as error:
            raise unreadable(error) from None
        for value in column:
            yield value.as_py()


def _column_bytes(group: Any, field: str) -> int:
    columns = (group.column(i) for i in range(group.num_columns))
    return sum(c.total_uncompressed_size for c in columns if c.path_in_schema == field)
