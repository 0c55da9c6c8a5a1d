"""A stack of Transformer blocks, compiled once whatever its depth."""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpretrain.models.attention import relative_buckets
from jaxpretrain.models.config import TransformerConfig
from jaxpretrain.models.dropout import row_dropout
from jaxpretrain.models.layers import Attention, FeedForward, Norm, split_keys
from jaxpretrain.models.placement import place
from jaxpretrain.types import Array


class Block(nnx.Module):
    """Attention, cross-attention in a decoder, and feed-forward: norm, residual, dropout each."""

    def __init__(
        self, config: TransformerConfig, *, layers: int, cross: bool = False, rngs: nnx.Rngs
    ):
        # GPT-2's rule: what is added to the stream shrinks with the number of additions.
        additions = (3 if cross else 2) * layers
        deep = additions**-0.5 if config.norm_position == "pre" else 1.0
        output_scale = config.init_scale * deep
        self.attention_norm = Norm(config.width, config)
        self.attention = Attention(config, output_scale=output_scale, rngs=rngs)
        self.cross_norm = Norm(config.width, config) if cross else None
        self.cross = Attention(config, output_scale=output_scale, rngs=rngs) if cross else None
        self.mlp_norm = Norm(config.width, config)
        self.mlp = FeedForward(config, output_scale=output_scale, rngs=rngs)
        self.config = config

    def __call__(
        self, x, *, number, sight, bias, positions, keys, memory=None, memory_sight=None
    ) -> Array:
        """Maps the stream ``[rows, length, width]`` to itself; `keys` are one per row or None, and
        `number` is the block's, from 0."""
        config = self.config
        parts = (None,) * 5 if keys is None else split_keys(keys, 5)

        def attend(y):
            y = self.attention(y, sight=sight, bias=bias, positions=positions, keys=parts[0])
            return row_dropout(y, config.dropout, parts[1])

        def feed(y):
            return row_dropout(self.mlp(y), config.dropout, parts[2])

        def cross(y):
            y = self.cross(y, sight=memory_sight, memory=memory, keys=parts[3])
            return row_dropout(y, config.dropout, parts[4])

        def first_norm(x):
            y = self.attention_norm(x)
            return y if config.first_norm else jnp.where(number == 0, x, y)

        sublayers = [(first_norm, attend), (self.mlp_norm, feed)]
        if self.cross is not None:
            sublayers.insert(1, (self.cross_norm, cross))
        for norm, sublayer in sublayers:
            x = x + sublayer(norm(x)) if config.norm_position == "pre" else norm(x + sublayer(x))
            x = place(x, "rows", "length", "width")
        return x


class RelativeBias(nnx.Module):
    """T5's learned bias by head and bucketed distance, shared by the layers of a stack."""

    def __init__(self, config: TransformerConfig, *, two_sided: bool, rngs: nnx.Rngs):
        initial = jax.nn.initializers.truncated_normal(config.init_scale)
        shape = (config.relative_buckets, config.heads)
        self.embedding = nnx.Param(initial(rngs.params(), shape), axes=("buckets", "heads"))
        self.max_distance = config.relative_max_distance
        self.two_sided = two_sided

    def __call__(self, length: int) -> Array:
        """The bias on the scores, float32 ``[1, heads, length, length]``."""
        table = self.embedding[...]
        buckets = relative_buckets(
            length, table.shape[0], self.max_distance, two_sided=self.two_sided
        )
        return jnp.transpose(table[buckets], (2, 0, 1))[None]


class Stack(nnx.Module):
    """Blocks with one stacked parameter each, and the norm after them if they are pre-norm.

    Args:
        config: the switches.
        layers: number of blocks.
        cross: whether they attend to a memory as well, as in a decoder.
        rngs: where the initial values come from.
    """

    def __init__(
        self, config: TransformerConfig, *, layers: int, cross: bool = False, rngs: nnx.Rngs
    ):
        def block(rngs):
            return Block(config, layers=layers, cross=cross, rngs=rngs)

        relative = config.positions == "relative"
        self.relative_bias = (
            RelativeBias(config, two_sided=not cross, rngs=rngs) if relative else None
        )
        definition, _ = nnx.split(block(nnx.Rngs(0)))
        stacked = jax.vmap(lambda key: nnx.split(block(nnx.Rngs(key)))[1])(
            jax.random.split(rngs.params(), layers)
        )
        self.blocks = nnx.merge(definition, stacked)
        self.final_norm = Norm(config.width, config) if config.norm_position == "pre" else None
        self.config, self.layers = config, layers

    def __call__(self, x, *, sight, positions, keys, memory=None, memory_sight=None) -> Array:
        """Maps the stream ``[rows, length, width]`` to itself.

        Args:
            x: the stream.
            sight: who sees whom.
            positions: int ``[rows, length]``.
            keys: one PRNG key per row for dropout, or None.
            memory: ``[rows, source length, width]``, what cross-attention reads.
            memory_sight: who sees what of it.
        """
        config = self.config
        bias = None
        if self.relative_bias is not None:
            bias = self.relative_bias(x.shape[1]).astype(x.dtype)
        definition, stacked = nnx.split(self.blocks)
        looped = config.scan_layers == "on"

        def layer(sight):
            def run(x, number, block):
                layer_keys = None
                if keys is not None:
                    layer_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
                return nnx.merge(definition, block)(
                    x,
                    number=number,
                    sight=sight,
                    bias=bias,
                    positions=positions,
                    keys=layer_keys,
                    memory=memory,
                    memory_sight=memory_sight,
                )

            if config.remat == "none":
                return run
            policy = {
                "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
                "full": jax.checkpoint_policies.nothing_saveable,
            }[config.remat]
            return jax.checkpoint(run, policy=policy, prevent_cse=not looped)

        # Whole and local layers alternate with a period, which is what a loop goes through at once.
        period = config.period
        kinds = [layer(sight), *[layer(sight.near(config.local_window))] * (period - 1)]
        in_loop = self.layers - self.layers % period if looped else 0

        def one_period(x, numbered):
            first, blocks = numbered
            for offset, (run, block) in enumerate(zip(kinds, blocks, strict=True)):
                x = run(x, first + offset, block)
            return x, None

        if in_loop:
            groups = [
                jax.tree.map(lambda stack, start=start: stack[start:in_loop:period], stacked)
                for start in range(period)
            ]
            x, _ = jax.lax.scan(one_period, x, (jnp.arange(0, in_loop, period), groups))
        for number in range(in_loop, self.layers):
            block = jax.tree.map(lambda stack, number=number: stack[number], stacked)
            x = kinds[number % period](x, number, block)
        return x if self.final_norm is None else self.final_norm(x)
