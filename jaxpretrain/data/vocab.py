"""The vocabulary as device code sees it: the ids of the special pieces and tables over all ids."""

import hashlib
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np

SENTINELS = 100
NAMES = {
    "pad": "<pad>",
    "unk": "<unk>",
    "bos": "<s>",
    "eos": "</s>",
    "cls": "[CLS]",
    "sep": "[SEP]",
    "mask": "[MASK]",
    "sentinels": tuple(f"<extra_id_{i}>" for i in range(SENTINELS)),
    "fim_prefix": "<fim_prefix>",
    "fim_middle": "<fim_middle>",
    "fim_suffix": "<fim_suffix>",
    "mode_r": "[NLU]",
    "mode_s": "[S2S]",
    "mode_x": "[NLG]",
}
"""The special pieces by their names in `Vocab`, in the order of their ids, which begin at 0."""
SPECIAL = [n for names in NAMES.values() for n in ([names] if isinstance(names, str) else names)]
"""The special pieces in the order of their ids."""


@dataclass(frozen=True, eq=False)
class Vocab:
    """What device code needs to know of a vocabulary. Compared and hashed by what it says.

    Attributes:
        size: number of ids.
        is_special: bool [size]; the other ids stand for text (a newline, single bytes, pieces of
            text). In our own vocabulary the special ones are the lowest.
        pad, bos, eos, cls, sep: ids of the special pieces that every vocabulary has; one id may be
            several of them.
        unk, mask: likewise, or None. Text never gives `unk`, but for tokenizers of others.
        sentinels: 100 ids, ``<extra_id_0>`` first; another number, or none, in those of others.
        fim_prefix, fim_middle, fim_suffix: ids for fill-in-the-middle, or None.
        mode_r, mode_s, mode_x: ids of UL2's mode tokens, ``[NLU]``, ``[S2S]`` and ``[NLG]``, or
            None.
        is_word_start: bool [size]; the piece begins with a space, is a newline, or begins with a
            character that is no letter, mark or digit (punctuation is a word of its own). In the
            scripts that are written without spaces (Chinese, Japanese, Thai …) every piece starts
            a word. A single byte of a longer character never does.
        is_sentence_end: bool [size]; the piece ends in ``.``, ``!``, ``?`` or the like of other
            scripts, closing quotes or brackets allowed after it, or is a newline. By the piece
            alone: the dot of "3.14" is one too; ask that a word start follows with a space.
        piece_bytes: int32 [size]; bytes of UTF-8 text that the piece stands for, 0 for special
            pieces. ``"\\n"`` counts 0 and `eos` -1, to make up for the spaces put before lines; so
            the sum over a stored document is its text's size (1 less where that is empty or begins
            with a newline). For tokenizers of others see `tokenizer_hf`.
        owner: what error messages call the tokenizer.
    """

    size: int
    is_special: np.ndarray
    pad: int
    unk: int | None
    bos: int
    eos: int
    cls: int
    sep: int
    mask: int | None
    sentinels: tuple[int, ...]
    fim_prefix: int | None
    fim_middle: int | None
    fim_suffix: int | None
    mode_r: int | None
    mode_s: int | None
    mode_x: int | None
    is_word_start: np.ndarray
    is_sentence_end: np.ndarray
    piece_bytes: np.ndarray
    owner: str = "the SentencePiece tokenizer"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocab) and self._content == other._content

    def __hash__(self) -> int:
        return hash(self._content)

    @cached_property
    def _content(self) -> tuple:
        """All of it but the owner; of arrays a digest, since their equality is no single truth."""
        values = (getattr(self, each.name) for each in fields(self) if each.name != "owner")
        return tuple(
            (str(x.dtype), hashlib.sha256(np.ascontiguousarray(x)).digest())
            if isinstance(x, np.ndarray)
            else x
            for x in values
        )

    @cached_property
    def ordinary(self) -> np.ndarray:
        """The ids that are not special, int32, ascending: what random tokens are drawn from."""
        return np.flatnonzero(~self.is_special).astype(np.int32)


def special_ids(size: int, sentinels: int = SENTINELS) -> dict[str, Any]:
    """The ids of the special pieces and `is_special`, by their names in `Vocab`.

    Args:
        size: number of ids, the special ones first.
        sentinels: how many there are, in a vocabulary that is not the project's own.
    """
    ids, free = {}, 0
    for name, pieces in NAMES.items():
        if isinstance(pieces, str):
            ids[name], free = free, free + 1
        else:
            ids[name], free = tuple(range(free, free + sentinels)), free + sentinels
    return ids | {"is_special": np.arange(size) < free}


def blank_vocab(size: int) -> Vocab:
    """A vocabulary whose tables say nothing, for what depends on its size alone.

    Args:
        size: number of ids, the special ones among them.
    """
    nothing = np.zeros(size, bool)
    return Vocab(
        size=size,
        is_word_start=nothing,
        is_sentence_end=nothing,
        piece_bytes=nothing.astype(np.int32),
        **special_ids(size),
    )
