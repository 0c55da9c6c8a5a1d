"""Prefix language modelling."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxpretrain.corruption.sequences import Piece, join
from jaxpretrain.objectives.sequence_to_sequence import SequenceToSequence, TwoSequences
from jaxpretrain.types import Batch


@dataclass(frozen=True, kw_only=True)
class PrefixLM(SequenceToSequence):
    """Continue a text whose beginning sees itself both ways (Liu et al. 2018, arXiv:1801.10198;
    Raffel et al. 2020, arXiv:1910.10683).

    The length of the prefix is uniform from one token to all but one; the rest is predicted.
    """

    name = "prefix_lm"

    @property
    def samples(self):
        """On a single stack a prefix can be continued."""
        return None if self.backbone.config.decoder_layers else "continuations"

    def single_stack_size(self, length: int, *, train: bool) -> int:
        """See `SequenceToSequence`: the row itself."""
        return length

    def sequences(self, keys, batch: Batch, *, train: bool) -> TwoSequences:
        """See `SequenceToSequence`: the row before and behind a random split."""
        length = batch.tokens.shape[1]
        lengths = jnp.sum(batch.segments > 0, axis=1)
        splits = jax.vmap(lambda key, n: jax.random.randint(key, (), 1, jnp.maximum(n, 2)))(
            keys, lengths
        )

        def rest(tokens, split, n):
            return join([Piece(tokens, split, n - split)], max(length - 1, 1), self.vocab.pad)[0]

        return TwoSequences(
            source=batch.tokens,
            source_count=splits,
            target=jax.vmap(rest)(batch.tokens, splits, lengths),
            target_count=jnp.maximum(lengths - splits, 0),
        )
