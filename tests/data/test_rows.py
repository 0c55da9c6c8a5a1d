"""Rows against the documents they were cut from, read with plain loops."""

import itertools

import numpy as np
import pytest

from jaxpretrain.data.rows import DocumentRows, PackedRows
from jaxpretrain.errors import UserError
from jaxpretrain.types import Batch
from support.memory_set import BOS, EOS, PAD, MemorySet, random_set


def all_rows(rows, pad_id=PAD):
    set_index, row = rows.find(np.arange(rows.rows_total))
    return rows.read(set_index, row, pad_id=pad_id)


def packed_by_hand(token_set: MemorySet, length: int):
    """Yields (tokens, segments, positions) of each row, token by token."""
    stream = []
    for number, content in enumerate(token_set.contents):
        stream += [(token, number) for token in [BOS, *content, EOS]]
    for start in range(0, len(stream), length):
        tokens, segments, positions = [], [], []
        segment = position = 0
        previous = None
        for token, number in stream[start : start + length]:
            if number != previous:
                segment, position, previous = segment + 1, 0, number
            tokens.append(token)
            segments.append(segment)
            positions.append(position)
            position += 1
        short = [0] * (length - len(tokens))
        yield tokens + [PAD] * len(short), segments + short, positions + short


def windows_by_hand(token_set: MemorySet, length: int):
    for content in token_set.contents:
        for start in range(0, len(content), length):
            window = content[start : start + length]
            n, short = len(window), length - len(window)
            yield [*window, *[PAD] * short], [1] * n + [0] * short, [*range(n), *[0] * short]


def check_types(batch: Batch, rows: int, length: int):
    for name, array in batch._asdict().items():
        assert array.dtype == np.int32, name
        wide = name in ("tokens", "segments", "positions")
        assert array.shape == ((rows, length) if wide else (rows,)), name


def test_packed_rows_of_a_known_stream():
    rows = PackedRows([MemorySet("a", [[11, 12, 13], [14], []])], 4)
    batch = all_rows(rows, pad_id=7)
    assert batch.tokens.tolist() == [[2, 11, 12, 13], [3, 2, 14, 3], [2, 3, 7, 7]]
    assert batch.segments.tolist() == [[1, 1, 1, 1], [1, 2, 2, 2], [1, 1, 0, 0]]
    assert batch.positions.tolist() == [[0, 1, 2, 3], [0, 0, 1, 2], [0, 1, 0, 0]]
    assert batch.row_ids.tolist() == [0, 1, 2]
    assert batch.epochs.tolist() == [0, 0, 0]


def test_document_rows_of_known_documents():
    rows = DocumentRows([MemorySet("a", [[], [11, 12, 13, 14, 15], [], [16], [17, 18], []])], 2)
    batch = all_rows(rows, pad_id=7)
    assert batch.tokens.tolist() == [[11, 12], [13, 14], [15, 7], [16, 7], [17, 18]]
    assert batch.segments.tolist() == [[1, 1], [1, 1], [1, 0], [1, 0], [1, 1]]
    assert batch.positions.tolist() == [[0, 1], [0, 1], [0, 0], [0, 0], [0, 1]]


@pytest.mark.parametrize(
    ("view", "by_hand"),
    [
        (PackedRows, packed_by_hand),
        (DocumentRows, windows_by_hand),
    ],
)
@pytest.mark.parametrize("length", [1, 2, 3, 8, 64, 5000])
@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_rows_equal_the_documents(view, by_hand, length, dtype):
    one = random_set("one", documents=40, longest=30, seed=1)
    sets = [one, MemorySet("two", [[], [9] * 100, []], dtype), random_set("three", 5, 3, seed=2)]
    rows = view(sets, length)
    batch = all_rows(rows)
    check_types(batch, rows.rows_total, length)
    expected = [list(by_hand(token_set, length)) for token_set in sets]
    assert rows.rows_per_set == [len(part) for part in expected]
    tokens, segments, positions = zip(*itertools.chain(*expected), strict=True)
    assert batch.tokens.tolist() == list(tokens)
    assert batch.segments.tolist() == list(segments)
    assert batch.positions.tolist() == list(positions)
    assert batch.row_ids.tolist() == list(range(rows.rows_total))


@pytest.mark.parametrize("view", [PackedRows, DocumentRows])
def test_rows_come_in_the_order_asked_for_with_their_epochs(view):
    rows = view([random_set("one", 40, 30), random_set("two", 20, 50, seed=3)], 16)
    everything = all_rows(rows)
    ids = np.random.default_rng(0).integers(0, rows.rows_total, 50)
    set_index, row = rows.find(ids)
    epochs = np.arange(50) * 3
    batch = rows.read(set_index, row, epochs, pad_id=PAD)
    assert np.array_equal(batch.row_ids, ids)
    assert np.array_equal(batch.epochs, epochs)
    for name in ("tokens", "segments", "positions"):
        assert np.array_equal(getattr(batch, name), getattr(everything, name)[ids]), name


@pytest.mark.parametrize("view", [PackedRows, DocumentRows])
def test_row_minus_one_is_padding(view):
    rows = view([random_set("one", 40, 30), random_set("two", 20, 50, seed=3)], 16)
    batch = rows.read(np.array([1, 0, 1]), np.array([-1, 2, -1]), pad_id=5)
    assert (batch.tokens[[0, 2]] == 5).all()
    assert (batch.segments[[0, 2]] == 0).all() and (batch.positions[[0, 2]] == 0).all()
    assert batch.row_ids.tolist() == [-1, 2, -1]
    assert batch.tokens[1].tolist() == all_rows(rows).tokens[2].tolist()


def test_find_knows_sets_without_rows():
    rows = DocumentRows([MemorySet("a", [[]]), MemorySet("b", [[10]]), MemorySet("c", [])], 4)
    assert rows.rows_per_set == [0, 1, 0]
    set_index, row = rows.find(np.array([0]))
    assert set_index.tolist() == [1] and row.tolist() == [0]


class HugeSet:
    """A set too large for any machine; only its size is real."""

    name = "huge"

    def __init__(self, tokens_total: int):
        self.tokens_total = tokens_total
        self.doc_ends = np.array([tokens_total])

    def read(self, start, stop):
        return np.full(stop - start, start % 60000, np.uint16)


def test_offsets_beyond_32_bits():
    rows = PackedRows([HugeSet(2**40)], 1024)
    batch = rows.read(np.array([0]), np.array([2**30 - 1]), pad_id=0)
    assert batch.tokens[0, 0] == (2**40 - 1024) % 60000
    assert batch.positions[0].tolist() == list(range(1024))
    rows = DocumentRows([HugeSet(2**40 + 2)], 1024)
    batch = rows.read(np.array([0]), np.array([2**30 - 1]), pad_id=0)
    assert batch.tokens[0, 0] == (2**40 - 1023) % 60000


@pytest.mark.parametrize("view", [PackedRows, DocumentRows])
def test_more_rows_than_ids_is_an_error(view):
    view([HugeSet(2**31 + 1 - 2 * (view is PackedRows))], 1)
    with pytest.raises(UserError, match="2147483648 rows of length 1 .* 2147483647"):
        view([HugeSet(2**31 + 2 - 2 * (view is PackedRows))], 1)
    half = HugeSet(2**30 + 2)
    with pytest.raises(UserError, match="rows of length 1"):
        view([half, half], 1)


@pytest.mark.parametrize("length", [0, -5])
def test_length_below_one_is_an_error(length):
    with pytest.raises(UserError, match=f"length of {length}"):
        PackedRows([random_set("one", 5, 5)], length)
