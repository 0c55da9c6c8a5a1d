"""Text to token ids and back: SentencePiece, with the special pieces that the objectives need.

The one idea: SentencePiece sees the text exactly as it is (identity normalisation, byte fallback),
but for one space put before every non-empty line, so that a line's first word is the same piece as
that word anywhere else. Decoding takes those spaces out again, so the round trip is exact for any
Unicode text, and no text produces a special piece, not even one that spells its name.
"""

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import AnyStr, Literal

import numpy as np
import sentencepiece

from jaxpretrain.data.model_file import with_exact_scores
from jaxpretrain.data.tokenizer_base import (
    AnyTokenizer,
    Located,
    checked_ids,
    ends_sentence,
    starts_word,
    table,
)
from jaxpretrain.data.vocab import NAMES, SPECIAL, Vocab, special_ids
from jaxpretrain.errors import UserError

SMALLEST_VOCAB = len(SPECIAL) + 1 + 256  # and a newline and the bytes
# SentencePiece writes a space as U+2581, so it cannot carry that character itself: `encode` splices
# in its UTF-8 bytes. Text to train on is also cut at U+2585 and NUL, which would make SentencePiece
# drop the line.
_SPACE = "\u2581"
_UNTRAINABLE = re.compile("[\n\0\u2581\u2585]")

# Texts are encoded in stretches, cut at line ends or spaces, where no piece crosses. Unigram scores
# are summed in float32, and these sums are exact in a stretch of up to this many characters.
STRETCH = 8192

# The number of threads changes the order of floating-point sums and so the model: it is fixed here,
# whatever the machine has.
_THREADS = 8

_LINE_START = re.compile("^ ", re.MULTILINE)


class Tokenizer(AnyTokenizer):
    """A SentencePiece model with the special pieces of `NAMES`, which have the lowest ids.

    A newline before a non-empty line is the piece ``"\\n"``; one before an empty line, or at the
    end of the text, is the byte piece ``<0x0A>``. So ``"\\n"`` is always followed by the space
    that was put in, and together they count the one byte that the newline has.

    Attributes:
        model_bytes: the SentencePiece model file.
    """

    def __init__(self, model_bytes: bytes, *, name: str = "the tokenizer model"):
        """Reads a model; `name` is what error messages call it.

        Raises:
            UserError: not a SentencePiece model, or one without the pieces that `train` gives it.
        """
        self.model_bytes = model_bytes
        self._model = sentencepiece.SentencePieceProcessor()
        try:
            self._model.LoadFromSerializedProto(model_bytes)
        except (RuntimeError, ValueError):
            raise UserError(f"{name} is not a SentencePiece model, or is damaged") from None
        special = [self._model.IdToPiece(i) for i in range(min(len(self._model), len(SPECIAL)))]
        for number, piece in enumerate(SPECIAL):
            if special[number : number + 1] != [piece]:
                raise UserError(
                    f"{name} lacks the special piece {piece} at id {number}; "
                    "use a tokenizer that this program trained, or train one (file='')"
                )
        self._newline, self._space = map(self._model.PieceToId, ("\n", _SPACE))
        byte_ids = [self._model.PieceToId(f"<0x{byte:02X}>") for byte in range(256)]
        self._blank = byte_ids[10]
        self._mark = np.array([byte_ids[byte] for byte in _SPACE.encode()], np.int32)
        probe = "  a\tZ\ufb01 <s>[MASK]\n\n x\u2581 \n\0\U0001f600 "
        names = map(self._model.IdToPiece, range(len(self._model)))
        if [piece for piece in names if "\n" in piece] != ["\n"]:
            raise UserError(
                f"{name} has no piece for a newline, or others with one in them; "
                "use a tokenizer that this program trained, or train one (file='')"
            )
        if not all(map(self._model.IsByte, byte_ids)) or self.decode(self.encode(probe)) != probe:
            raise UserError(
                f"{name} changes text (it has no byte fallback, or normalises); "
                "use a tokenizer that this program trained, or train one (file='')"
            )

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        *,
        vocab_size: int = 8192,
        kind: Literal["unigram", "bpe"] = "unigram",
        character_coverage: float = 0.9995,
    ) -> "Tokenizer":
        """Trains a tokenizer. The same texts in the same order give the same model, byte for byte.

        Whole words only: a piece never crosses a space or a change of script. Runs of spaces
        (indentation) can be pieces.

        Args:
            texts: the text to train on; held in memory by SentencePiece.
            vocab_size: number of ids, special pieces and the 256 bytes included.
            kind: unigram language model (Kudo 2018, arXiv:1804.10959) or byte pair encoding
                (Sennrich et al. 2016, arXiv:1508.07909).
            character_coverage: the share of the text's characters that get a piece of their own;
                the rarest others are spelt in bytes.

        Raises:
            UserError: `vocab_size` does not fit the text, or an argument makes no sense.
        """
        if kind not in ("unigram", "bpe"):
            raise UserError(f"tokenizer kind {kind!r} is unknown; choose 'unigram' or 'bpe'")
        if not 0.98 <= character_coverage <= 1:
            raise UserError(f"character_coverage {character_coverage} is not between 0.98 and 1")
        lines = list(_training_lines(texts))  # here, so that an error in `texts` keeps its type
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(lines),
                model_writer=model,
                model_type=kind,
                vocab_size=vocab_size,
                character_coverage=character_coverage,
                required_chars=_SPACE,  # else low coverage can leave no piece for a space
                max_sentence_length=4 * STRETCH,
                normalization_rule_name="identity",
                remove_extra_whitespaces=False,
                add_dummy_prefix=False,
                allow_whitespace_only_pieces=True,
                byte_fallback=True,
                pad_id=0,
                unk_id=1,
                bos_id=2,
                eos_id=3,
                pad_piece=NAMES["pad"],
                unk_piece=NAMES["unk"],
                bos_piece=NAMES["bos"],
                eos_piece=NAMES["eos"],
                control_symbols=SPECIAL[4:],
                user_defined_symbols=["\n"],
                num_threads=_THREADS,
                minloglevel=2,
            )
        except (RuntimeError, ValueError) as error:
            raise _explained(str(error), vocab_size) from error
        data = model.getvalue()
        return cls(with_exact_scores(data, STRETCH) if kind == "unigram" else data)

    def encode_flat(self, texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """See `AnyTokenizer`."""
        if not texts:
            return np.zeros(0, np.int32), np.zeros(0, np.int64)
        stretches: list[bytes] = []
        splices: list[int] = []
        for number, run in enumerate(_mark_lines(b"\n".join(texts)).split(_SPACE.encode())):
            if number:
                splices.append(len(stretches))
                stretches.append(b"")
            stretches += _cut(run, STRETCH)
        pieces = self._model.Encode(stretches, out_type="numpy", num_threads=1)
        for number in splices:
            pieces[number] = self._mark
        return self._divide(np.concatenate(pieces), [text.count(b"\n") for text in texts])

    def _divide(self, flat: np.ndarray, newlines: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Takes out what is of no text, and finds where each text ends.

        That is the newline between two texts, and the space of every empty line, before which the
        newline becomes the byte piece.

        Args:
            flat: int32 ``[tokens]`` of texts with a newline between each two.
            newlines: how many each of them has of its own.
        """
        places = np.flatnonzero(flat == self._newline)
        between = places[np.cumsum(newlines[:-1], dtype=np.int64) + np.arange(len(newlines) - 1)]
        is_edge = np.zeros(len(flat) + 2, bool)  # of each token and of those around all of them
        is_edge[[0, -1]] = is_edge[places + 1] = True
        spaces = np.flatnonzero(flat == self._space)
        empty = spaces[is_edge[spaces] & is_edge[spaces + 2]]
        flat[empty[empty > 0] - 1] = self._blank
        kept = np.ones(len(flat), bool)
        kept[between] = kept[empty] = False
        ends = np.append(between, len(flat))
        out = np.sort(np.concatenate([between, empty]))
        return flat[kept], ends - np.searchsorted(out, ends)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """See `AnyTokenizer`."""
        ids = checked_ids(ids, len(self._model))
        return _LINE_START.sub("", self._model.Decode(ids[ids >= len(SPECIAL)].tolist()))

    def pieces(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """See `AnyTokenizer`."""
        return [self._model.IdToPiece(int(number)) for number in ids]

    def words(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """See `AnyTokenizer`."""
        return [p.replace(_SPACE, " ").strip() or repr(p) for p in self.pieces(ids)]

    def encode_gaps(self, text: str, gap: str, fills: Sequence[int] = ()) -> list[int]:
        """See `AnyTokenizer`."""
        first, *others = re.split(f" *{re.escape(gap)}", text)
        ids = self.encode(first)
        # A text begins with a space of the tokenizer's own, and what is behind a gap is no
        # beginning: it is encoded behind a character that is in no piece.
        lead = len(self.encode(_SPACE))
        fills = fills or [self.vocab.mask] * len(others)
        for fill, part in zip(fills, others, strict=True):
            ids += [fill, *self.encode(_SPACE + part)[lead:]]
        return ids

    def locate(self, texts: Sequence[str]) -> list[Located]:
        """See `AnyTokenizer`; a newline is nothing, like a space."""
        return [Located(ids, *self._places(ids)) for ids in self.encode_batch(texts)]

    def _places(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        sizes = self.vocab.piece_bytes[ids]
        pieces = self.pieces(ids)
        # A space is put before the text, but for one that begins with an empty line.
        ends = np.cumsum(sizes) - (1 if pieces and pieces[0].startswith(_SPACE) else 0)
        spaces = [len(piece) - len(piece.lstrip(_SPACE)) for piece in pieces]
        begins = ends - sizes + np.minimum(spaces, sizes)
        return np.maximum(begins, 0), ends

    @property
    def keeps_text(self) -> bool:
        """See `AnyTokenizer`: of any Unicode text."""
        return True

    @cached_property
    def vocab(self) -> Vocab:
        """See `AnyTokenizer`."""
        size = len(self._model)
        texts = [self._text(number) for number in range(size)]
        lengths = [0 if text is None else len(text) for text in texts]
        lengths[self._newline] = 0
        lengths[SPECIAL.index(NAMES["eos"])] = -1
        strings = ["" if text is None else text.decode(errors="ignore") for text in texts]
        return Vocab(
            size=size,
            is_word_start=table([starts_word(s) for s in strings], bool),
            is_sentence_end=table([ends_sentence(s) for s in strings], bool),
            piece_bytes=table(lengths, np.int32),
            **special_ids(size),
        )

    def _text(self, number: int) -> bytes | None:
        """The UTF-8 that a piece stands for (part of a character for some byte pieces)."""
        if number < len(SPECIAL):
            return None
        piece = self._model.IdToPiece(number)
        if self._model.IsByte(number):
            return bytes([int(piece[3:5], 16)])
        return piece.replace(_SPACE, " ").encode()


def _mark_lines(text: AnyStr) -> AnyStr:
    """Puts a space before every line; those of empty lines are taken out again, as tokens."""
    if isinstance(text, bytes):
        return b" " + text.replace(b"\n", b"\n ")
    return " " + text.replace("\n", "\n ")


def _cut(text: AnyStr, limit: int) -> Iterator[AnyStr]:
    """Cuts a text into stretches of at most `limit` characters (UTF-8: bytes, 4 or more),
    before the last space, or the first of those that go with it, where there is one: no piece
    crosses that, and a space follows every newline."""
    space = b" " if isinstance(text, bytes) else " "
    start = 0
    while len(text) - start > limit:
        window = text[start : start + limit + 1]
        end = 0
        if (last := window.rfind(space, 1)) > 0:
            end = len(window[:last].rstrip(space))
        end = start + (end or limit)
        while isinstance(text, bytes) and text[end] & 0xC0 == 0x80:  # inside a character
            end -= 1
        yield text[start:end]
        start = end
    yield text[start:]


def _training_lines(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for line in _UNTRAINABLE.split(_mark_lines(text)):
            if line not in ("", " "):
                yield from _cut(line, STRETCH)


def _explained(error: str, vocab_size: int) -> UserError:
    """What SentencePiece's trainer ran into, in the user's terms."""
    if found := re.search(r"too high \(\d+\).*<= (\d+)", error):
        return UserError(
            f"tokenizer.vocab_size {vocab_size} is too large for this text, which gives at most "
            f"{found[1]} pieces; lower it or add text"
        )
    if found := re.search(r"smaller than required_chars\. \d+ vs (\d+)", error):
        return UserError(
            f"tokenizer.vocab_size {vocab_size} is too small: special pieces, bytes and this "
            f"text's characters are {found[1]} pieces; raise it or lower "
            "tokenizer.character_coverage"
        )
    if "sentences_.empty()" in error:
        return UserError("there is no text to train the tokenizer on")
    return UserError(
        f"SentencePiece cannot train with tokenizer.vocab_size {vocab_size}: "
        f"{error.splitlines()[0]}"
    )
