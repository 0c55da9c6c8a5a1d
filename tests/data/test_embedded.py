"""The embedded corpus against `pydoc_data.topics` and `inspect.getdoc` of imported modules."""

import inspect
import json.decoder
import pydoc_data.topics
import subprocess
import sys
import sysconfig
import textwrap
from collections import Counter
from pathlib import Path

import pytest

from jaxpretrain.data import embedded
from jaxpretrain.data.embedded import Embedded, EmbeddedPart
from jaxpretrain.errors import UserError


@pytest.fixture(scope="module")
def by_part():
    skipped = Counter()
    return [list(part.documents(skipped)) for part in Embedded().parts()], skipped


@pytest.fixture(scope="module")
def corpus(by_part):
    return [d for documents in by_part[0] for d in documents], by_part[1]


def test_size_and_language(corpus):
    documents, skipped = corpus
    total = sum(len(d.text.encode()) for d in documents)
    assert 1_800_000 < total < 4_000_000
    assert len(documents) > 400
    words = Counter(word for d in documents for word in d.text.lower().split())
    assert words.most_common(1)[0][0] == "the"
    assert set(skipped) <= {"empty", "part of another topic"}


def test_documents_are_distinct_valid_text(corpus):
    documents, _ = corpus
    assert len({d.where for d in documents}) == len(documents)
    assert len({d.text for d in documents}) == len(documents)
    assert all(d.text.encode() and d.text.endswith("\n") and "\r" not in d.text for d in documents)


def test_docstrings_are_what_python_shows(corpus):
    by_place = {d.where: d.text for d in corpus[0]}
    text = by_place["python:json/decoder.py"]
    assert text.startswith("json.decoder\n\nImplementation of JSONDecoder\n\n")
    for name, thing in [
        ("JSONDecodeError", json.decoder.JSONDecodeError),
        ("JSONDecoder", json.decoder.JSONDecoder),
        ("JSONDecoder.__init__", json.decoder.JSONDecoder.__init__),
        ("JSONDecoder.raw_decode", json.decoder.JSONDecoder.raw_decode),
    ]:
        assert f"\njson.decoder.{name}\n\n{inspect.getdoc(thing).strip()}\n" in text
    places = [text.index(f"json.decoder.JSONDecoder.{n}\n") for n in ("__init__", "decode")]
    assert places == sorted(places)


def test_no_tests_and_no_installed_packages(corpus):
    folders = {folder for d in corpus[0] for folder in d.where.removeprefix("python:").split("/")}
    assert not folders & {"test", "tests", "idle_test", "site-packages", "numpy"}


def test_topics_are_all_there_once(corpus):
    topics = pydoc_data.topics.topics
    place = f"python:{embedded.TOPICS}:"
    kept = {d.where.removeprefix(place): d.text for d in corpus[0] if d.where.startswith(place)}
    assert len(kept) + corpus[1]["part of another topic"] == len(topics)
    assert list(kept) == sorted(kept)
    for topic, text in kept.items():
        assert text.strip("\n") == topics[topic].strip("\n")
    whole = "\n".join(kept.values())
    said = {" ".join(p.split()) for p in whole.split("\n\n")}
    for topic in set(topics) - set(kept):
        paragraphs = [" ".join(p.split()) for p in topics[topic].strip("\n").split("\n\n")]
        again = sum(len(p) for p in paragraphs if p in said)
        assert again > 0.5 * sum(map(len, paragraphs)), topic


def test_kept_topics_hardly_repeat_each_other(corpus):
    place = f"python:{embedded.TOPICS}:"
    topics = [d.text for d in corpus[0] if d.where.startswith(place)]
    counts = Counter(p for t in topics for p in {" ".join(q.split()) for q in t.split("\n\n")})
    repeated = sum((n - 1) * len(p) for p, n in counts.items())
    assert repeated < 0.02 * sum(map(len, topics))


def test_modules_are_in_order_of_path(corpus):
    places = [d.where for d in corpus[0] if embedded.TOPICS not in d.where]
    assert places == sorted(places)


def test_parts_divide_the_work_and_do_not_change(by_part):
    parts = Embedded().parts()
    assert 8 <= len(parts) <= 16
    for number in (0, len(parts) - 1):
        assert list(parts[number].documents(Counter())) == by_part[0][number]
    sizes = [sum(len(d.text) for d in documents) for documents in by_part[0]]
    assert max(sizes) < 0.25 * sum(sizes)
    assert [p.fingerprint() for p in parts] == [p.fingerprint() for p in Embedded().parts()]
    assert len({p.fingerprint() for p in parts}) == len(parts)


def test_nothing_is_imported_or_run():
    code = (
        "import sys; from collections import Counter;"
        "from jaxpretrain.data.embedded import Embedded; before = set(sys.modules);"
        "n = sum(1 for p in Embedded().parts()[:2] for d in p.documents(Counter()));"
        "print(n > 20, [m for m in set(sys.modules) - before if '_sysconfigdata' not in m])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "True []", result.stdout + result.stderr


@pytest.fixture
def small(tmp_path):
    """A part of the one file `pack/__init__.py`, whose source the test gives."""

    def make(source):
        file = tmp_path / "pack" / "__init__.py"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(source if isinstance(source, bytes) else textwrap.dedent(source).encode())
        return EmbeddedPart(str(tmp_path), ("pack/__init__.py",))

    return make


def test_every_kind_of_definition_in_source_order(small):
    source = '''
        """  Module.

        Flush.

            Indented.
        """
        if True:
            class A:
                "Class."
                async def f(self):
                    """F."""
                    def inner(): "Inner."
        try:
            pass
        except ValueError as error:
            def g(): "G."
        def undocumented(): pass
        def last(): "Last. \\ud800"
        '''
    skipped = Counter()
    (document,) = small(source).documents(skipped)
    assert document.where == "python:pack/__init__.py"
    start = "pack\n\nModule.\n\nFlush.\n\n    Indented.\n\npack.A\n\nClass.\n\npack.A.f\n\nF.\n\n"
    assert document.text.startswith(start)
    names = [line for line in document.text.split("\n") if line.startswith("pack")]
    assert names == ["pack", "pack.A", "pack.A.f", "pack.A.f.inner", "pack.g", "pack.last"]
    assert document.text.endswith("pack.last\n\nLast. ?\n")
    assert not skipped


def test_files_that_give_nothing_are_counted(small):
    skipped = Counter()
    assert list(small("x = 1").documents(skipped)) == []
    assert list(small("def f(:").documents(skipped)) == []
    assert list(small(b"x = '\xff'").documents(skipped)) == []
    assert list(small(b"\0").documents(skipped)) == []
    assert skipped == {"empty": 1, "unreadable file": 3}


def test_fingerprint_is_of_the_contents(small):
    first = small('"One."').fingerprint()
    assert small('"Two."').fingerprint() != first
    assert small('"One."').fingerprint() == first


def test_no_standard_library_source(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(UserError, match="standard library's source"):
        Embedded().parts()


def test_topics_file_is_where_it_is_expected():
    root = Path(sysconfig.get_path("stdlib"))
    assert (root / embedded.TOPICS).samefile(pydoc_data.topics.__file__)
