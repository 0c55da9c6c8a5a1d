"""The parts of a Transformer block, as Flax NNX modules.

Every parameter carries the logical names of its axes in its metadata, as `axes`; `sharding.py`
turns the names into a placement. Parameters are float32 and are cast to the computing type where
they are used.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpretrain.models.attention import Sight, attention, rotary_frequencies, rotate
from jaxpretrain.models.config import TransformerConfig
from jaxpretrain.models.placement import is_divided, place
from jaxpretrain.types import Array


def gelu(x: Array) -> Array:
    """GELU (Hendrycks & Gimpel 2016, arXiv:1606.08415) by `erf`, which on a CPU takes half the time
    of `jax.nn.gelu`'s `erfc`; in float32, since 16 bits would lose what is left of a negative x."""
    wide = x.astype(jnp.float32)
    return (wide * (0.5 + 0.5 * jax.lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


ACTIVATIONS = {
    "gelu": gelu,
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
    "swiglu": jax.nn.silu,
    "geglu": gelu,
    "geglu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}


class Dense(nnx.Module):
    """A matrix product over the last axes of the input, with an optional bias.

    Args:
        shape_in: sizes of the input axes that are summed over.
        shape_out: sizes of the output axes.
        axes: logical names of ``shape_in + shape_out``.
        bias: whether to add one.
        scale: standard deviation of the initial kernel (truncated normal).
        rngs: where the initial values come from.
    """

    def __init__(self, shape_in, shape_out, axes, *, bias: bool, scale: float, rngs: nnx.Rngs):
        initial = jax.nn.initializers.truncated_normal(scale)
        self.kernel = nnx.Param(initial(rngs.params(), shape_in + shape_out), axes=axes)
        self.bias = nnx.Param(jnp.zeros(shape_out), axes=axes[len(shape_in) :]) if bias else None
        self.dims = len(shape_in)

    def __call__(self, x: Array) -> Array:
        kernel = self.kernel[...].astype(x.dtype)
        if is_divided("length"):  # an axis of rows and positions together could not be divided so
            y = jnp.tensordot(x, kernel, self.dims)
        else:  # twice as fast on a CPU
            outer, out = x.shape[: x.ndim - self.dims], kernel.shape[self.dims :]
            y = x.reshape(math.prod(outer), -1) @ kernel.reshape(-1, math.prod(out))
            y = y.reshape(*outer, *out)
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


class Norm(nnx.Module):
    """LayerNorm (Ba et al. 2016, arXiv:1607.06450) or RMSNorm, computed in float32."""

    def __init__(self, width: int, config: TransformerConfig):
        self.scale = nnx.Param(jnp.ones(width), axes=("norm",))
        self.centred = config.norm == "layernorm"
        with_bias = self.centred and config.biases
        self.bias = nnx.Param(jnp.zeros(width), axes=("norm",)) if with_bias else None
        self.epsilon = config.norm_epsilon

    def __call__(self, x: Array) -> Array:
        y = x.astype(jnp.float32)
        if self.centred:
            y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.epsilon)
        y = y * self.scale[...]
        if self.bias is not None:
            y = y + self.bias[...]
        return y.astype(x.dtype)


class Attention(nnx.Module):
    """Multi-head attention (Vaswani et al. 2017, arXiv:1706.03762) with grouped queries."""

    def __init__(self, config: TransformerConfig, *, output_scale: float, rngs: nnx.Rngs):
        width, heads, size = config.width, config.heads, config.size_of_head
        groups = config.number_of_kv_heads
        common = {"bias": config.biases, "rngs": rngs}
        scale = config.init_scale
        axes, kv_axes = ("width", "heads", "head"), ("width", "kv_heads", "head")
        self.query = Dense((width,), (heads, size), axes, scale=scale, **common)
        self.key = Dense((width,), (groups, size), kv_axes, scale=scale, **common)
        self.value = Dense((width,), (groups, size), kv_axes, scale=scale, **common)
        out_axes = ("heads", "head", "width")
        self.output = Dense((heads, size), (width,), out_axes, scale=output_scale, **common)
        self.config = config

    def __call__(
        self,
        x: Array,
        *,
        sight: Sight,
        keys: Array | None,
        bias: Array | None = None,
        positions: Array | None = None,
        memory: Array | None = None,
    ) -> Array:
        """Attends from the stream to itself, or to `memory` ``[rows, source length, width]``.

        Rotary positions turn queries and keys only within one stream: the distance between a
        position of the decoder and one of the encoder means nothing.
        """
        config = self.config
        seen = x if memory is None else memory
        query, key, value = self.query(x), self.key(seen), self.value(seen)
        if config.positions == "rotary" and memory is None:
            frequencies = rotary_frequencies(config, local=sight.window is not None)
            query, key = (rotate(x, positions, frequencies) for x in (query, key))
        # Each device has its positions' queries, and all positions' keys and values.
        query = place(query, "rows", "length", "heads", "head")
        key, value = (place(x, "rows", "", "kv_heads", "head") for x in (key, value))
        mixed = attention(
            query,
            key,
            value,
            sight=sight,
            bias_1NTS=bias,
            scale=config.attention_scale or config.size_of_head**-0.5,
            implementation=config.attention,
            dropout=config.attention_dropout,
            dropout_keys=keys,
        )
        return self.output(place(mixed, "rows", "length", "heads", "head"))


class FeedForward(nnx.Module):
    """The two-matrix feed-forward layer, or the three-matrix gated one."""

    def __init__(self, config: TransformerConfig, *, output_scale: float, rngs: nnx.Rngs):
        width, hidden = config.width, config.size_of_mlp
        common = {"bias": config.biases, "rngs": rngs}
        axes, scale = ("width", "mlp"), config.init_scale
        self.up = Dense((width,), (hidden,), axes, scale=scale, **common)
        self.gate = (
            Dense((width,), (hidden,), axes, scale=scale, **common) if config.gated else None
        )
        self.down = Dense((hidden,), (width,), ("mlp", "width"), scale=output_scale, **common)
        self.activation = config.activation

    def __call__(self, x: Array) -> Array:
        activate = ACTIVATIONS[self.activation]
        if self.gate is None:
            hidden = activate(self.up(x))
        else:
            hidden = activate(self.gate(x)) * self.up(x)
        return self.down(place(hidden, "rows", "length", "mlp"))


class Embed(nnx.Module):
    """A table of vectors, looked up by number."""

    def __init__(self, rows: int, width: int, axes, *, scale: float, rngs: nnx.Rngs):
        initial = jax.nn.initializers.truncated_normal(scale)
        self.embedding = nnx.Param(initial(rngs.params(), (rows, width)), axes=axes)

    def __call__(self, ids: Array) -> Array:
        return jnp.take(self.embedding[...], ids, axis=0)


def split_keys(keys: Array, parts: int) -> tuple[Array, ...]:
    """Independent keys for `parts` uses from one key per row."""
    return tuple(jax.vmap(jax.random.fold_in, (0, None))(keys, part) for part in range(parts))
