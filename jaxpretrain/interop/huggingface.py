"""Weights of Hugging Face models as parameters of the backbone: BERT and GPT-2.

Each family is a table from our parameter names to theirs, with the few reshapes between them, and
a function from their ``config.json`` to our switches.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxpretrain.errors import UserError
from jaxpretrain.models.config import TransformerConfig
from jaxpretrain.models.presets import PRESETS


def import_model(
    config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
) -> tuple[TransformerConfig, dict]:
    """A Hugging Face model as a config and parameters of `Backbone`.

    Args:
        config: its ``config.json``.
        tensors: its state dict, name to array.

    Returns:
        The switches and the nested dict of float32 arrays.

    Raises:
        UserError: a family that is not known, or an option that the backbone does not have.
    """
    family = config.get("model_type")
    if family not in FAMILIES:
        raise UserError(
            f"the model type is {family!r}: it must be one of {', '.join(sorted(FAMILIES))}"
        )
    to_config, to_params = FAMILIES[family]
    _require(config, "tie_word_embeddings", (True, None))
    try:
        ours = to_config(config)
        return ours, to_params(ours, tensors)
    except KeyError as error:
        raise UserError(f"the {family} model has no {error}: its files are incomplete") from None


def bert_config(config: Mapping[str, Any]) -> TransformerConfig:
    """Switches of ``BertForMaskedLM``."""
    _require(config, "hidden_act", ("gelu",))
    _require(config, "position_embedding_type", ("absolute", None))
    return TransformerConfig(
        **PRESETS["bert"]
        | {
            "vocab_size": config["vocab_size"],
            "width": config["hidden_size"],
            "layers": config["num_hidden_layers"],
            "heads": config["num_attention_heads"],
            "mlp_width": config["intermediate_size"],
            "max_length": config["max_position_embeddings"],
            "token_types": config["type_vocab_size"],
            "norm_epsilon": config["layer_norm_eps"],
            "dropout": config["hidden_dropout_prob"],
            "attention_dropout": config["attention_probs_dropout_prob"],
        }
    )


def bert_params(config: TransformerConfig, tensors: Mapping[str, np.ndarray]) -> dict:
    """Parameters of ``BertForMaskedLM``, whose matrices are stored output first."""
    heads, size, width = config.heads, config.size_of_head, config.width

    def dense(name: str) -> dict:
        return {"kernel": tensors[f"{name}.weight"].T, "bias": tensors[f"{name}.bias"]}

    def norm(name: str) -> dict:
        return {"scale": tensors[f"{name}.weight"], "bias": tensors[f"{name}.bias"]}

    def into_heads(name: str) -> dict:
        flat = dense(name)
        return {
            "kernel": flat["kernel"].reshape(width, heads, size),
            "bias": flat["bias"].reshape(heads, size),
        }

    def block(number: int) -> dict:
        at = f"bert.encoder.layer.{number}"
        output = dense(f"{at}.attention.output.dense")
        return {
            "attention": {
                "query": into_heads(f"{at}.attention.self.query"),
                "key": into_heads(f"{at}.attention.self.key"),
                "value": into_heads(f"{at}.attention.self.value"),
                "output": output | {"kernel": output["kernel"].reshape(heads, size, width)},
            },
            "attention_norm": norm(f"{at}.attention.output.LayerNorm"),
            "mlp": {
                "up": dense(f"{at}.intermediate.dense"),
                "down": dense(f"{at}.output.dense"),
            },
            "mlp_norm": norm(f"{at}.output.LayerNorm"),
        }

    embeddings, head = "bert.embeddings", "cls.predictions"
    return _float32(
        {
            "tokens": {"embedding": tensors[f"{embeddings}.word_embeddings.weight"]},
            "positions": {"embedding": tensors[f"{embeddings}.position_embeddings.weight"]},
            "types": {"embedding": tensors[f"{embeddings}.token_type_embeddings.weight"]},
            "embedding_norm": norm(f"{embeddings}.LayerNorm"),
            "stack": {"blocks": _stack([block(number) for number in range(config.layers)])},
            "head": {
                "transform": dense(f"{head}.transform.dense"),
                "norm": norm(f"{head}.transform.LayerNorm"),
                "bias": tensors[f"{head}.bias"],
            },
        }
    )


def gpt2_config(config: Mapping[str, Any]) -> TransformerConfig:
    """Switches of ``GPT2LMHeadModel``."""
    _require(config, "activation_function", ("gelu_new",))
    _require(config, "scale_attn_weights", (True, None))
    _require(config, "scale_attn_by_inverse_layer_idx", (False, None))
    return TransformerConfig(
        **PRESETS["gpt2"]
        | {
            "vocab_size": config["vocab_size"],
            "width": config["n_embd"],
            "layers": config["n_layer"],
            "heads": config["n_head"],
            "mlp_width": config.get("n_inner") or 0,
            "max_length": config["n_positions"],
            "norm_epsilon": config["layer_norm_epsilon"],
            "dropout": config["resid_pdrop"],
            "attention_dropout": config["attn_pdrop"],
        }
    )


def gpt2_params(config: TransformerConfig, tensors: Mapping[str, np.ndarray]) -> dict:
    """Parameters of ``GPT2LMHeadModel``, whose matrices are stored input first."""
    heads, size, width = config.heads, config.size_of_head, config.width

    def dense(name: str) -> dict:
        return {"kernel": tensors[f"{name}.weight"], "bias": tensors[f"{name}.bias"]}

    def norm(name: str) -> dict:
        return {"scale": tensors[f"{name}.weight"], "bias": tensors[f"{name}.bias"]}

    def block(number: int) -> dict:
        at = f"transformer.h.{number}"
        joined = dense(f"{at}.attn.c_attn")
        kernels = np.split(joined["kernel"], 3, axis=1)
        biases = np.split(joined["bias"], 3)
        output = dense(f"{at}.attn.c_proj")
        attention = {
            name: {"kernel": k.reshape(width, heads, size), "bias": b.reshape(heads, size)}
            for name, k, b in zip(("query", "key", "value"), kernels, biases, strict=True)
        }
        attention["output"] = output | {"kernel": output["kernel"].reshape(heads, size, width)}
        return {
            "attention_norm": norm(f"{at}.ln_1"),
            "attention": attention,
            "mlp_norm": norm(f"{at}.ln_2"),
            "mlp": {"up": dense(f"{at}.mlp.c_fc"), "down": dense(f"{at}.mlp.c_proj")},
        }

    return _float32(
        {
            "tokens": {"embedding": tensors["transformer.wte.weight"]},
            "positions": {"embedding": tensors["transformer.wpe.weight"]},
            "stack": {
                "blocks": _stack([block(number) for number in range(config.layers)]),
                "final_norm": norm("transformer.ln_f"),
            },
        }
    )


FAMILIES = {"bert": (bert_config, bert_params), "gpt2": (gpt2_config, gpt2_params)}


def _require(config: Mapping[str, Any], key: str, allowed: tuple) -> None:
    if config.get(key) not in allowed:
        raise UserError(
            f"{key} is {config.get(key)!r} in the model's config.json: only "
            f"{', '.join(repr(a) for a in allowed if a is not None)} can be imported"
        )


def _stack(blocks: list[dict]) -> dict:
    first = blocks[0]
    if not isinstance(first, dict):
        return np.stack(blocks)
    return {key: _stack([block[key] for block in blocks]) for key in first}


def _float32(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _float32(value) for key, value in tree.items()}
    return np.asarray(tree, np.float32)
