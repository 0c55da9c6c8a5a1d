"""Reads a tokenizer of any kind, by what is in the file or folder and not by its name."""

import os

from jaxpretrain.data.tokenizer import Tokenizer
from jaxpretrain.data.tokenizer_base import AnyTokenizer
from jaxpretrain.data.tokenizer_hf import FastTokenizer
from jaxpretrain.storage import access, path_of


def load_tokenizer(path: str | os.PathLike) -> AnyTokenizer:
    """Reads a tokenizer.

    Args:
        path: a file that `AnyTokenizer.save` wrote, a ``tokenizer.json`` of Hugging Face, or a
            folder of theirs that holds a tokenizer.

    Raises:
        UserError: it cannot be read, or is none of these.
    """
    path = path_of(path)
    with access(f"read the tokenizer {path}"):
        if path.is_dir():
            return FastTokenizer.from_folder(path)
        data = path.read_bytes()
    if data.lstrip()[:1] != b"{":
        return Tokenizer(data, name=f"the tokenizer {path}")
    if FastTokenizer.is_saved(data):
        return FastTokenizer(data, name=f"the tokenizer {path}")
    return FastTokenizer.from_file(path)
