"""Two random crops of a text, told from those of the others."""

import math
from dataclasses import dataclass

import jax

from jaxpretrain.corruption.crops import enclosed, random_crop
from jaxpretrain.errors import UserError
from jaxpretrain.objectives.base import require
from jaxpretrain.objectives.contrastive import Contrastive


@dataclass(frozen=True, kw_only=True)
class Crops(Contrastive):
    """Two independent crops of each text (Contriever: Izacard et al. 2022, arXiv:2112.09118), with
    negatives from the batch and a symmetric loss.

    The paper also keeps a queue of negatives from a momentum encoder, which this does not.

    Attributes:
        shortest: least share of the text in a crop.
        longest: greatest share.
        delete: probability of each token of a crop to be deleted.

    Raises:
        UserError: as all contrastive objectives, and for values out of range.
    """

    name = "crops"

    symmetric: bool = True
    shortest: float = 0.05
    longest: float = 0.5
    delete: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.shortest <= self.longest <= 1:
            raise UserError(
                f"objective.shortest is {self.shortest} and longest {self.longest}: they are "
                "shares of the text, above 0, at most 1, in this order"
            )
        require("delete", self.delete, 0 <= self.delete < 1, "at least 0 and below 1")

    def view_size(self, length: int) -> int:
        """See `Contrastive`; a hard negative is a copy of as much of the text as fits."""
        return max(1, math.ceil(length * self.longest)) + 2

    def views_of_row(self, key, tokens, count, size):
        """See `Contrastive`."""
        views = []
        for crop_key in jax.random.split(key):
            crop, kept = random_crop(
                crop_key,
                tokens,
                count,
                size - 2,
                shortest=self.shortest,
                longest=self.longest,
                delete=self.delete,
                fill=self.vocab.pad,
            )
            views.append(enclosed(crop, kept, size, self.vocab))
        return views
