"""The TFDS source against a small dataset that the test prepares on disk with TFDS itself."""

import os
import pickle
import shutil
import socket
import sys
from collections import Counter

import pytest

from jaxpretrain.data import sources_base
from jaxpretrain.data.sources_tfds import Tfds, TfdsPart, import_tfds
from jaxpretrain.errors import UserError
from support.reading import fails, read

tfds = pytest.importorskip("tensorflow_datasets")

TRAIN = [f"training text {i} é" for i in range(50)]
BAD = [b"good", b"", b" \n", b"\xff", b"x" * 200, b"a\r\nb"]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A dataset of two splits in several shards, whose code is not known when it is loaded."""
    folder = str(tmp_path_factory.mktemp("tfds"))
    import_tfds()

    # Not registered, so that it must be found on disk.
    class SmallTalk(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.2.0")
        __module__ = "small_talk"  # as if from a script: TFDS looks for no files beside the code
        pkg_dir_path = None

        def _info(self):
            texts = {name: tfds.features.Text() for name in ("text", "title")}
            label = tfds.features.ClassLabel(num_classes=2)
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict({**texts, "label": label}),
                disable_shuffling=self.name == "small_talk",
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(TRAIN), "test": self._generate_examples(BAD)}

        def _generate_examples(self, texts):
            for i, text in enumerate(texts):
                yield i, {"text": text, "title": "no", "label": i % 2}

    config = tfds.download.DownloadConfig(num_shards=3)
    SmallTalk(data_dir=folder).download_and_prepare(download_config=config)

    class HashedTalk(SmallTalk, skip_registration=True):
        """The same examples in the order in which TFDS stores most datasets: by hash."""

        __module__ = "hashed_talk"

    HashedTalk(data_dir=folder).download_and_prepare(download_config=config)
    return folder


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_reads_what_was_stored(data_dir):
    documents, skipped = read(Tfds(dataset="small_talk", data_dir=data_dir))
    assert [d.text for d in documents] == TRAIN
    assert not skipped
    assert documents[0].where == "small_talk-train.tfrecord-00000-of-00003__0"
    assert len({d.where for d in documents}) == len(TRAIN)


def test_one_shard_is_read_after_the_other(data_dir):
    documents, _ = read(Tfds(dataset="hashed_talk", data_dir=data_dir))
    assert sorted(d.text for d in documents) == sorted(TRAIN)
    ids = [d.where.split("__") for d in documents]
    assert ids == sorted(ids, key=lambda pair: (pair[0], int(pair[1])))
    assert len({shard for shard, _ in ids}) == 3


def test_name_with_version_other_field_and_slices(data_dir):
    (*titles,), _ = read(Tfds(dataset="small_talk:1.2.0", data_dir=data_dir, field="title"))
    assert [d.text for d in titles] == ["no"] * 50
    for split, expected in [
        ("train[10:20]", TRAIN[10:20]),
        ("train[:20%]", TRAIN[:10]),
        ("train[40:]+test[:1]", TRAIN[40:] + ["good"]),
    ]:
        documents, _ = read(Tfds(dataset="small_talk", data_dir=data_dir, split=split))
        assert [d.text for d in documents] == expected


@pytest.mark.parametrize("split", ["train", "train[:31]+train[45:]"])
def test_parts_are_slices_that_can_be_read_apart_and_again(data_dir, monkeypatch, split):
    monkeypatch.setattr(sources_base, "SMALLEST_PART", 600)
    monkeypatch.setattr(sources_base, "PARTS_WANTED", 5)
    source = Tfds(dataset="small_talk", data_dir=data_dir, split=split)
    parts = source.parts()
    assert 3 < len(parts) < 10
    assert parts[1].name == f"small_talk:{split}[1/{len(parts)}]"
    assert len({part.fingerprint() for part in parts}) == len(parts)
    read_apart = [
        [d.text for d in pickle.loads(pickle.dumps(part)).documents(Counter())] for part in parts
    ]
    # TFDS divides each term of a sum by itself, so only one term keeps the stored order.
    together = [text for texts in read_apart for text in texts]
    assert sorted(together) == sorted(TRAIN if split == "train" else TRAIN[:31] + TRAIN[45:])
    assert split != "train" or together == TRAIN
    assert max(map(len, read_apart)) - min(map(len, read_apart)) <= 2
    assert [d.text for d in parts[1].documents(Counter())] == read_apart[1]


def test_bad_texts(data_dir):
    options = dict(dataset="small_talk", data_dir=data_dir, split="test", max_document_bytes=100)
    fails(Tfds(**options), "small_talk-test.tfrecord-", "invalid UTF-8 (0xff")
    documents, skipped = read(Tfds(**options, on_error="skip"))
    assert [d.text for d in documents] == ["good", "a\nb"]
    assert skipped == {"empty": 2, "invalid UTF-8": 1, "too long": 1}


def test_wrong_names(data_dir):
    here = dict(data_dir=data_dir)
    fails(Tfds(dataset="small_tlk", **here), "'small_tlk'", "did you mean 'small_talk'?")
    fails(Tfds(dataset="imdb_review", **here), "did you mean 'imdb_reviews'?")
    fails(Tfds(dataset="", **here), "dataset is empty")
    fails(Tfds(dataset="small_talk:9.0.0", **here), "9.0.0")
    fails(Tfds(dataset="not a name!", **here), "not a name!")
    fails(Tfds(dataset="small_talk", field="txt", **here), "'txt'", "did you mean 'text'?")
    fails(Tfds(dataset="small_talk", field="label", **here), "'label'", "not text", "title")
    fails(Tfds(dataset="small_talk", split="tran", **here), "'tran'", "did you mean 'train'?")
    fails(Tfds(dataset="small_talk", split="train[", **here), "'train['")
    fails(Tfds(dataset="small_talk", split="train[60:70]", **here), "[60:70]")
    fails(Tfds(dataset="small_talk", split="train[:0]", **here), "no examples")


def test_known_but_not_prepared(data_dir):
    fails(
        Tfds(dataset="imdb_reviews", data_dir=data_dir),
        "imdb_reviews/plain_text/1.0.0 is not prepared in",
        "download=True",
    )


def test_download_is_asked_for_and_its_failure_told(data_dir, monkeypatch):
    asked = []

    def download_and_prepare(self, **kwargs):
        asked.append(self.info.name)
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", download_and_prepare)
    fails(Tfds(dataset="imdb_reviews", data_dir=data_dir, download=True), "no route to host")
    assert asked == ["imdb_reviews"]
    part = TfdsPart(Tfds(dataset="imdb_reviews", data_dir=data_dir, download=True), 0, 1)
    with pytest.raises(UserError, match="TFDS cannot read imdb_reviews:train"):
        list(part.documents(Counter()))  # a worker never downloads
    assert asked == ["imdb_reviews"]


def test_fingerprint_changes_with_the_files(data_dir, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(data_dir, copy)  # keeps times of change
    (first,) = Tfds(dataset="small_talk", data_dir=data_dir).parts()
    (second,) = Tfds(dataset="small_talk", data_dir=str(copy)).parts()
    (other,) = Tfds(dataset="small_talk", data_dir=data_dir, field="title").parts()
    before = first.fingerprint()
    assert second.fingerprint() == before != other.fingerprint()
    shard = next(copy.glob("small_talk/**/*train.tfrecord-00001*"))
    os.utime(shard, (1, 1))
    assert second.fingerprint() != before


def test_damaged_shard(data_dir, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(data_dir, copy)
    shard = next(copy.glob("small_talk/**/*train.tfrecord-00001*"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 0xFF
    shard.write_bytes(data)
    options = dict(dataset="small_talk", data_dir=str(copy))
    fails(Tfds(**options), "small_talk:train[0/1]", "cannot be read")
    documents, skipped = read(Tfds(**options, on_error="skip"))
    assert [d.text for d in documents] == TRAIN[: len(documents)] and 10 < len(documents) < 40
    assert skipped == {"unreadable file": 1}


def test_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(UserError, match=r"pip install 'jaxpretrain\[tfds\]'"):
        Tfds(dataset="imdb_reviews").parts()
