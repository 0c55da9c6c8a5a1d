"""A Hugging Face model on disk: ``config.json`` and safetensors, in shards or not; never pickle."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from jaxpretrain.errors import UserError
from jaxpretrain.storage import AnyPath, access, json_object, write

WEIGHTS = "model.safetensors"
FLOATS = ("F64", "F32", "F16", "BF16")  # as safetensors calls them
INDEX = "model.safetensors.index.json"
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
# What TensorFlow called the scale and the bias of a norm, and BERT's first checkpoints still do.
OLD_NAMES = {"weight": "gamma", "bias": "beta"}
NEW_NAMES = {old: new for new, old in OLD_NAMES.items()}


class Tensors(Mapping):
    """The tensors of a folder by name, each read when it is asked for, as float32.

    Args:
        folder: with ``model.safetensors``, or shards and their index.
        base: what names begin with in a model with a head, as ``"bert."``: a model without one
            lacks it, and is asked for by the same names.

    Raises:
        UserError: no safetensors, or a file that is missing or damaged.
    """

    def __init__(self, folder: Path, base: str = ""):
        self._folder, self._base = folder, base
        self._file_of = _files(folder)
        self._bare = bool(base) and not any(name.startswith(base) for name in self._file_of)

    def __getitem__(self, name: str) -> np.ndarray:
        stored = self._stored(name)
        if stored is None:
            raise KeyError(name)
        with _opened(self._folder / self._file_of[stored]) as file:
            kind = file.get_slice(stored).get_dtype()
            if kind not in FLOATS:
                raise UserError(
                    f"the tensor {stored} is of the type {kind}: only {', '.join(FLOATS)} can be "
                    "imported; a quantized model must be imported as what it was made of"
                )
            return np.asarray(file.get_tensor(stored)).astype(np.float32)

    def __contains__(self, name: object) -> bool:
        return self._stored(str(name)) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)

    def _stored(self, name: str) -> str | None:
        """The name that a tensor has in the files."""
        if self._bare:
            name = name.removeprefix(self._base)
        front, _, last = name.rpartition(".")
        for candidate in (name, f"{front}.{OLD_NAMES.get(last)}"):
            if candidate in self._file_of:
                return candidate
        return None


def read_config(folder: Path) -> dict[str, Any]:
    """The ``config.json`` of a folder.

    Raises:
        UserError: there is none, or it is no JSON object.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(
            f"{folder} is not a Hugging Face model: it has no config.json; give the folder that "
            "save_pretrained wrote, or that was downloaded"
        )
    return json_object(path)


def write_model(folder: AnyPath, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]):
    """Writes ``config.json`` and ``model.safetensors``.

    Raises:
        UserError: the folder cannot be written.
    """
    save = library("safetensors.numpy").save
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    with access(f"write {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / "config.json", json.dumps(config, indent=2) + "\n")
        # "pt" is what transformers asks for, whoever wrote the file.
        write(folder / WEIGHTS, save(arrays, metadata={"format": "pt"}))


def library(name: str) -> Any:
    """A module of the extra ``hf``.

    Raises:
        UserError: it is not installed.
    """
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(
            f"Hugging Face models need {name.partition('.')[0]}: pip install 'jaxpretrain[hf]'"
        ) from None


def _files(folder: Path) -> dict[str, str]:
    """The file of each tensor."""
    if (folder / WEIGHTS).is_file():
        with _opened(folder / WEIGHTS) as file:
            return dict.fromkeys(file.keys(), WEIGHTS)
    if (folder / INDEX).is_file():
        found = json_object(folder / INDEX).get("weight_map")
        if not isinstance(found, dict) or not found:
            raise UserError(f"{folder / INDEX} is damaged: it has no weight_map")
        missing = sorted({f for f in map(str, found.values()) if not (folder / f).is_file()})
        if missing:
            raise UserError(f"{folder} is incomplete: {', '.join(missing)} of its index is missing")
        return found
    if any((folder / name).exists() for name in PICKLED):
        raise UserError(
            f"{folder} has its weights as a pickle, which can run any code when it is read: save "
            "it as safetensors (save_pretrained of transformers does) and import that"
        )
    raise UserError(f"{folder} has no weights: neither {WEIGHTS} nor {INDEX} is there")


@contextmanager
def _opened(path: Path):
    opener, damaged = library("safetensors").safe_open, library("safetensors").SafetensorError
    try:
        with opener(path, framework="numpy") as file:
            yield file
    except (OSError, damaged) as error:
        raise UserError(f"{path} cannot be read ({error}): download or save it again") from None
