"""How the candidates of a gap are written."""

from jaxpretrain.data.tokenizer import Tokenizer
from jaxpretrain.evaluation import samples
from support.tiny_source import topics


def test_no_two_pieces_that_are_no_words_look_the_same():
    tokenizer = Tokenizer.train(topics(1, 20)[0], vocab_size=600)
    the, newline, blank, byte = (
        tokenizer._model.PieceToId(piece) for piece in ("\u2581the", "\n", "<0x0A>", "<0xE2>")
    )
    shown = [samples._shown(tokenizer, piece) for piece in (the, newline, blank, byte)]
    assert shown == ["the", "\n", "<0x0A>", "<0xE2>"]
