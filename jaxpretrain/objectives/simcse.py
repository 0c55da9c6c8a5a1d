"""SimCSE: the same text twice, told from the others."""

from dataclasses import dataclass
from typing import Literal

from jaxpretrain.corruption.crops import enclosed
from jaxpretrain.errors import UserError
from jaxpretrain.objectives.contrastive import Contrastive


@dataclass(frozen=True, kw_only=True)
class SimCSE(Contrastive):
    """Two passes over the same text, which only dropout tells apart (Gao et al. 2021,
    arXiv:2104.08821).

    Dropout is what corrupts here, so it is on in held-out evaluation too, with fixed keys.
    """

    name = "simcse"

    pooling: Literal["cls", "mean", "last"] = "cls"
    projection: bool = True

    def check_model(self) -> None:
        """See `Objective.check_model`."""
        super().check_model()
        config = self.backbone.config
        if not (config.dropout or config.attention_dropout):
            raise UserError(
                "simcse tells two passes over a text apart by dropout, and model.dropout is 0: set "
                "model.dropout=0.1"
            )

    def views_of_row(self, key, tokens, count, size):
        """See `Contrastive`: the whole row, twice."""
        view = enclosed(tokens, count, size, self.vocab)
        return [view, view]

    def dropout_keys(self, keys, train: bool):
        """See `Contrastive`."""
        return keys
