"""Masks: which tokens are hidden, and what stands in their place.

Pure JAX functions of one row, to be mapped over rows with `jax.vmap`; every shape is static, so
the number of hidden tokens is a number of *used* slots out of a fixed number of slots.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxpretrain.types import Array


class Choice(NamedTuple):
    """Positions picked out of one row.

    Attributes:
        slots: int32 ``[slots]``, distinct positions.
        used: bool ``[slots]``, False where there was nothing left to pick.
    """

    slots: Array
    used: Array


def maskable(tokens: Array, segments: Array, is_special: Array) -> Array:
    """Which tokens of rows are text: neither padding nor special pieces.

    Args:
        tokens: int32 ``[...]``.
        segments: int32 ``[...]``, 0 at padding.
        is_special: bool ``[vocab]``.
    """
    return ~jnp.asarray(is_special)[tokens] & (segments > 0)


def budget(eligible: Array, rate: Array | float) -> Array:
    """How many of the eligible tokens a rate comes to.

    The nearest whole number, and at least 1 (as in BERT's ``create_pretraining_data.py``), but 0
    where nothing is eligible.

    Args:
        eligible: bool ``[length]``.
        rate: share in (0, 1].

    Returns:
        int32 scalar.
    """
    total = jnp.sum(eligible, dtype=jnp.int32)
    wanted = jnp.floor(total * jnp.float32(rate) + 0.5).astype(jnp.int32)
    return jnp.where(total > 0, jnp.clip(wanted, 1, total), 0)


def slots_for(length: int, rate: float) -> int:
    """A number of slots that `budget` never exceeds on rows of `length` tokens.

    A little is added to what float64 gives, since `budget` rounds in float32.
    """
    return max(1, min(length, int(length * rate * (1 + 1e-6) + 0.5 + 1e-6)))


def choose_tokens(key: Array, eligible: Array, count: Array, slots: int) -> Choice:
    """`count` of the eligible positions, uniformly and without replacement.

    Args:
        key: PRNG key.
        eligible: bool ``[length]``.
        count: int scalar, at most `slots` and at most the number of eligible positions.
        slots: how many positions to return, used or not.
    """
    priority = jax.random.uniform(key, eligible.shape)
    _, chosen = jax.lax.top_k(jnp.where(eligible, priority, -1.0), slots)
    return Choice(chosen, jnp.arange(slots) < count)


def choose_words(
    key: Array, eligible: Array, word_start: Array, count: Array, slots: int
) -> Choice:
    """Whole words in random order, as many tokens as fit into `count`.

    A word is a run of eligible tokens that begins at a word start, or behind a token that is not
    eligible. As in BERT's whole-word masking, a word that would exceed the budget is passed over
    and the next ones are tried, so a few tokens of the budget may stay unused.

    Args:
        key: PRNG key.
        eligible: bool ``[length]``.
        word_start: bool ``[length]``.
        count: int scalar, the budget in tokens, at most `slots`.
        slots: how many positions to return, used or not.
    """
    length = eligible.shape[0]
    behind_gap = jnp.concatenate([jnp.ones(1, bool), ~eligible[:-1]])
    starts = eligible & (word_start | behind_gap)
    word = jnp.where(eligible, jnp.cumsum(starts) - 1, length - 1)
    size = jnp.zeros(length, jnp.int32).at[word].add(eligible.astype(jnp.int32))
    order = jnp.argsort(jax.random.uniform(key, (length,)))
    size = size[order]

    # Taking words one by one is sequential, but the words that fit into what is left, taken up to
    # the first that does not fit any more, are a prefix sum; a few such rounds finish the row.
    def fits(state):
        taken, left = state
        return ~taken & (size > 0) & (size <= left)

    def round_of_words(state):
        taken, left = state
        candidate = fits(state)
        running = jnp.cumsum(jnp.where(candidate, size, 0))
        # Behind the first candidate that exceeds the budget, later ones must wait their turn:
        # the running sum never falls, so it exceeds the budget for them too.
        now = candidate & (running <= left)
        return taken | now, left - jnp.sum(jnp.where(now, size, 0))

    state = jnp.zeros(length, bool), count.astype(jnp.int32)
    taken, _ = jax.lax.while_loop(lambda s: jnp.any(fits(s)), round_of_words, state)
    word_taken = jnp.zeros(length, bool).at[order].set(taken)
    hidden = eligible & word_taken[word]
    used, chosen = jax.lax.top_k(hidden.astype(jnp.float32), slots)
    return Choice(chosen, used > 0)


def replace_tokens(
    key: Array,
    tokens: Array,
    choice: Choice,
    *,
    mask_share: float,
    random_share: float,
    mask_id: int | None,
    ordinary: Array,
) -> Array:
    """BERT's corruption of the chosen tokens (Devlin et al. 2019, arXiv:1810.04805).

    Each used slot becomes the mask token with probability `mask_share`, a token drawn uniformly
    from the ordinary pieces with probability `random_share`, and stays as it is otherwise; decided
    for each token by itself.

    Args:
        key: PRNG key.
        tokens: int32 ``[length]``.
        choice: of its positions.
        mask_share: see above.
        random_share: see above.
        mask_id: the mask token; None will do where none is shown.
        ordinary: int32, the ids of the ordinary pieces.

    Returns:
        int32 ``[length]``, the tokens with the chosen ones replaced.
    """
    lot_key, token_key = jax.random.split(key)
    shape = choice.slots.shape
    lot = jax.random.uniform(lot_key, shape)
    drawn = random_tokens(token_key, shape, ordinary, tokens.dtype)
    original = tokens[choice.slots]
    new = jnp.where(lot < mask_share + random_share, drawn, original)
    if mask_share:
        new = jnp.where(lot < mask_share, jnp.asarray(mask_id, tokens.dtype), new)
    return tokens.at[choice.slots].set(jnp.where(choice.used, new, original))


def random_tokens(key: Array, shape: tuple[int, ...], ordinary: Array, dtype: Any) -> Array:
    """Tokens drawn uniformly from the ordinary pieces.

    Args:
        key: PRNG key.
        shape: of the result.
        ordinary: int32, the ids of the ordinary pieces.
        dtype: of the result.
    """
    place = jax.random.randint(key, shape, 0, len(ordinary), dtype)
    return jnp.asarray(ordinary, dtype)[place]
