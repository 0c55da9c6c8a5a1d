"""How many floating-point operations a model needs, counted from its matrix products."""

from jaxpretrain.models.attention import Visibility
from jaxpretrain.models.config import TransformerConfig


def forward_flops(
    config: TransformerConfig,
    *,
    length: int,
    slots: int,
    visibility: Visibility,
    source_length: int = 0,
) -> int:
    """Floating-point operations of one row's forward pass (a multiply-add counts as two).

    Only matrix products count, as is usual for model FLOPs utilisation (PaLM, Chowdhery et al.
    2022, arXiv:2204.02311, appendix B); causal attention counts the half that it needs, and the
    vocabulary head only the slots that reach it. Training takes three times as many.

    Args:
        config: the model.
        length: tokens in the row, of the decoder if there is a source.
        slots: positions that reach the vocabulary head.
        visibility: of the objective.
        source_length: tokens that an encoder reads; 0 for a single stack.
    """
    narrow = config.size_of_embedding
    projection = 2 * config.width * narrow if narrow != config.width else 0
    head_transform = 2 * config.width * narrow if config.head_transform else 0
    head = slots * (2 * narrow * config.vocab_size + head_transform)
    total = head + projection * (length + source_length)
    if not source_length:
        return total + stack_flops(config, config.layers, length, visibility)
    layers = config.decoder_layers
    encoder = stack_flops(config, config.layers, source_length, "full")
    decoder = stack_flops(config, layers, length, visibility)
    return total + encoder + decoder + layers * cross_flops(config, length, source_length)


def stack_flops(config: TransformerConfig, layers: int, length: int, visibility: Visibility) -> int:
    """So many blocks over one row of `length` tokens, whole and local ones."""
    whole = -(-layers // config.period)
    local = (layers - whole) * block_flops(config, length, visibility, config.local_window)
    return whole * block_flops(config, length, visibility) + local


def block_flops(
    config: TransformerConfig, length: int, visibility: Visibility, window: int | None = None
) -> int:
    """One block over one row of `length` tokens, each of which sees at most `window` on a side."""
    width, heads, head = config.width, config.heads, config.size_of_head
    attention = 2 * width * head * (2 * heads + 2 * config.number_of_kv_heads)
    feed_forward = 2 * width * config.size_of_mlp * (3 if config.gated else 2)
    keys = length / 2 if visibility == "causal" else length
    if window is not None:
        keys = min(keys, window + 1 if visibility == "causal" else 2 * window + 1)
    scores = int(4 * keys * heads * head)
    return length * (attention + feed_forward + scores)


def cross_flops(config: TransformerConfig, length: int, source_length: int) -> int:
    """The cross-attention of one block, from `length` tokens to `source_length`."""
    width, heads, head = config.width, config.heads, config.size_of_head
    queries = length * 2 * width * head * 2 * heads
    keys = source_length * 2 * width * head * 2 * config.number_of_kv_heads
    return queries + keys + 4 * length * source_length * heads * head
