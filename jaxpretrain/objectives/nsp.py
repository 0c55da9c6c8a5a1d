"""Next-sentence prediction, and what all objectives on pairs share."""

from dataclasses import dataclass

import jax.numpy as jnp

from jaxpretrain.corruption.pairs import Pairs, next_sentence_pairs
from jaxpretrain.errors import UserError
from jaxpretrain.losses import accuracy, cross_entropy
from jaxpretrain.models.flops import forward_flops
from jaxpretrain.models.heads import classifier
from jaxpretrain.objectives.base import Objective
from jaxpretrain.types import Array, Batch, Example, Sums


@dataclass(frozen=True, kw_only=True)
class NSP(Objective):
    """Tell whether the second part of a pair follows the first in the text, or is from another
    document (BERT: Devlin et al. 2019, arXiv:1810.04805).

    Only the class is predicted, from the first position; `bert` adds the masked tokens.
    """

    name = "nsp"
    views = ("document",)
    visibility = "full"
    token_term = None

    def pairs(self, keys: Array, batch: Batch) -> Pairs:
        """The pairs of a batch and their labels."""
        return next_sentence_pairs(keys, batch, self.vocab)

    def check_model(self) -> None:
        """See `Objective.check_model`."""
        self.require_single_stack()
        self.require_token_types()

    def check_run(self, *, batch_size: int, **rows) -> None:
        """See `Objective.check_run`: a row needs others to take a second part from."""
        super().check_run(batch_size=batch_size, **rows)
        if batch_size < 2:
            raise UserError(
                f"{self.name} pairs each row with another one, and has {batch_size} row of the "
                "step: raise data.batch_size"
            )

    def heads(self):
        """See `Objective.heads`."""
        return {"pair_head": classifier(self.backbone.config, 2)}

    def corrupt(self, keys, batch: Batch, *, train: bool, progress) -> Example:
        """See `Objective.corrupt`. No token is a target; the label is."""
        pairs = self.pairs(keys, batch)
        rows = pairs.tokens.shape[0]
        return Example(
            inputs=pairs.tokens,
            segments=pairs.segments,
            positions=pairs.positions,
            types=pairs.types,
            targets=jnp.zeros((rows, 0), jnp.int32),
            slots=jnp.zeros((rows, 0), jnp.int32),
            weights=jnp.zeros((rows, 0), jnp.float32),
            extra={"label": pairs.labels, "label_weight": pairs.weights},
        )

    def coefficients(self, progress):
        """See `Objective.coefficients`."""
        return {"pair_loss": 1.0}

    def term_weights(self, example: Example):
        """See `Objective.term_weights`."""
        return {"pair_loss": jnp.sum(example.extra["label_weight"])}

    def loss(self, params, example: Example, keys, *, train: bool, progress) -> Sums:
        """See `Objective.loss`."""
        hidden = self.encode(params, example, keys if train else None)
        return self.pair_sums(params, hidden, example)

    def pair_sums(self, params: dict, hidden: Array, example: Example) -> Sums:
        """Loss and accuracy of the class, from the stream at the first position."""
        scores = self.heads()["pair_head"].module(params["pair_head"])(hidden[:, 0])
        labels, weights = example.extra["label"], example.extra["label_weight"]
        return {
            "pair_loss": cross_entropy(scores, labels, weights),
            "pair_accuracy": accuracy(scores, labels, weights),
        }

    def flops(self, length: int) -> int:
        """See `Objective.flops`: the backbone, and the pooler at one position."""
        config = self.backbone.config
        pooler = 2 * config.width * (config.width + 2)
        return 3 * (forward_flops(config, length=length + 3, slots=0, visibility="full") + pooler)
