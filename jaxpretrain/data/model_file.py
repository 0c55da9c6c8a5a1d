"""What is inside a SentencePiece model file, where its library has no call for it.

The file is a protocol buffer (`sentencepiece_model.proto` of SentencePiece); the library's own
reader of it works with the newest protobuf only, so the few fields that matter are found here.
"""

import math
import struct
from collections.abc import Iterator
from typing import Literal, NamedTuple

NORMAL, USER_DEFINED = 1, 4  # types of pieces

# Fields of the model, of a piece and of the options that it was trained with, and what they are
# where they are absent.
_PIECE, _OPTIONS = 1, 2
_TEXT, _SCORE, _TYPE = 1, 2, 3
_ALGORITHM = 3

# What SentencePiece takes from the lowest score for a character without a piece.
_UNKNOWN = 10


class Piece(NamedTuple):
    """A piece as the file has it: a space is written as U+2581.

    Attributes:
        text: what it is called.
        score: its log-probability (unigram) or less its place among the merges (BPE).
        type: `NORMAL`, `USER_DEFINED` or another number.
    """

    text: str
    score: float
    type: int


def algorithm(model: bytes) -> Literal["unigram", "bpe"]:
    """How the model cuts text."""
    for number, at, end in _fields(model, 0, len(model)):
        if number == _OPTIONS:
            options = {number: at for number, at, _ in _fields(model, at, end)}
            if _ALGORITHM in options:
                return "bpe" if model[options[_ALGORITHM]] == 2 else "unigram"
    return "unigram"


def pieces(model: bytes) -> list[Piece]:
    """All pieces in the order of their ids."""
    found = []
    for places in _places(model):
        text, score, type_ = (places.get(field) for field in (_TEXT, _SCORE, _TYPE))
        found.append(
            Piece(
                model[text[0] : text[1]].decode() if text else "",
                struct.unpack_from("<f", model, score[0])[0] if score else 0.0,
                model[type_[0]] if type_ else NORMAL,
            )
        )
    return found


def with_exact_scores(model: bytes, longest: int) -> bytes:
    """A unigram model whose sums of scores have no rounding errors.

    SentencePiece adds up scores in float32, other libraries in float64, and where two ways to cut
    a text are about as good ("------" in 4 and 2 or in 2 and 4), the last digit would decide. So
    each score is rounded to a multiple of the least power of two of which any sum is exact; then
    equals are told apart by the same rule everywhere.

    Args:
        model: the file.
        longest: characters in the longest text that is encoded at once.
    """
    data = bytearray(model)
    listed = pieces(model)
    lowest = min(piece.score for piece in listed)
    # A character costs at most this much, and float32 has 24 binary digits.
    step = 2.0 ** math.ceil(math.log2(longest * (_UNKNOWN + 1 - lowest) / 2**24))
    for piece, places in zip(listed, _places(model), strict=True):
        if piece.type == NORMAL:
            exact = step * round(piece.score / step)
            struct.pack_into("<f", data, places[_SCORE][0], exact)
        elif piece.type == USER_DEFINED:
            # The score of these is none of the above. As no other piece has the character of the
            # newline, it is chosen at whatever score.
            data[places[_TYPE][0]] = NORMAL
    return bytes(data)


def _places(model: bytes) -> Iterator[dict[int, tuple[int, int]]]:
    """For each piece, where its fields are."""
    for number, at, end in _fields(model, 0, len(model)):
        if number == _PIECE:
            yield {number: (at, end) for number, at, end in _fields(model, at, end)}


def _fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The fields of a message: number, and where the content begins and ends."""
    while at < end:
        key, at = _integer(data, at)
        wire = key & 7
        if wire == 2:
            size, at = _integer(data, at)
            after = at + size
        else:
            after = _integer(data, at)[1] if wire == 0 else at + {1: 8, 5: 4}[wire]
        yield key >> 3, at, after
        at = after


def _integer(data: bytes, at: int) -> tuple[int, int]:
    """The number at a place, seven bits a byte, and where it ends."""
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if data[at - 1] < 0x80:
            return value, at
