"""Sequences put together out of pieces, with static shapes.

The one idea: where a token of the output comes from is arithmetic on offsets, so a sequence is
built by gathers, whatever the lengths of its pieces.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp

from jaxpretrain.types import Array


class Piece(NamedTuple):
    """A span of a row: `count` tokens of ``tokens`` from `start` on.

    Attributes:
        tokens: int32 ``[length]``.
        start: int scalar.
        count: int scalar, may be 0.
    """

    tokens: Array
    start: Array | int
    count: Array | int


def single(token: Array | int, used: Array | bool = True) -> Piece:
    """One token, or nothing."""
    return Piece(jnp.full(1, token, jnp.int32), 0, jnp.asarray(used, jnp.int32))


def join(pieces: Sequence[Piece], size: int, fill: int) -> tuple[Array, Array, Array]:
    """The pieces one after another.

    Args:
        pieces: of one row.
        size: tokens of the output; what goes beyond is lost.
        fill: token behind the last piece.

    Returns:
        The tokens, int32 ``[size]``; the number of the piece that each is from, int32 ``[size]``,
        ``len(pieces)`` behind the last; and how many are not fill, int32 scalar.
    """
    place = jnp.arange(size)
    tokens = jnp.full(size, fill, jnp.int32)
    owner = jnp.full(size, len(pieces), jnp.int32)
    offset = jnp.int32(0)
    for number, piece in enumerate(pieces):
        inside = (place >= offset) & (place < offset + piece.count)
        index = jnp.clip(piece.start + place - offset, 0, piece.tokens.shape[0] - 1)
        tokens = jnp.where(inside, piece.tokens[index], tokens)
        owner = jnp.where(inside, number, owner)
        offset = offset + piece.count
    return tokens, owner, jnp.minimum(offset, size).astype(jnp.int32)


def compact(tokens: Array, keep: Array, size: int, fill: int) -> tuple[Array, Array]:
    """The kept tokens, moved together to the front.

    Args:
        tokens: int32 ``[length]``.
        keep: bool ``[length]``.
        size: tokens of the output; what goes beyond is lost.
        fill: token behind the last kept one.

    Returns:
        int32 ``[size]`` and the number of tokens kept, int32 scalar.
    """
    place = jnp.where(keep, jnp.cumsum(keep) - 1, size)
    moved = jnp.full(size, fill, tokens.dtype).at[place].set(tokens, mode="drop")
    return moved, jnp.minimum(jnp.sum(keep, dtype=jnp.int32), size)


def one_segment(count: Array, size: int) -> tuple[Array, Array]:
    """Segments (1 for the first `count`, then 0) and positions of rows of one sequence.

    Args:
        count: int ``[rows]``.
        size: length of the rows.

    Returns:
        int32 ``[rows, size]`` twice.
    """
    place = jnp.broadcast_to(jnp.arange(size), (count.shape[0], size))
    used = place < count[:, None]
    return used.astype(jnp.int32), jnp.where(used, place, 0)


def next_token_targets(inputs: Array, segments: Array) -> tuple[Array, Array]:
    """Targets and weights of causal prediction: slot ``i`` predicts token ``i + 1`` of its segment.

    Args:
        inputs: int32 ``[rows, length]``.
        segments: int32 ``[rows, length]``, 0 at padding.

    Returns:
        int32 and float32 ``[rows, length]``.
    """
    ahead = jnp.roll(segments, -1, axis=1).at[:, -1].set(0)
    weights = ((ahead == segments) & (ahead > 0)).astype(jnp.float32)
    return jnp.roll(inputs, -1, axis=1), weights
