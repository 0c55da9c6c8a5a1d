"""Attention on a TPU: JAX's splash kernel, which never has the scores, nor the mask.

The kernel (the idea is that of Dao et al. 2022, arXiv:2205.14135) knows causal and full masks
here, with or without a window, and the segments of packed rows, which it compares as it goes. A row
of the mask without any key would divide by zero; attention to oneself has none.

Shape suffixes as in `attention.py`.
"""

import math
from functools import cache

import jax
import jax.numpy as jnp

from jaxpretrain.models.placement import is_placed, on_each_device, parts_of
from jaxpretrain.types import Array

LANES = 128  # lengths are multiples of it
# Tiles of queries and keys: large ones keep the matrix unit busy, and this much fits beside it.
LARGEST_BLOCK = 512


def missing(query: Array, key: Array) -> list[str]:
    """What the kernel lacks for these arguments; empty if nothing."""
    heads, shared = parts_of("heads"), parts_of("kv_heads")
    split_alike = heads == shared and query.shape[2] % heads == 0 and key.shape[2] % shared == 0
    reasons = {
        "bfloat16 or float32": query.dtype not in (jnp.bfloat16, jnp.float32),
        "mesh.context 1": parts_of("length") > 1,
        "one device, or steps that are placed": jax.device_count() > 1 and not is_placed(),
        f"heads, and heads of keys, that divide over {heads} devices": not split_alike,
    }
    return [what for what, lacking in reasons.items() if lacking]


def splash_attention(
    query_BTNH: Array,
    key_BTKH: Array,
    value_BTKH: Array,
    segments: Array,
    *,
    causal: bool,
    window: int | None = None,
    scale: float,
    interpret: bool = False,
) -> Array:
    """Softmax attention of rows to themselves, within segments.

    Args:
        query_BTNH: queries.
        key_BTKH: keys; K divides N.
        value_BTKH: values.
        segments: int ``[rows, length]``.
        causal: whether a query sees no key after it.
        window: how far it sees on either side; None means that there is no end.
        scale: factor on the scores.
        interpret: run the kernel's program without a TPU, slowly, for tests.

    Returns:
        ``[B, T, N, H]`` in the type of the query.
    """
    length, heads = query_BTNH.shape[1:3]
    padding = -length % LANES

    def here(query, key, value, segments):
        kernel = _kernel(length + padding, query.shape[2], causal, window, interpret)
        # What fills a row up sees nothing but itself.
        segments = jnp.pad(segments, ((0, 0), (0, padding)), constant_values=-1)
        query, key, value = (
            jnp.swapaxes(jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))), 1, 2)
            for x in (query, key, value)
        )
        mixed = jax.vmap(kernel)(query, key, value, _segment_ids(segments))
        return jnp.swapaxes(mixed, 1, 2)[:, :length]

    names = ("rows", "", "heads", ""), ("rows", "", "kv_heads", "")
    scaled = (query_BTNH.astype(jnp.float32) * scale).astype(query_BTNH.dtype)
    return on_each_device(
        here,
        (names[0], names[1], names[1], ("rows", "")),
        names[0],
        scaled,
        key_BTKH,
        value_BTKH,
        segments,
    )


def _segment_ids(segments: Array):
    from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

    return SegmentIds(q=segments, kv=segments)


@cache
def _masks(length: int, heads: int, causal: bool, window: int | None):
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    square = (length, length)
    if window is not None:
        mask = splash.LocalMask(square, (window, 0 if causal else window), 0)
    else:
        mask = (splash.CausalMask if causal else splash.FullMask)(square)
    return splash.MultiHeadMask([mask] * heads)


def _kernel(length: int, heads: int, causal: bool, window: int | None, interpret: bool):
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    block = math.gcd(length, LARGEST_BLOCK)
    sizes = splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        use_fused_bwd_kernel=True,
    )
    return splash.make_splash_mha_single_device(
        _masks(length, heads, causal, window), block_sizes=sizes, interpret=interpret
    )
