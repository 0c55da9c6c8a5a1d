"""A run small enough to be trained in a second or two: a few topics of pydoc, a tiny model."""

import pydoc_data.topics
from pathlib import Path

from ml_collections import ConfigDict

from jaxpretrain.assemble import open_store
from jaxpretrain.config import complete, override
from jaxpretrain.data.tokenizer import Tokenizer

CONFIG = """
from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.source = {{"name": "text", "path": "{texts}/*.txt"}}
    config.store = {{"path": "{store}", "validation_fraction": 0.1, "test_fraction": 0.1,
                     "workers": 1}}
    config.tokenizer = {{"vocab_size": 700}}
    config.data = {{"length": 32, "batch_size": 8, "loader": "threads"}}
    config.model = {{"width": 16, "layers": 1, "heads": 2, "dropout": 0.1, "dtype": "float32",
                    "scan_layers": "off"}}
    config.optimizer = {{"learning_rate": 0.01, "warmup_steps": 2}}
    config.train = {{"steps": 8, "log_every": 2}}
    config.evaluate = {{"every": 4, "batches": 2}}
    config.checkpoint = {{"every": 4}}
    config.tasks = {{}}
    return config
"""


def write(folder: Path) -> Path:
    """Writes texts and a config file for them; returns the config file."""
    texts = folder / "texts"
    texts.mkdir()
    for name, text in sorted(pydoc_data.topics.topics.items())[:40]:
        (texts / f"{name}.txt").write_text(text)
    file = folder / "tiny.py"
    file.write_text(CONFIG.format(texts=texts, store=folder / "store"))
    return file


def config(file: Path, **overrides: object) -> ConfigDict:
    """The complete config of the file with dotted keys replaced, ``__`` standing for the dot."""
    namespace: dict = {}
    exec(file.read_text(), namespace)
    raw = namespace["get_config"]().to_dict()
    for key, value in overrides.items():
        override(raw, key.replace("__", "."), str(value))
    return complete(raw)


def tokenizer_of(file: Path) -> Tokenizer:
    """The tokenizer of the store that was prepared for the config file."""
    return open_store(config(file)).tokenizer
