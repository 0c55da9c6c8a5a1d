"""Multi-token prediction."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxpretrain.models.flops import block_flops
from jaxpretrain.models.heads import next_depth
from jaxpretrain.objectives.base import require
from jaxpretrain.objectives.clm import CLM
from jaxpretrain.types import Example, Sum, Sums

# Far from the numbers that the backbone splits a row's key by.
MODULE = 1000


@dataclass(frozen=True, kw_only=True)
class MTP(CLM):
    """Causal language modelling that also predicts the tokens after the next one (DeepSeek-V3: Liu
    et al. 2024, arXiv:2412.19437).

    One module for each further token, one after another: it reads the stream of the one before and
    the embedding of one more token, and predicts the next with the same embeddings and head. The
    modules are trained besides the backbone and are not needed to use it. Bits per byte are those
    of the next token, the term "next_loss".

    Attributes:
        depth: how many tokens after the next one are predicted.
        ahead_weight: factor on the mean loss over the depths (the paper has 0.3, later 0.1).

    Raises:
        UserError: a depth below 1 or a negative weight.
    """

    name = "mtp"
    token_term = "next_loss"

    depth: int = 1
    ahead_weight: float = 0.3

    def __post_init__(self):
        require("depth", self.depth, self.depth >= 1, "at least 1")
        require("ahead_weight", self.ahead_weight, self.ahead_weight >= 0, "0 or more")

    def heads(self):
        """See `Objective.heads`: one module for each depth."""
        return {self._term(d): next_depth(self.backbone.config) for d in range(1, self.depth + 1)}

    def coefficients(self, progress):
        """See `Objective.coefficients`."""
        return {"next_loss": 1.0} | dict.fromkeys(self.heads(), self.ahead_weight / self.depth)

    def term_weights(self, example: Example):
        """See `Objective.term_weights`."""
        weights = {"next_loss": jnp.sum(example.weights)}
        for d in range(1, self.depth + 1):
            weights[self._term(d)] = jnp.sum(self._targets(example, d)[1])
        return weights

    def loss(self, params, example: Example, keys, *, train: bool, progress) -> Sums:
        """See `Objective.loss`; ``loss_ahead_d`` is that of depth d."""
        hidden = self.encode(params, example, keys if train else None)
        sums = self.token_sums(params, hidden, example)
        sums["next_loss"] = sums.pop("loss")
        for d, (name, module) in enumerate(self.heads().items(), start=1):
            # Depth d reads token i + d at position i; past the end of a segment nothing counts.
            token = self.backbone.embed_tokens(params, jnp.roll(example.inputs, -d, axis=1))
            hidden = module.module(params[name])(
                hidden,
                token,
                example.segments,
                example.positions,
                jax.vmap(jax.random.fold_in, (0, None))(keys, MODULE + d) if train else None,
            )
            targets, weights = self._targets(example, d)
            found = self.backbone.token_loss(params, hidden, targets, weights)
            sums[name] = Sum(found.total, jnp.sum(weights))
        return sums

    def flops(self, length: int) -> int:
        """See `Objective.flops`: a block, a projection and a head more for each depth."""
        config = self.backbone.config
        narrow = config.size_of_embedding
        projection = 2 * (config.width + narrow) * config.width
        transform = 2 * config.width * narrow if config.head_transform else 0
        head = 2 * narrow * config.vocab_size + transform
        each = block_flops(config, length, "causal") + length * (projection + head)
        return super().flops(length) + 3 * self.depth * each

    def _targets(self, example: Example, depth: int):
        """Targets and weights of depth d: slot ``i`` predicts token ``i + 1 + d``."""
        targets, weights = jnp.roll(example.targets, -depth, axis=1), example.weights
        inside = jnp.roll(example.segments, -1 - depth, axis=1).at[:, -1 - depth :].set(0)
        return targets, weights * (inside == example.segments)

    @staticmethod
    def _term(depth: int) -> str:
        return f"loss_ahead_{depth}"
