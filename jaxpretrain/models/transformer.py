"""The Transformer, and `Backbone`: the same thing as pure functions of a parameter tree.

The backbone does not know the objective. It is told which tokens to read and who may see whom.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpretrain.models.attention import Visibility, row_dropout, visibility_mask
from jaxpretrain.models.config import TransformerConfig
from jaxpretrain.models.layers import (
    ACTIVATIONS,
    Block,
    Dense,
    Embed,
    Norm,
    RelativeBias,
    split_keys,
)
from jaxpretrain.types import Array


class Head(nnx.Module):
    """From the stream to scores over the vocabulary."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        width, narrow = config.width, config.size_of_embedding
        scale = config.init_scale
        self.transform = (
            Dense((width,), (narrow,), ("width", "embed"), bias=True, scale=scale, rngs=rngs)
            if config.head_transform
            else None
        )
        self.norm = Norm(narrow, config) if config.head_transform else None
        initial = jax.nn.initializers.truncated_normal(scale)
        shape = (narrow, config.vocab_size)
        self.kernel = (
            None
            if config.tied_embeddings
            else nnx.Param(initial(rngs.params(), shape), axes=("embed", "vocab"))
        )
        self.bias = (
            nnx.Param(jnp.zeros(config.vocab_size), axes=("vocab",)) if config.head_bias else None
        )
        self.activation = config.activation

    def __call__(self, x: Array, table: Array) -> Array:
        """Scores in float32 ``[..., vocab]`` of the stream ``[..., width]``."""
        if self.transform is not None:
            x = self.norm(ACTIVATIONS[self.activation](self.transform(x)))
        kernel = table.T if self.kernel is None else self.kernel[...]
        logits = jnp.matmul(x, kernel.astype(x.dtype), preferred_element_type=jnp.float32)
        return logits if self.bias is None else logits + self.bias[...]


class Transformer(nnx.Module):
    """Embeddings, a stack of blocks with one stacked parameter each, and a vocabulary head."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        width, narrow = config.width, config.size_of_embedding
        scale = config.init_scale
        embed = {"scale": scale, "rngs": rngs}
        self.tokens = Embed(config.vocab_size, narrow, ("vocab", "embed"), **embed)
        self.positions = (
            Embed(config.max_length, narrow, ("positions", "embed"), **embed)
            if config.positions == "learned"
            else None
        )
        self.types = (
            Embed(config.token_types, narrow, ("types", "embed"), **embed)
            if config.token_types
            else None
        )
        self.embedding_norm = Norm(narrow, config) if config.embedding_norm else None
        self.projection = (
            Dense((narrow,), (width,), ("embed", "width"), bias=True, scale=scale, rngs=rngs)
            if narrow != width
            else None
        )
        relative = config.positions == "relative"
        self.relative_bias = RelativeBias(config, rngs=rngs) if relative else None
        definition, _ = nnx.split(Block(config, rngs=nnx.Rngs(0)))
        stacked = jax.vmap(lambda key: nnx.split(Block(config, rngs=nnx.Rngs(key)))[1])(
            jax.random.split(rngs.params(), config.layers)
        )
        self.blocks = nnx.merge(definition, stacked)
        self.final_norm = Norm(width, config) if config.norm_position == "pre" else None
        self.head = Head(config, rngs=rngs)
        self.config = config

    def encode(self, inputs, segments, positions, prefix, types, keys, *, visibility) -> Array:
        """See `Backbone.encode`."""
        config = self.config
        dtype = computing_dtype(config)
        embed_keys, block_keys = (None, None) if keys is None else split_keys(keys, 2)
        x = self.tokens(inputs)
        if self.positions is not None:
            x = x + self.positions(positions)
        if self.types is not None:
            x = x + self.types(jnp.zeros_like(inputs) if types is None else types)
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        x = row_dropout(x, config.dropout, embed_keys).astype(dtype)
        if self.projection is not None:
            x = self.projection(x)

        mask = visibility_mask(segments, prefix, visibility)
        bias = None
        if self.relative_bias is not None:
            bias = self.relative_bias(inputs.shape[1]).astype(dtype)
        definition, stacked = nnx.split(self.blocks)

        def layer(x, numbered):
            number, block = numbered
            keys = None
            if block_keys is not None:
                keys = jax.vmap(jax.random.fold_in, (0, None))(block_keys, number)
            block = nnx.merge(definition, block)
            return block(x, mask=mask, bias=bias, positions=positions, keys=keys), None

        if config.remat != "none":
            policy = {
                "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
                "full": jax.checkpoint_policies.nothing_saveable,
            }[config.remat]
            layer = jax.checkpoint(layer, policy=policy, prevent_cse=not config.scan_layers)
        if config.scan_layers:
            x, _ = jax.lax.scan(layer, x, (jnp.arange(config.layers), stacked))
        else:
            for number in range(config.layers):
                one = jax.tree.map(lambda stack, number=number: stack[number], stacked)
                x, _ = layer(x, (number, one))
        return x if self.final_norm is None else self.final_norm(x)

    def logits(self, hidden: Array) -> Array:
        """See `Backbone.logits`."""
        return self.head(hidden, self.tokens.embedding[...])


class Backbone:
    """A Transformer as pure functions of `params`, a nested dict of float32 arrays.

    Blocks are stacked: each of their parameters has a leading axis of ``layers``.

    Args:
        config: the switches, with `vocab_size` set.
    """

    def __init__(self, config: TransformerConfig):
        assert config.vocab_size > 0, "the vocabulary size comes from the tokenizer"
        self.config = config
        abstract = nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0)))
        self._definition, self._abstract = nnx.split(abstract)

    def init(self, key: Array) -> dict:
        """Initial parameters, a function of the key alone."""
        model = Transformer(self.config, rngs=nnx.Rngs(key))
        return nnx.to_pure_dict(nnx.split(model)[1])

    def axes(self) -> dict:
        """Logical axis names, a tuple for each parameter; stacked ones begin with "layers"."""

        def names(variable):
            stacked = len(variable.shape) - len(variable.axes)
            return ("layers",) * stacked + tuple(variable.axes)

        leaves = jax.tree.map(
            names, self._abstract, is_leaf=lambda node: isinstance(node, nnx.Variable)
        )
        return nnx.to_pure_dict(leaves)

    def encode(
        self,
        params: dict,
        inputs: Array,
        segments: Array,
        positions: Array,
        prefix: Array | None = None,
        *,
        visibility: Visibility,
        types: Array | None = None,
        keys: Array | None = None,
    ) -> Array:
        """The stream after the last block.

        Args:
            params: the parameters.
            inputs: int ``[rows, length]`` token ids.
            segments: int ``[rows, length]``, 0 at padding.
            positions: int ``[rows, length]``.
            prefix: int ``[rows]``, for visibility "prefix".
            visibility: "causal", "full" or "prefix"; see `attention.visibility_mask`.
            types: int ``[rows, length]`` token types of BERT; None means type 0 everywhere.
            keys: one PRNG key per row for dropout; None turns dropout off.

        Returns:
            ``[rows, length, width]`` in the computing type.
        """
        return self._model(params).encode(
            inputs, segments, positions, prefix, types, keys, visibility=visibility
        )

    def logits(self, params: dict, hidden: Array) -> Array:
        """Scores over the vocabulary, float32 ``[..., vocab]``, of the stream ``[..., width]``."""
        return self._model(params).logits(hidden)

    def _model(self, params: dict) -> Transformer:
        state = jax.tree.map(lambda leaf: leaf, self._abstract)
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(self._definition, state)


def computing_dtype(config: TransformerConfig):
    """The type that activations have: see `TransformerConfig.dtype`."""
    if config.dtype == "auto":
        return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    return jnp.dtype(config.dtype)
