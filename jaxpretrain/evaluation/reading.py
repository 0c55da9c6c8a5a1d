"""How a trained backbone reads labelled texts: the same for every objective, but for who sees whom.

The rows are padded arrays; `vectors` gives one vector for each.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpretrain.data.tokenizer_base import AnyTokenizer
from jaxpretrain.evaluation.scoring import enclosing
from jaxpretrain.objectives.base import Objective
from jaxpretrain.objectives.contrastive import pool

BATCH = 128  # rows of one pass
STEP = 32  # tokens


class Rows(NamedTuple):
    """Texts as padded rows.

    Attributes:
        ids: int32 ``[rows, length]``.
        segments: int32 ``[rows, length]``, 1 at tokens, 0 at padding.
        types: int32 ``[rows, length]``, 1 in the second text.
    """

    ids: np.ndarray
    segments: np.ndarray
    types: np.ndarray


def rows_of(
    objective: Objective, tokenizer: AnyTokenizer, texts: Sequence[tuple[str, ...]], length: int
) -> Rows:
    """Texts, or pairs of them, enclosed as the objective encloses them.

    What is too long is cut at its end, the longer text of a pair first.

    Args:
        objective: that the backbone was trained by.
        tokenizer: of the run.
        texts: one or two for each row.
        length: the most tokens of text in a row.
    """
    parts = [tokenizer.encode_batch([row[i] for row in texts]) for i in range(len(texts[0]))]
    first, last = (getattr(objective.vocab, name) for name in enclosing(objective))
    room = room_for_text(objective, length, len(parts))
    made = []
    for row in zip(*parts, strict=True):
        sizes = [len(ids) for ids in row]
        while sum(sizes) > room:
            longest = int(np.argmax(sizes))
            others = sum(sizes) - sizes[longest]
            sizes[longest] = max(room - others, room // len(sizes))
        ids, types = [first], [0]
        for number, (part, size) in enumerate(zip(row, sizes, strict=True)):
            ids += [*part[:size].tolist(), last]
            types += [number] * (size + 1)
        made.append((ids, types))
    return padded(made, objective.vocab.pad)


def room_for_text(objective: Objective, length: int, texts: int) -> int:
    """The most tokens of text in a row of one text or two, beside the special pieces."""
    config = objective.backbone.config
    learned = config.positions == "learned"
    return min(length, config.max_length - texts - 1) if learned else length


def padded(rows: Sequence[tuple[list[int], list[int]]], pad: int) -> Rows:
    """Ids and types of rows as arrays, as wide as the longest, in steps of 8."""
    width = -(-max(len(ids) for ids, _ in rows) // 8) * 8
    ids = np.full((len(rows), width), pad, np.int32)
    segments, types = np.zeros_like(ids), np.zeros_like(ids)
    for number, (row, kinds) in enumerate(rows):
        ids[number, : len(row)], segments[number, : len(row)] = row, 1
        types[number, : len(row)] = kinds
    return Rows(ids, segments, types)


def alike(*several: Rows, pad: int) -> list[Rows]:
    """Rows made as wide as the widest, so that one compiled function reads all."""
    width = max(rows.ids.shape[1] for rows in several)

    def widened(x: np.ndarray, fill: int) -> np.ndarray:
        return np.pad(x, ((0, 0), (0, width - x.shape[1])), constant_values=fill)

    return [
        Rows(widened(rows.ids, pad), widened(rows.segments, 0), widened(rows.types, 0))
        for rows in several
    ]


def stream(
    objective: Objective, params: dict, rows: Rows, keys: jax.Array | None = None
) -> jax.Array:
    """The backbone's stream over rows, ``[rows, length, width]``.

    A causal objective's backbone reads causally; every other reads both ways, that of a prefix
    language model and the encoder of an encoder-decoder too.

    Args:
        objective: that the backbone was trained by.
        params: with the backbone's among them.
        rows: arrays.
        keys: one for each row, for dropout; None turns it off.
    """
    config = objective.backbone.config
    causal = objective.visibility == "causal" and not config.decoder_layers
    # Padding may go beyond the positions that a model has learned.
    positions = jnp.arange(rows.ids.shape[1])
    if config.positions == "learned":
        positions = jnp.minimum(positions, config.max_length - 1)
    positions = jnp.broadcast_to(positions, rows.ids.shape)
    return objective.backbone.encode(
        params,
        rows.ids,
        rows.segments,
        positions,
        visibility="causal" if causal else "full",
        types=rows.types if config.token_types else None,
        keys=keys,
    )


def vectors(
    objective: Objective, params: dict, rows: Rows, *, pooling: str = "mean", whole=None
) -> np.ndarray:
    """One vector for each row: float32 ``[rows, width]``.

    Args:
        objective: that the backbone was trained by.
        params: with the backbone's among them.
        rows: see `rows_of`.
        pooling: "mean", "cls" or "last"; see `objectives.contrastive.pool`.
        whole: sharding of what every process has, where there are several.
    """

    return in_batches(_reader(objective, pooling, whole), params, rows)


@lru_cache(maxsize=8)
def _reader(objective: Objective, pooling: str, whole) -> Callable:
    """The compiled function of `vectors`: the same for all rows that one model reads."""

    def read(params, part):
        pooled = pool(stream(objective, params, part), part.segments, pooling)
        return pooled.astype(jnp.float32)

    return jax.jit(read, out_shardings=whole)


def in_batches(function, params: dict, rows: Rows) -> np.ndarray:
    """What a function of parameters and `BATCH` rows gives for all rows, in their order.

    Rows of like length go together and are cut to the longest of them, so that little is computed
    on padding.

    Args:
        function: gives an array ``[rows, ...]``; its second axis is that of positions if there are
            three.
        params: its first argument.
        rows: any number of them.
    """
    order = np.argsort(rows.segments.sum(axis=1), kind="stable")
    found = None
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        part = trimmed(Rows(*(x[chosen] for x in rows)))
        missing = BATCH - len(chosen)
        part = Rows(*(np.pad(x, ((0, missing), (0, 0))) for x in part))
        values = np.asarray(function(params, part))[: len(chosen)]
        if values.ndim == 3:
            added = rows.ids.shape[1] - values.shape[1]
            values = np.pad(values, ((0, 0), (0, added), (0, 0)))
        found = np.zeros((len(order), *values.shape[1:]), values.dtype) if found is None else found
        found[chosen] = values
    return found


def trimmed(rows: Rows) -> Rows:
    """Rows as wide as the longest of them needs, in steps of `STEP`: few shapes to compile."""
    longest = int(rows.segments.sum(axis=1).max())
    width = min(-(-longest // STEP) * STEP, rows.ids.shape[1])
    return Rows(*(x[:, :width] for x in rows))
