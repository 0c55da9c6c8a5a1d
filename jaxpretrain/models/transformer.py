"""The Transformer, and `Backbone`: the same thing as pure functions of a parameter tree.

The backbone does not know the objective. It is told which tokens to read and who may see whom.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpretrain.models.attention import Sight, Visibility, sight
from jaxpretrain.models.config import TransformerConfig, settled
from jaxpretrain.models.dropout import row_dropout
from jaxpretrain.models.functional import Functional
from jaxpretrain.models.layers import ACTIVATIONS, Dense, Embed, Norm, split_keys
from jaxpretrain.models.placement import place
from jaxpretrain.models.stack import Stack
from jaxpretrain.models.vocabulary import TokenLoss, Vocabulary, sample, token_loss
from jaxpretrain.types import Array, Source


class Head(nnx.Module):
    """From the stream to scores over the vocabulary."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        width, narrow = config.width, config.size_of_embedding
        scale = config.init_scale
        self.transform = (
            Dense(
                (width,), (narrow,), ("width", "embed"), bias=config.biases, scale=scale, rngs=rngs
            )
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
        self.activation, self.scale = config.activation, config.head_scale

    def vectors(self, x: Array) -> Array:
        """What is multiplied with the vocabulary matrix, ``[..., narrow]``, of the stream."""
        if self.transform is not None:
            x = self.norm(ACTIVATIONS[self.activation](self.transform(x)))
        return x if self.scale == 1.0 else x * self.scale

    def vocabulary(self, table: Array) -> Vocabulary:
        """What makes scores of the vectors, given the embeddings."""
        bias = None if self.bias is None else self.bias[...]
        if self.kernel is None:
            return Vocabulary(table=table, bias=bias)
        return Vocabulary(kernel=self.kernel[...], bias=bias)

    def __call__(self, x: Array, table: Array) -> Array:
        """Scores in float32 ``[..., vocab]`` of the stream ``[..., width]``."""
        logits = self.vocabulary(table).scores(self.vectors(x))
        return place(logits, "rows", *["length"] * (logits.ndim - 2), "vocab")


class Transformer(nnx.Module):
    """Embeddings, a stack of blocks (or an encoder and a decoder), and a vocabulary head."""

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
        self.stack = Stack(config, layers=config.layers, rngs=rngs)
        self.decoder = (
            Stack(config, layers=config.decoder_layers, cross=True, rngs=rngs)
            if config.decoder_layers
            else None
        )
        self.head = Head(config, rngs=rngs)
        self.config = config

    def encode(self, inputs, segments, positions, prefix, types, source, keys, *, visibility):
        """See `Backbone.encode`."""
        if source is None:
            x = self.embed(inputs, positions, types, _part(keys, 0))
            seen = sight(segments, prefix, visibility)
            return self.stack(x, sight=seen, positions=positions, keys=_part(keys, 1))
        memory = self.stack(
            self.embed(source.inputs, source.positions, None, _part(keys, 0)),
            sight=sight(source.segments, None, "full"),
            positions=source.positions,
            keys=_part(keys, 1),
        )
        return self.decoder(
            self.embed(inputs, positions, types, _part(keys, 2)),
            sight=sight(segments, prefix, visibility),
            positions=positions,
            keys=_part(keys, 3),
            memory=memory,
            memory_sight=Sight(segments[:, None, :, None] == source.segments[:, None, None, :]),
        )

    def embed(self, inputs, positions, types, keys) -> Array:
        """The stream before the first block, in the computing type."""
        config = self.config
        x = self.tokens(inputs)
        if self.positions is not None:
            x = x + self.positions(positions)
        if self.types is not None:
            x = x + self.types(jnp.zeros_like(inputs) if types is None else types)
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        x = row_dropout(x, config.dropout, keys).astype(config.dtype)
        x = x if self.projection is None else self.projection(x)
        return place(x, "rows", "length", "width")

    def logits(self, hidden: Array) -> Array:
        """See `Backbone.logits`."""
        return self.head(hidden, self.tokens.embedding[...])


class Backbone(Functional):
    """A Transformer as pure functions of `params`, a nested dict of float32 arrays.

    Args:
        config: the switches, with `vocab_size` set.
    """

    def __init__(self, config: TransformerConfig):
        assert config.vocab_size > 0, "the vocabulary size comes from the tokenizer"
        self.config = config
        super().__init__(Transformer, settled_here(config))

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
        source: Source | None = None,
        keys: Array | None = None,
    ) -> Array:
        """The stream after the last block.

        Args:
            params: the parameters; keys beside the backbone's own are ignored.
            inputs: int ``[rows, length]`` token ids, of the decoder if there is a source.
            segments: int ``[rows, length]``, 0 at padding.
            positions: int ``[rows, length]``.
            prefix: int ``[rows]``, for visibility "prefix".
            visibility: "causal", "full" or "prefix"; see `attention.visibility_mask`.
            types: int ``[rows, length]`` token types of BERT; None means type 0 everywhere.
            source: what the encoder reads, both ways; a position of the decoder sees the positions
                of the encoder that have its segment.
            keys: one PRNG key per row for dropout; None turns dropout off.

        Returns:
            ``[rows, length, width]`` in the computing type.
        """
        return self.module(params).encode(
            inputs, segments, positions, prefix, types, source, keys, visibility=visibility
        )

    def embed_tokens(self, params: dict, tokens: Array) -> Array:
        """Rows of the embedding table, ``[..., embedding width]`` in the computing type."""
        return self.module(params).tokens(tokens).astype(settled_here(self.config).dtype)

    def token_loss(
        self, params: dict, hidden: Array, targets: Array, weights: Array, *, each: bool = False
    ) -> TokenLoss:
        """The loss over the vocabulary, of which the scores are never there all at once.

        Args:
            params: the parameters.
            hidden: the stream ``[rows, slots, width]``.
            targets: int ``[rows, slots]``.
            weights: float ``[rows, slots]``.
            each: see `vocabulary.token_loss`.
        """
        module = self.module(params)
        vocabulary = module.head.vocabulary(module.tokens.embedding[...])
        vectors, block = module.head.vectors(hidden), settled_here(self.config).loss_block
        return token_loss(vectors, vocabulary, targets, weights, block=block, each=each)

    def sample(self, params: dict, hidden: Array, uniform: Array) -> Array:
        """Tokens drawn by their probabilities, int32 ``[rows, slots]``; no gradient.

        Args:
            params: the parameters.
            hidden: the stream ``[rows, slots, width]``.
            uniform: float32 ``[rows, slots]`` in [0, 1), a random number for each.
        """
        module = self.module(jax.lax.stop_gradient(params))
        vocabulary = module.head.vocabulary(module.tokens.embedding[...])
        vectors = module.head.vectors(jax.lax.stop_gradient(hidden))
        return sample(vectors, vocabulary, uniform, block=settled_here(self.config).loss_block)

    def embedding_loss(
        self, params: dict, vectors: Array, targets: Array, weights: Array
    ) -> TokenLoss:
        """As `token_loss`, of vectors ``[rows, slots, embedding width]`` that a head of its own
        made: their products with the token embeddings are the scores."""
        vocabulary = Vocabulary(table=self.module(params).tokens.embedding[...])
        block = settled_here(self.config).loss_block
        return token_loss(vectors, vocabulary, targets, weights, block=block)

    def logits(self, params: dict, hidden: Array) -> Array:
        """Scores over the vocabulary, float32 ``[..., vocab]``, of the stream ``[..., width]``."""
        return self.module(params).logits(hidden)


def settled_here(config: TransformerConfig) -> TransformerConfig:
    """The config as the default platform has it; see `config.settled`."""
    return settled(config, jax.default_backend())


def _part(keys: Array | None, number: int) -> Array | None:
    return None if keys is None else split_keys(keys, number + 1)[number]
