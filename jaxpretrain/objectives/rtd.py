"""Replaced-token detection."""

from dataclasses import dataclass, replace
from functools import cache

import jax
import jax.numpy as jnp

from jaxpretrain.errors import UserError
from jaxpretrain.losses import binary_cross_entropy
from jaxpretrain.models.config import TransformerConfig
from jaxpretrain.models.flops import forward_flops
from jaxpretrain.models.heads import discriminator
from jaxpretrain.models.transformer import Backbone
from jaxpretrain.objectives.base import require
from jaxpretrain.objectives.mlm import MLM
from jaxpretrain.types import Array, Batch, Example, Sum, Sums

# What the generator shares with the discriminator, where the model has it.
TIED = ("tokens", "positions", "types")


@dataclass(frozen=True, kw_only=True)
class RTD(MLM):
    """Tell which tokens of a text a small masked language model has replaced (ELECTRA: Clark et al.
    2020, arXiv:2003.10555).

    The generator is trained as `mlm`; at each hidden position a token is sampled from it, and the
    backbone, the discriminator, tells for every token of the row whether it is the original. A
    sampled token that happens to be the original counts as original, and no gradient goes from the
    discriminator to the generator. The embeddings are shared. As in the published code 85% of the
    chosen tokens are shown as the mask token to the generator and the rest stay visible. The
    positions are drawn without replacement, which that code does not do.

    Attributes:
        generator_size: width, heads and feed-forward width of the generator, as a share of the
            discriminator's.
        generator_weight: factor on the generator's loss.
        discriminator_weight: factor on the discriminator's loss.

    Raises:
        UserError: as `mlm`; a generator wider than the discriminator; a negative weight.
    """

    name = "rtd"
    samples = None  # the backbone is the discriminator, which has no vocabulary head to ask
    token_term = "generator_loss"

    mask_share: float = 0.85
    random_share: float = 0.0
    generator_size: float = 0.25
    generator_weight: float = 1.0
    discriminator_weight: float = 50.0

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.generator_size <= 1:
            raise UserError(
                f"objective.generator_size is {self.generator_size}: it is the generator's width "
                "as a share of the discriminator's, above 0 and at most 1; a generator as strong "
                "as the discriminator makes the task too hard (ELECTRA uses 1/4 to 1/2)"
            )
        for key in ("generator_weight", "discriminator_weight"):
            require(key, getattr(self, key), getattr(self, key) >= 0, "0 or more")

    @property
    def generator(self) -> Backbone:
        """The small model that fills in the hidden tokens."""
        return small_backbone(self.backbone.config, self.generator_size)

    def heads(self):
        """See `Objective.heads`."""
        return {"discriminator_head": discriminator(self.backbone.config)}

    def init(self, key: Array) -> dict:
        """See `Objective.init`: the generator has no embeddings of its own."""
        generator = self.generator.init(jax.random.fold_in(key, 1))
        own = {name: part for name, part in generator.items() if name not in TIED}
        return super().init(key) | {"generator": own}

    def axes(self) -> dict:
        """See `Objective.axes`."""
        axes = self.generator.axes()
        own = {name: part for name, part in axes.items() if name not in TIED}
        return super().axes() | {"generator": own}

    def corrupt(self, keys, batch: Batch, *, train: bool, progress) -> Example:
        """See `Objective.corrupt`: what the generator reads; the original is kept beside it."""
        example = super().corrupt(keys, batch, train=train, progress=progress)
        return example._replace(extra={"tokens": batch.tokens})

    def coefficients(self, progress):
        """See `Objective.coefficients`."""
        return {
            "generator_loss": self.generator_weight,
            "discriminator_loss": self.discriminator_weight,
        }

    def term_weights(self, example: Example):
        """See `Objective.term_weights`."""
        return {
            "generator_loss": jnp.sum(example.weights),
            "discriminator_loss": jnp.sum(example.segments > 0, dtype=jnp.float32),
        }

    def loss(self, params, example: Example, keys, *, train: bool, progress) -> Sums:
        """See `Objective.loss`; ``replaced`` is the share of all tokens that were replaced."""
        sample_keys, generator_keys, discriminator_keys = jnp.moveaxis(
            jax.vmap(lambda key: jax.random.split(key, 3))(keys), 1, 0
        )
        shared = {name: params[name] for name in TIED if name in params}
        generator, generator_params = self.generator, params["generator"] | shared
        hidden = generator.encode(
            generator_params,
            example.inputs,
            example.segments,
            example.positions,
            visibility=self.visibility,
            keys=generator_keys if train else None,
        )
        hidden = jnp.take_along_axis(hidden, example.slots[:, :, None], axis=1)
        found = generator.token_loss(generator_params, hidden, example.targets, example.weights)
        slots = example.slots.shape[1:]
        uniform = jax.vmap(lambda key: jax.random.uniform(key, slots))(sample_keys)
        sampled = generator.sample(generator_params, hidden, uniform)
        shown, labels = replaced(example.extra["tokens"], example.slots, example.weights, sampled)
        used = (example.segments > 0).astype(jnp.float32)
        hidden = self.encode(
            params, example._replace(inputs=shown), discriminator_keys if train else None
        )
        head = self.heads()["discriminator_head"].module(params["discriminator_head"])
        scores = head(hidden)
        hit = ((scores > 0) == labels).astype(jnp.float32)
        return {
            "generator_loss": Sum(found.total, jnp.sum(example.weights)),
            "discriminator_loss": binary_cross_entropy(scores, labels, used),
            "generator_accuracy": Sum(
                jnp.sum(found.hits * example.weights), jnp.sum(example.weights)
            ),
            "discriminator_accuracy": Sum(jnp.sum(hit * used), jnp.sum(used)),
            "replaced": Sum(jnp.sum(labels * used), jnp.sum(used)),
        }

    def flops(self, length: int) -> int:
        """See `Objective.flops`: the generator over its slots, the discriminator over the row."""
        slots = self.shapes(length).targets.shape[1]
        both = {"length": length, "visibility": self.visibility}
        config = self.backbone.config
        head = length * 2 * config.width * (config.width + 1)
        generator = forward_flops(self.generator.config, slots=slots, **both)
        return 3 * (generator + forward_flops(config, slots=0, **both) + head)


def replaced(tokens: Array, slots: Array, weights: Array, sampled: Array) -> tuple[Array, Array]:
    """What the discriminator reads, and which of its tokens are not the original.

    Args:
        tokens: int32 ``[rows, length]``, the original.
        slots: int32 ``[rows, slots]``, positions of the sampled tokens.
        weights: float32 ``[rows, slots]``, 0 for a slot that is not used.
        sampled: int32 ``[rows, slots]``.

    Returns:
        int32 and bool ``[rows, length]``.
    """
    place = jnp.where(weights > 0, slots, tokens.shape[1])
    put = jax.vmap(lambda row, at, new: row.at[at].set(new, mode="drop"))
    shown = put(tokens, place, sampled.astype(tokens.dtype))
    return shown, shown != tokens


@cache
def small_backbone(config: TransformerConfig, size: float) -> Backbone:
    """A backbone with a share of the width, heads and feed-forward width of another.

    Heads keep their size; the embeddings keep theirs, and are projected.
    """
    heads = max(1, round(config.heads * size))
    width = max(1, round(config.width * size))
    small = replace(
        config,
        width=width,
        heads=heads,
        kv_heads=0,
        head_width=config.size_of_head,
        mlp_width=max(1, round(config.size_of_mlp * size)),
        embedding_width=config.size_of_embedding,
        head_transform=True,
        tied_embeddings=True,
    )
    return Backbone(small)
