"""Downstream tasks of datasets that the test prepares on disk with TFDS itself."""

import types

import numpy as np
import pytest

from jaxpretrain.data.sources_tfds import import_tfds
from jaxpretrain.data.tasks import TfdsTask
from jaxpretrain.data.tasks_rows import Answer, Item
from jaxpretrain.errors import UserError

tfds = pytest.importorskip("tensorflow_datasets")

PAIRS = [(f"first {n} é", f"second {n}", n % 3) for n in range(30)]
CONTEXT = "Ünder the bridge, 漢字."
QUESTIONS = [
    ("Where?", [("bridge", 10), ("the bridge", 6)]),
    ("What?", [("漢字", 18)]),
    ("Why?", []),
]


def prepare(folder, made, name, splits):
    """Stores rows of a split each, in their order, as a dataset that is not registered."""

    class Small(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        __module__ = "small_data"  # as if from a script: TFDS looks for no files beside the code
        pkg_dir_path = None

        def _info(self):
            features = tfds.features.FeaturesDict(made)
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(rows) for split, rows in splits.items()}

        def _generate_examples(self, rows):
            yield from enumerate(rows)

    config = tfds.download.DownloadConfig(num_shards=2)
    builder = types.new_class(name, (Small,), {"skip_registration": True})
    builder(data_dir=folder).download_and_prepare(download_config=config)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("tfds"))
    import_tfds()
    text = tfds.features.Text
    rows = [{"sentence1": a, "sentence2": b, "label": c} for a, b, c in PAIRS]
    pairs = {
        "sentence1": text(),
        "sentence2": text(),
        "label": tfds.features.ClassLabel(num_classes=3),
    }
    prepare(folder, pairs, "SmallPairs", {"train": rows[:20], "validation": rows[20:]})
    answers = tfds.features.Sequence({"text": text(), "answer_start": np.int32})
    squad = {"question": text(), "context": text(), "answers": answers}
    rows = [
        {
            "question": question,
            "context": CONTEXT,
            "answers": [{"text": t, "answer_start": start} for t, start in found],
        }
        for question, found in QUESTIONS
    ]
    prepare(folder, squad, "SmallSquad", {"train": rows, "validation": rows})
    return folder


def test_splits_and_slices_of_pairs_are_read_in_their_order(data_dir):
    found = TfdsTask(dataset="small_pairs", data_dir=data_dir).load()
    items = [Item((a, b), c) for a, b, c in PAIRS]
    assert found == (items[:18], items[18:20], items[20:], ("0", "1", "2"))
    task = TfdsTask(dataset="small_pairs", data_dir=data_dir, text="sentence2", test="train[:7]")
    assert task.load().test == [Item((b,), c) for _, b, c in PAIRS[:7]]


def test_questions_with_several_answers_and_with_none_are_read(data_dir):
    task = TfdsTask(
        dataset="small_squad", data_dir=data_dir, kind="question_answering",
        train="train", dev="validation[:1]",
    )  # fmt: skip
    found = task.load()
    expected = [
        Item((asked, CONTEXT), tuple(Answer(*span) for span in spans)) for asked, spans in QUESTIONS
    ]
    assert found == (expected, expected[:1], expected, ())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"test": "validaton"}, ["split 'validaton' of small_pairs", "did you mean 'validation'?"]),
        ({"train": "train["}, ["'train['"]),
        ({"dataset": "small_pars"}, ["'small_pars'", "did you mean 'small_pairs'?"]),
        ({"label": "lable"}, ["small_pairs:train[:90%][0] has no field 'lable'", "'label'?"]),
        ({"kind": "question_answering"}, ["has no field 'question'"]),
        ({"dataset": "imdb_reviews"}, ["is not prepared in", "download=True"]),
    ],
    ids=str,
)
def test_what_tfds_has_not_is_told_in_one_line(data_dir, settings, words):
    task = TfdsTask(**({"dataset": "small_pairs", "data_dir": data_dir} | settings))
    with pytest.raises(UserError) as caught:
        task.load()
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message
