"""Named shapes from the literature, as values of `TransformerConfig`.

Each is the architecture and the size that the name stands for; a config overrides what it wants,
for example ``config.model.preset = "bert"; config.model.layers = 4``.
"""

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    # A modern small model: pre-norm, rotary positions, no biases.
    "base": {"biases": False},
    # BERT-base: Devlin et al. 2019, arXiv:1810.04805.
    "bert": {
        "width": 768,
        "layers": 12,
        "heads": 12,
        "norm_position": "post",
        "norm_epsilon": 1e-12,
        "embedding_norm": True,
        "positions": "learned",
        "token_types": 2,
        "head_transform": True,
        "head_bias": True,
        "dropout": 0.1,
        "attention_dropout": 0.1,
    },
    # GPT-2 small: Radford et al. 2019.
    "gpt2": {
        "width": 768,
        "layers": 12,
        "heads": 12,
        "max_length": 1024,
        "positions": "learned",
        "activation": "gelu_tanh",
        "dropout": 0.1,
        "attention_dropout": 0.1,
    },
    # The shape of Llama 3.2 1B: Grattafiori et al. 2024, arXiv:2407.21783.
    "llama": {
        "width": 2048,
        "layers": 16,
        "heads": 32,
        "kv_heads": 8,
        "mlp_width": 8192,
        "max_length": 8192,
        "norm": "rmsnorm",
        "rotary_base": 500_000.0,
        "activation": "swiglu",
        "biases": False,
    },
    # T5 1.1 base: Raffel et al. 2020, arXiv:1910.10683.
    "t5": {
        "width": 768,
        "layers": 12,
        "decoder_layers": 12,
        "heads": 12,
        "mlp_width": 2048,
        "norm": "rmsnorm",
        "norm_epsilon": 1e-6,
        "positions": "relative",
        "activation": "geglu_tanh",
        "biases": False,
        "tied_embeddings": False,
        "attention_scale": 1.0,
        "dropout": 0.1,
        "attention_dropout": 0.1,
    },
    # ELECTRA-small's discriminator: Clark et al. 2020, arXiv:2003.10555.
    "electra": {
        "width": 256,
        "layers": 12,
        "heads": 4,
        "embedding_width": 128,
        "norm_position": "post",
        "norm_epsilon": 1e-12,
        "embedding_norm": True,
        "positions": "learned",
        "token_types": 2,
        "head_transform": True,
        "head_bias": True,
        "dropout": 0.1,
        "attention_dropout": 0.1,
    },
    # ModernBERT-base: Warner et al. 2024, arXiv:2412.13663.
    "modernbert": {
        "width": 768,
        "layers": 22,
        "heads": 12,
        "mlp_width": 1152,
        "max_length": 8192,
        "embedding_norm": True,
        "first_norm": False,
        "rotary_base": 160_000.0,
        "local_window": 64,
        "activation": "geglu",
        "biases": False,
        "head_transform": True,
        "head_bias": True,
    },
}
