"""Sentence-order prediction."""

from dataclasses import dataclass

from jaxpretrain.corruption.pairs import Pairs, sentence_order_pairs
from jaxpretrain.objectives.nsp import NSP
from jaxpretrain.types import Array, Batch


@dataclass(frozen=True, kw_only=True)
class SOP(NSP):
    """Tell whether two consecutive parts of a text have been swapped (ALBERT: Lan et al. 2020,
    arXiv:1909.11942).

    Both parts are from one document, so the topic says nothing and the order must. `albert` adds
    the masked tokens.
    """

    name = "sop"

    def pairs(self, keys: Array, batch: Batch) -> Pairs:
        """The pairs of a batch and their labels."""
        return sentence_order_pairs(keys, batch, self.vocab)
