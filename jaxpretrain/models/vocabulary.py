"""The loss over the vocabulary, without ever having the scores of all tokens at once.

The scores of a batch are the largest array of a training step: tokens times vocabulary. Here they
are made for a block of tokens at a time. While a block's scores are there, its part of the gradient
is computed too, so that nothing of that size is kept for the backward pass and no product is made
twice (as in Liger Kernel: Hsu et al. 2024, arXiv:2410.10989).

Shape suffixes: T tokens of a block, V vocabulary, E the width of an embedding.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxpretrain.models.placement import parts_of, place
from jaxpretrain.types import Array


class TokenLoss(NamedTuple):
    """Cross-entropy over the vocabulary.

    Attributes:
        total: float32 scalar, the weighted sum in nats. It alone carries a gradient, except as
            `token_loss` says.
        nats: float32, that of each target.
        hits: float32, 1 where no token has a higher score than the target, else 0.
    """

    total: Array
    nats: Array
    hits: Array


def token_loss(
    vectors: Array,
    table: Array,
    bias: Array | None,
    targets: Array,
    weights: Array,
    *,
    block: int,
    each: bool = False,
) -> TokenLoss:
    """Weighted negative log-likelihood of targets under ``softmax(vectors @ table.T + bias)``.

    Args:
        vectors: ``[rows, slots, width]`` in the computing type.
        table: float32 ``[vocab, width]``; cast to the computing type.
        bias: float32 ``[vocab]`` or None.
        targets: int ``[rows, slots]``.
        weights: float ``[rows, slots]``; no gradient goes to them.
        block: tokens on each device whose scores exist at once; 0 takes all of them, without any
            of this, by plain differentiation.
        each: `nats` carries a gradient instead of `total`, at the price of making the scores once
            more in the backward pass.

    Returns:
        The loss; `nats` and `hits` have the shape of `targets`.
    """
    table = place(table, "vocab", "")
    if block == 0:
        return _plain(vectors, table, bias, targets, weights)
    rows, slots = targets.shape
    shards = [parts_of("rows"), parts_of("length")]
    shards = [n if size % n == 0 else 1 for n, size in zip(shards, targets.shape, strict=True)]
    tokens = rows * slots // math.prod(shards)
    count = -(-tokens // block)
    size = -(-tokens // count)

    def blocks(x: Array, fill=0) -> Array:
        """``[rows, slots, ...]`` to ``[blocks, row shards, length shards, T, ...]``, in place."""
        x = x.reshape(shards[0], rows // shards[0], shards[1], slots // shards[1], *x.shape[2:])
        x = jnp.swapaxes(x, 1, 2).reshape(*shards, tokens, *x.shape[4:])
        rest = [(0, 0)] * (x.ndim - 3)
        x = jnp.pad(x, [(0, 0), (0, 0), (0, count * size - tokens), *rest], constant_values=fill)
        x = jnp.moveaxis(x.reshape(*shards, count, size, *x.shape[3:]), 2, 0)
        return place(x, "", "rows", "length", *[""] * (x.ndim - 3))

    def together(x: Array) -> Array:
        """The inverse of `blocks`."""
        x = jnp.moveaxis(x, 0, 2).reshape(*shards, count * size, *x.shape[4:])[:, :, :tokens]
        x = x.reshape(*shards, rows // shards[0], slots // shards[1], *x.shape[3:])
        x = jnp.swapaxes(x, 1, 2).reshape(rows, slots, *x.shape[4:])
        return place(x, "rows", "length", *[""] * (x.ndim - 2))

    parts = (blocks(vectors), blocks(targets), blocks(weights.astype(jnp.float32)))
    function = _nats_and_hits if each else _total
    total, nats, hits = function(*parts, table, bias)
    nats, hits = together(nats), together(hits)
    if each:
        return TokenLoss(jax.lax.stop_gradient(total), nats, hits)
    return TokenLoss(total, jax.lax.stop_gradient(nats), hits)


def _plain(vectors, table, bias, targets, weights) -> TokenLoss:
    logits = scores(vectors, table, bias)
    logits = place(logits, "rows", "length", "vocab")
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    nats = jax.nn.logsumexp(logits, axis=-1) - chosen
    hits = (chosen >= jnp.max(logits, axis=-1)).astype(jnp.float32)
    return TokenLoss(jnp.sum(nats * weights), nats, hits)


def scores(vectors: Array, table: Array, bias: Array | None) -> Array:
    """``vectors @ table.T + bias`` in float32; arguments as for `token_loss`."""
    table = table.astype(vectors.dtype)
    logits = jnp.matmul(vectors, table.T, preferred_element_type=jnp.float32)
    return logits if bias is None else logits + bias


class _Block(NamedTuple):
    """The scores of a block, and what they say of its targets."""

    logits: Array  # float32 [..., T, V]
    highest: Array  # float32 [..., T]
    normaliser: Array  # float32 [..., T], of exp(logits - highest)
    nats: Array  # float32 [..., T]
    hits: Array  # float32 [..., T]


def _read(vectors: Array, targets: Array, table: Array, bias: Array | None) -> _Block:
    logits = scores(vectors, table, bias)
    logits = place(logits, "rows", "length", "", "vocab")
    highest = jnp.max(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    normaliser = jnp.sum(jnp.exp(logits - highest[..., None]), axis=-1)
    nats = highest + jnp.log(normaliser) - chosen
    return _Block(logits, highest, normaliser, nats, (chosen >= highest).astype(jnp.float32))


def _gradient(read: _Block, vectors, targets, factors, table, with_bias: bool):
    """What the nats times the factors pull at: vectors, table and bias.

    The last two have the axes of the shards in front, over which they are still to be summed: that
    is done once, after the last block, rather than once for each.
    """
    probability = jnp.exp(read.logits - read.highest[..., None])
    scale = (factors / read.normaliser)[..., None]
    hot = jnp.arange(table.shape[0]) == targets[..., None]
    pull = probability * scale - jnp.where(hot, factors[..., None], 0.0)
    on_bias = jnp.sum(pull, axis=-2) if with_bias else None
    pull = pull.astype(vectors.dtype)
    on_vectors = jnp.matmul(pull, table.astype(vectors.dtype))
    if pull.shape[:2] == (1, 1):  # a plain product is faster than one of a batch
        on_table = jnp.matmul(pull[0, 0].T, vectors[0, 0], preferred_element_type=jnp.float32)
        on_table = on_table[None, None]
    else:
        on_table = jnp.einsum(
            "...tv,...te->...ve", pull, vectors, preferred_element_type=jnp.float32
        )
    return on_vectors, place(on_table, "rows", "length", "vocab", ""), on_bias


@jax.custom_vjp
def _total(vectors, targets, weights, table, bias):
    """The weighted sum, whose gradient is made beside it; nats and hits by the way."""

    def step(total, part):
        vectors, targets, weights = part
        read = _read(vectors, targets, table, bias)
        return total + jnp.sum(read.nats * weights), (read.nats, read.hits)

    total, (nats, hits) = _over_blocks(step, jnp.float32(0), (vectors, targets, weights))
    return total, nats, hits


def _total_forward(vectors, targets, weights, table, bias):
    def step(carry, part):
        total, on_table, on_bias = carry
        vectors, targets, weights = part
        read = _read(vectors, targets, table, bias)
        found = _gradient(read, vectors, targets, weights, table, bias is not None)
        total = total + jnp.sum(read.nats * weights)
        on_bias = None if bias is None else on_bias + found[2]
        return (total, on_table + found[1], on_bias), (read.nats, read.hits, found[0])

    start = (jnp.float32(0), *_zeros(vectors, table, bias))
    (total, *on_rest), (nats, hits, on_vectors) = _over_blocks(
        step, start, (vectors, targets, weights)
    )
    return (total, nats, hits), (on_vectors, *_summed(*on_rest, table))


def _total_backward(kept, pulled):
    on_vectors, on_table, on_bias = kept
    factor = pulled[0]
    on_bias = None if on_bias is None else on_bias * factor
    return (on_vectors * factor.astype(on_vectors.dtype), None, None, on_table * factor, on_bias)


_total.defvjp(_total_forward, _total_backward)


@jax.custom_vjp
def _nats_and_hits(vectors, targets, weights, table, bias):
    """As `_total`, but it is the nats that carry the gradient."""
    return _total(vectors, targets, weights, table, bias)


def _nats_forward(vectors, targets, weights, table, bias):
    kept = (vectors, targets, table, bias)
    return _total(vectors, targets, weights, table, bias), kept


def _nats_backward(kept, pulled):
    vectors, targets, table, bias = kept

    def step(carry, part):
        on_table, on_bias = carry
        vectors, targets, factors = part
        read = _read(vectors, targets, table, bias)
        found = _gradient(read, vectors, targets, factors, table, bias is not None)
        on_bias = None if bias is None else on_bias + found[2]
        return (on_table + found[1], on_bias), found[0]

    start = _zeros(vectors, table, bias)
    on_rest, on_vectors = _over_blocks(step, start, (vectors, targets, pulled[1]))
    on_table, on_bias = _summed(*on_rest, table)
    return on_vectors, None, None, on_table, on_bias


_nats_and_hits.defvjp(_nats_forward, _nats_backward)


def _over_blocks(step, start, parts):
    """`jax.lax.scan`, but a single block is read without a loop."""
    if parts[0].shape[0] > 1:
        return jax.lax.scan(step, start, parts)
    carry, out = step(start, jax.tree.map(lambda x: x[0], parts))
    return carry, jax.tree.map(lambda x: x[None], out)


def _zeros(vectors, table, bias):
    shards = vectors.shape[1:3]
    on_table = place(jnp.zeros((*shards, *table.shape)), "rows", "length", "vocab", "")
    return on_table, None if bias is None else jnp.zeros((*shards, *bias.shape))


def _summed(on_table, on_bias, table):
    total = partial(jnp.sum, axis=(0, 1))
    return total(on_table).astype(table.dtype), None if on_bias is None else total(on_bias)
