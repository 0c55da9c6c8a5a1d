"""Masked spans and the span-boundary objective."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxpretrain.corruption.masks import budget, maskable, random_tokens, slots_for
from jaxpretrain.corruption.spans import choose_word_spans, geometric_lengths
from jaxpretrain.models.heads import boundary
from jaxpretrain.objectives.base import require
from jaxpretrain.objectives.mlm import MLM
from jaxpretrain.types import Array, Batch, Example, Sum, Sums

# Places in a span that have a vector of their own, as in the published code.
PLACES = 200


@dataclass(frozen=True, kw_only=True)
class SpanMLM(MLM):
    """`mlm` of spans of whole words, each token predicted a second time from what stands next to
    its span (SpanBERT: Joshi et al. 2020, arXiv:1907.10529).

    Span lengths in words are geometric, cut off at `longest_span`, until `mask_rate` of the tokens
    are hidden; the 80/10/10 of BERT is decided for a span as a whole. Held-out losses are measured
    on spans of the paper's lengths, all shown as the mask token; so "mlm_loss" is harder than that
    of `mlm`, whose hidden tokens are single.

    Attributes:
        span_stop: probability that a span ends after each word.
        longest_span: greatest length in words.
        boundary_weight: factor on the loss of the boundary objective.

    Raises:
        UserError: as `mlm`, and for values out of range.
    """

    name = "span_mlm"
    token_term = "mlm_loss"

    span_stop: float = 0.2
    longest_span: int = 10
    boundary_weight: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        require("span_stop", self.span_stop, 0 < self.span_stop < 1, "between 0 and 1")
        require("longest_span", self.longest_span, self.longest_span >= 1, "at least 1")
        require("boundary_weight", self.boundary_weight, self.boundary_weight >= 0, "0 or more")
        require("whole_words", self.whole_words, not self.whole_words, "False: spans are of words")

    def heads(self):
        """See `Objective.heads`."""
        return {"boundary_head": boundary(self.backbone.config, PLACES)}

    def corrupt(self, keys, batch: Batch, *, train: bool, progress) -> Example:
        """See `Objective.corrupt`."""
        highest = max(self.mask_rate, self.final_mask_rate) if train else self.eval_mask_rate
        length = batch.tokens.shape[1]
        slots = slots_for(length, highest)
        rate = self.rate(train=train, progress=progress)
        word_start = jnp.asarray(self.vocab.is_word_start)
        lengths = geometric_lengths(self.span_stop, self.longest_span)
        lengths = jnp.asarray(lengths if train else geometric_lengths(0.2, 10))
        shares = (self.mask_share, self.random_share) if train else (1.0, 0.0)

        def row(key, tokens, segments):
            choose_key, lot_key, token_key = jax.random.split(key, 3)
            eligible = maskable(tokens, segments, self.vocab.is_special)
            count = budget(eligible, rate)
            choice, span = choose_word_spans(
                choose_key, eligible, word_start[tokens], count, slots, lengths
            )
            hidden = jnp.zeros(length, bool).at[choice.slots].set(choice.used)
            # One lot for each span; the random tokens are drawn one by one.
            lot = jax.vmap(lambda n: jax.random.uniform(jax.random.fold_in(lot_key, n)))(span)
            drawn = random_tokens(token_key, (length,), self.vocab.ordinary, tokens.dtype)
            shown = jnp.where(lot < sum(shares), drawn, tokens)
            shown = jnp.where(lot < shares[0], self.vocab.mask, shown)
            left, right, place = borders(hidden, segments)
            at = choice.slots
            return jnp.where(hidden, shown, tokens), choice, left[at], right[at], place[at]

        inputs, choice, left, right, place = jax.vmap(row)(keys, batch.tokens, batch.segments)
        return Example(
            inputs=inputs,
            segments=batch.segments,
            positions=batch.positions,
            targets=jnp.take_along_axis(batch.tokens, choice.slots, axis=1),
            slots=choice.slots,
            weights=choice.used.astype(jnp.float32),
            extra={"left": left, "right": right, "place": jnp.minimum(place, PLACES - 1)},
        )

    def coefficients(self, progress):
        """See `Objective.coefficients`."""
        return {"mlm_loss": 1.0, "boundary_loss": self.boundary_weight}

    def term_weights(self, example: Example):
        """See `Objective.term_weights`."""
        return dict.fromkeys(("mlm_loss", "boundary_loss"), jnp.sum(example.weights))

    def loss(self, params, example: Example, keys, *, train: bool, progress) -> Sums:
        """See `Objective.loss`."""
        hidden = self.encode(params, example, keys if train else None)
        sums = self.token_sums(params, hidden, example)
        left, right = (
            jnp.take_along_axis(hidden, example.extra[side][:, :, None], axis=1)
            for side in ("left", "right")
        )
        head = self.heads()["boundary_head"].module(params["boundary_head"])
        vectors = head(left, right, example.extra["place"])
        found = self.backbone.embedding_loss(params, vectors, example.targets, example.weights)
        return {
            "mlm_loss": sums["loss"],
            "boundary_loss": Sum(found.total, jnp.sum(example.weights)),
            "accuracy": sums["accuracy"],
        }

    def flops(self, length: int) -> int:
        """See `Objective.flops`: the boundary head and its scores besides."""
        config = self.backbone.config
        width, narrow = config.width, config.size_of_embedding
        slots = self.shapes(length).targets.shape[1]
        head = 2 * (3 * width * width + width * narrow + narrow * config.vocab_size)
        return super().flops(length) + 3 * slots * head


def borders(hidden: Array, segments: Array) -> tuple[Array, Array, Array]:
    """For every hidden token the positions next to its run of hidden tokens, and its place in it.

    Where the run reaches the end of a segment its own last position stands for the missing one.

    Args:
        hidden: bool ``[length]``.
        segments: int32 ``[length]``.

    Returns:
        int32 ``[length]`` three times: the position on the left, that on the right, and the number
        of hidden tokens before it in the run. They mean nothing where a token is not hidden.
    """
    place = jnp.arange(hidden.shape[0])
    same_before = jnp.concatenate([jnp.zeros(1, bool), segments[1:] == segments[:-1]])
    same_after = jnp.roll(same_before, -1).at[-1].set(False)
    starts = hidden & ~(jnp.roll(hidden, 1) & same_before)
    ends = hidden & ~(jnp.roll(hidden, -1) & same_after)
    first = jax.lax.cummax(jnp.where(starts, place, 0))
    last = jax.lax.cummin(jnp.where(ends, place, hidden.shape[0] - 1), reverse=True)
    left = jnp.where(same_before[first], first - 1, first)
    right = jnp.where(same_after[last], last + 1, last)
    return left, right, place - first
