"""Fill in the middle."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxpretrain.corruption.sequences import Piece, join, next_token_targets, one_segment, single
from jaxpretrain.objectives.base import Objective, require
from jaxpretrain.types import Batch, Example


@dataclass(frozen=True, kw_only=True)
class FIM(Objective):
    """Causal language modelling of texts whose middle was moved to the end (Bavarian et al. 2022,
    arXiv:2207.14255).

    A text is cut at two uniformly random places into prefix, middle and suffix, and written as
    ``[PRE] prefix [SUF] suffix [MID] middle [eos]`` (PSM) or ``[PRE] [SUF] suffix [MID] prefix
    middle [eos]`` (SPM). The other rows are ``[bos] text``. The paper cuts between characters,
    this between tokens. Held-out losses are measured at the paper's rates, whatever is trained;
    ``loss_infilling`` is over the transformed rows and ``loss_left_to_right`` over the others.

    Attributes:
        rate: share of the rows that are transformed.
        spm_share: of these, the share that is written as SPM.

    Raises:
        UserError: a share outside [0, 1].
    """

    name = "fim"
    needs = ("fim_prefix", "fim_middle", "fim_suffix")
    samples = "continuations"
    views = ("document",)
    visibility = "causal"
    hides_text = False
    special_targets = True
    token_term = "text_loss"

    rate: float = 0.5
    spm_share: float = 0.5

    def __post_init__(self):
        require("rate", self.rate, 0 <= self.rate <= 1, "in [0, 1]")
        require("spm_share", self.spm_share, 0 <= self.spm_share <= 1, "in [0, 1]")

    def corrupt(self, keys, batch: Batch, *, train: bool, progress) -> Example:
        """See `Objective.corrupt`. Four positions more than the row has."""
        rate, spm_share = (self.rate, self.spm_share) if train else (0.5, 0.5)
        size = batch.tokens.shape[1] + 4
        vocab = self.vocab

        def row(key, tokens, segments):
            lot_key, kind_key, cut_key = jax.random.split(key, 3)
            n = jnp.sum(segments > 0)
            fim = jax.random.bernoulli(lot_key, rate) & (n > 0)
            spm = jax.random.bernoulli(kind_key, spm_share)
            cuts = jnp.sort(jax.random.randint(cut_key, (2,), 0, n + 1))
            a, b = jnp.where(fim, cuts, jnp.stack([n, n]))
            prefix = Piece(tokens, 0, a)

            def when(used, piece):
                return piece._replace(count=jnp.where(used, piece.count, 0))

            psm = ~spm | ~fim  # a row that is not transformed is a prefix and nothing else
            pieces = [
                single(jnp.where(fim, vocab.fim_prefix, vocab.bos), n > 0),
                when(psm, prefix),
                single(vocab.fim_suffix, fim),
                Piece(tokens, b, n - b),
                single(vocab.fim_middle, fim),
                when(~psm, prefix),
                Piece(tokens, a, b - a),
                single(vocab.eos, fim),
            ]
            joined, _, count = join(pieces, size, vocab.pad)
            return joined, count, fim

        inputs, counts, fim = jax.vmap(row)(keys, batch.tokens, batch.segments)
        segments, positions = one_segment(counts, size)
        targets, weights = next_token_targets(inputs, segments)
        return Example(
            inputs=inputs,
            segments=segments,
            positions=positions,
            targets=targets,
            slots=None,
            weights=weights,
            extra={"fim": fim},
        )

    def groups(self, example: Example):
        """See `Objective.groups`."""
        fim = example.extra["fim"]
        return {"loss_infilling": fim, "loss_left_to_right": ~fim}
