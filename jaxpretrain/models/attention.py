"""Who sees whom, and the one function that all attention goes through.

Shape suffixes: B rows, T query positions, S key positions, N heads, K heads of keys and values,
H the width of a head.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpretrain.errors import UserError
from jaxpretrain.models.config import TransformerConfig
from jaxpretrain.models.dropout import row_dropout
from jaxpretrain.models.placement import is_divided, place, platform
from jaxpretrain.models.splash import missing as splash_misses
from jaxpretrain.models.splash import splash_attention
from jaxpretrain.types import Array

Visibility = Literal["causal", "full", "prefix"]
Implementation = Literal["auto", "xla", "cudnn", "splash"]


class Sight(NamedTuple):
    """Who sees whom, in the forms that the kernels read.

    Attributes:
        mask: bool ``[rows, 1, length, keys]``, True where a query sees a key.
        segments: int ``[rows, length]`` where rows see themselves, within segments; else None.
        causal: then, whether a query sees no key after it.
        window: how far a query sees on either side; None means that there is no end.
    """

    mask: Array
    segments: Array | None = None
    causal: bool = False
    window: int | None = None

    def near(self, window: int) -> "Sight":
        """The same up to `window` positions away."""
        queries, keys = (jnp.arange(size) for size in self.mask.shape[2:])
        close = jnp.abs(queries[:, None] - keys[None, :]) <= window
        return self._replace(mask=self.mask & close, window=window)


def sight(segments: Array, prefix: Array | None, visibility: Visibility) -> Sight:
    """How rows see themselves; arguments as for `visibility_mask`."""
    mask = visibility_mask(segments, prefix, visibility)
    if visibility == "prefix":
        return Sight(mask)
    return Sight(mask, segments, causal=visibility == "causal")


def visibility_mask(segments: Array, prefix: Array | None, visibility: Visibility) -> Array:
    """The mask formula of the whole family of objectives.

    Position ``q`` sees ``k`` when both are in the same segment and ``k <= q`` or ``k < prefix``.
    "causal" is ``prefix = 0`` and "full" is ``prefix = length``, known when compiling.

    Args:
        segments: int ``[rows, length]``. Padding is segment 0 and sees only padding, so that its
            rows of the softmax are finite and nothing else depends on it.
        prefix: int ``[rows]``; read only when visibility is "prefix".
        visibility: what the objective declares.

    Returns:
        bool ``[rows, 1, length, length]``, True where the query (axis 2) sees the key (axis 3).
    """
    visible = segments[:, None, :, None] == segments[:, None, None, :]
    if visibility == "full":
        return place(visible, "rows", "", "length", "")
    index = jnp.arange(segments.shape[1])
    allowed = index[None, :] <= index[:, None]
    if visibility == "prefix":
        allowed = allowed | (index[None, None, None, :] < prefix[:, None, None, None])
    return place(visible & allowed, "rows", "", "length", "")


def attention(
    query_BTNH: Array,
    key_BSKH: Array,
    value_BSKH: Array,
    *,
    sight: Sight,
    bias_1NTS: Array | None = None,
    scale: float,
    implementation: Implementation = "auto",
    dropout: float = 0.0,
    dropout_keys: Array | None = None,
) -> Array:
    """Softmax attention by the platform's best kernel.

    Args:
        query_BTNH: queries.
        key_BSKH: keys; K divides N, and a group of N/K queries shares a key head.
        value_BSKH: values.
        sight: who sees whom.
        bias_1NTS: added to the scaled scores.
        scale: factor on the scores.
        implementation: "cudnn" is the fused kernel of NVIDIA GPUs for 16-bit types, "splash" that
            of TPUs; "auto" takes the platform's where it can be had, and "xla" needs none.
        dropout: rate on the probabilities; takes the plain path, fused kernels have none.
        dropout_keys: one key per row; None means no dropout.

    Returns:
        ``[B, T, N, H]`` in the type of the query.

    Raises:
        UserError: a kernel is asked for and cannot take these arguments on this machine.
    """
    dropping = dropout > 0.0 and dropout_keys is not None
    kernel = "xla"
    if implementation != "xla" and not dropping:
        kernel = _kernel_or_plain(query_BTNH, key_BSKH, sight, bias_1NTS, implementation)
    if kernel == "cudnn":
        return jax.nn.dot_product_attention(
            query_BTNH,
            key_BSKH,
            value_BSKH,
            mask=sight.mask,
            scale=scale,
            implementation="cudnn",
        )
    if kernel == "splash":
        return splash_attention(
            query_BTNH,
            key_BSKH,
            value_BSKH,
            sight.segments,
            causal=sight.causal,
            window=sight.window,
            scale=scale,
        )
    return _plain_attention(
        query_BTNH, key_BSKH, value_BSKH, sight.mask, bias_1NTS, scale, dropout, dropout_keys
    )


def _kernel_or_plain(query, key, sight: Sight, bias, asked: Implementation) -> str:
    """The kernel that is asked for, or the platform's own, or "xla" where that cannot be had."""
    own = {"gpu": "cudnn", "tpu": "splash"}.get(platform())
    kernel = own if asked == "auto" else asked
    if kernel is None:
        return "xla"
    if kernel == "cudnn":
        missing = _cudnn_misses(query, key)
    else:
        missing = splash_misses(query, key)
        missing += ["a TPU"] if own != "splash" else []
        missing += ["rows that see themselves, causally or whole"] if sight.segments is None else []
    missing += ["positions other than 'relative'"] if bias is not None else []
    if asked != "auto" and missing:
        raise UserError(
            f"model.attention is {asked!r}, which needs {' and '.join(missing)}: use 'auto'"
        )
    return "xla" if missing else kernel


def _cudnn_misses(query, key) -> list[str]:
    size, lengths = query.shape[3], {query.shape[1], key.shape[1]}
    length = max(lengths, key=lambda n: n % 2)
    reasons = {
        "an NVIDIA GPU": not jax.devices()[0].device_kind.startswith("NVIDIA"),
        "bfloat16 or float16": query.dtype not in (jnp.bfloat16, jnp.float16),
        "mesh.context 1": is_divided("length"),
        f"a row length that is even, not {length}": length % 2 == 1,
        f"heads of a width that is a multiple of 8 up to 128, not {size}": size % 8 or size > 128,
    }
    return [what for what, lacking in reasons.items() if lacking]


def _plain_attention(query, key, value, mask, bias, scale, dropout, dropout_keys):
    # Heads in front: on a CPU the products are then faster by a quarter. Queries that share a key
    # head are an axis of their own, so that no key is copied.
    rows, length, heads, width = query.shape
    shared = key.shape[2]
    query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
    query = query.reshape(rows, shared, heads // shared, length, width)
    scores = jnp.einsum(
        "BKGTH,BKSH->BKGTS", query, key, preferred_element_type=jnp.float32
    ).reshape(rows, heads, length, -1)
    scores = scores * scale
    if bias is not None:
        scores = add_to_rows(scores, bias)
    probabilities = jax.nn.softmax(jnp.where(mask, scores, jnp.finfo(jnp.float32).min))
    probabilities = row_dropout(probabilities, dropout, dropout_keys).astype(value.dtype)
    probabilities = probabilities.reshape(rows, shared, heads // shared, length, -1)
    mixed = jnp.einsum("BKGTS,BKSH->BKGTH", probabilities, value)
    return jnp.swapaxes(mixed.reshape(rows, heads, length, width), 1, 2)


@jax.custom_vjp
def add_to_rows(x: Array, bias: Array) -> Array:
    """``x + bias``, with x ``[rows, ...]`` and bias ``[1, ...]``.

    The gradient of the bias is a sum over the rows; as a product with ones it is ten times as fast
    on a CPU.
    """
    return x + bias


def _add_to_rows_forward(x, bias):
    return x + bias, jnp.zeros((), bias.dtype)


def _add_to_rows_backward(like, pulled):
    ones = jnp.ones((1, pulled.shape[0]), pulled.dtype)
    return pulled, jnp.tensordot(ones, pulled, 1).astype(like.dtype)


add_to_rows.defvjp(_add_to_rows_forward, _add_to_rows_backward)


def relative_buckets(length: int, buckets: int, max_distance: int, *, two_sided: bool) -> Array:
    """Bucket numbers of T5's relative bias (Raffel et al. 2020, arXiv:1910.10683).

    Two-sided, half of the buckets are for keys after the query; one-sided, as in a decoder, keys
    after the query share the bucket of distance 0. Half of the buckets of a side are for single
    distances and the rest grow logarithmically up to `max_distance`.

    Returns:
        int32 ``[length, length]``, axis 0 the query and axis 1 the key.
    """
    index = jnp.arange(length)
    offset = index[None, :] - index[:, None]
    side = buckets // 2 if two_sided else buckets
    exact = side // 2
    distance = jnp.abs(offset) if two_sided else jnp.maximum(-offset, 0)
    growth = jnp.log(jnp.maximum(distance, 1) / exact) / jnp.log(max_distance / exact)
    far = jnp.minimum(exact + (growth * (side - exact)).astype(jnp.int32), side - 1)
    after = jnp.where(offset > 0, side, 0) if two_sided else 0
    return after + jnp.where(distance < exact, distance, far)


def rotary_frequencies(config: TransformerConfig, *, local: bool) -> np.ndarray:
    """How fast rotary positions turn each pair of a head: float32 ``[head width / 2]``, in radians
    a token; see `TransformerConfig.rotary_factor`. `local` is whether the layer is."""
    half = config.size_of_head // 2
    base = config.local_rotary_base if local else config.rotary_base
    plain = base ** (-np.arange(half) / half)
    turns = config.rotary_length * plain / (2 * np.pi)
    share = (turns - config.rotary_low) / (config.rotary_high - config.rotary_low)
    stays = np.clip(share, 0.0, 1.0)
    return (plain * (stays + (1.0 - stays) / config.rotary_factor)).astype(np.float32)


def rotate(x_BTNH: Array, positions: Array, frequencies: np.ndarray) -> Array:
    """Rotary positions (Su et al. 2021, arXiv:2104.09864), first half of a head against second.

    Args:
        x_BTNH: queries or keys; H is even.
        positions: int ``[rows, length]``.
        frequencies: ``[H / 2]``, see `rotary_frequencies`.

    Returns:
        An array like x, turned; computed in float32.
    """
    angle = positions[:, :, None, None].astype(jnp.float32) * frequencies
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_BTNH.dtype)
