"""Small vocabularies, models and batches to test with."""

import numpy as np

from jaxpretrain.data.tokenizer import Vocab
from jaxpretrain.models.config import TransformerConfig
from jaxpretrain.models.transformer import Backbone
from jaxpretrain.types import Batch

SPECIAL = 16


def small_vocab(regular: int = 48, word_share: float = 0.6) -> Vocab:
    """16 special pieces, then `regular` ordinary ones, of which the first share begin words."""
    size = SPECIAL + regular
    word_start = np.zeros(size, bool)
    word_start[SPECIAL : SPECIAL + int(regular * word_share)] = True
    return Vocab(
        size=size,
        pad=0,
        unk=1,
        bos=2,
        eos=3,
        cls=4,
        sep=5,
        mask=6,
        sentinels=(7, 8, 9),
        fim_prefix=10,
        fim_middle=11,
        fim_suffix=12,
        mode_r=13,
        mode_s=14,
        mode_x=15,
        first_regular=SPECIAL,
        is_word_start=word_start,
        is_sentence_end=np.zeros(size, bool),
        piece_bytes=np.where(np.arange(size) < SPECIAL, 0, 3).astype(np.int32),
    )


def small_batch(
    seed: int, vocab: Vocab, *, rows: int = 8, length: int = 32, padding: bool = True
) -> Batch:
    """Rows of one to four documents ``[bos] … [eos]``, some with padding at the end."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(vocab.first_regular, vocab.size, (rows, length)).astype(np.int32)
    segments = np.ones((rows, length), np.int32)
    positions = np.zeros((rows, length), np.int32)
    for row in range(rows):
        cuts = np.sort(rng.choice(np.arange(3, length - 3), rng.integers(0, 4), replace=False))
        for number, (start, stop) in enumerate(
            zip([0, *cuts], [*cuts, length], strict=True), start=1
        ):
            segments[row, start:stop] = number
            positions[row, start:stop] = np.arange(stop - start)
            tokens[row, start], tokens[row, stop - 1] = vocab.bos, vocab.eos
        if padding and row % 3 == 2:
            gap = int(rng.integers(1, length // 3))
            tokens[row, -gap:], segments[row, -gap:], positions[row, -gap:] = vocab.pad, 0, 0
    return Batch(
        tokens=tokens,
        segments=segments,
        positions=positions,
        row_ids=np.arange(rows, dtype=np.int32) + 100 * seed,
        epochs=np.zeros(rows, np.int32),
    )


def small_backbone(vocab: Vocab, **switches) -> Backbone:
    """Two float32 layers of width 32, with the switches given."""
    settings = {"width": 32, "layers": 2, "heads": 4, "max_length": 64, "dtype": "float32"}
    return Backbone(TransformerConfig(vocab_size=vocab.size, **settings | switches))
