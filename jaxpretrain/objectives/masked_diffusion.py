"""Masked diffusion."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxpretrain.corruption.masks import choose_tokens, maskable
from jaxpretrain.objectives.base import Objective
from jaxpretrain.types import Batch, Example


@dataclass(frozen=True, kw_only=True)
class MaskedDiffusion(Objective):
    """Predict hidden tokens at every rate, as a bound on the likelihood of the text (MDLM: Sahoo et
    al. 2024, arXiv:2406.07524; LLaDA: Nie et al. 2025, arXiv:2502.09992).

    Of a row's n ordinary tokens a number l, uniform in 1 … n, is hidden, and the loss on them is
    weighted by n / l, the inverse of the rate. This is the form with exact counts (Ou et al. 2024,
    arXiv:2406.03736), which has the mean of the one that hides each token by itself at a uniform
    rate t, weighted by 1 / t, and less variance. Divided by n it bounds the nats per token from
    above, so bits per byte may be compared with those of a causal model; the special pieces, which
    are never hidden, are given for free.
    """

    name = "masked_diffusion"
    needs = ("mask",)
    samples = "gaps"
    visibility = "full"
    is_likelihood = True

    def corrupt(self, keys, batch: Batch, *, train: bool, progress) -> Example:
        """See `Objective.corrupt`. Every position is a slot, most with weight 0."""
        length = batch.tokens.shape[1]

        def row(key, tokens, segments):
            count_key, choose_key = jax.random.split(key)
            eligible = maskable(tokens, segments, self.vocab.is_special)
            total = jnp.sum(eligible)
            count = jnp.where(total > 0, jax.random.randint(count_key, (), 1, total + 1), 0)
            choice = choose_tokens(choose_key, eligible, count, length)
            hidden = jnp.zeros(length, bool).at[choice.slots].set(choice.used)
            weight = total / jnp.maximum(count, 1)
            return hidden, weight, total

        hidden, weight, total = jax.vmap(row)(keys, batch.tokens, batch.segments)
        return Example(
            inputs=jnp.where(hidden, self.vocab.mask, batch.tokens),
            segments=batch.segments,
            positions=batch.positions,
            targets=batch.tokens,
            slots=None,
            weights=hidden * weight[:, None].astype(jnp.float32),
            counts=total.astype(jnp.float32),
        )

    def scored(self, example: Example):
        """See `Objective.scored`: the bound is on all the ordinary tokens, hidden or not."""
        ordinary = maskable(example.targets, example.segments, self.vocab.is_special)
        return example.targets, ordinary.astype(jnp.float32)
