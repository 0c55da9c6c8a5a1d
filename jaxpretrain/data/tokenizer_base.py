"""What every tokenizer can do, whatever library it is of: the contract that its users keep to."""

import hashlib
import os
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from jaxpretrain.data.vocab import Vocab
from jaxpretrain.storage import path_of, write

_SENTENCE_END = re.compile(
    r"[.!?\u2026\u203d\u3002\uff01\uff0e\uff1f\uff61\u061f\u06d4\u0964\u0965]"
    r"[\"')\]}\u00bb\u2019\u201d\u300d\u300f\uff09]*\Z|\n"
)
_UNSPACED = {"CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR"}


class Located(NamedTuple):
    """A text as tokens, with where each is in it.

    Attributes:
        ids: int32 ``[tokens]``, without bos and eos.
        begins: for each token the byte of the text at which it begins, without the spaces before
            words, ``[tokens]``.
        ends: the byte after it.
    """

    ids: np.ndarray
    begins: np.ndarray
    ends: np.ndarray


class AnyTokenizer(ABC):
    """Text to token ids and back. No text gives a special piece, not even one that spells its
    name; `vocab.unk` is the exception, in tokenizers of others.

    Attributes:
        model_bytes: the file that it is read from, whole; `tokenizer_load` tells the kind by it.
    """

    model_bytes: bytes

    @property
    @abstractmethod
    def vocab(self) -> Vocab:
        """The vocabulary; the same object each time."""

    @property
    @abstractmethod
    def keeps_text(self) -> bool:
        """Whether decoding gives the text back, so that `Vocab.piece_bytes` are exact."""

    @abstractmethod
    def encode_flat(self, texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Encodes texts and lays their ids end to end; the fast way to encode many.

        Args:
            texts: in UTF-8.

        Returns:
            The ids, int32 [total], and where each text's ids end among them, int64 [texts].
        """

    @abstractmethod
    def encode_gaps(self, text: str, gap: str, fills: Sequence[int] = ()) -> list[int]:
        """Encodes one text in which `gap` stands for what is hidden and the space before it.

        Args:
            text: with gaps or without.
            gap: what stands for one.
            fills: the special ids that the gaps become, one for each; none: each becomes the mask.
        """

    @abstractmethod
    def locate(self, texts: Sequence[str]) -> list[Located]:
        """Encodes texts and finds the tokens in them."""

    @abstractmethod
    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of ids. Special ids vanish; ids of a broken character give U+FFFD."""

    @abstractmethod
    def pieces(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """The pieces of ids as the model writes them, special ones too."""

    @abstractmethod
    def words(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """The pieces of ids without the space before a word; what is no word, such as a newline, as
        the model writes it, in quotes."""

    @cached_property
    def sha256(self) -> str:
        """Of `model_bytes`, in hex."""
        return hashlib.sha256(self.model_bytes).hexdigest()

    def save(self, path: str | os.PathLike) -> None:
        """Writes the model file, whole or not at all."""
        write(path_of(path), self.model_bytes)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Encodes texts: int32 [tokens] for each, without bos and eos.

        Raises:
            UnicodeEncodeError: a text with a lone surrogate.
        """
        flat, ends = self.encode_flat([text.encode() for text in texts])
        starts = [0, *ends.tolist()]
        return [flat[a:b] for a, b in zip(starts[:-1], starts[1:], strict=True)]

    def encode(self, text: str) -> list[int]:
        """Encodes one text, without bos and eos. See `encode_batch`."""
        return self.encode_batch([text])[0].tolist()


def table(values: list, dtype: type) -> np.ndarray:
    """An array that cannot be written to."""
    made = np.array(values, dtype)
    made.flags.writeable = False
    return made


def checked_ids(ids: Sequence[int] | np.ndarray, size: int) -> np.ndarray:
    """Ids as int64; raises ValueError for those outside of a vocabulary of `size`."""
    ids = np.asarray(ids, np.int64).reshape(-1)
    if ids.size and not 0 <= ids.min() <= ids.max() < size:
        raise ValueError(f"ids must lie in [0, {size}): {ids.min()}…{ids.max()}")
    return ids


def is_unspaced(text: str) -> bool:
    """Whether a text begins in a script that is written without spaces between words."""
    return unicodedata.name(text[0], "").split(" ")[0] in _UNSPACED


def starts_word(text: str) -> bool:
    """See `Vocab.is_word_start`, for the text that a piece stands for."""
    if not text:
        return False
    category = unicodedata.category(text[0])
    if is_unspaced(text):
        return not category.startswith("M")
    return category[0] not in "LMN" and category != "Cf"  # Cf: joiners are inside words


def ends_sentence(text: str) -> bool:
    """See `Vocab.is_sentence_end`, for the text that a piece stands for."""
    return bool(_SENTENCE_END.search(text))
