"""The loss over the vocabulary, without ever having the scores of all tokens at once.

The scores of a batch are the largest array of a training step: tokens times vocabulary. Here they
are made for a block of tokens at a time. While a block's scores are there, its part of the gradient
is computed too, so that nothing of that size is kept for the backward pass and no product is made
twice (as in Liger Kernel: Hsu et al. 2024, arXiv:2410.10989).

Shape suffixes: T tokens of a block, V vocabulary, E the width of an embedding.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxpretrain.models.placement import parts_of, place, platform
from jaxpretrain.types import Array


class Vocabulary(NamedTuple):
    """What makes scores over the vocabulary of vectors: one of two forms of a matrix, and a bias.

    Attributes:
        table: float32 ``[vocab, width]``, as embeddings are stored, or None.
        kernel: float32 ``[width, vocab]``, as other matrices are stored, or None.
        bias: float32 ``[vocab]`` or None.
    """

    table: Array | None = None
    kernel: Array | None = None
    bias: Array | None = None

    @property
    def size(self) -> int:
        """Number of tokens."""
        return self.kernel.shape[1] if self.table is None else self.table.shape[0]

    def scores(self, vectors: Array) -> Array:
        """Float32 ``[..., vocab]`` of vectors ``[..., width]``, whose type the product has."""
        kernel = self.table.T if self.kernel is None else self.kernel
        product = jnp.matmul(
            vectors, kernel.astype(vectors.dtype), preferred_element_type=jnp.float32
        )
        return product if self.bias is None else product + self.bias

    def pull_on_vectors(self, pull: Array) -> Array:
        """The gradient of the vectors, given that of the scores."""
        table = self.kernel.T if self.table is None else self.table
        return jnp.matmul(pull, table.astype(pull.dtype))

    def pull_on_self(self, pull: Array, vectors: Array) -> "Vocabulary":
        """The gradient of `summand`, given that of the scores, over the tokens of each shard."""
        one = pull.shape[:-2] == (1, 1)
        if one:  # a plain product is faster than one of a batch
            pull, vectors = pull[0, 0], vectors[0, 0]
        product = {"preferred_element_type": jnp.float32}
        table = kernel = None
        if self.summand.table is not None:
            table = jnp.matmul(jnp.swapaxes(pull, -1, -2), vectors, **product)
        else:
            turned = jnp.swapaxes(vectors, -1, -2)
            if platform() == "cpu":
                turned = jax.lax.optimization_barrier(turned)
            kernel = jnp.matmul(turned, pull, **product)
        bias = None if self.bias is None else jnp.sum(pull, axis=-2, dtype=jnp.float32)
        found = Vocabulary(table, kernel, bias)
        return (jax.tree.map(lambda x: x[None, None], found) if one else found).placed(2)

    @property
    def summand(self) -> "Vocabulary":
        """The form in which its gradient is summed over blocks.

        XLA's fast product on a CPU takes nothing that it must turn itself, so there the small
        side, the vectors, is turned for it, and that makes a kernel; a table is turned at the end.
        """
        if platform() == "cpu" and self.table is not None:
            return Vocabulary(kernel=self.table.T, bias=self.bias)
        return self

    def placed(self, shards: int = 0) -> "Vocabulary":
        """The same, divided by the vocabulary alone, after so many axes of shards."""
        front = ("rows", "length")[:shards]
        table = None if self.table is None else place(self.table, *front, "vocab", "")
        kernel = None if self.kernel is None else place(self.kernel, *front, "", "vocab")
        return Vocabulary(table, kernel, self.bias)


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
    vocabulary: Vocabulary,
    targets: Array,
    weights: Array,
    *,
    block: int,
    each: bool = False,
) -> TokenLoss:
    """Weighted negative log-likelihood of targets under the softmax of the scores.

    Args:
        vectors: ``[rows, slots, width]`` in the computing type.
        vocabulary: what makes scores of them.
        targets: int ``[rows, slots]``.
        weights: float ``[rows, slots]``; no gradient goes to them.
        block: tokens on each device whose scores exist at once; 0 takes all of them, without any
            of this, by plain differentiation.
        each: `nats` carries a gradient instead of `total`, at the price of making the scores once
            more in the backward pass.

    Returns:
        The loss; `nats` and `hits` have the shape of `targets`.
    """
    if block == 0:
        return _plain(vectors, vocabulary.placed(), targets, weights)
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
    total, nats, hits = function(*parts, vocabulary)
    nats, hits = together(nats), together(hits)
    if each:
        return TokenLoss(jax.lax.stop_gradient(total), nats, hits)
    return TokenLoss(total, jax.lax.stop_gradient(nats), hits)


def sample(
    vectors: Array, vocabulary: Vocabulary, uniform: Array, *, block: int, width: int = 128
) -> Array:
    """Tokens drawn by the softmax of the scores, without the scores of all at once.

    By the inverse of the distribution function, at two levels: a stretch of `width` tokens first,
    then a token in it. So one random number is enough for each token that is drawn.

    Args:
        vectors: ``[rows, slots, width]``.
        vocabulary: what makes scores of them.
        uniform: float32 ``[rows, slots]`` in [0, 1).
        block: as for `token_loss`; 0 takes all slots at once.
        width: of a stretch.

    Returns:
        int32 ``[rows, slots]``.
    """
    vocabulary = vocabulary.placed()
    rows, slots = uniform.shape
    # Slots of all rows make a block, so that rows stay on their devices.
    size = min(slots, max(1, block * parts_of("rows") // rows)) if block else slots
    count = -(-slots // size)
    padding = count * size - slots

    def blocks(x: Array) -> Array:
        x = jnp.pad(x, [(0, 0), (0, padding), *[(0, 0)] * (x.ndim - 2)])
        return jnp.moveaxis(x.reshape(rows, count, size, *x.shape[2:]), 1, 0)

    def draw(part):
        vectors, uniform = part
        logits = place(vocabulary.scores(vectors), "rows", "", "vocab")
        odds = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
        odds = jnp.pad(odds, [(0, 0), (0, 0), (0, -odds.shape[-1] % width)])
        odds = odds.reshape(*odds.shape[:2], -1, width)
        stretch, rest = _pick(jnp.sum(odds, axis=-1), uniform)
        inside = jnp.take_along_axis(odds, stretch[..., None, None], axis=2)[:, :, 0]
        return stretch * width + _pick(inside, rest)[0]

    drawn = jax.lax.map(draw, (blocks(vectors), blocks(uniform)))
    return jnp.moveaxis(drawn, 0, 1).reshape(rows, -1)[:, :slots]


def _pick(odds: Array, uniform: Array) -> tuple[Array, Array]:
    """Where a number falls among odds ``[..., n]``, and how far into it, in [0, 1)."""
    upto = jnp.cumsum(odds, axis=-1)
    # Never past the last that has any odds, however the sums are rounded.
    target = jnp.minimum(uniform, 1 - 2.0**-20)[..., None] * upto[..., -1:]
    index = jnp.sum(upto <= target, axis=-1, dtype=jnp.int32)
    at = jnp.minimum(index, odds.shape[-1] - 1)[..., None]
    mine, end = jnp.take_along_axis(odds, at, -1), jnp.take_along_axis(upto, at, -1)
    into = (target - (end - mine)) / jnp.maximum(mine, 1e-30)
    return at[..., 0], jnp.clip(into[..., 0], 0.0, 1.0)


def _plain(vectors, vocabulary, targets, weights) -> TokenLoss:
    logits = place(vocabulary.scores(vectors), "rows", "length", "vocab")
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    nats = jax.nn.logsumexp(logits, axis=-1) - chosen
    hits = (chosen >= jnp.max(logits, axis=-1)).astype(jnp.float32)
    return TokenLoss(jnp.sum(nats * weights), nats, hits)


class _Block(NamedTuple):
    """The scores of a block, and what they say of its targets."""

    logits: Array  # float32 [..., T, V]
    highest: Array  # float32 [..., T]
    normaliser: Array  # float32 [..., T], of exp(logits - highest)
    nats: Array  # float32 [..., T]
    hits: Array  # float32 [..., T]


def _read(vectors: Array, targets: Array, vocabulary: Vocabulary) -> _Block:
    logits = place(vocabulary.scores(vectors), "rows", "length", "", "vocab")
    highest = jnp.max(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    normaliser = jnp.sum(jnp.exp(logits - highest[..., None]), axis=-1)
    nats = highest + jnp.log(normaliser) - chosen
    return _Block(logits, highest, normaliser, nats, (chosen >= highest).astype(jnp.float32))


def _gradient(read: _Block, vectors, targets, factors, vocabulary) -> tuple[Array, Vocabulary]:
    """What the nats times the factors pull at.

    The gradient of the vocabulary has the axes of the shards in front, over which it is still to be
    summed: that is done once, after the last block, rather than once for each.
    """
    probability = jnp.exp(read.logits - read.highest[..., None])
    scale = (factors / read.normaliser)[..., None]
    hot = jnp.arange(vocabulary.size) == targets[..., None]
    pull = probability * scale - jnp.where(hot, factors[..., None], 0.0)
    pull = pull.astype(vectors.dtype)
    return vocabulary.pull_on_vectors(pull), vocabulary.pull_on_self(pull, vectors)


@jax.custom_vjp
def _total(vectors, targets, weights, vocabulary):
    """The weighted sum, whose gradient is made beside it; nats and hits by the way.

    The vocabulary is placed in here: outside, its gradient would be placed like it, whole.
    """
    vocabulary = vocabulary.placed()

    def step(total, part):
        vectors, targets, weights = part
        read = _read(vectors, targets, vocabulary)
        return total + jnp.sum(read.nats * weights), (read.nats, read.hits)

    total, (nats, hits) = _over_blocks(step, jnp.float32(0), (vectors, targets, weights))
    return total, nats, hits


def _total_forward(vectors, targets, weights, vocabulary):
    vocabulary = vocabulary.placed()

    def step(carry, part):
        total, summed = carry
        vectors, targets, weights = part
        read = _read(vectors, targets, vocabulary)
        on_vectors, found = _gradient(read, vectors, targets, weights, vocabulary)
        total = total + jnp.sum(read.nats * weights)
        return (total, jax.tree.map(jnp.add, summed, found)), (read.nats, read.hits, on_vectors)

    start = (jnp.float32(0), _zeros(vectors, vocabulary))
    parts = (vectors, targets, weights)
    (total, summed), (nats, hits, on_vectors) = _over_blocks(step, start, parts)
    return (total, nats, hits), (on_vectors, _over_shards(summed, vocabulary))


def _total_backward(kept, pulled):
    on_vectors, on_vocabulary = kept
    factor = pulled[0]
    scaled = jax.tree.map(lambda x: x * factor, on_vocabulary)
    # One over the number of targets is no number of 16 bits.
    on_vectors = (on_vectors.astype(jnp.float32) * factor).astype(on_vectors.dtype)
    return on_vectors, None, None, scaled


_total.defvjp(_total_forward, _total_backward)


@jax.custom_vjp
def _nats_and_hits(vectors, targets, weights, vocabulary):
    """As `_total`, but it is the nats that carry the gradient."""
    return _total(vectors, targets, weights, vocabulary)


def _nats_forward(vectors, targets, weights, vocabulary):
    return _total(vectors, targets, weights, vocabulary), (vectors, targets, vocabulary)


def _nats_backward(kept, pulled):
    vectors, targets, vocabulary = kept
    vocabulary = vocabulary.placed()

    def step(summed, part):
        vectors, targets, factors = part
        read = _read(vectors, targets, vocabulary)
        on_vectors, found = _gradient(read, vectors, targets, factors, vocabulary)
        return jax.tree.map(jnp.add, summed, found), on_vectors

    parts = (vectors, targets, pulled[1])
    summed, on_vectors = _over_blocks(step, _zeros(vectors, vocabulary), parts)
    return on_vectors, None, None, _over_shards(summed, vocabulary)


_nats_and_hits.defvjp(_nats_forward, _nats_backward)


def _over_blocks(step, start, parts):
    """`jax.lax.scan`, but a single block is read without a loop."""
    if parts[0].shape[0] > 1:
        return jax.lax.scan(step, start, parts)
    carry, out = step(start, jax.tree.map(lambda x: x[0], parts))
    return carry, jax.tree.map(lambda x: x[None], out)


def _zeros(vectors: Array, vocabulary: Vocabulary) -> Vocabulary:
    shards = vectors.shape[1:3]
    return jax.tree.map(lambda x: jnp.zeros((*shards, *x.shape)), vocabulary.summand).placed(2)


def _over_shards(summed: Vocabulary, vocabulary: Vocabulary) -> Vocabulary:
    found = jax.tree.map(lambda x: jnp.sum(x, axis=(0, 1)), summed)
    if vocabulary.table is not None and found.table is None:
        # Apart, or the product would be made so that it needs no turning.
        found = found._replace(table=jax.lax.optimization_barrier(found.kernel).T, kernel=None)
    # Placed as the parameters are, so that each device gets its part of the sum and no more.
    table = None if found.table is None else place(found.table, "vocab", "embed")
    kernel = None if found.kernel is None else place(found.kernel, "embed", "vocab")
    return Vocabulary(table, kernel, found.bias)
