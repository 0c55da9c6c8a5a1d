"""The token store as it is read: exact tokens, exact counts, and damage that is named."""

import json
import mmap
import random
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from jaxpretrain.data import shards
from jaxpretrain.data.prepare import prepare
from jaxpretrain.data.shards import SPLITS, framed, token_dtype, write_part
from jaxpretrain.data.store import Store, TokenSet, manifest_sha256
from jaxpretrain.errors import UserError
from support.tiny_source import Tiny, TinyPart, topics

EMPTY: tuple[str, ...] = ()
SOURCES = {
    "docs": Tiny(texts=(*topics(3, 60), EMPTY)),
    "other": Tiny(texts=(("Привет, мир! 😀", "\n\n"),)),
    "single": Tiny(texts=(("one",),)),
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("store") / "s"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "_FLUSH_BYTES", 10_000)  # so that a shard is written in pieces
        prepare(
            path,
            sources=SOURCES,
            tokenizer_args={"vocab_size": 700},
            validation_fraction=0.2,
            test_fraction=0.2,
            workers=1,
            progress=False,
        )
    return path


@pytest.fixture
def store(prepared) -> Store:
    return Store.open(prepared)


@pytest.fixture
def copy(prepared, tmp_path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "copy"))


def documents(store: Store, token_set: TokenSet) -> list[str]:
    """The set's documents, through the public interface."""
    ends = token_set.doc_ends.tolist()
    streams = [token_set.read(a, b) for a, b in zip([0, *ends], ends, strict=False)]
    vocab = store.tokenizer.vocab
    assert all(s[0] == vocab.bos and s[-1] == vocab.eos for s in streams)
    return [store.tokenizer.decode(s) for s in streams]


def test_every_document_is_there_once(store):
    for number, (name, source) in enumerate(SOURCES.items()):
        sets = [store.sets(split)[number] for split in SPLITS]
        assert [s.name for s in sets] == [name] * 3
        found = Counter(text for s in sets for text in documents(store, s))
        assert found == Counter(text for texts in source.texts for text in texts)
    assert all(store.sets(split)[0].documents > 0 for split in SPLITS)


def test_documents_keep_their_order(store):
    stored = [text for texts in SOURCES["docs"].texts for text in texts]
    for split in SPLITS:
        found = documents(store, store.sets(split)[0])
        assert found == [text for text in stored if text in set(found)]


def test_totals_are_exact(store):
    for split in SPLITS:
        for token_set in store.sets(split):
            texts = documents(store, token_set)
            assert token_set.documents == len(texts) == len(token_set.doc_ends)
            assert token_set.text_bytes == sum(len(text.encode()) for text in texts)
            summary = store.manifest["sources"][token_set.name]["splits"][split]
            assert summary == {
                "documents": token_set.documents,
                "tokens": token_set.tokens_total,
                "text_bytes": token_set.text_bytes,
            }
            tokens = token_set.read(0, token_set.tokens_total)
            expected = np.bincount(tokens, minlength=700)
            assert token_set.vocab_counts.tolist() == expected.tolist()
            assert token_set.vocab_counts.dtype == np.int64


def test_read_spans_shards(store, prepared):
    token_set = store.sets("train")[0]
    files = sorted(prepared.glob("docs/*-train.tokens"))
    stream = np.concatenate([np.frombuffer(file.read_bytes(), "<u2") for file in files])
    assert len(files) == 4 and token_set.tokens_total == len(stream)
    edges = np.cumsum([file.stat().st_size // 2 for file in files]).tolist()
    rng = random.Random(1)
    spans = [sorted(rng.choices(range(len(stream) + 1), k=2)) for _ in range(200)]
    spans += [(e - 1, e + 1) for e in edges[:2]] + [(e, e) for e in edges] + [(0, len(stream))]
    spans += [(edges[0], edges[1]), (edges[0] - 1, edges[1] + 1)]
    for start, stop in spans:
        read = token_set.read(start, stop)
        assert read.dtype == np.uint16 and np.array_equal(read, stream[start:stop])
    for start, stop in [(-1, 3), (4, 3), (0, len(stream) + 1)]:
        with pytest.raises(IndexError):
            token_set.read(start, stop)


def test_reading_inside_a_shard_copies_nothing(store):
    token_set = store.sets("train")[0]
    read = token_set.read(3, 9)
    assert np.shares_memory(read, token_set.read(5, 11)) and not read.flags.writeable
    while isinstance(read, np.ndarray):
        read = read.base
    assert isinstance(read, mmap.mmap)


def test_an_empty_set(store):
    empty, _ = [s for split in SPLITS for s in store.sets(split)[2:] if not s.documents]
    assert empty.tokens_total == 0 and empty.text_bytes == 0
    assert len(empty.doc_ends) == 0 and len(empty.read(0, 0)) == 0
    assert empty.vocab_counts.tolist() == [0] * 700


def test_unknown_split(store):
    with pytest.raises(UserError, match="'dev'.*validation"):
        store.sets("dev")


def everything(path: Path) -> list[str]:
    return sorted(
        str(file.relative_to(path))
        for file in path.rglob("*")
        if file.is_file() and file.name != "manifest.json"
    )


def test_the_manifest_names_every_file(store):
    assert sorted(store.manifest["files"]) == everything(store.path)
    assert not list(store.path.rglob("*.tmp"))


def test_verify_names_the_damaged_file(copy):
    Store.open(copy, verify=True)
    for name in everything(copy):
        content = (copy / name).read_bytes()
        if not content:
            continue
        place = len(content) // 2
        damaged = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
        (copy / name).write_bytes(damaged)
        with pytest.raises(UserError) as error:
            Store.open(copy, verify=True)
        assert name in str(error.value) and "SHA-256" in str(error.value), name
        (copy / name).write_bytes(content)
    Store.open(copy, verify=True)


def test_opening_names_missing_and_truncated_files(copy):
    shard = copy / "docs/00001-train.tokens"
    content = shard.read_bytes()
    shard.write_bytes(content[:-2])
    numbers = rf"{len(content) - 2:,} bytes, not {len(content):,}"
    with pytest.raises(UserError, match=f"docs/00001-train.tokens is damaged .{numbers}"):
        Store.open(copy)
    shard.unlink()
    with pytest.raises(UserError, match="docs/00001-train.tokens is missing"):
        Store.open(copy)


def test_a_damaged_manifest(copy):
    manifest = copy / "manifest.json"
    content = manifest.read_text()
    manifest.write_text(content.replace('"documents": ', '"documents": 1', 1))
    with pytest.raises(UserError, match="manifest.json is damaged"):
        Store.open(copy)
    for broken in (content[:-9], "[]", "{}", ""):
        manifest.write_text(broken)
        with pytest.raises(UserError, match="manifest.json is damaged"):
            Store.open(copy)


def test_another_format(copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["format"] = 7
    manifest["sha256"] = manifest_sha256(manifest)
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="has format 7, this program reads format 1"):
        Store.open(copy)


def test_no_store_and_an_unfinished_one(copy, tmp_path):
    with pytest.raises(UserError, match="no token store at"):
        Store.open(tmp_path / "nowhere")
    (copy / "manifest.json").unlink()
    with pytest.raises(UserError, match="unfinished"):
        Store.open(copy)


def test_opening_reads_no_shard(prepared, monkeypatch):
    def no(*_):
        raise AssertionError("a shard was opened")

    for name in ("memmap", "fromfile"):
        monkeypatch.setattr(np, name, no)
    store = Store.open(prepared)
    assert store.sets("train")[0].tokens_total > 0
    with pytest.raises(AssertionError):
        store.sets("train")[0].read(0, 1)


class Wide:
    """Stands for a tokenizer with more than 65,536 ids: one for each character."""

    sha256 = "wide"

    class vocab:
        size, bos, eos = 70_000, 2, 3

    def encode_flat(self, texts):
        ids = [np.array([ord(c) for c in text.decode()], np.int32) for text in texts]
        return np.concatenate(ids), np.cumsum([len(i) for i in ids])


def test_uint32_where_the_vocabulary_needs_it(tmp_path):
    assert token_dtype(65_536) == "<u2" and token_dtype(65_537) == "<u4"
    part = TinyPart(name="p", texts=("a\U00010100b", "\U0001116f"))
    record = write_part(
        tmp_path,
        0,
        part,
        fingerprint=part.fingerprint(),
        tokenizer=Wide(),
        validation_fraction=0,
        test_fraction=0,
    )
    token_set = TokenSet(tmp_path, "p", "train", [record["splits"]["train"]], "<u4", 70_000)
    assert token_set.read(0, 8).tolist() == [2, 97, 0x10100, 98, 3, 2, 0x1116F, 3]
    assert token_set.read(0, 8).dtype == np.uint32
    assert token_set.doc_ends.tolist() == [5, 8]
    assert token_set.vocab_counts[0x1116F] == 1 and token_set.vocab_counts.sum() == 8


def test_framed():
    stream, ends = framed(np.array([7, 8, 9], np.int32), np.array([2, 2, 3]), 1, 0)
    assert stream.tolist() == [1, 7, 8, 0, 1, 0, 1, 9, 0]
    assert ends.tolist() == [4, 6, 9]
