"""Masked language modelling."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxpretrain.corruption.masks import (
    budget,
    choose_tokens,
    choose_words,
    maskable,
    replace_tokens,
    slots_for,
)
from jaxpretrain.errors import UserError
from jaxpretrain.objectives.base import Objective
from jaxpretrain.types import Batch, Example


@dataclass(frozen=True, kw_only=True)
class MLM(Objective):
    """Predict hidden tokens from both sides (BERT: Devlin et al. 2019, arXiv:1810.04805).

    Masks are dynamic (RoBERTa: Liu et al. 2019, arXiv:1907.11692): a row is masked anew each time
    it is read. Only the hidden positions reach the vocabulary head.

    Attributes:
        mask_rate: share of the ordinary tokens of a row that are predicted.
        final_mask_rate: the rate at the end of training, reached linearly; 0 keeps `mask_rate`.
        eval_mask_rate: the rate at which held-out losses are measured. They are measured on
            single tokens that are all shown as the mask token, whatever was trained, so that runs
            with different rates, shares and words can be compared.
        mask_share: of the predicted tokens, the share shown as the mask token.
        random_share: of the predicted tokens, the share shown as a random ordinary token; what is
            left stays visible.
        whole_words: hide all the pieces of a word together.

    Raises:
        UserError: a rate outside (0, 1], shares that are negative or sum to more than 1.
    """

    name = "mlm"
    needs = ("mask",)
    samples = "gaps"
    visibility = "full"

    mask_rate: float = 0.15
    final_mask_rate: float = 0.0
    eval_mask_rate: float = 0.15
    mask_share: float = 0.8
    random_share: float = 0.1
    whole_words: bool = False

    def __post_init__(self):
        for key in ("mask_rate", "eval_mask_rate"):
            if not 0.0 < getattr(self, key) <= 1.0:
                raise UserError(f"objective.{key} is {getattr(self, key)}: it must be in (0, 1]")
        if not 0.0 <= self.final_mask_rate <= 1.0:
            raise UserError(
                f"objective.final_mask_rate is {self.final_mask_rate}: it must be in (0, 1], "
                "or 0 to keep mask_rate"
            )
        if min(self.mask_share, self.random_share) < 0 or self.mask_share + self.random_share > 1:
            raise UserError(
                f"objective.mask_share is {self.mask_share} and random_share {self.random_share}: "
                "neither may be negative, and their sum may be at most 1"
            )

    def rate(self, *, train: bool, progress):
        """The mask rate at a point of the training, float32 scalar."""
        if not train:
            return self.eval_mask_rate
        if not self.final_mask_rate:
            return self.mask_rate
        done = progress.fraction
        return (1 - done) * self.mask_rate + done * self.final_mask_rate

    def corrupt(self, keys, batch: Batch, *, train: bool, progress) -> Example:
        """See `Objective.corrupt`. The targets are the hidden tokens, one slot for each."""
        highest = max(self.mask_rate, self.final_mask_rate) if train else self.eval_mask_rate
        slots = slots_for(batch.tokens.shape[1], highest)
        rate = self.rate(train=train, progress=progress)
        word_start = jnp.asarray(self.vocab.is_word_start)

        def one_row(key, tokens, segments):
            choose_key, replace_key = jax.random.split(key)
            eligible = maskable(tokens, segments, self.vocab.is_special)
            count = budget(eligible, rate)
            if self.whole_words and train:
                choice = choose_words(choose_key, eligible, word_start[tokens], count, slots)
            else:
                choice = choose_tokens(choose_key, eligible, count, slots)
            inputs = replace_tokens(
                replace_key,
                tokens,
                choice,
                mask_share=self.mask_share if train else 1.0,
                random_share=self.random_share if train else 0.0,
                mask_id=self.vocab.mask,
                ordinary=self.vocab.ordinary,
            )
            return inputs, choice

        inputs, choice = jax.vmap(one_row)(keys, batch.tokens, batch.segments)
        return Example(
            inputs=inputs,
            segments=batch.segments,
            positions=batch.positions,
            targets=jnp.take_along_axis(batch.tokens, choice.slots, axis=1),
            slots=choice.slots,
            weights=choice.used.astype(jnp.float32),
        )
