"""ALBERT: masked tokens and sentence-order prediction in one forward pass."""

from dataclasses import dataclass

from jaxpretrain.objectives.bert import BERT
from jaxpretrain.objectives.sop import SOP


@dataclass(frozen=True, kw_only=True)
class ALBERT(BERT):
    """`mlm` on the pairs of `sop` (Lan et al. 2020, arXiv:1909.11942).

    The paper masks runs of up to three words; here single tokens are masked as in `bert`, so that
    the two differ in the pairs alone (`whole_words` and `span_mlm` mask more at once). What the
    paper changes in the model, one set of weights for all layers, is no part of the objective.
    """

    name = "albert"

    pairs = SOP.pairs
