"""Views of the token store as rows of one length: packed, or windows of single documents.

The one idea: a row is a span of a set's token stream, found by arithmetic, so any row of any set
can be read at once and the row length is chosen when training. The segments and positions of a
whole batch follow from where documents end, with one search per set and no loop over rows.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from jaxpretrain.errors import UserError
from jaxpretrain.types import Batch


class TokenSet(Protocol):
    """What is read of `store.TokenSet`: documents laid end to end, each as [bos] tokens [eos]."""

    name: str
    tokens_total: int
    doc_ends: np.ndarray  # int64 [documents]

    def read(self, start: int, stop: int) -> np.ndarray: ...


class _Rows(ABC):
    """What both views share; a view says how many rows a set has and which span each one is."""

    def __init__(self, token_sets: Sequence[TokenSet], length: int):
        """Counts the rows.

        Args:
            token_sets: the sets, each a stream of documents.
            length: tokens in a row.

        Raises:
            UserError: length is below 1, or there are more rows than int32 can number.
        """
        if length < 1:
            raise UserError(f"a row length of {length} is below 1")
        self.token_sets = tuple(token_sets)
        self.length = length
        self._doc_ends = [token_set.doc_ends for token_set in self.token_sets]
        self.names = [token_set.name for token_set in self.token_sets]
        self.rows_per_set = [self._count(number) for number in range(len(self.token_sets))]
        self.rows_total = sum(self.rows_per_set)
        if self.rows_total > 2**31 - 1:
            raise UserError(
                f"{self.rows_total} rows of length {length} are more than the {2**31 - 1} that "
                "row ids can number: use a greater length or fewer sources"
            )
        self._rows_before = np.cumsum([0, *self.rows_per_set])[:-1]
        self._documents_before = np.cumsum([0, *map(len, self._doc_ends)])[:-1]

    @abstractmethod
    def _count(self, number: int) -> int:
        """Returns how many rows set `number` has."""

    @abstractmethod
    def _spans(self, number: int, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns where the rows of set `number` start and stop in its stream, int64 [n] each."""

    def find(self, row_id: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns (set_index, row), int64 [n] each, for row ids in [0, rows_total)."""
        set_index = np.searchsorted(self._rows_before, row_id, "right") - 1
        return set_index, row_id - self._rows_before[set_index]

    def read(
        self,
        set_index: np.ndarray,
        row: np.ndarray,
        epoch: np.ndarray | None = None,
        *,
        pad_id: int,
    ) -> Batch:
        """Reads rows, of any sets, in the order asked for.

        Args:
            set_index: int [rows].
            row: int [rows], numbers within the sets; -1 gives a row of padding.
            epoch: int [rows], passed on; zeros if None.
            pad_id: the token that fills short rows.

        Returns:
            A batch of new arrays.
        """
        set_index, row = np.asarray(set_index), np.asarray(row)
        rows, length = len(row), self.length
        tokens = np.full((rows, length), pad_id, np.int32)
        filled = np.zeros(rows, np.int64)
        documents = np.full(rows, -1, np.int32)
        row_starts = np.arange(rows) * length
        # Places in the flattened batch where a row, a document within a row or padding begins.
        cuts = [row_starts]
        for number in np.unique(set_index[row >= 0]):
            where = np.flatnonzero((set_index == number) & (row >= 0))
            starts, stops = self._spans(number, row[where])
            read = self.token_sets[number].read
            for i, start, stop in zip(where.tolist(), starts.tolist(), stops.tolist(), strict=True):
                tokens[i, : stop - start] = read(start, stop)
            filled[where] = stops - starts
            document = np.searchsorted(self._doc_ends[number], starts, "right")
            documents[where] = self._documents_before[number] + document
            owner, ends = _ends_inside(self._doc_ends[number], starts, stops)
            cuts.append(row_starts[where[owner]] + ends - starts[owner])
        short = np.flatnonzero(filled < length)
        cuts.append(row_starts[short] + filled[short])
        cuts = np.sort(np.concatenate(cuts))

        cut_row = cuts // length
        cut_place = cuts - row_starts[cut_row]
        segment = np.arange(1, len(cuts) + 1) - np.searchsorted(cuts, row_starts)[cut_row]
        segment[cut_place >= filled[cut_row]] = 0
        run = np.diff(cuts, append=rows * length)
        segments = np.repeat(segment.astype(np.int32), run).reshape(rows, length)
        positions = np.repeat(cut_place.astype(np.int32), run).reshape(rows, length)
        np.subtract(np.arange(length, dtype=np.int32), positions, out=positions)
        positions[short] *= segments[short] > 0
        return Batch(
            tokens=tokens,
            segments=segments,
            positions=positions,
            row_ids=np.where(row < 0, -1, self._rows_before[set_index] + row).astype(np.int32),
            epochs=np.zeros(rows, np.int32) if epoch is None else np.asarray(epoch, np.int32),
            documents=documents,
        )


def _ends_inside(
    doc_ends: np.ndarray, starts: np.ndarray, stops: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns every document end e with start < e < stop, as (number of the span, e)."""
    first, last = np.searchsorted(doc_ends, np.stack([starts + 1, stops]))
    count = last - first
    owner = np.repeat(np.arange(len(starts)), count)
    before = np.cumsum(count) - count
    return owner, doc_ends[np.arange(len(owner)) + (first - before)[owner]]


class PackedRows(_Rows):
    """Documents laid end to end: row r is tokens [r * length, (r + 1) * length) of its set.

    No token is lost: a document that a row cuts goes on in the next row, as a segment of its own
    with positions from 0, and the last row of a set is padded.
    """

    def _count(self, number: int) -> int:
        return -(-self.token_sets[number].tokens_total // self.length)

    def _spans(self, number: int, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        starts = row * self.length
        return starts, np.minimum(starts + self.length, self.token_sets[number].tokens_total)


class DocumentRows(_Rows):
    """Each row is a window of one document's content (without the stored bos and eos), padded.

    A document of n content tokens gives ceil(n / length) windows that follow each other; an empty
    one gives none.
    """

    def __init__(self, token_sets: Sequence[TokenSet], length: int):
        self._last_rows = []  # per set: int64 [documents], rows up to and with each document's
        super().__init__(token_sets, length)

    def _count(self, number: int) -> int:
        content = np.diff(self._doc_ends[number], prepend=0) - 2
        self._last_rows.append(np.cumsum(np.maximum(-(-content // self.length), 0)))
        return int(self._last_rows[number][-1]) if len(content) else 0

    def _spans(self, number: int, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        doc_ends, last_rows = self._doc_ends[number], self._last_rows[number]
        document = np.searchsorted(last_rows, row, "right")
        previous = np.maximum(document - 1, 0)
        first_row = np.where(document > 0, last_rows[previous], 0)
        first_token = np.where(document > 0, doc_ends[previous], 0) + 1
        starts = first_token + (row - first_row) * self.length
        return starts, np.minimum(starts + self.length, doc_ends[document] - 1)
