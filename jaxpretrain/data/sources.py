"""The sources of text that a config can name. The contract is in `sources_base`."""

from jaxpretrain.data.embedded import Embedded
from jaxpretrain.data.sources_base import Document, Part, Source
from jaxpretrain.data.sources_files import JsonLines, TextFiles
from jaxpretrain.data.sources_parquet import Parquet
from jaxpretrain.data.sources_tfds import Tfds

__all__ = [
    "SOURCES",
    "Document",
    "Embedded",
    "JsonLines",
    "Parquet",
    "Part",
    "Source",
    "TextFiles",
    "Tfds",
]

SOURCES: dict[str, type] = {
    "embedded": Embedded,
    "text": TextFiles,
    "jsonl": JsonLines,
    "parquet": Parquet,
    "tfds": Tfds,
}
