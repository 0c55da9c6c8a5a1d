"""Dropout by a key for each row."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxpretrain.types import Array


def row_dropout(x: Array, rate: float, keys: Array | None) -> Array:
    """Dropout (Srivastava et al. 2014) whose mask depends on the row's own key and on nothing else.

    So a row loses the same units whatever batch, microbatch or device it is computed in.

    Args:
        x: ``[rows, ...]``.
        rate: share of the values set to zero; the rest is scaled by ``1 / (1 - rate)``.
        keys: one key per row; None means no dropout.

    Returns:
        An array like x.
    """
    if rate == 0.0 or keys is None:
        return x
    kept = max(1, min(round((1.0 - rate) * 2**32), 2**32 - 1))
    keep = random_words(keys, x.shape[1:]) < np.uint32(kept)
    return jnp.where(keep, x * (2**32 / kept), 0).astype(x.dtype)


def random_words(keys: Array, shape: tuple[int, ...]) -> Array:
    """Random words, uint32 ``[rows, *shape]``: the number of each value, hashed with the row's key.

    JAX's own generator (threefry) is made to be split for ever and takes eight times as long on a
    CPU, more than a layer's softmax; here a key makes one array and no other keys.
    """
    number = jax.lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)
    data = jax.random.key_data(keys)
    words = number[None]
    for part in range(data.shape[-1]):
        words = _mixed(words + data[:, part].reshape(-1, *[1] * len(shape)))
    return words


def _mixed(x: Array) -> Array:
    """A permutation of uint32 in which each bit depends on all (lowbias32, Wellons 2018,
    https://nullprogram.com/blog/2018/07/31/)."""
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)
