"""The switches of the Transformer, and what they may be."""

from dataclasses import dataclass, field, replace
from typing import Literal

from jaxpretrain.errors import UserError


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """One Transformer. Presets (`presets.py`) are named sets of these values.

    Attributes:
        vocab_size: rows of the embedding table; set from the tokenizer, not by hand.
        width: size of the residual stream.
        layers: number of blocks; of the encoder, if there is a decoder.
        decoder_layers: blocks of a decoder with cross-attention to the stack of `layers` blocks,
            which then is its encoder (T5); 0 means a single stack.
        heads: attention heads.
        kv_heads: heads of keys and values, a divisor of `heads` (grouped-query attention, Ainslie
            et al. 2023, arXiv:2305.13245); 0 means as many as `heads`.
        head_width: size of one head; 0 means ``width / heads``.
        mlp_width: hidden size of the feed-forward layer; 0 means ``4 * width``.
        max_length: longest row; the size of the table when `positions` is "learned".
        embedding_width: size of the token embeddings (ALBERT and ELECTRA have them narrower than
            the stream and project); 0 means `width`.
        token_types: size of the segment-embedding table of BERT; 0 means none.
        norm: "layernorm", or "rmsnorm" (Zhang & Sennrich 2019, arXiv:1910.07467).
        norm_position: "pre" (before each sublayer, with one more norm at the end) or "post".
        norm_epsilon: added to the variance.
        embedding_norm: normalise the embeddings before the first block.
        first_norm: whether the first block normalises before its attention, as all others do; not
            in ModernBERT, where the embeddings have just been normalised.
        positions: "learned", "rotary" (Su et al. 2021, arXiv:2104.09864), "relative" (the bucketed
            bias of T5, Raffel et al. 2020, arXiv:1910.10683) or "none".
        rotary_base: wavelength base of the rotary positions.
        rotary_factor: how much longer the long wavelengths become, as in Llama 3.1 (Grattafiori et
            al. 2024, arXiv:2407.21783), so that rows can be longer than those trained on; 1 leaves
            them. Long are those of more than ``rotary_length / rotary_low`` tokens; those of less
            than ``rotary_length / rotary_high`` stay, and between the two the frequency goes
            linearly from one to the other.
        rotary_length: longest row before the factor came.
        rotary_low: see `rotary_factor`.
        rotary_high: see `rotary_factor`.
        local_window: tokens on either side that a query sees in a local layer, as far as its
            objective lets it; 0 means that no layer is local.
        global_every: then, of so many layers the first sees whole rows, and the others are local,
            as in ModernBERT (Warner et al. 2024, arXiv:2412.13663).
        local_rotary_base: `rotary_base` of the local layers.
        relative_buckets: buckets of the relative bias.
        relative_max_distance: distance beyond which all share the last bucket.
        activation: of the feed-forward layer; "swiglu" and "geglu" (Shazeer 2020,
            arXiv:2002.05202) have a third matrix; "_tanh" is the usual approximation.
        biases: additive biases in the projections and in LayerNorm.
        tied_embeddings: the head uses the token embeddings as its vocabulary matrix.
        head_transform: a dense layer, activation and norm before the vocabulary matrix, as in
            BERT; the dense layer has a bias if there are `biases`.
        head_bias: a bias over the vocabulary.
        head_scale: factor on what the vocabulary matrix is multiplied with; the first T5 has
            ``width ** -0.5``.
        attention_scale: factor on the attention scores; 0 means ``head_width ** -0.5``.
        dropout: on the embeddings and on the output of each sublayer.
        attention_dropout: on the attention probabilities; not available in fused kernels.
        init_scale: scale of the initial weights, normal and cut off at twice the scale, as in
            BERT (so their standard deviation is 0.88 of it).
        dtype: of the computation; the parameters are float32 always. "auto" is bfloat16 on a TPU
            or GPU and float32 on a CPU.
        attention: "xla", "cudnn" (the fused kernel of NVIDIA GPUs, 16-bit only), "splash" (that of
            TPUs) or "auto".
        scan_layers: "on" compiles one block for all layers, so that depth costs no time to compile;
            "off" writes the layers out, which on a CPU is a sixth faster; "auto" does so there up
            to 8 layers.
        remat: what the backward pass recomputes: "none", "dots" (all but the matrix products) or
            "full" (everything inside a block).
        loss_block: tokens on each device whose scores over the vocabulary exist at once; -1
            chooses, and 0 has all of them, and differentiates the plain way.

    Raises:
        UserError: values that do not fit together.
    """

    vocab_size: int = field(default=0, metadata={"config": False})
    width: int = 256
    layers: int = 4
    decoder_layers: int = 0
    heads: int = 4
    kv_heads: int = 0
    head_width: int = 0
    mlp_width: int = 0
    max_length: int = 512
    embedding_width: int = 0
    token_types: int = 0
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    norm_position: Literal["pre", "post"] = "pre"
    norm_epsilon: float = 1e-5
    embedding_norm: bool = False
    first_norm: bool = True
    positions: Literal["learned", "rotary", "relative", "none"] = "rotary"
    rotary_base: float = 10_000.0
    rotary_factor: float = 1.0
    rotary_length: int = 8192
    rotary_low: float = 1.0
    rotary_high: float = 4.0
    local_window: int = 0
    global_every: int = 3
    local_rotary_base: float = 10_000.0
    relative_buckets: int = 32
    relative_max_distance: int = 128
    activation: Literal["gelu", "gelu_tanh", "relu", "swiglu", "geglu", "geglu_tanh"] = "gelu"
    biases: bool = True
    tied_embeddings: bool = True
    head_transform: bool = False
    head_bias: bool = False
    head_scale: float = 1.0
    attention_scale: float = 0.0
    dropout: float = 0.0
    attention_dropout: float = 0.0
    init_scale: float = 0.02
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    attention: Literal["auto", "xla", "cudnn", "splash"] = "auto"
    scan_layers: Literal["auto", "on", "off"] = "auto"
    remat: Literal["none", "dots", "full"] = "none"
    loss_block: int = -1

    def __post_init__(self):
        for name in ("width", "layers", "heads", "max_length", "rotary_length", "global_every"):
            if getattr(self, name) < 1:
                raise UserError(f"model.{name} is {getattr(self, name)}: it must be at least 1")
        for name in (
            "decoder_layers",
            "kv_heads",
            "head_width",
            "mlp_width",
            "embedding_width",
            "token_types",
            "local_window",
        ):
            if getattr(self, name) < 0:
                raise UserError(f"model.{name} is {getattr(self, name)}: it must not be negative")
        if self.loss_block < -1:
            raise UserError(
                f"model.loss_block is {self.loss_block}: it must be a number of tokens, 0 for all "
                "or -1 to let it be chosen"
            )
        for name in ("dropout", "attention_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise UserError(f"model.{name} is {getattr(self, name)}: it must be in [0, 1)")
        above_0 = ("norm_epsilon", "init_scale", "head_scale", "rotary_base", "local_rotary_base")
        for name in (*above_0, "rotary_factor", "rotary_low"):
            if not getattr(self, name) > 0.0:
                raise UserError(f"model.{name} is {getattr(self, name)}: it must be above 0")
        if self.local_window and self.global_every == 1:
            raise UserError(
                f"model.local_window is {self.local_window} and model.global_every 1, with which "
                "no layer is local: make it at least 2, or leave model.local_window=0"
            )
        if self.rotary_high <= self.rotary_low:
            raise UserError(
                f"model.rotary_high is {self.rotary_high} and model.rotary_low {self.rotary_low}: "
                "the first must be above the second"
            )
        if not self.head_width and self.width % self.heads:
            raise UserError(
                f"model.heads is {self.heads}, which does not divide model.width {self.width}: "
                "choose a divisor, or set model.head_width"
            )
        if self.kv_heads and self.heads % self.kv_heads:
            raise UserError(
                f"model.kv_heads is {self.kv_heads}, which does not divide model.heads "
                f"{self.heads}: choose a divisor, or 0 for as many"
            )
        if not self.first_norm and self.norm_position == "post":
            raise UserError(
                "model.first_norm is False and model.norm_position 'post', where no block "
                "normalises what it reads: leave model.first_norm=True"
            )
        if self.positions == "rotary" and self.size_of_head % 2:
            raise UserError(
                f"model.positions is 'rotary', which turns pairs, and the head width is "
                f"{self.size_of_head}, an odd number: make width / heads even"
            )
        if self.positions == "relative" and (
            self.relative_buckets < 4
            or self.relative_buckets % 4
            or self.relative_max_distance
            <= self.relative_buckets // (2 if self.decoder_layers else 4)
        ):
            raise UserError(
                f"model.relative_buckets is {self.relative_buckets} and relative_max_distance "
                f"{self.relative_max_distance}: buckets must be a multiple of 4, and the distance "
                "above a quarter of them (half, if there is a decoder)"
            )
        if self.size_of_embedding != self.width and not self.head_transform:
            raise UserError(
                f"model.embedding_width is {self.embedding_width} and model.width {self.width}: "
                "different sizes need model.head_transform=True to come back to the embedding's"
            )

    @property
    def size_of_head(self) -> int:
        """Size of one attention head."""
        return self.head_width or self.width // self.heads

    @property
    def size_of_mlp(self) -> int:
        """Hidden size of the feed-forward layer."""
        return self.mlp_width or 4 * self.width

    @property
    def size_of_embedding(self) -> int:
        """Size of a token embedding."""
        return self.embedding_width or self.width

    @property
    def number_of_kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.kv_heads or self.heads

    @property
    def gated(self) -> bool:
        """Whether the feed-forward layer has a gate matrix."""
        return self.activation in ("swiglu", "geglu", "geglu_tanh")

    @property
    def period(self) -> int:
        """Layers from one that sees whole rows to the next; 1 if all do."""
        return self.global_every if self.local_window else 1


# Up to so many layers are written out on a CPU.
WRITTEN_OUT = 8
# Tokens of a block of the loss on each device: on a CPU the scores should stay close to it;
# elsewhere adding up the vocabulary's gradient block by block should cost little.
LOSS_BLOCK = {"cpu": 1024}
OTHER_LOSS_BLOCK = 2048


def settled(config: TransformerConfig, platform: str) -> TransformerConfig:
    """The config with what a platform chooses chosen: the type, the loop and the loss's blocks.

    Args:
        config: in which they may be "auto", or -1.
        platform: "cpu", "gpu" or "tpu".
    """
    cpu = platform == "cpu"
    choices = {}
    if config.dtype == "auto":
        choices["dtype"] = "float32" if cpu else "bfloat16"
    if config.scan_layers == "auto":
        few = max(config.layers, config.decoder_layers) <= WRITTEN_OUT
        choices["scan_layers"] = "off" if cpu and few else "on"
    if config.loss_block < 0:
        choices["loss_block"] = LOSS_BLOCK.get(platform, OTHER_LOSS_BLOCK)
    return replace(config, **choices)
