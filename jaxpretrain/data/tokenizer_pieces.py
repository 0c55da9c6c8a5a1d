"""What the pieces of a Hugging Face tokenizer stand for, by the rules in its ``tokenizer.json``."""

import json
import re
import unicodedata
from functools import cache

from jaxpretrain.data.tokenizer_base import is_unspaced, starts_word

_UNUSED = re.compile(r"[\[<]unused_?\d+[\]>]")
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE = "\u2581"


def unused(piece: str) -> bool:
    """Whether a piece is one of those that a vocabulary keeps free for later, as BERT's are."""
    return bool(_UNUSED.fullmatch(piece))


@cache
def byte_of_character() -> dict[str, int]:
    """The alphabet of byte-level BPE: printable characters of Latin-1 are themselves, the other
    bytes are the characters from U+0100 on, in their order (Radford et al. 2019)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}


class Surface:
    """The text of a tokenizer's pieces.

    Attributes:
        kind: of the model, in words.
    """

    def __init__(self, library: dict):
        """Reads the rules.

        Args:
            library: a ``tokenizer.json``.
        """
        model = library["model"]
        rules = [library.get(key) for key in ("normalizer", "pre_tokenizer", "decoder")]
        written = json.dumps(rules, ensure_ascii=False)
        self._byte_level = '"ByteLevel"' in written
        self._spaced = _SPACE in written
        self._prefix = model.get("continuing_subword_prefix") or ""
        self._suffix = model.get("end_of_word_suffix") or ""
        self._whole_words = model.get("type") == "WordLevel" or bool(self._prefix)
        self._byte_fallback = bool(model.get("byte_fallback"))
        self._added = {one["content"] for one in library["added_tokens"]}
        self.kind = f"{'byte-level ' * self._byte_level}{model.get('type', 'BPE')}"

    def bytes_of(self, piece: str) -> bytes:
        """The UTF-8 that an ordinary piece stands for, with the space before a word."""
        if piece in self._added:
            return piece.encode()
        if self._byte_level:
            table = byte_of_character()
            known = all(character in table for character in piece)
            return bytes(table[c] for c in piece) if known else piece.encode()
        if self._byte_fallback and (byte := _BYTE.fullmatch(piece)):
            return bytes([int(byte[1], 16)])
        if self._spaced:
            return piece.replace(_SPACE, " ").encode()
        if self._continues(piece):
            return piece[len(self._prefix) :].encode()
        if self._suffix and piece.endswith(self._suffix):
            return f"{piece[: -len(self._suffix)]} ".encode()
        return f" {piece}".encode() if self._whole_words and _is_word(piece) else piece.encode()

    def starts_word(self, piece: str) -> bool:
        """See `Vocab.is_word_start`. Where pieces do not tell, as where it is the end of a word
        that is marked, each is a word of its own."""
        text = self.bytes_of(piece).decode(errors="ignore")
        if piece in self._added or self._byte_level or self._spaced:
            return starts_word(text)
        if self._continues(piece):
            return text != "" and is_unspaced(text) and starts_word(text)
        return True

    def _continues(self, piece: str) -> bool:
        return self._prefix != "" and piece.startswith(self._prefix)


def _is_word(piece: str) -> bool:
    """Whether a space stood before a piece, most likely: not before punctuation, nor in scripts
    that are written without spaces."""
    return piece != "" and unicodedata.category(piece[0])[0] in "LMN" and not is_unspaced(piece)
