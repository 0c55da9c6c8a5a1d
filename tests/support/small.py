"""Small vocabularies, models and batches to test with."""

import jax
import numpy as np

from jaxpretrain.data.vocab import Vocab, special_ids
from jaxpretrain.models.config import TransformerConfig
from jaxpretrain.models.transformer import Backbone
from jaxpretrain.objectives import OBJECTIVES, Mixture, Objective, Task
from jaxpretrain.types import Batch, Progress

SPECIAL = 24


def small_vocab(regular: int = 48, word_share: float = 0.6) -> Vocab:
    """24 special pieces, then `regular` ordinary ones, of which the first share begin words."""
    size = SPECIAL + regular
    word_start = np.zeros(size, bool)
    word_start[SPECIAL : SPECIAL + int(regular * word_share)] = True
    return Vocab(
        size=size,
        **special_ids(size, sentinels=11),
        is_word_start=word_start,
        is_sentence_end=np.zeros(size, bool),
        piece_bytes=np.where(np.arange(size) < SPECIAL, 0, 3).astype(np.int32),
    )


def small_batch(
    seed: int,
    vocab: Vocab,
    *,
    rows: int = 8,
    length: int = 32,
    padding: bool = True,
    view: str = "packed",
) -> Batch:
    """Rows of text, some with padding at the end.

    A "packed" row has one to four documents ``[bos] … [eos]``, a "document" row is a window of one
    document without special pieces; two rows each are of the same document.
    """
    rng = np.random.default_rng(seed)
    tokens = rng.integers(SPECIAL, vocab.size, (rows, length)).astype(np.int32)
    segments = np.ones((rows, length), np.int32)
    positions = np.tile(np.arange(length, dtype=np.int32), (rows, 1))
    for row in range(rows):
        if view == "packed":
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
        documents=np.arange(rows, dtype=np.int32) // 2,
    )


def document_rows(seed: int, vocab: Vocab, *, rows: int, length: int, full: bool = False) -> Batch:
    """Windows of single documents of every length from 0 on, or all of full length."""
    batch = small_batch(seed, vocab, rows=rows, length=length, view="document", padding=False)
    if full:
        return batch
    counts = np.random.default_rng(seed).integers(0, length + 1, (rows, 1))
    segments = (np.arange(length) < counts).astype(np.int32)
    return batch._replace(
        tokens=np.where(segments > 0, batch.tokens, vocab.pad),
        segments=segments,
        positions=batch.positions * segments,
    )


def example_objective(name: str) -> Objective:
    """An objective as its name alone makes it; as a mixture, three in one pass."""
    if name != Mixture.name:
        return OBJECTIVES[name]()
    names = ("mlm", "clm", "masked_diffusion")
    tasks = tuple(Task(name=name, objective=OBJECTIVES[name]()) for name in names)
    return Mixture(tasks=tasks, mode="shared")


def progress_at(fraction: float, step: int = 0) -> Progress:
    """That share of a training."""
    return Progress(np.int32(step), np.float32(fraction))


def at_random(shapes: dict, seed: int = 0, spread: float = 0.2) -> dict:
    """Parameters of these shapes from NumPy, for which nothing is compiled; scales are about 1."""
    rng = np.random.default_rng(seed)

    def some(path, like):
        about = 1.0 if getattr(path[-1], "key", "") == "scale" else 0.0
        return (about + spread * rng.normal(size=like.shape)).astype(like.dtype)

    return jax.tree_util.tree_map_with_path(some, shapes)


def small_backbone(vocab: Vocab, **switches) -> Backbone:
    """Two float32 layers of width 32, with the switches given."""
    settings = {"width": 32, "layers": 2, "heads": 4, "max_length": 64, "dtype": "float32"}
    return Backbone(TransformerConfig(vocab_size=vocab.size, **settings | switches))
