"""The fields of a model file against what SentencePiece itself says of it."""

import io
import math
import struct

import pytest
import sentencepiece

from jaxpretrain.data import model_file
from support.tiny_source import topics

SIZE = 1000


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def model(request) -> bytes:
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter("\n".join(topics(1, 40)[0]).split("\n")),
        model_writer=written,
        model_type=request.param,
        vocab_size=SIZE,
        byte_fallback=True,
        user_defined_symbols=["\n"],
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        minloglevel=2,
    )
    return written.getvalue()


def loaded(model: bytes) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=model)


def test_pieces_are_what_the_library_says(model):
    found, library = model_file.pieces(model), loaded(model)
    numbers = range(SIZE)
    assert [piece.text for piece in found] == [library.IdToPiece(i) for i in numbers]
    assert [piece.score for piece in found] == [library.GetScore(i) for i in numbers]
    assert {i for i in numbers if found[i].type == model_file.NORMAL} == {
        i
        for i in numbers
        if not (library.IsByte(i) or library.IsControl(i) or library.IsUnknown(i))
        and library.IdToPiece(i) != "\n"
    }
    assert [p.text for p in found if p.type == model_file.USER_DEFINED] == ["\n"]


def test_the_algorithm_is_read(model, request):
    assert model_file.algorithm(model) == request.node.callspec.params["model"]


@pytest.mark.parametrize("model", ["unigram"], indirect=True)
@pytest.mark.parametrize("longest", [100, 8192, 10_000])
def test_rounded_scores_are_near_and_their_sums_exact(model, longest):
    changed = model_file.with_exact_scores(model, longest)
    before, after = model_file.pieces(model), model_file.pieces(changed)
    assert [piece.text for piece in after] == [piece.text for piece in before]
    library = loaded(changed)
    assert [piece.score for piece in after] == [library.GetScore(i) for i in range(SIZE)]

    lowest = min(piece.score for piece in before)
    step = max(2.0**k for k in range(-24, 3) if all(p.score % 2.0**k == 0 for p in after))
    assert max(abs(a.score - b.score) for a, b in zip(after, before, strict=True)) <= step / 2
    # The worst sum that a text can have, in steps, is a whole number that float32 holds, and half
    # the step would be too fine for it.
    worst = longest * (10 - min(piece.score for piece in after)) / step
    assert worst <= 2**24 < 4 * longest * (11 - lowest) / step
    odd = -(math.floor(worst) - 1) * step
    assert struct.unpack("<f", struct.pack("<f", odd))[0] == odd

    # Nothing but scores, and the type of the newline, is another.
    retyped = [b._replace(score=a.score) for a, b in zip(after, before, strict=True)]
    (newline,) = [i for i in range(SIZE) if retyped[i] != after[i]]
    assert after[newline] == ("\n", before[newline].score, model_file.NORMAL)
    assert len(changed) == len(model)
    assert model_file.with_exact_scores(changed, longest) == changed


@pytest.mark.parametrize("model", ["unigram"], indirect=True)
def test_equal_ways_to_cut_a_text_are_told_apart_by_a_rule(model):
    """A ruler is cut in the same way, whatever is before it."""
    library = loaded(model_file.with_exact_scores(model, 8192))
    for size in range(15, 30):
        ruler = "\nthe" + "-" * size + "the"
        alone = library.EncodeAsPieces("the" + ruler)[1:]
        for number in range(1, 60):
            text = "of a word, and so on. " * number + "the"
            assert library.EncodeAsPieces(text + ruler)[-len(alone) :] == alone, (size, number)
