"""How many floating-point operations a model needs, counted from its matrix products."""

from jaxpretrain.models.attention import Visibility
from jaxpretrain.models.config import TransformerConfig


def forward_flops(
    config: TransformerConfig, *, length: int, slots: int, visibility: Visibility
) -> int:
    """Floating-point operations of one row's forward pass (a multiply-add counts as two).

    Only matrix products count, as is usual for model FLOPs utilisation (PaLM, Chowdhery et al.
    2022, arXiv:2204.02311, appendix B); causal attention counts the half that it needs, and the
    vocabulary head only the slots that reach it. Training takes three times as many.

    Args:
        config: the model.
        length: tokens in the row.
        slots: positions that reach the vocabulary head.
        visibility: of the objective.
    """
    width, heads, head = config.width, config.heads, config.size_of_head
    attention = 2 * width * head * (2 * heads + 2 * config.number_of_kv_heads)
    feed_forward = 2 * width * config.size_of_mlp * (3 if config.gated else 2)
    scores = 4 * length * heads * head // (2 if visibility == "causal" else 1)
    narrow = config.size_of_embedding
    head_transform = 2 * width * narrow if config.head_transform else 0
    projection = 2 * width * narrow if narrow != width else 0
    per_token = config.layers * (attention + feed_forward + scores) + projection
    return length * per_token + slots * (2 * narrow * config.vocab_size + head_transform)
