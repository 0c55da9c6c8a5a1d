"""BERT: masked tokens and next-sentence prediction in one forward pass."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxpretrain.objectives.base import require
from jaxpretrain.objectives.mlm import MLM
from jaxpretrain.objectives.nsp import NSP
from jaxpretrain.types import Batch, Example, Sums


@dataclass(frozen=True, kw_only=True)
class BERT(MLM, NSP):
    """`mlm` on the pairs of `nsp`, both losses from one pass (Devlin et al. 2019,
    arXiv:1810.04805).

    Attributes:
        pair_weight: factor on the loss of the class (the paper adds the two).

    Raises:
        UserError: as `mlm`, and for a negative weight.
    """

    name = "bert"
    views = ("document",)
    token_term = "mlm_loss"

    pair_weight: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        require("pair_weight", self.pair_weight, self.pair_weight >= 0, "0 or more")

    def corrupt(self, keys, batch: Batch, *, train: bool, progress) -> Example:
        """See `Objective.corrupt`: pairs first, then masks, in both parts alike."""
        pair_keys, mask_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        pairs = self.pairs(pair_keys, batch)
        paired = batch._replace(
            tokens=pairs.tokens, segments=pairs.segments, positions=pairs.positions
        )
        example = MLM.corrupt(self, mask_keys, paired, train=train, progress=progress)
        return example._replace(
            types=pairs.types, extra={"label": pairs.labels, "label_weight": pairs.weights}
        )

    def coefficients(self, progress):
        """See `Objective.coefficients`."""
        return {"mlm_loss": 1.0, "pair_loss": self.pair_weight}

    def term_weights(self, example: Example):
        """See `Objective.term_weights`."""
        return {"mlm_loss": jnp.sum(example.weights)} | NSP.term_weights(self, example)

    def loss(self, params, example: Example, keys, *, train: bool, progress) -> Sums:
        """See `Objective.loss`."""
        hidden = self.encode(params, example, keys if train else None)
        sums = self.token_sums(params, hidden, example)
        sums["mlm_loss"] = sums.pop("loss")
        return sums | self.pair_sums(params, hidden, example)

    def flops(self, length: int) -> int:
        """See `Objective.flops`."""
        width = self.backbone.config.width
        return MLM.flops(self, length) + 3 * 2 * width * (width + 2)
