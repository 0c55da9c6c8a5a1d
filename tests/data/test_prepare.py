"""`prepare`: split, resume, damage, and that the result depends on nothing but the request."""

import fcntl
import io
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from jaxpretrain.data import prepare as prepare_module
from jaxpretrain.data import progress
from jaxpretrain.data.prepare import prepare
from jaxpretrain.data.shards import SPLITS, split_of
from jaxpretrain.data.sources_base import Document
from jaxpretrain.data.store import Store
from jaxpretrain.data.tokenizer import Tokenizer
from jaxpretrain.errors import UserError
from support.tiny_source import Tiny, topics

SMALL = {"vocab_size": 700}
HALVES = {"validation_fraction": 0.3, "test_fraction": 0.3}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, str]:
    """The arguments for a small tokenizer that is there already."""
    file = tmp_path_factory.mktemp("trained") / "t.model"
    Tokenizer.train(topics(1, 40)[0], **SMALL).save(file)
    return {"file": str(file)}


@pytest.fixture
def make(tmp_path, trained) -> Callable[..., Store]:
    """`prepare` into a folder of the test, quietly and without training a tokenizer."""

    def call(name: str = "s", **changes) -> Store:
        arguments = {"sources": {"docs": Tiny(texts=topics(4, 40))}, "workers": 1}
        arguments |= {"tokenizer_args": trained, "progress": False, **changes}
        return prepare(tmp_path / name, **arguments)

    return call


def contents(path: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


def times(path: Path) -> dict[str, int]:
    return {str(f.relative_to(path)): f.stat().st_mtime_ns for f in path.rglob("*") if f.is_file()}


def texts_by_split(store: Store) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {split: [] for split in SPLITS}
    for split in SPLITS:
        for token_set in store.sets(split):
            start = 0
            for end in token_set.doc_ends.tolist():
                found[split].append(store.tokenizer.decode(token_set.read(start, end)))
                start = end
    return found


def test_a_text_is_in_one_split_wherever_it_comes_from(make):
    short = tuple(f"document number {number}" for number in range(500))
    sources = {
        "a": Tiny(texts=(short[:300], short[200:])),
        "b": Tiny(texts=(short[::-1], topics(1, 10)[0])),
    }
    found = texts_by_split(make(sources=sources, **HALVES))
    splits = {text: {s for s in SPLITS if text in found[s]} for s in SPLITS for text in found[s]}
    assert set(short) <= splits.keys()
    assert all(len(found_in) == 1 for found_in in splits.values())
    expected = Counter(t for source in sources.values() for part in source.texts for t in part)
    assert Counter(text for s in SPLITS for text in found[s]) == expected


def test_split_is_stable_and_has_the_right_shares():
    fractions = {"validation_fraction": 0.02, "test_fraction": 0.03}
    number = 100_000
    counts = Counter(split_of(b"text %d" % i, **fractions) for i in range(number))
    for split, fraction in [("validation", 0.02), ("test", 0.03), ("train", 0.95)]:
        deviation = (number * fraction * (1 - fraction)) ** 0.5
        assert abs(counts[split] - number * fraction) < 4 * deviation
    # From hashlib by hand: these must never change, or old stores would leak into new splits.
    assert [split_of(b"%d" % i, **HALVES)[:2] for i in range(12)] == PINNED.split()
    assert split_of("ёж".encode(), validation_fraction=0, test_fraction=0) == "train"


PINNED = "te va va va te te tr te tr va te te"


def test_one_and_two_workers_give_the_same_store(make):
    sources = {"docs": Tiny(texts=topics(5, 60)), "other": Tiny(texts=(("x", "!odd"), ("y", "")))}
    one = make("one", sources=sources, tokenizer_args=SMALL, workers=1)
    two = make("two", sources=sources, tokenizer_args=SMALL, workers=2)
    assert contents(one.path) == contents(two.path)
    assert one.manifest["sha256"] == two.manifest["sha256"]
    assert one.manifest["sources"]["other"]["skipped"] == {"empty": 1, "odd": 1}
    Store.open(two.path, verify=True)


PROGRAM = """
from support.tiny_source import Tiny, topics
from jaxpretrain.data.prepare import prepare
if __name__ == "__main__":
    source = Tiny(texts=topics(8, 40), pause=0.06, note={note!r})
    prepare({path!r}, sources={{"docs": source}}, tokenizer_args={{"vocab_size": 700}}, workers=2)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
def test_kill_and_resume(make, tmp_path):
    path, note = tmp_path / "s", tmp_path / "note"
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(path=str(path), note=str(note)))
    process = subprocess.Popen(
        [sys.executable, program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while len(list(path.glob("docs/*.json"))) < 3:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) >= 2
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < deadline, "the workers outlive the killed prepare"
        time.sleep(0.01)

    finished = {file.name[:5] for file in path.glob("docs/*.json")}
    assert 3 <= len(finished) < 8
    kept = {k: t for k, t in times(path).items() if k[5:10] in finished or "/" not in k}
    with pytest.raises(UserError, match="unfinished"):
        Store.open(path)

    note.write_text("")
    sources = {"docs": Tiny(texts=topics(8, 40), pause=0.06, note=str(note))}
    store = make(sources=sources, tokenizer_args=SMALL, workers=2)
    assert {name: times(path)[name] for name in kept} == kept
    read = {f"{int(line.removeprefix('part-')):05d}" for line in note.read_text().splitlines()}
    assert read == {f"{number:05d}" for number in range(8)} - finished
    assert contents(path) == contents(make("clean", sources=sources, tokenizer_args=SMALL).path)
    Store.open(store.path, verify=True)


def test_preparing_again_does_nothing_and_says_so(make, capsys):
    path = make().path
    before = times(path)
    make(progress=True)
    assert "already prepared" in capsys.readouterr().err
    assert times(path) == before


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failing_part_is_reported_and_the_finished_ones_stay(make, tmp_path, workers):
    sources = {"docs": Tiny(texts=(*topics(4, 40), ("fine", "!!not text")))}
    arguments = {"sources": sources, "workers": workers}
    with pytest.raises(UserError, match="part-4:2: not text"):
        make(**arguments)
    kept = times(tmp_path / "s")
    finished = {name[:5] for name in os.listdir(tmp_path / "s/docs") if name.endswith(".json")}
    assert finished and "00004" not in finished
    with pytest.raises(UserError, match="part-4:2"):
        make(**arguments)
    after = times(tmp_path / "s")
    assert all(after[k] == t for k, t in kept.items() if k[5:10] in finished)


def test_a_damaged_shard_is_written_again_and_no_other(make):
    store = make()
    before, good = times(store.path), contents(store.path)
    damaged = store.path / "docs/00002-train.tokens"
    damaged.write_bytes(damaged.read_bytes()[:-4])
    make()
    after = times(store.path)
    changed = {name for name in before if before[name] != after[name]}
    assert changed <= {"manifest.json", *(name for name in before if "/00002" in name)}
    assert contents(store.path) == good


def test_a_store_under_repair_is_unfinished(make, monkeypatch):
    path = make().path
    (path / "docs/00002-train.ends").unlink()

    def fail(*_):
        raise UserError("disk full")

    monkeypatch.setattr(prepare_module, "write_parts", fail)
    with pytest.raises(UserError, match="disk full"):
        make()
    with pytest.raises(UserError, match="unfinished"):
        Store.open(path)


def test_files_deleted_as_the_error_says_are_made_again(make):
    path = make(tokenizer_args=SMALL).path
    good = contents(path)
    for name in ("tokenizer.model", "prepare.json", "manifest.json", "docs/00001.json"):
        (path / name).unlink()
        assert contents(make(tokenizer_args=SMALL).path) == good


def test_parts_of_another_tokenizer_are_written_again(make):
    path = make(tokenizer_args=SMALL).path
    good = contents(path)
    (path / "manifest.json").unlink()
    other = Tokenizer.train(topics(1, 30)[0], vocab_size=600)
    other.save(path / "tokenizer.model")
    store = make(tokenizer_args=SMALL)
    assert store.tokenizer.sha256 == other.sha256
    texts = Counter(text for texts in texts_by_split(store).values() for text in texts)
    assert texts == Counter(text for part in topics(4, 40) for text in part)
    assert contents(path) != good


def test_a_changed_request_is_refused(make):
    path = make(tokenizer_args=SMALL).path
    texts = topics(4, 40)
    changed = (*texts[:3], (*texts[3], "more"))
    for change, message in [
        ({"sources": {"docs": Tiny(texts=changed)}}, "source 'docs' was Tiny"),
        ({"sources": {"docs": Tiny(texts=texts), "new": Tiny(texts=texts)}}, "source 'new'"),
        ({"tokenizer_args": {"vocab_size": 800}}, "'vocab_size': 700.*'vocab_size': 800"),
        ({"test_fraction": 0.5}, "'test_fraction': 0.02.*'test_fraction': 0.5"),
    ]:
        with pytest.raises(UserError, match=f"prepared from something else: .*{message}"):
            make(**{"tokenizer_args": SMALL} | change)
    before = contents(path)
    assert contents(make(tokenizer_args=SMALL).path) == before


@dataclass(frozen=True, kw_only=True)
class FromFile:
    """A source whose fingerprint follows a file, as those of real files do."""

    path: str
    changes_while_read: bool = False

    def parts(self):
        return [FilePart(self.path, self.changes_while_read)]


@dataclass(frozen=True)
class FilePart:
    name: str
    changes_while_read: bool

    def fingerprint(self) -> str:
        return f"{Path(self.name).stat().st_mtime_ns}"

    def documents(self, skipped):
        for text in topics(1, 20)[0]:
            yield Document(text.encode(), self.name)
        if self.changes_while_read:
            os.utime(self.name, ns=(1, 1))


def test_an_input_that_changed_is_named(make, tmp_path):
    file = tmp_path / "input.txt"
    file.write_text("")
    make(sources={"docs": FromFile(path=str(file))})
    os.utime(file, ns=(5, 5))
    with pytest.raises(UserError, match="input.txt of source 'docs' has changed"):
        make(sources={"docs": FromFile(path=str(file))})
    sources = {"docs": FromFile(path=str(file), changes_while_read=True)}
    with pytest.raises(UserError, match="input.txt changed while it was read"):
        make("other", sources=sources)


def test_an_unfinished_store_of_another_request_is_begun_anew(make, tmp_path):
    file = tmp_path / "input.txt"
    file.write_text("")
    sources = {"docs": FromFile(path=str(file), changes_while_read=True)}
    with pytest.raises(UserError, match="changed while it was read"):
        make(sources=sources)
    store = make(sources={"docs": FromFile(path=str(file))})
    assert sum(s.documents for s in store.sets("train")) > 0


def test_overwrite_replaces_the_store(make):
    path = make(sources={"old": Tiny(texts=topics(2, 40))}).path
    store = make(overwrite=True)
    assert not (path / "old").exists()
    assert contents(path) == contents(make("clean").path)
    assert [s.name for s in store.sets("train")] == ["docs"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_with_something_else_in_it_is_left_alone(make, tmp_path, overwrite):
    (tmp_path / "s").mkdir()
    (tmp_path / "s/thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="not empty and holds no token store"):
        make(overwrite=overwrite)
    assert contents(tmp_path / "s") == {"thesis.txt": b"years of work"}


def test_overwrite_stays_inside_the_store(make, tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "precious").mkdir()
    request = '{"sources": {"../precious": {}}, "tokenizer": 0, "split": 0, "format": 1}'
    (tmp_path / "s/prepare.json").write_text(request)
    make(overwrite=True)
    assert (tmp_path / "precious").exists()


def test_two_prepares_at_once(make, tmp_path):
    (tmp_path / "s").mkdir()
    other = os.open(tmp_path / "s", os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="another prepare is at work"):
        make()
    os.close(other)
    make()


def test_leftovers_of_a_killed_prepare_are_removed(make):
    path = make().path
    good = contents(path)
    (path / "manifest.json").unlink()
    (path / "docs/00001-train.tokens.tmp").write_bytes(b"half")
    make()
    assert contents(path) == good


def test_the_tokenizer_is_trained_on_train_documents_up_to_the_cap(make, monkeypatch):
    seen: list[list[str]] = []
    train = Tokenizer.train.__func__

    def spy(cls, texts, **arguments):
        seen.append(list(texts))
        return train(cls, seen[-1], **arguments)

    monkeypatch.setattr(Tokenizer, "train", classmethod(spy))
    store = make("all", tokenizer_args=SMALL, **HALVES)
    assert sorted(seen[0]) == sorted(texts_by_split(store)["train"])
    cap = sum(len(text.encode()) for text in seen[0]) // 2
    make("some", tokenizer_args={**SMALL, "train_bytes": cap}, **HALVES)
    assert set(seen[1]) < set(seen[0])
    size = sum(len(text.encode()) for text in seen[1])
    assert size >= cap > size - len(seen[1][-1].encode())
    parts = topics(4, 40)
    assert all(set(part) & set(seen[1]) for part in parts), "the sample is from all the parts"


def test_a_tokenizer_from_a_file(make, tmp_path):
    tokenizer = Tokenizer.train(topics(1, 30)[0], vocab_size=600, kind="bpe")
    tokenizer.save(tmp_path / "t.model")
    store = make(tokenizer_args={"file": str(tmp_path / "t.model")})
    assert store.tokenizer.sha256 == tokenizer.sha256 == store.manifest["tokenizer_sha256"]
    assert store.manifest["vocab_size"] == 600
    with pytest.raises(UserError, match="cannot read the tokenizer .*none.model"):
        make(tokenizer_args={"file": str(tmp_path / "none.model")})


def test_what_a_user_can_get_wrong(make, tmp_path):
    texts = ("!too long", "!too long", "", "!bad")
    message = r"no documents .* docs \(1 bad, 2 too long left out\)"
    with pytest.raises(UserError, match=message):
        make("empty", sources={"docs": Tiny(texts=(texts,))}, tokenizer_args=SMALL)
    message = r"no documents .* docs \(1 bad, 1 empty, 2 too long left out\)"
    with pytest.raises(UserError, match=message):
        make("empty2", sources={"docs": Tiny(texts=(texts,))})
    with pytest.raises(UserError, match="vocab_size 90000 is too large .* at most"):
        make("large", tokenizer_args={"vocab_size": 90_000})
    for changes, message in [
        ({"sources": {}}, "no source"),
        ({"sources": {"../x": Tiny(texts=())}}, "source name '../x'"),
        ({"test_fraction": 0.99}, "validation_fraction 0.02 and test_fraction 0.99"),
        ({"validation_fraction": -0.1}, "validation_fraction -0.1"),
        ({"workers": -1}, "workers is -1"),
        ({"tokenizer_args": {"train_bytes": 0}}, "train_bytes is 0"),
    ]:
        with pytest.raises(UserError, match=message):
            make("wrong", **changes)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot make the token store .*file"):
        make("file")


def test_a_worker_that_dies_is_reported(make):
    with pytest.raises(UserError, match="worker process died.*run prepare again"):
        make(sources={"docs": Tiny(texts=topics(3, 40), deadly="part-1")}, workers=2)


def test_what_a_worker_did_not_expect_is_shown_with_where_it_happened(make, tmp_path):
    source = Tiny(texts=topics(3, 12), note=str(tmp_path / "no such folder" / "note"))
    with pytest.raises(RuntimeError, match="(?s)in a worker.*tiny_source.py.*FileNotFoundError"):
        make(sources={"docs": source}, workers=2)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress(make, capsys, monkeypatch):
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.0)
    make(progress=True, tokenizer_args=SMALL)
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("prepare: ") for line in lines)
    assert "prepare: 4/4 parts, 40 documents" in "\n".join(lines) and len(lines) >= 6
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    make("again", progress=True, workers=2)
    assert "4/4 [" in terminal.getvalue() and "40 documents" in terminal.getvalue()
    monkeypatch.undo()
    make("quiet")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("tokenizer_args", [SMALL, None], ids=["trained", "there"])
def test_documents_that_are_all_held_out_are_counted(make, tokenizer_args):
    args = {} if tokenizer_args is None else {"tokenizer_args": tokenizer_args}
    message = "no documents to train on in docs: 2 fell into validation or test"
    with pytest.raises(UserError, match=message):
        make(sources={"docs": Tiny(texts=(("one",), ("two",)))}, test_fraction=0.97, **args)
