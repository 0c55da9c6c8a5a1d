"""Small parts that objectives train besides the backbone, each as pure functions of parameters.

Every function gives the part for a backbone's config.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpretrain.models.attention import sight
from jaxpretrain.models.config import TransformerConfig
from jaxpretrain.models.functional import Functional
from jaxpretrain.models.layers import ACTIVATIONS, Dense, Embed, Norm
from jaxpretrain.models.stack import Stack
from jaxpretrain.types import Array


class Classifier(nnx.Module):
    """BERT's pooler and a linear classifier: ``tanh(dense(x))``, then scores of classes."""

    def __init__(self, config: TransformerConfig, classes: int, *, rngs: nnx.Rngs):
        width, scale = config.width, config.init_scale
        shared = {"bias": True, "scale": scale, "rngs": rngs}
        self.pooler = Dense((width,), (width,), ("width", "mlp"), **shared)
        self.scores = Dense((width,), (classes,), ("width", "classes"), **shared)

    def __call__(self, x: Array) -> Array:
        """``[..., width]`` to float32 ``[..., classes]``."""
        return self.scores(jnp.tanh(self.pooler(x))).astype(jnp.float32)


class Discriminator(nnx.Module):
    """ELECTRA's head: a dense layer, the activation, and one score."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        width, scale = config.width, config.init_scale
        shared = {"bias": True, "scale": scale, "rngs": rngs}
        self.dense = Dense((width,), (width,), ("width", "mlp"), **shared)
        self.score = Dense((width,), (1,), ("width", "classes"), **shared)
        self.activation = config.activation

    def __call__(self, x: Array) -> Array:
        """``[..., width]`` to float32 ``[...]``."""
        return self.score(ACTIVATIONS[self.activation](self.dense(x)))[..., 0].astype(jnp.float32)


class Projection(nnx.Module):
    """SimCSE's MLP over a pooled vector: a dense layer and tanh."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        width = config.width
        axes = ("width", "mlp")
        self.dense = Dense((width,), (width,), axes, bias=True, scale=config.init_scale, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """``[..., width]`` to ``[..., width]``."""
        return jnp.tanh(self.dense(x))


class Boundary(nnx.Module):
    """SpanBERT's span-boundary head: two layers over both borders and a place in the span."""

    def __init__(self, config: TransformerConfig, longest: int, *, rngs: nnx.Rngs):
        width, narrow, scale = config.width, config.size_of_embedding, config.init_scale
        shared = {"bias": True, "scale": scale, "rngs": rngs}
        self.places = Embed(longest, width, ("positions", "width"), scale=scale, rngs=rngs)
        self.first = Dense((3 * width,), (width,), ("width", "mlp"), **shared)
        self.first_norm = Norm(width, config)
        self.second = Dense((width,), (narrow,), ("width", "embed"), **shared)
        self.second_norm = Norm(narrow, config)

    def __call__(self, left: Array, right: Array, place: Array) -> Array:
        """Borders ``[..., width]`` and a place ``[...]`` from 0 to ``[..., embedding width]``."""
        x = jnp.concatenate([left, right, self.places(place).astype(left.dtype)], axis=-1)
        x = self.first_norm(jax.nn.gelu(self.first(x), approximate=False))
        return self.second_norm(jax.nn.gelu(self.second(x), approximate=False))


class NextDepth(nnx.Module):
    """One module of DeepSeek's multi-token prediction: what was read so far, and one token more."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        width, narrow = config.width, config.size_of_embedding
        self.stream_norm = Norm(width, config)
        self.token_norm = Norm(narrow, config)
        self.projection = Dense(
            (width + narrow,),
            (width,),
            ("width", "mlp"),
            bias=config.biases,
            scale=config.init_scale,
            rngs=rngs,
        )
        self.stack = Stack(config, layers=1, rngs=rngs)

    def __call__(self, x: Array, token: Array, segments: Array, positions: Array, keys) -> Array:
        """The stream ``[rows, length, width]`` and embeddings of the next tokens to the stream."""
        x = jnp.concatenate([self.stream_norm(x), self.token_norm(token)], axis=-1)
        seen = sight(segments, None, "causal")
        return self.stack(self.projection(x), sight=seen, positions=positions, keys=keys)


def classifier(config: TransformerConfig, classes: int) -> Functional:
    """See `Classifier`."""
    return Functional(Classifier, config, classes)


def discriminator(config: TransformerConfig) -> Functional:
    """See `Discriminator`."""
    return Functional(Discriminator, config)


def projection(config: TransformerConfig) -> Functional:
    """See `Projection`."""
    return Functional(Projection, config)


def boundary(config: TransformerConfig, longest: int) -> Functional:
    """See `Boundary`."""
    return Functional(Boundary, config, longest)


def next_depth(config: TransformerConfig) -> Functional:
    """See `NextDepth`."""
    return Functional(NextDepth, config)
