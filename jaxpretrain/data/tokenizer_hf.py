"""The tokenizers of Hugging Face checkpoints: WordPiece, byte-level BPE, and whatever else a
``tokenizer.json`` holds, by the library that wrote it.

Texts are encoded as that library does, but for two things: its post-processor is not run, since the
token store frames documents itself, and what spells the name of a special piece is ordinary text.
"""

import json
import os
from collections.abc import Sequence
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np

from jaxpretrain.data import tokenizer_folder
from jaxpretrain.data.tokenizer_base import (
    AnyTokenizer,
    Located,
    checked_ids,
    ends_sentence,
    table,
)
from jaxpretrain.data.tokenizer_pieces import Surface, unused
from jaxpretrain.data.vocab import Vocab
from jaxpretrain.errors import UserError
from jaxpretrain.storage import AnyPath, access, path_of

_PROBES = (
    "Two  words,\tThe End.\n\n \u201cnai\u0308ve\u201d caf\u00e9",
    "\ufb01 \u6f22\u5b57 \U0001f600x",
)


class FastTokenizer(AnyTokenizer):
    """A tokenizer of the library `tokenizers`, with the roles of its special pieces.

    `Vocab.piece_bytes` are exact for byte-level BPE that does not normalise: the sum over a
    document is its text's size. Where `keeps_text` is False they say what a piece most likely stood
    for: of WordPiece, a word and the space before it, a sign without one, letters as they are after
    lower-casing, and nothing for an unknown piece. Bits per byte are then approximate.

    `Vocab.is_word_start` is by the piece alone too: where a line break is a piece of text, as in
    byte-level BPE, the first word of a line goes with the break before it.

    Attributes:
        model_bytes: JSON: the library's own ("tokenizer"), the ids of the special pieces by their
            names in `Vocab` ("roles"), and the number of ids ("size").
    """

    def __init__(self, model_bytes: bytes, *, name: str = "the tokenizer"):
        """Reads what `save` wrote; `name` is what error messages call it.

        Raises:
            UserError: something else, or the library is not installed.
        """
        self.model_bytes = model_bytes
        try:
            content = json.loads(model_bytes)
            library, self._roles, self._size = (content[k] for k in ("tokenizer", "roles", "size"))
            dropout, sentinels = library["model"].get("dropout"), self._roles["sentinels"]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{name} is damaged: it is no tokenizer that was saved here") from None
        plain = library | {"truncation": None, "padding": None, "post_processor": None}
        if dropout:  # of merges: it would make ids random
            plain["model"] = library["model"] | {"dropout": None}
        self._model = tokenizer_folder.opened(plain, name)
        self._model.encode_special_tokens = True
        self._plain = plain
        self._surface = Surface(library)
        self._pieces = tokenizer_folder.by_id(self._model, self._size)
        special = [self._roles[n] for n in self._roles if n != "sentinels"]
        special += sentinels
        special += [one["id"] for one in library["added_tokens"] if one["special"]]
        special += [i for i, piece in enumerate(self._pieces) if piece is None or unused(piece)]
        self._is_special = np.zeros(self._size, bool)
        self._is_special[[i for i in special if i is not None]] = True
        self._is_special.flags.writeable = False

    @classmethod
    def from_folder(cls, folder: str | os.PathLike, size: int = 0) -> "FastTokenizer":
        """Reads the tokenizer of a Hugging Face folder.

        Args:
            folder: with ``tokenizer.json``, or ``vocab.txt`` (WordPiece), or ``vocab.json`` and
                ``merges.txt`` (byte-level BPE). The roles of special pieces are those of
                ``tokenizer_config.json`` and ``special_tokens_map.json``.
            size: rows of the model's embedding table; ids past the pieces are special ones that
                nothing uses. 0 is the ``vocab_size`` of ``config.json``, else the number of pieces.

        Raises:
            UserError: no tokenizer, one that cannot be read, or `size` is below its pieces.
        """
        folder = path_of(folder)
        with access(f"read the tokenizer {folder}"):
            library, settings = tokenizer_folder.read(folder)
            size = size or tokenizer_folder.model_size(folder)
        return cls._made(library, settings, size, f"the tokenizer {folder}")

    @classmethod
    def from_file(cls, file: str | os.PathLike, size: int = 0) -> "FastTokenizer":
        """Reads a ``tokenizer.json``, with the roles that files beside it give; see `from_folder`.

        Raises:
            UserError: see `from_folder`.
        """
        file: AnyPath = path_of(file)
        with access(f"read the tokenizer {file}"):
            library, settings = tokenizer_folder.read_file(file)
        return cls._made(library, settings, size, f"the tokenizer {file}")

    @classmethod
    def _made(cls, library: dict, settings: dict, size: int, name: str) -> "FastTokenizer":
        vocab = tokenizer_folder.opened(library, name).get_vocab(with_added_tokens=True)
        pieces = max(vocab.values(), default=-1) + 1
        if size and size < pieces:
            raise UserError(
                f"{name} has {pieces:,} pieces, and the vocabulary is to have {size:,}: each piece "
                "needs a row of the model's embedding table"
            )
        roles = tokenizer_folder.roles(library, vocab, settings, name)
        content = {"tokenizer": library, "roles": roles, "size": size or pieces}
        made = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
        return cls(made.encode(), name=name)

    @staticmethod
    def is_saved(data: bytes) -> bool:
        """Whether JSON is what `save` writes, rather than the library's own."""
        return data.startswith(b'{"tokenizer":')

    def encode_flat(self, texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """See `AnyTokenizer`."""
        found = _tried(self._model.encode_batch_fast, [text.decode() for text in texts])
        sizes = np.fromiter(map(len, found), np.int64, len(found))
        ids = chain.from_iterable(one.ids for one in found)
        return self._unspelled(np.fromiter(ids, np.int32, int(sizes.sum()))), np.cumsum(sizes)

    def _unspelled(self, ids: np.ndarray) -> np.ndarray:
        """Text that a model without rules for words takes for a special piece is unknown."""
        unk = self._roles["unk"]
        return ids if unk is None else np.where(self._is_special[ids], np.int32(unk), ids)

    def encode_gaps(self, text: str, gap: str, fills: Sequence[int] = ()) -> list[int]:
        """See `AnyTokenizer`: as the library reads a text with its own special pieces."""
        mask = self._roles["mask"]
        if gap not in text or (mask is None and not fills):
            return self.encode(text)
        first, *others = text.split(gap)
        fills = fills or [mask] * len(others)
        parts = (self._pieces[i] + part for i, part in zip(fills, others, strict=True))
        return self._typed.encode(first + "".join(parts)).ids

    def enclosed(self, text: str, gap: str) -> list[int]:
        """Encodes one text as the library does for the model: with what its post-processor puts
        around it, and `gap` read as the mask.

        Raises:
            UserError: there is a gap, and no mask piece.
        """
        if gap in text:
            if self._roles["mask"] is None:
                raise UserError(f"the model's tokenizer has no mask piece to stand for {gap}")
            text = text.replace(gap, self._pieces[self._roles["mask"]])
        return self._enclosing.encode(text).ids

    @cached_property
    def _enclosing(self) -> Any:
        processor = {"post_processor": self.library["post_processor"]}
        return tokenizer_folder.opened(self._plain | processor, "the tokenizer")

    @property
    def library(self) -> dict:
        """The library's own ``tokenizer.json``."""
        return json.loads(self.model_bytes)["tokenizer"]

    @cached_property
    def _typed(self) -> Any:
        """The library's tokenizer that knows special pieces by their names."""
        return tokenizer_folder.opened(self._plain, "the tokenizer")

    def locate(self, texts: Sequence[str]) -> list[Located]:
        """See `AnyTokenizer`; a token that is a part of a character has all of it."""
        return [
            Located(self._unspelled(np.array(one.ids, np.int32)), *_places(text, one.offsets))
            for text, one in zip(texts, _tried(self._model.encode_batch, texts), strict=True)
        ]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """See `AnyTokenizer`."""
        ids = checked_ids(ids, self._size)
        return self._model.decode(ids[~self._is_special[ids]].tolist(), skip_special_tokens=False)

    def pieces(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """See `AnyTokenizer`."""
        return [self._pieces[int(i)] or f"<unused {int(i)}>" for i in ids]

    def words(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """See `AnyTokenizer`."""
        return [
            piece if self._is_special[number] else self._word(int(number)) or repr(piece)
            for number, piece in zip(ids, self.pieces(ids), strict=True)
        ]

    def _word(self, number: int) -> str:
        """The text of an ordinary piece; nothing where that is no word or a part of a character."""
        text = self.decode([number]).strip()
        return "" if "\ufffd" in text else text

    @cached_property
    def vocab(self) -> Vocab:
        """See `AnyTokenizer`."""
        raw = self._raw
        strings = [text.decode(errors="ignore") for text in raw]
        lengths = [len(text) for text in raw]
        lengths[self._roles["eos"]] = -self._lead
        starts = [
            not special and self._surface.starts_word(piece)
            for piece, special in zip(self._pieces, self._is_special.tolist(), strict=True)
        ]
        count = sum(piece is not None for piece in self._pieces)
        return Vocab(
            size=self._size,
            is_special=self._is_special,
            is_word_start=table(starts, bool),
            is_sentence_end=table([ends_sentence(s) for s in strings], bool),
            piece_bytes=table(lengths, np.int32),
            owner=f"the {self._surface.kind} tokenizer of {count:,} pieces",
            **self._roles | {"sentinels": tuple(self._roles["sentinels"])},
        )

    @cached_property
    def _raw(self) -> list[bytes]:
        """The UTF-8 that each piece stands for; nothing for special ones."""
        return [
            b"" if special else self._surface.bytes_of(piece)
            for piece, special in zip(self._pieces, self._is_special.tolist(), strict=True)
        ]

    @cached_property
    def _lead(self) -> int:
        """Bytes that a text's pieces stand for beyond the text: a space before its first word."""
        return sum(len(self._raw[i]) for i in self.encode("a")) - 1

    @cached_property
    def keeps_text(self) -> bool:
        """See `AnyTokenizer`: found by trying."""
        for text in _PROBES:
            ids = self.encode(text)
            sized = sum(len(self._raw[i]) for i in ids) - self._lead == len(text.encode())
            if not sized or self.decode(ids).removeprefix(" ") != text:
                return False
        return True


def _tried(encode: Any, texts: Sequence[str]) -> list:
    try:
        return encode(list(texts))
    except TypeError:
        for text in texts:
            text.encode()  # a lone surrogate raises UnicodeEncodeError
        raise


def _places(text: str, offsets: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Begin and end of tokens in bytes, from those in characters."""
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    sizes = 1 + (codes >= 0x80) + (codes >= 0x800) + (codes >= 0x10000)
    at = np.concatenate([[0], np.cumsum(sizes)])
    begins = [b - len(text[a:b].lstrip()) for a, b in offsets]
    return at[np.array(begins, np.int64)], at[np.array([b for _, b in offsets], np.int64)]
