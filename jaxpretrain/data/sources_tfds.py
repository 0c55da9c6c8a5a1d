"""Documents from a TensorFlow Datasets dataset, by name.

The idea: TFDS divides a split evenly by example number (`tfds.even_splits`), so a part is a slice
that any process can read again in the stored order. TensorFlow is imported inside functions only.
"""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jaxpretrain.data import sources_base as base
from jaxpretrain.data.sources_base import Document, InputRules
from jaxpretrain.data.tensorflow_quietly import import_tensorflow
from jaxpretrain.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Tfds(InputRules):
    """A dataset that TFDS knows by name, or that lies prepared in `data_dir`.

    Attributes:
        dataset: e.g. ``imdb_reviews``, ``wikipedia/20230601.en``, ``imdb_reviews:1.0.0``.
        field: the feature that has the text.
        split: e.g. ``train``, ``train[:10%]+test``.
        data_dir: where prepared datasets lie; by default where TFDS puts them.
        download: whether to download and prepare a dataset that is not there yet.
    """

    dataset: str
    field: str = "text"
    split: str = "train"
    data_dir: str = ""
    download: bool = False

    def parts(self) -> list["TfdsPart"]:
        """Even slices of the split.

        Raises:
            UserError: an unknown dataset, split or field; a dataset that is not prepared; an empty
                split; tensorflow_datasets is not installed.
        """
        builder = self.builder()
        if not builder.info.splits:
            self.prepare(builder)
        self._check_field(builder)
        splits = builder.info.splits
        try:
            examples = splits[self.split].num_examples
        except (ValueError, KeyError, AssertionError) as error:
            hint = base.nearest(self.split, list(splits))
            raise UserError(
                f"split {self.split!r} of {self.dataset}: {_one_line(error)}{hint}"
            ) from None
        if not examples:
            raise UserError(f"split {self.split!r} of {self.dataset} has no examples")
        every = sum(split.num_examples for split in splits.values())
        size = builder.info.dataset_size * examples // every
        count = min(examples, max(1, -(-size // base.part_bytes(size))))
        return [TfdsPart(self, index, count) for index in range(count)]

    def builder(self) -> Any:
        """The `tfds.core.DatasetBuilder`; nothing is downloaded.

        Raises:
            UserError: TFDS does not know the dataset, or its version or config.
        """
        tfds = import_tfds()
        if not self.dataset:
            raise UserError("dataset is empty; name a TFDS dataset, e.g. dataset='imdb_reviews'")
        try:
            return tfds.builder(self.dataset, data_dir=self.data_dir or None)
        except tfds.core.DatasetNotFoundError:
            known = self._known_names(tfds)
            hint = base.nearest(self.dataset.split("/")[0].split(":")[0], known)
        except (ValueError, AssertionError, ImportError, OSError) as error:
            raise UserError(f"TFDS cannot load {self.dataset!r}: {_one_line(error)}") from None
        folder = f" nor in {self.data_dir}" if self.data_dir else ""
        raise UserError(f"no dataset {self.dataset!r} in TFDS{folder}{hint}")

    def _known_names(self, tfds: Any) -> list[str]:
        names = tfds.list_builders(with_community_datasets=False)
        if self.data_dir and os.path.isdir(self.data_dir):
            names = [n for n in sorted(os.listdir(self.data_dir)) if n != "downloads"] + names
        return names

    def prepare(self, builder: Any) -> None:
        """Downloads and prepares the dataset, if `download` says so.

        Raises:
            UserError: it does not, or it cannot be done.
        """
        if not self.download:
            raise UserError(
                f"the TFDS dataset {builder.info.full_name} is not prepared in"
                f" {builder.data_path.parent}; set download=True, or run: tfds build {self.dataset}"
            )
        try:
            builder.download_and_prepare()
        except Exception as error:  # whatever a dataset's own code and the network raise
            raise UserError(
                f"TFDS could not download and prepare {self.dataset}: {_one_line(error)}"
            ) from error

    def _check_field(self, builder: Any) -> None:
        features = builder.info.features
        names = list(features) if hasattr(features, "keys") else []
        if self.field not in names:
            hint = base.nearest(self.field, names)
            raise UserError(f"{self.dataset} has no feature {self.field!r}{hint}")
        feature = features[self.field]
        if feature.shape != () or feature.np_dtype not in (object, str, bytes):
            raise UserError(
                f"feature {self.field!r} of {self.dataset} is not text but {_one_line(feature)};"
                f" the features are {', '.join(names)}"
            )


@dataclass(frozen=True)
class TfdsPart:
    """One of `count` even slices of the split."""

    source: Tfds
    index: int
    count: int

    @property
    def name(self) -> str:
        return f"{self.source.dataset}:{self.source.split}[{self.index}/{self.count}]"

    def fingerprint(self) -> str:
        """Of the options, the dataset's full name and version, and the state of its files."""
        builder = self.source.builder()
        files = [
            (path.name, path.stat().length, path.stat().mtime)
            for path in sorted(builder.data_path.iterdir())
        ]
        name = builder.info.full_name
        return base.digest("tfds", self.source.options(), name, files, self.index, self.count)

    def documents(self, skipped: Counter) -> Iterator[Document]:
        """Reads the slice in the stored order; a document's place is TFDS's own id."""
        tfds = import_tfds()
        source = self.source
        try:
            dataset = tfds.load(
                source.dataset,
                split=tfds.even_splits(source.split, self.count)[self.index],
                data_dir=source.data_dir or None,
                download=False,
                shuffle_files=False,
                decoders=tfds.decode.PartialDecoding({source.field: True}),
                # One file after the other; and one slice is read once, so a cache is waste.
                read_config=tfds.ReadConfig(
                    interleave_cycle_length=1, try_autocache=False, add_tfds_id=True
                ),
            )
            examples = iter(tfds.as_numpy(dataset))
        except (ValueError, AssertionError, OSError) as error:
            raise UserError(f"TFDS cannot read {self.name}: {_one_line(error)}") from None
        yield from self._read(examples, skipped)

    def _read(self, examples: Iterator[dict], skipped: Counter) -> Iterator[Document]:
        tf = import_tensorflow()
        while True:
            try:
                example = next(examples, None)
            except (tf.errors.OpError, OSError) as error:
                # What TensorFlow cannot read, it cannot pass over: the rest of the slice is lost.
                detail = f"cannot be read ({_one_line(error)})"
                rejected = base.Rejected("unreadable file", detail)
                self.source.reject(rejected, self.name, skipped)
                return
            if example is None:
                return
            where = example["tfds_id"].decode()
            yield from self.source.accept(example[self.source.field], where, skipped)


def tfds_examples(dataset: str, split: str, data_dir: str, download: bool) -> Iterator[dict]:
    """All features of the examples of a split, in the stored order, as NumPy; see `Tfds`.

    Raises:
        UserError: an unknown dataset or split, or a dataset that is not prepared.
    """
    tfds = import_tfds()
    source = Tfds(dataset=dataset, split=split, data_dir=data_dir, download=download)
    builder = source.builder()
    if not builder.info.splits:
        source.prepare(builder)
    try:
        found = tfds.load(
            dataset,
            split=split,
            data_dir=data_dir or None,
            download=False,
            shuffle_files=False,
            read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
        )
        yield from tfds.as_numpy(found)
    except (ValueError, KeyError, AssertionError, OSError) as error:
        hint = base.nearest(split, list(builder.info.splits))
        raise UserError(f"split {split!r} of {dataset}: {_one_line(error)}{hint}") from None


def import_tfds() -> Any:
    """Imports tensorflow_datasets, quietly and without a claim on any GPU.

    Raises:
        UserError: it is not installed.
    """
    try:
        import_tensorflow()
        import tensorflow_datasets as tfds
    except ImportError:
        base.missing_package("tensorflow_datasets", "tfds")
    return tfds


def _one_line(thing: object, limit: int = 300) -> str:
    text = " ".join(str(thing).split()) or type(thing).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"
