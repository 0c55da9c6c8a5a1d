"""Noise spans: T5's random compositions, sentinels in their place, SpanBERT's words in a row.

Pure JAX functions of one row, to be mapped over rows with `jax.vmap`. Counts may be traced values,
shapes never are.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxpretrain.corruption.masks import Choice
from jaxpretrain.corruption.sequences import compact
from jaxpretrain.types import Array


def noise_counts(
    tokens: np.ndarray, density: float, mean_span: float
) -> tuple[np.ndarray, np.ndarray]:
    """How many noise tokens and spans a row has (T5: Raffel et al. 2020, arXiv:1910.10683).

    ``N = round(tokens * density)``, at least 1 and at most ``tokens - 1``; ``round(N / mean_span)``
    spans, at least 1 and at most as many as there is room for. Halves are rounded to the even
    number, in float32, as in T5. A row of fewer than 2 tokens has none. It is computed on the host
    and looked up on the device, whose compiler may round a quotient otherwise.

    Args:
        tokens: int, of any shape.
        density: share of the tokens that is noise.
        mean_span: tokens in a span, on average.

    Returns:
        int32 arrays of the shape of `tokens`.
    """
    tokens = np.asarray(tokens, np.int32)
    noise = np.round(tokens.astype(np.float32) * np.float32(density)).astype(np.int32)
    noise = np.minimum(np.maximum(noise, 1), tokens - 1)
    spans = np.round(noise.astype(np.float32) / np.float32(mean_span)).astype(np.int32)
    spans = np.minimum(np.maximum(spans, 1), np.minimum(noise, tokens - noise))
    possible = tokens >= 2
    return np.where(possible, noise, 0), np.where(possible, spans, 0)


def composition_starts(key: Array, total: Array, parts: Array, size: int) -> Array:
    """A uniformly random way to cut `total` things into `parts` runs of at least one.

    Args:
        key: PRNG key.
        total: int scalar, at most `size`.
        parts: int scalar, at most `total`.
        size: static length of the result.

    Returns:
        bool ``[size]``: True where a run begins; the first of the `total` always begins one.
    """
    place = jnp.arange(size)
    inside = (place >= 1) & (place < total)
    priority = jnp.where(inside, jax.random.uniform(key, (size,)), -1.0)
    rank = jnp.zeros(size, jnp.int32).at[jnp.argsort(-priority)].set(place)
    return (inside & (rank < parts - 1)) | ((place == 0) & (total > 0))


def noise_mask(key: Array, tokens: Array, noise: Array, spans: Array, size: int) -> Array:
    """T5's random spans: which tokens of a row are noise.

    Noise and non-noise are each cut into `spans` runs by a random composition, and the runs
    alternate, beginning with non-noise. So the counts are exact, spans never touch, the first token
    is never noise and the last one always is.

    Args:
        key: PRNG key.
        tokens: int scalar, tokens in the row.
        noise: int scalar, how many are noise.
        spans: int scalar.
        size: static length of the row.

    Returns:
        bool ``[size]``.
    """
    noise_key, other_key = jax.random.split(key)
    # The number of the run that each noise and each non-noise token belongs to, then the lengths.
    lengths = []
    for cut_key, total in ((other_key, tokens - noise), (noise_key, noise)):
        starts = composition_starts(cut_key, total, spans, size)
        run = jnp.where(jnp.arange(size) < total, jnp.cumsum(starts) - 1, size)
        lengths.append(jnp.zeros(size, jnp.int32).at[run].add(1, mode="drop"))
    ends = jnp.cumsum(jnp.stack(lengths, axis=1).ravel())
    # Run 2j is non-noise and run 2j + 1 is noise; a token's run is the number of ends before it.
    run = jnp.zeros(size + 1, jnp.int32).at[jnp.minimum(ends, size)].add(1)
    run = jnp.cumsum(run[:size])
    return (run % 2 == 1) & (jnp.arange(size) < tokens)


def sentinel_inputs(
    tokens: Array, used: Array, noise: Array, sentinels: Array, size: int, fill: int
) -> tuple[Array, Array]:
    """The row with each noise span replaced by a sentinel of its own, in order.

    Args:
        tokens: int32 ``[length]``.
        used: bool ``[length]``, False at padding.
        noise: bool ``[length]``.
        sentinels: int32 ``[n]``, at least as many as there are spans.
        size: static length of the result.
        fill: token behind the last.

    Returns:
        int32 ``[size]`` and the number of tokens, int32 scalar.
    """
    starts = span_starts(noise)
    span = jnp.clip(jnp.cumsum(starts) - 1, 0, sentinels.shape[0] - 1)
    shown = jnp.where(starts, sentinels[span], tokens)
    return compact(shown, used & (~noise | starts), size, fill)


def sentinel_targets(
    tokens: Array, noise: Array, sentinels: Array, size: int, fill: int
) -> tuple[Array, Array]:
    """For each noise span its sentinel and its tokens; arguments as for `sentinel_inputs`."""
    starts = span_starts(noise)
    span = jnp.cumsum(starts) - 1
    place = jnp.where(noise, jnp.cumsum(noise) + span, size)
    out = jnp.full(size, fill, tokens.dtype).at[place].set(tokens, mode="drop")
    before = jnp.where(starts, place - 1, size)
    sentinel = sentinels[jnp.clip(span, 0, sentinels.shape[0] - 1)]
    out = out.at[before].set(sentinel.astype(tokens.dtype), mode="drop")
    count = jnp.sum(noise, dtype=jnp.int32) + jnp.sum(starts, dtype=jnp.int32)
    return out, jnp.minimum(count, size)


def span_starts(noise: Array) -> Array:
    """True at the first token of each run of noise, bool ``[length]``."""
    return noise & ~jnp.concatenate([jnp.zeros(1, bool), noise[:-1]])


def geometric_lengths(p: float, longest: int) -> np.ndarray:
    """SpanBERT's distribution of span lengths: geometric, cut off and renormalised.

    Args:
        p: probability of stopping after each word.
        longest: greatest length in words.

    Returns:
        float32 ``[longest]``, the probabilities of 1, 2, … words.
    """
    weights = p * (1 - p) ** np.arange(longest)
    return (weights / weights.sum()).astype(np.float32)


def choose_word_spans(
    key: Array,
    eligible: Array,
    word_start: Array,
    count: Array,
    slots: int,
    probabilities: Array,
) -> tuple[Choice, Array]:
    """Runs of whole words, until the budget is met exactly (SpanBERT: Joshi et al. 2020,
    arXiv:1907.10529).

    Each draw takes a length in words and a start that is a word start, uniformly; a span ends
    before a token that is not eligible. Spans may meet or overlap what was drawn before, and the
    last one is cut to the budget.

    Args:
        key: PRNG key.
        eligible: bool ``[length]``.
        word_start: bool ``[length]``.
        count: int scalar, the budget in tokens, at most `slots`.
        slots: how many positions to return, used or not.
        probabilities: float ``[longest]``, of 1, 2, … words.

    Returns:
        The choice, in order of position, and for every position of the row the number of the draw
        that hid it, int32 ``[length]`` (what one span shares, such as BERT's 80/10/10).
    """
    length = eligible.shape[0]
    place = jnp.arange(length)
    behind_gap = jnp.concatenate([jnp.ones(1, bool), ~eligible[:-1]])
    starts = eligible & (word_start | behind_gap)
    number_of_starts = jnp.sum(starts)
    # Words are numbered from 1 through the row; a gap is where a run of eligible tokens ends.
    word = jnp.cumsum(starts)
    run = jnp.cumsum(behind_gap & eligible)
    where_start = jnp.sort(jnp.where(starts, place, length))
    logits = jnp.log(probabilities)

    def draw(state):
        hidden, drawn, number = state
        length_key, start_key = jax.random.split(jax.random.fold_in(key, number))
        words = 1 + jax.random.categorical(length_key, logits)
        pick = jax.random.randint(start_key, (), 0, jnp.maximum(number_of_starts, 1))
        start = jnp.minimum(where_start[pick], length - 1)
        inside = (word >= word[start]) & (word < word[start] + words) & (run == run[start])
        new = inside & eligible & ~hidden
        left = count - jnp.sum(hidden)
        new = new & (jnp.cumsum(new) <= left)
        return hidden | new, jnp.where(new, number, drawn), number + 1

    def unfinished(state):
        hidden, _, _ = state
        return jnp.sum(hidden) < count

    start = (jnp.zeros(length, bool), jnp.full(length, -1, jnp.int32), jnp.int32(0))
    hidden, drawn, _ = jax.lax.while_loop(unfinished, draw, start)
    # The positions in order: hidden ones first, each kind by position.
    order = jnp.argsort(jnp.where(hidden, place, length + place))[:slots]
    return Choice(order, hidden[order]), drawn
