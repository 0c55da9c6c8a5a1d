"""Text for measurements: random tokens, since what is in a text makes no difference to the time."""

import numpy as np

from jaxpretrain.data.vocab import Vocab, special_ids
from jaxpretrain.types import Batch


def vocabulary(size: int) -> Vocab:
    """The layout of the project's tokenizers, with a word start at every third piece."""
    place, ids = np.arange(size), special_ids(size)
    text = ~ids["is_special"]
    return Vocab(
        size=size,
        **ids,
        is_word_start=text & (place % 3 == 0),
        is_sentence_end=text & (place % 25 == 0),
        piece_bytes=np.where(text, 3, 0).astype(np.int32),
    )


def text(rows: int, length: int, vocab: Vocab) -> Batch:
    """Full rows of random tokens, each of a document of its own."""
    rng = np.random.default_rng(0)
    tokens = rng.choice(vocab.ordinary, (rows, length)).astype(np.int32)
    numbers = np.arange(rows, dtype=np.int32)
    return Batch(
        tokens=tokens,
        segments=np.ones_like(tokens),
        positions=np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
        row_ids=numbers,
        epochs=np.zeros_like(numbers),
        documents=numbers,
    )
