"""The file sources against texts whose documents are known, and against bad input of every kind."""

import gzip
import io
import json
import os
import pickle
import subprocess
import sys
import tracemalloc
from collections import Counter
from dataclasses import MISSING, fields, is_dataclass

import pytest

from jaxpretrain.data import sources_base, sources_lines
from jaxpretrain.data.sources import SOURCES, JsonLines, Parquet, TextFiles
from jaxpretrain.errors import UserError
from support.reading import fails, read, texts


@pytest.fixture
def small_parts(monkeypatch):
    """Divides files into parts of a few bytes, as a file of gigabytes would be."""

    def set_size(size):
        monkeypatch.setattr(sources_base, "SMALLEST_PART", size)
        monkeypatch.setattr(sources_base, "LARGEST_PART", size)

    return set_size


class TestContract:
    def test_sources_are_frozen_keyword_only_dataclasses(self):
        for source in SOURCES.values():
            assert is_dataclass(source) and source.__dataclass_params__.frozen
            assert all(field.kw_only for field in fields(source))

    def test_only_the_input_itself_has_no_default(self):
        required = {
            name: [f.name for f in fields(source) if f.default is MISSING]
            for name, source in SOURCES.items()
        }
        assert required == {
            "embedded": [],
            "text": ["path"],
            "jsonl": ["path"],
            "parquet": ["path"],
            "tfds": ["dataset"],
        }

    def test_heavy_packages_are_not_imported(self):
        code = (
            "import sys, jaxpretrain.data.sources as s; s.Embedded().parts();"
            "print({'jax', 'tensorflow', 'tensorflow_datasets', 'pyarrow'} & set(sys.modules))"
        )
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert result.stdout.strip() == "set()", result.stderr

    def test_missing_package_names_the_extra(self, tmp_path, monkeypatch):
        (tmp_path / "a.parquet").write_bytes(b"x")
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(UserError, match=r"pip install 'jaxpretrain\[parquet\]'"):
            Parquet(path=str(tmp_path / "a.parquet")).parts()


class TestFindingFiles:
    def test_globs_lists_and_order(self, tmp_path):
        (tmp_path / "deep" / "er").mkdir(parents=True)
        for name in ("b.txt", "a.txt", "deep/er/c.txt", "d.md", "e, [1].md"):
            (tmp_path / name).write_text(name)
        star, every, d = (str(tmp_path / p) for p in ("*.txt", "**/*.txt", "d.md"))
        assert texts(TextFiles(path=star)) == ["a.txt", "b.txt"]
        assert texts(TextFiles(path=every)) == ["a.txt", "b.txt", "deep/er/c.txt"]
        assert texts(TextFiles(path=f"{d}, {star}, {every}")) == [
            "d.md", "a.txt", "b.txt", "deep/er/c.txt",
        ]  # fmt: skip
        assert texts(TextFiles(path=str(tmp_path / "e, [1].md"))) == ["e, [1].md"]

    def test_nothing_there(self, tmp_path):
        (tmp_path / "sub").mkdir()
        (tmp_path / "a.txt").write_text("x")
        fails(TextFiles(path=str(tmp_path / "*.nope")), "*.nope", "no file matches")
        fails(TextFiles(path=f"{tmp_path}/a.txt,{tmp_path}/b.txt"), "b.txt")
        fails(TextFiles(path=str(tmp_path / "sub")), "only folders", "sub/*")
        fails(JsonLines(path=""), "path is empty")

    def test_all_files_empty(self, tmp_path):
        (tmp_path / "a.txt").touch()
        (tmp_path / "b.txt").touch()
        fails(TextFiles(path=str(tmp_path / "*.txt")), "2 file(s), all of them empty")

    def test_not_a_regular_file(self, tmp_path):
        os.mkfifo(tmp_path / "pipe.txt")
        fails(TextFiles(path=str(tmp_path / "*.txt")), "pipe.txt", "no regular file")

    def test_bad_options(self):
        with pytest.raises(UserError, match="on_error is 'skp'; choose from 'error', 'skip'"):
            JsonLines(path="x", on_error="skp")
        with pytest.raises(UserError, match="document is 'page'"):
            TextFiles(path="x", document="page")
        with pytest.raises(UserError, match="max_document_bytes is 0"):
            Parquet(path="x", max_document_bytes=0)


class TestTextFiles:
    def test_text_is_kept_but_for_bom_and_crlf(self, tmp_path):
        content = "\ufeff  Zoë\u0308\r\nx\ty \rz\x0b\n\n end\u2028 \n\ufeff"
        (tmp_path / "a.txt").write_bytes(content.encode())
        expected = "  Zoë\u0308\nx\ty \rz\x0b\n\n end\u2028 \n\ufeff"
        assert texts(TextFiles(path=str(tmp_path / "a.txt"))) == [expected]
        (tmp_path / "a.txt.gz").write_bytes(gzip.compress(content.encode()))
        assert texts(TextFiles(path=str(tmp_path / "a.txt.gz"))) == [expected]
        paragraphs = texts(TextFiles(path=str(tmp_path / "a.txt"), document="paragraph"))
        assert paragraphs == ["  Zoë\u0308\nx\ty \rz\x0b", " end\u2028 \n\ufeff"]

    def test_lines_and_places(self, tmp_path):
        path = tmp_path / "a.txt"
        path.write_bytes(b"\xef\xbb\xbfone\r\n\n  \ntwo \n three")
        documents, skipped = read(TextFiles(path=str(path), document="line"))
        assert documents == [
            (b"one", f"{path}:1"),
            (b"two ", f"{path}:4"),
            (b" three", f"{path}:5"),
        ]
        assert skipped == {"empty": 2}

    def test_paragraphs_and_places(self, tmp_path):
        path = tmp_path / "a.txt"
        path.write_bytes(b"\n\none\r\nmore\r\n \t \n\n two\n\n\n")
        documents, skipped = read(TextFiles(path=str(path), document="paragraph"))
        assert documents == [(b"one\nmore", f"{path}:3"), (b" two", f"{path}:7")]
        assert not skipped

    @pytest.mark.parametrize("document", ["line", "paragraph"])
    @pytest.mark.parametrize("content", [
        "a\nbb\nccc\n\ndd dd\n\n\n\ne\nff",
        "\n\n\nfirst\n\nsecond\n",
        "one line of some length\nx\n\ny\nz\n\n" * 3,
        "no end of line at all, and long",
        "a\r\n\r\nb\r\nc\r\n\r\n\r\nd\r\n",
    ])  # fmt: skip
    def test_any_division_gives_the_same_documents(self, tmp_path, small_parts, document, content):
        path = tmp_path / "a.txt"
        path.write_bytes(content.encode())
        lines = content.replace("\r\n", "\n").split("\n")
        if document == "paragraph":
            expected = [p.strip("\n") for p in "\n".join(lines).split("\n\n") if p.strip()]
        else:
            expected = [line for line in lines if line.strip()]
        source = TextFiles(path=str(path), document=document)
        for size in (1, 2, 3, 5, 7, 11, 1000):
            small_parts(size)
            assert len(source.parts()) == -(-len(content.encode()) // size)
            documents, skipped = read(source)
            assert [d.text for d in documents] == expected, size
            if document == "line":
                assert skipped["empty"] == content.count("\n") + 1 - len(expected) - (not lines[-1])

    def test_place_in_a_later_range(self, tmp_path, small_parts):
        path = tmp_path / "a.txt"
        content = b"a\n\n\xc3\xa9\nfour\nfive \xff\nsix"
        path.write_bytes(content)
        small_parts(4)
        source = TextFiles(path=str(path), document="line", on_error="skip")
        documents, skipped = read(source)
        assert [d.text for d in documents] == ["a", "é", "four", "six"]
        assert documents[-1].where == f"{path}@{content.index(b'six')}"
        assert skipped == {"empty": 1, "invalid UTF-8": 1}
        fails(TextFiles(path=str(path), document="line"), "a.txt:5:", "0xff at byte 6")
        small_parts(9)
        fails(TextFiles(path=str(path), document="paragraph"), "a.txt:5:", "0xff at byte 6")
        fails(TextFiles(path=str(path)), "a.txt:5:", "0xff at byte 6", "source.on_error=skip")

    def test_invalid_utf8_is_not_only_stray_bytes(self, tmp_path):
        path = tmp_path / "a.txt"
        for bad in (b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"tail \xe2\x82"):
            path.write_bytes(b"good\n" + bad)
            documents, skipped = read(TextFiles(path=str(path), document="line", on_error="skip"))
            assert ([d.text for d in documents], skipped) == (["good"], {"invalid UTF-8": 1})

    @pytest.mark.parametrize("document", ["file", "line", "paragraph"])
    def test_binary_file(self, tmp_path, small_parts, document):
        (tmp_path / "a.txt").write_bytes(b"PNG\n\0\0\n" * 9)
        (tmp_path / "b.txt").write_text("good")
        pattern = str(tmp_path / "*.txt")
        small_parts(20)  # a file of several ranges is counted once
        fails(TextFiles(path=pattern, document=document), "a.txt:", "binary file")
        documents, skipped = read(TextFiles(path=pattern, document=document, on_error="skip"))
        assert ([d.text for d in documents], skipped) == (["good"], {"binary file": 1})

    def test_unreadable_file(self, tmp_path):
        (tmp_path / "a.txt").symlink_to(tmp_path / "gone")
        (tmp_path / "b.txt").write_text("good")
        pattern = str(tmp_path / "*.txt")
        fails(TextFiles(path=pattern), "a.txt:", "No such file")
        documents, skipped = read(TextFiles(path=pattern, on_error="skip"))
        assert ([d.text for d in documents], skipped) == (["good"], {"unreadable file": 1})

    @pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read anything")
    def test_forbidden_file(self, tmp_path):
        (tmp_path / "a.txt").write_text("secret")
        (tmp_path / "a.txt").chmod(0)
        fails(TextFiles(path=str(tmp_path / "a.txt")), "a.txt:", "Permission denied")

    def test_damaged_gzip(self, tmp_path):
        whole = gzip.compress(os.urandom(99_000).hex().encode())
        (tmp_path / "a.txt.gz").write_bytes(whole[:-5000])
        (tmp_path / "b.txt.gz").write_bytes(b"plain text, not compressed")
        (tmp_path / "c.txt.gz").write_bytes(whole[:40] + bytes(100) + whole[140:])
        for name in "abc":
            source = TextFiles(path=str(tmp_path / f"{name}.txt.gz"))
            fails(source, f"{name}.txt.gz", "cannot be read")
        documents, skipped = read(TextFiles(path=str(tmp_path / "*.gz"), on_error="skip"))
        assert (documents, skipped) == ([], {"unreadable file": 3})

    @pytest.mark.parametrize("document", ["file", "line", "paragraph"])
    @pytest.mark.parametrize("suffix", ["", ".gz"])
    def test_huge_line_is_never_held_whole(self, tmp_path, document, suffix):
        path = tmp_path / f"big.txt{suffix}"
        with gzip.open(path, "wb", 1) if suffix else path.open("wb") as file:
            file.write(b"before\n\n")
            for _ in range(100):
                file.write(b"x" * (1 << 20))
            file.write(b"\n\nafter\n")
        options = dict(path=str(path), document=document, max_document_bytes=1 << 20)
        tracemalloc.start()
        documents, skipped = read(TextFiles(**options, on_error="skip"))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 16 << 20
        assert skipped.pop("empty", 0) in (0, 2) and skipped == {"too long": 1}
        assert [d.text for d in documents] == ([] if document == "file" else ["before", "after"])
        line = "" if document == "file" else ":3"
        fails(TextFiles(**options), f"big.txt{suffix}{line}", "max_document_bytes=1,048,576")

    @pytest.mark.parametrize("document", ["file", "line", "paragraph"])
    def test_length_limit_is_exact(self, tmp_path, document):
        path = tmp_path / "a.txt"
        for start, ending in ((b"", b""), (b"\xef\xbb\xbf", b""), (b"", b"\r\n"), (b"", b"\n")):
            if document == "file" and ending:
                continue
            for text, fits in (("é" * 5, True), ("é" * 5 + "e", False)):
                path.write_bytes(start + text.encode() + ending)
                source = TextFiles(
                    path=str(path), document=document, max_document_bytes=10, on_error="skip"
                )
                documents, skipped = read(source)
                assert [d.text for d in documents] == [text] * fits
                assert skipped == ({} if fits else {"too long": 1})

    def test_ranges_inside_a_huge_line_read_only_themselves(self, tmp_path, small_parts):
        path = tmp_path / "a.txt"
        path.write_bytes(b"x" * 40_000_000)
        small_parts(1 << 20)
        read_bytes = 0

        class Counted(io.FileIO):
            def readinto(self, buffer):
                nonlocal read_bytes
                count = super().readinto(buffer)
                read_bytes += count
                return count

        source = TextFiles(path=str(path), document="line", on_error="skip")
        parts = source.parts()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sources_lines, "open_bytes", lambda p: io.BufferedReader(Counted(p)))
            for part in parts[1:]:
                assert list(part.documents(Counter())) == []
        assert len(parts) == 39 and read_bytes < 50_000_000

    def test_huge_paragraph_is_never_held_whole(self, tmp_path):
        path = tmp_path / "a.txt"
        path.write_bytes(b"before\n\n" + (b"x" * 10_000 + b"\n") * 3000 + b"\nafter")
        options = dict(path=str(path), document="paragraph", max_document_bytes=1 << 18)
        tracemalloc.start()
        documents, skipped = read(TextFiles(**options, on_error="skip"))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert ([d.text for d in documents], skipped) == (["before", "after"], {"too long": 1})
        assert peak < 4 << 20
        fails(TextFiles(**options), "a.txt:3:")

    def test_too_long_paragraph_of_short_lines(self, tmp_path):
        (tmp_path / "a.txt").write_text("ab\n\n" + "cd\n" * 9 + "\nef")
        source = TextFiles(
            path=str(tmp_path / "a.txt"),
            document="paragraph",
            max_document_bytes=8,
            on_error="skip",
        )
        documents, skipped = read(source)
        assert ([d.text for d in documents], skipped) == (["ab", "ef"], {"too long": 1})


class TestParts:
    def test_many_small_files_share_parts(self, tmp_path):
        for i in range(300):
            (tmp_path / f"{i:03}.txt").write_text(f"text {i}")
        source = TextFiles(path=str(tmp_path / "*.txt"))
        (part,) = source.parts()
        assert "300 files" in part.name
        assert texts(source) == [f"text {i}" for i in range(300)]

    def test_part_sizes(self):
        mebi = 1 << 20
        totals = (0, 64 * mebi, 640 * mebi, 1 << 40)
        assert [sources_base.part_bytes(n) // mebi for n in totals] == [4, 4, 10, 64]

    def test_parts_are_named_pickled_and_read_again(self, tmp_path, small_parts):
        path = tmp_path / "a.jsonl"
        path.write_text('{"text": "one"}\n{"text": "two"}\n')
        small_parts(16)
        parts = JsonLines(path=str(path)).parts()
        assert [part.name for part in parts] == [f"{path}[0:16]", f"{path}[16:32]"]
        for part in parts:
            copy = pickle.loads(pickle.dumps(part))
            assert copy.fingerprint() == part.fingerprint()
            assert list(copy.documents(Counter())) == list(part.documents(Counter()))

    def test_fingerprint(self, tmp_path, small_parts):
        path = tmp_path / "a.jsonl"
        path.write_text('{"text": "one"}\n{"text": "two"}\n')
        small_parts(16)

        def prints(**options):
            return [part.fingerprint() for part in JsonLines(path=str(path), **options).parts()]

        before = prints()
        assert len(set(before)) == 2 and prints() == before
        assert not set(prints(field="body")) & set(before)
        assert not set(prints(on_error="skip")) & set(before)
        status = path.stat()
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
        assert not set(prints()) & set(before)


class TestJsonLines:
    @pytest.mark.parametrize("suffix", ["", ".gz"])
    def test_reads(self, tmp_path, suffix):
        values = ["plain", " é\n\t\u2028 ", "😀", "\u0000", "a\r\nb"]
        rows = [json.dumps({"id": i, "text": v, "more": [1]}) for i, v in enumerate(values)]
        content = ("\ufeff" + "\r\n".join(rows)).encode()
        path = tmp_path / f"a.jsonl{suffix}"
        path.write_bytes(gzip.compress(content) if suffix else content)
        documents, skipped = read(JsonLines(path=str(path)))
        assert [d.text for d in documents] == values[:-1] + ["a\nb"] and not skipped
        assert [d.where for d in documents] == [f"{path}:{i}" for i in range(1, 6)]

    def test_any_division_gives_the_same_documents(self, tmp_path, small_parts):
        path = tmp_path / "a.jsonl"
        values = ["x" * n for n in (1, 30, 2, 80, 3, 4, 5, 200, 1)]
        path.write_text("".join(json.dumps({"text": v}) + "\n" for v in values))
        for size in (1, 5, 13, 64, 100, 10_000):
            small_parts(size)
            assert texts(JsonLines(path=str(path))) == values, size

    BAD = [
        ('{"text": "cut', "invalid JSON", "Unterminated"),
        ("[" * 100_000, "invalid JSON", "recursion"),
        ('{"text": ' + "9" * 5000 + "}", "invalid JSON", "digits"),
        ('["text"]', "not an object", "an array"),
        ('{"txet": "x"}', "missing field", "no field 'text'; did you mean 'txet'?"),
        ("{}", "missing field", "no field 'text'"),
        ('{"text": null}', "not text", "null"),
        ('{"text": 12}', "not text", "12"),
        ('{"text": "a \\ud800 b"}', "invalid text", "U+D800 at character 2"),
        (b'{"text": "\xff"}', "invalid UTF-8", "0xff at byte 11"),
        ('{"text": "' + "long " * 50_000 + '"}', "too long", "max_document_bytes=200,000"),
    ]

    @pytest.mark.parametrize("line, reason, words", BAD, ids=[f"{b[1]}-{b[2][:9]}" for b in BAD])
    def test_bad_line(self, tmp_path, small_parts, line, reason, words):
        path = tmp_path / "a.jsonl"
        line = line if isinstance(line, bytes) else line.encode()
        path.write_bytes(b'{"text": "one"}\n\n' + line + b'\n{"text": "two"}\n')
        options = dict(path=str(path), max_document_bytes=200_000)
        for size in (15, 1 << 20) if len(line) < 1000 else (1 << 20,):
            small_parts(size)
            fails(JsonLines(**options), "a.jsonl:3:", words)
            documents, skipped = read(JsonLines(**options, on_error="skip"))
            assert [d.text for d in documents] == ["one", "two"]
            assert skipped == {reason: 1, "empty": 1}

    def test_empty_texts_are_counted_whatever_on_error_says(self, tmp_path):
        (tmp_path / "a.jsonl").write_text('{"text": ""}\n{"text": " \\n\\u00a0"}\n{"text": "x"}\n')
        documents, skipped = read(JsonLines(path=str(tmp_path / "a.jsonl")))
        assert ([d.text for d in documents], skipped) == (["x"], {"empty": 2})
