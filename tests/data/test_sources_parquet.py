"""The Parquet source against tables that the test writes with pyarrow."""

import os
import pickle
from collections import Counter

import pytest

from jaxpretrain.data import sources_base
from jaxpretrain.data.sources import Parquet
from jaxpretrain.errors import UserError
from support.reading import fails, read, texts

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def write(path, values, rows=1000, name="text", kind=None):
    table = pa.table({"id": range(len(values)), name: pa.array(values, kind)})
    pq.write_table(table, path, row_group_size=rows)
    return str(path)


def test_row_groups_in_order(tmp_path, monkeypatch):
    values = [f"row {i} é" for i in range(1000)]
    path = write(tmp_path / "a.parquet", values, rows=300)
    monkeypatch.setattr(sources_base, "SMALLEST_PART", 1)
    source = Parquet(path=path)
    assert [p.name for p in source.parts()] == [f"{path}[row groups {i} to {i}]" for i in range(4)]
    assert len({p.fingerprint() for p in source.parts()}) == 4
    documents, skipped = read(source)
    assert [d.text for d in documents] == values and not skipped
    assert documents[700].where == f"{path}: row 700"
    part = source.parts()[1]
    assert list(pickle.loads(pickle.dumps(part)).documents(Counter())) == documents[300:600]


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int8(), pa.string())]
)
def test_kinds_of_text(tmp_path, kind):
    values = ["a", "é\r\nx", "a"]
    path = write(tmp_path / "a.parquet", values, kind=kind)
    assert texts(Parquet(path=path)) == ["a", "é\nx", "a"]


def test_bad_files(tmp_path):
    write(tmp_path / "a.parquet", ["x"])
    pattern = str(tmp_path / "*.parquet")
    bad = {
        "cannot be read": lambda path: path.write_bytes(b"not Parquet"),
        "no column 'text'; did you mean 'texts'?": lambda p: write(p, ["y"], name="texts"),
        "not text but int64": lambda path: write(path, [1]),
        "not text but list": lambda path: write(path, [["y"]]),
    }
    for words, make in bad.items():
        make(tmp_path / "b.parquet")
        with pytest.raises(UserError) as caught:  # before a worker starts
            Parquet(path=pattern).parts()
        assert words in str(caught.value) and "b.parquet" in str(caught.value)
        documents, skipped = read(Parquet(path=pattern, on_error="skip"))
        assert [d.text for d in documents] == ["x"] and skipped.total() == 1


def test_bad_rows(tmp_path):
    values = ["one", None, "", b"\xff", "x" * 99, "two"]
    raw = [v.encode() if isinstance(v, str) else v for v in values]
    path = write(tmp_path / "a.parquet", raw, rows=2, kind=pa.binary())
    fails(Parquet(path=path), "a.parquet: row 1:", "null")
    documents, skipped = read(Parquet(path=path, on_error="skip", max_document_bytes=50))
    assert [(d.text, d.where[-5:]) for d in documents] == [("one", "row 0"), ("two", "row 5")]
    assert skipped == {"not text": 1, "empty": 1, "invalid UTF-8": 1, "too long": 1}


def test_invalid_utf8_in_a_column_of_strings(tmp_path):
    strings = pa.array([b"good", b"\xff"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": strings}), tmp_path / "a.parquet")
    source = Parquet(path=str(tmp_path / "a.parquet"), on_error="skip")
    documents, skipped = read(source)
    assert ([d.text for d in documents], skipped) == (["good"], {"invalid UTF-8": 1})


def test_damaged_page(tmp_path):
    path = write(tmp_path / "a.parquet", [os.urandom(50).hex() for _ in range(2000)])
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    middle = len(data) // 2
    data[middle - 20_000 : middle + 20_000] = bytes(40_000)
    (tmp_path / "a.parquet").write_bytes(data)
    fails(Parquet(path=path), "a.parquet", "cannot be read")


def test_no_rows(tmp_path):
    fails(Parquet(path=write(tmp_path / "a.parquet", [], kind=pa.string())), "any row")
