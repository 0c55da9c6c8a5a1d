"""Downstream tasks that a config can name: labelled texts from files, from TFDS, or embedded.

A task is declared by the frozen dataclass whose fields are its keys in the config, and `load` gives
its rows.
"""

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar, Literal

from jaxpretrain.data.embedded import Embedded
from jaxpretrain.data.sources_tfds import tfds_examples
from jaxpretrain.data.tasks_rows import Item, Kind, TaskRows, labelled, plain, read_rows
from jaxpretrain.errors import UserError

SPLITS = ("train", "dev", "test")
METRICS = {
    "classification": ("accuracy", "f1", "matthews"),
    "regression": ("spearman", "pearson"),
    "similarity": ("spearman", "pearson"),
    "question_answering": ("f1", "exact_match"),
    "minimal_pairs": ("accuracy",),
}


@dataclass(frozen=True, kw_only=True)
class TaskSource(ABC):
    """What all tasks share.

    Attributes:
        kind: what is asked of the model.
        method: "probe" trains a linear model on the frozen backbone, "finetune" all of it, "both"
            one after the other. Nothing is trained for similarity and minimal pairs.
        metric: what is reported first; "auto" is accuracy for classes, F1 for answers, and
            Spearman's correlation for numbers.
        train_rows: the most rows to train on, drawn anew for each seed; 0 for all.
        test_rows: the most rows to choose by, and to test on, drawn once; 0 for all.
    """

    kind: Kind = "classification"
    method: Literal["probe", "finetune", "both"] = "probe"
    metric: Literal["auto", "accuracy", "f1", "matthews", "pearson", "spearman", "exact_match"] = (
        "auto"
    )
    train_rows: int = 2000
    test_rows: int = 1000

    kinds: ClassVar[tuple[str, ...]] = tuple(kind for kind in METRICS if kind != "minimal_pairs")

    def __post_init__(self):
        if self.kind not in self.kinds:
            raise UserError(f"kind is {self.kind!r}: it can be {', '.join(self.kinds)} here")
        if self.metric not in ("auto", *METRICS[self.kind]):
            raise UserError(
                f"metric is {self.metric!r}, and {self.kind} has {', '.join(METRICS[self.kind])}"
            )
        for name in ("train_rows", "test_rows"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}: it must be 0 (all) or more")

    @property
    def metrics(self) -> tuple[str, ...]:
        """Those of its kind, the one to report first."""
        first = METRICS[self.kind][0] if self.metric == "auto" else self.metric
        return (first, *(name for name in METRICS[self.kind] if name != first))

    @abstractmethod
    def load(self) -> TaskRows:
        """Reads all rows.

        Raises:
            UserError: what is wrong with the files or the dataset.
        """


@dataclass(frozen=True, kw_only=True)
class EmbeddedTask(TaskSource):
    """Which package of the standard library a docstring comes from; needs no download.

    The text is one docstring without its name, of ten words or more. Rows are split by a hash of
    the text, so that no text is in two splits; but the embedded corpus has all of them, each below
    its name, so a model that was trained on it has read the test rows. Which packages there are
    depends on the version of Python.

    Attributes:
        packages: how many classes: the packages with the most docstrings.
    """

    kinds = ("classification",)

    packages: int = 8

    def load(self) -> TaskRows:
        """See `TaskSource.load`."""
        found = _docstrings()
        counts = Counter(package for package, _ in found)
        classes = sorted(name for name, _ in counts.most_common(self.packages))
        rows: dict[str, list[Item]] = {name: [] for name in SPLITS}
        for package, text in found:
            if package in classes:
                share = hashlib.sha256(text.encode()).digest()[0] / 256
                split = "test" if share < 0.25 else "dev" if share < 0.35 else "train"
                rows[split].append(Item((text,), classes.index(package)))
        return TaskRows(**rows, classes=tuple(classes))


@dataclass(frozen=True, kw_only=True)
class FieldsTask(TaskSource):
    """Rows of named fields.

    Attributes:
        text: the field with the text; empty finds the usual ones.
        second: the field with the second text of a pair.
        label: the field with the label.
    """

    text: str = ""
    second: str = ""
    label: str = "label"

    @abstractmethod
    def rows(self, split: str) -> list[tuple[str, dict]]:
        """The rows of "train", "dev" or "test", each with its place; see `TaskSource.load`."""

    def load(self) -> TaskRows:
        """See `TaskSource.load`."""
        rows = {split: self.rows(split) for split in SPLITS}
        return labelled(rows, kind=self.kind, text=self.text, second=self.second, label=self.label)


@dataclass(frozen=True, kw_only=True)
class FileTask(FieldsTask):
    """Rows in local files: JSON lines, or tab-separated with the names of the fields in the first
    line.

    Attributes:
        path: a folder with ``train``, ``dev`` (or ``validation``) and ``test``, each ``.jsonl`` or
            ``.tsv``, or with ``.gz`` after it.
        train: another file to train on; "none" for none.
        dev: another file to choose by.
        test: another file to test on.
    """

    path: str = ""
    train: str = ""
    dev: str = ""
    test: str = ""

    def rows(self, split: str) -> list[tuple[str, dict]]:
        """See `FieldsTask.rows`."""
        given = getattr(self, split)
        if given == "none":
            return []
        if given:
            file = Path(given)
        else:
            names = ("dev", "validation") if split == "dev" else (split,)
            ends = (".jsonl", ".tsv", ".jsonl.gz", ".tsv.gz")
            there = [Path(self.path, name + end) for name in names for end in ends]
            file = next((path for path in there if path.is_file()), None)
            if file is None and split == "test":
                raise UserError(f"there is no test.jsonl or test.tsv (or .gz) in {self.path!r}")
            if file is None:
                return []
        if not file.is_file():
            raise UserError(f"there is no file {file}")
        return list(read_rows(file))


@dataclass(frozen=True, kw_only=True)
class TfdsTask(FieldsTask):
    """Rows of a TFDS dataset such as ``glue/sst2``, ``super_glue/boolq`` or ``squad``.

    Attributes:
        dataset: as TFDS names it.
        data_dir: where prepared datasets lie; by default where TFDS puts them.
        download: whether to download and prepare a dataset that is not there yet.
        train: split to train on.
        dev: split to choose by.
        test: split to test on; that of GLUE has no labels, so validation stands for it.
    """

    dataset: str = ""
    data_dir: str = ""
    download: bool = False
    train: str = "train[:90%]"
    dev: str = "train[90%:]"
    test: str = "validation"

    def rows(self, split: str) -> list[tuple[str, dict]]:
        """See `FieldsTask.rows`."""
        asked = getattr(self, split)
        found = tfds_examples(self.dataset, asked, self.data_dir, self.download)
        return [(f"{self.dataset}:{asked}[{n}]", plain(row)) for n, row in enumerate(found)]


@dataclass(frozen=True, kw_only=True)
class MinimalPairsTask(TaskSource):
    """Which of two sentences is acceptable (BLiMP: Warstadt et al. 2020, arXiv:1912.00582).

    Attributes:
        path: a file of BLiMP's JSON lines, or a folder of them, gzipped or not.
        pairs: of each file; 0 for all.
    """

    kinds = ("minimal_pairs",)

    kind: Kind = "minimal_pairs"
    test_rows: int = 0
    path: str = ""
    pairs: int = 0

    def load(self) -> TaskRows:
        """See `TaskSource.load`."""
        where = Path(self.path)
        files = sorted([*where.glob("*.jsonl"), *where.glob("*.jsonl.gz")])
        files = files if where.is_dir() else [where]
        if not files or not files[0].is_file():
            raise UserError(
                f"there are no minimal pairs at {self.path!r}: give a .jsonl file or their folder"
            )
        items = []
        for file in files:
            name = file.name.partition(".")[0]
            for number, (place, row) in enumerate(read_rows(file)):
                if self.pairs and number == self.pairs:
                    break
                try:
                    texts = str(row["sentence_good"]), str(row["sentence_bad"])
                except KeyError:
                    raise UserError(
                        f"{place} is no minimal pair: it needs sentence_good and sentence_bad"
                    ) from None
                group = row.get("linguistics_term") or row.get("field") or name
                items.append(Item(texts, group=str(group)))
        return TaskRows([], [], items)


TASKS: dict[str, type[TaskSource]] = {
    "embedded": EmbeddedTask,
    "files": FileTask,
    "tfds": TfdsTask,
    "minimal_pairs": MinimalPairsTask,
}


@cache
def _docstrings() -> tuple[tuple[str, str], ...]:
    """Package and text of each docstring of ten words or more in the embedded corpus, once."""
    found: dict[str, str] = {}
    for part in Embedded().parts():
        for document in part.documents(Counter()):
            module = document.where.removeprefix("python:")
            if module.startswith("pydoc_data/") or "/" not in module:
                continue
            for section in _sections(document.text, module):
                if len(section.split()) >= 10:
                    found.setdefault(section, module.split("/")[0])
    return tuple((package, text) for text, package in found.items())


def _sections(text: str, module: str) -> Sequence[str]:
    """The docstrings of a module's document, without the qualified name above each."""
    name = module.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    sections: list[list[str]] = [[]]
    for paragraph in text.split("\n\n"):
        head = paragraph.strip()
        if head == name or (head.startswith(f"{name}.") and " " not in head):
            sections.append([])
        else:
            sections[-1].append(paragraph.strip("\n"))
    return ["\n\n".join(section) for section in sections]
