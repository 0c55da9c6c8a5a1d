"""Causal language modelling."""

from dataclasses import dataclass

from jaxpretrain.corruption.sequences import next_token_targets
from jaxpretrain.objectives.base import Objective
from jaxpretrain.types import Batch, Example


@dataclass(frozen=True, kw_only=True)
class CLM(Objective):
    """Predict each token from those before it (GPT: Radford et al. 2018, 2019).

    Documents in a packed row do not see each other, and the first token of a document is not
    predicted from the document before it. The end of a document is predicted.
    """

    name = "clm"
    samples = "continuations"
    visibility = "causal"
    is_likelihood = True

    def corrupt(self, keys, batch: Batch, *, train: bool, progress) -> Example:
        """See `Objective.corrupt`. Nothing is hidden; slot ``i`` predicts token ``i + 1``."""
        targets, weights = next_token_targets(batch.tokens, batch.segments)
        return Example(
            inputs=batch.tokens,
            segments=batch.segments,
            positions=batch.positions,
            targets=targets,
            slots=None,
            weights=weights,
        )
