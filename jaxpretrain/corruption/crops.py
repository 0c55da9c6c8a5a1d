"""Views of a text for contrastive learning: the text itself, random crops, corrupted copies."""

import jax
import jax.numpy as jnp

from jaxpretrain.corruption.sequences import Piece, compact, join, single
from jaxpretrain.types import Array


def enclosed(tokens: Array, count: Array, size: int, vocab) -> tuple[Array, Array]:
    """``[cls] tokens [sep]`` of one row.

    Args:
        tokens: int32 ``[length]``.
        count: int scalar, how many of them are text.
        size: static length of the result.
        vocab: the vocabulary.

    Returns:
        int32 ``[size]`` and the number of tokens.
    """
    pieces = [single(vocab.cls), Piece(tokens, 0, count), single(vocab.sep)]
    joined, _, used = join(pieces, size, vocab.pad)
    return joined, used


def random_crop(
    key: Array,
    tokens: Array,
    count: Array,
    size: int,
    *,
    shortest: float,
    longest: float,
    delete: float,
    fill: int,
) -> tuple[Array, Array]:
    """A random span of a text, with some tokens deleted (Contriever: Izacard et al. 2022,
    arXiv:2112.09118).

    The span's share of the text is uniform in ``[shortest, longest]`` and its place uniform; then
    each token is deleted with probability `delete`, but never all of them.

    Args:
        key: PRNG key.
        tokens: int32 ``[length]``.
        count: int scalar, how many of them are text.
        size: static length of the result.
        shortest: least share.
        longest: greatest share.
        delete: probability.
        fill: token behind the last.

    Returns:
        int32 ``[size]`` and the number of tokens.
    """
    share_key, start_key, delete_key = jax.random.split(key, 3)
    share = jax.random.uniform(share_key, (), minval=shortest, maxval=longest)
    span = jnp.clip(jnp.floor(share * count).astype(jnp.int32), jnp.minimum(count, 1), count)
    start = jax.random.randint(start_key, (), 0, count - span + 1)
    place = jnp.arange(tokens.shape[0])
    inside = (place >= start) & (place < start + span)
    kept = inside & ~jax.random.bernoulli(delete_key, delete, tokens.shape)
    kept = jnp.where(jnp.any(kept), kept, inside & (place == start))
    return compact(tokens, kept, size, fill)
