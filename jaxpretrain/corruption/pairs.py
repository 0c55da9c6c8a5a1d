"""Pairs of texts: where a row is split, who provides the second part, how they are laid out."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxpretrain.corruption.sequences import Piece, join, one_segment, single
from jaxpretrain.types import Array


class Pairs(NamedTuple):
    """Two spans of text in each row, as BERT reads them: ``[cls] A [sep] B [sep]``.

    Attributes:
        tokens: int32 ``[rows, length + 3]``.
        segments: int32 ``[rows, length + 3]``, 1, and 0 at padding.
        positions: int32 ``[rows, length + 3]``.
        types: int32 ``[rows, length + 3]``, 0 for ``[cls] A [sep]`` and padding, 1 for ``B [sep]``.
        labels: int32 ``[rows]``, 0 where B follows A in the text.
        weights: float32 ``[rows]``, 0 for rows that are too short to be split.
    """

    tokens: Array
    segments: Array
    positions: Array
    types: Array
    labels: Array
    weights: Array


def split_point(key: Array, tokens: Array, start: Array, stop: Array, ends: Array) -> Array:
    """Where a span of a row is split in two, int scalar in ``(start, stop)``.

    Behind a token that ends a sentence, uniformly, where there is one; else anywhere.

    Args:
        key: PRNG key.
        tokens: int32 ``[length]``.
        start: first token of the span, int scalar.
        stop: behind its last token; ``stop - start`` is at least 2, or the result means nothing.
        ends: bool ``[length]``, True where a token ends a sentence.
    """
    place = jnp.arange(tokens.shape[0])
    possible = (place > start) & (place < stop)
    after_sentence = possible & jnp.roll(ends, 1)
    candidates = jnp.where(jnp.any(after_sentence), after_sentence, possible)
    priority = jax.random.uniform(key, tokens.shape)
    return jnp.argmax(jnp.where(candidates, priority, -1.0)).astype(jnp.int32)


def whole_sentences(start: Array, stop: Array, ends: Array) -> tuple[Array, Array]:
    """The span without the broken sentences at its borders, if it has three sentence ends or more.

    Args:
        start: first token, int scalar.
        stop: behind the last token.
        ends: bool ``[length]``.
    """
    place = jnp.arange(ends.shape[0])
    inside = ends & (place >= start) & (place < stop)
    first = jnp.argmax(inside)
    last = ends.shape[0] - 1 - jnp.argmax(inside[::-1])
    enough = jnp.sum(inside) >= 3
    return jnp.where(enough, first + 1, start), jnp.where(enough, last + 1, stop)


def partners(keys: Array, documents: Array, splittable: Array) -> tuple[Array, Array]:
    """For each row another row of the batch, uniformly among those of other documents.

    Args:
        keys: one PRNG key per row.
        documents: int32 ``[rows]``.
        splittable: bool ``[rows]``, which rows can be a partner.

    Returns:
        int32 ``[rows]``, and bool ``[rows]``, False where there is no such row.
    """
    rows = documents.shape[0]
    # Sorted by document, a row's own document is one run; the others are what is left and right.
    ids = jnp.where(splittable, documents, jnp.iinfo(jnp.int32).max)
    order = jnp.argsort(ids)
    ordered = ids[order]
    first = jnp.searchsorted(ordered, documents, side="left")
    own = jnp.searchsorted(ordered, documents, side="right") - first
    others = jnp.sum(splittable) - own
    pick = jax.vmap(lambda key, n: jax.random.randint(key, (), 0, jnp.maximum(n, 1)))(keys, others)
    index = jnp.where(pick < first, pick, pick + own)
    return order[jnp.clip(index, 0, rows - 1)], others > 0


def lay_out(first: Piece, second: Piece, size: int, vocab) -> tuple[Array, Array, Array]:
    """``[cls] A [sep] B [sep]`` of one row.

    Returns:
        Tokens and types, int32 ``[size]``, and the number of tokens.
    """
    sep = single(vocab.sep)
    pieces = [single(vocab.cls), first, sep, second, sep]
    tokens, owner, count = join(pieces, size, vocab.pad)
    return tokens, ((owner == 3) | (owner == 4)).astype(jnp.int32), count


def next_sentence_pairs(keys: Array, batch, vocab) -> Pairs:
    """BERT's next-sentence pairs (Devlin et al. 2019, arXiv:1810.04805); label 1 is "random".

    Half of the rows keep their own second part; the others get that of a row of another document,
    from anywhere in the batch. Under both labels it is cut to what the row and its partner both
    have, so that the length says nothing about the label.
    """
    length = batch.tokens.shape[1]
    lengths = jnp.sum(batch.segments > 0, axis=1)
    sentence_end = jnp.asarray(vocab.is_sentence_end)
    split_keys, partner_keys, label_keys = _three(keys)

    def split(key, tokens, n):
        return split_point(key, tokens, jnp.int32(0), n, sentence_end[tokens])

    splits = jax.vmap(split)(split_keys, batch.tokens, lengths)
    splittable = lengths >= 2
    other, found = partners(partner_keys, batch.documents, splittable)
    labels = jax.vmap(jax.random.bernoulli)(label_keys) & found
    rest = lengths - splits
    count = jnp.where(found, jnp.minimum(rest, rest[other]), rest)

    def row(tokens, a, b, second_tokens, second_start):
        first = Piece(tokens, 0, a)
        return lay_out(first, Piece(second_tokens, second_start, b), length + 3, vocab)

    take = jnp.where(labels, other, jnp.arange(len(other)))
    tokens, types, used = jax.vmap(row)(
        batch.tokens, splits, count, batch.tokens[take], splits[take]
    )
    return _pairs(tokens, types, used, labels, splittable, vocab)


def sentence_order_pairs(keys: Array, batch, vocab) -> Pairs:
    """ALBERT's sentence-order pairs (Lan et al. 2020, arXiv:1909.11942); label 1 is "swapped".

    Rows are first cut to whole sentences where they have enough of them, since a part that begins
    or ends within a sentence would tell the order.
    """
    length = batch.tokens.shape[1]
    lengths = jnp.sum(batch.segments > 0, axis=1)
    sentence_end = jnp.asarray(vocab.is_sentence_end)
    split_keys, _, label_keys = _three(keys)

    def row(split_key, label_key, tokens, n):
        ends = sentence_end[tokens]
        start, stop = whole_sentences(jnp.int32(0), n, ends)
        middle = split_point(split_key, tokens, start, stop, ends)
        swapped = jax.random.bernoulli(label_key)
        spans = [(start, middle - start), (middle, stop - middle)]
        first, second = (
            Piece(
                tokens,
                jnp.where(swapped, spans[1 - i][0], spans[i][0]),
                jnp.where(swapped, spans[1 - i][1], spans[i][1]),
            )
            for i in range(2)
        )
        return *lay_out(first, second, length + 3, vocab), swapped, stop - start >= 2

    tokens, types, used, labels, fine = jax.vmap(row)(split_keys, label_keys, batch.tokens, lengths)
    return _pairs(tokens, types, used, labels, fine, vocab)


def _three(keys: Array) -> Array:
    return jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, 3))(keys), 1, 0)


def _pairs(tokens, types, used, labels, fine, vocab) -> Pairs:
    used = jnp.where(fine, used, 0)
    segments, positions = one_segment(used, tokens.shape[1])
    return Pairs(
        tokens=jnp.where(segments > 0, tokens, vocab.pad),
        segments=segments,
        positions=positions,
        types=types * segments,
        labels=labels.astype(jnp.int32),
        weights=fine.astype(jnp.float32),
    )
