"""What each family of Hugging Face models is in our terms: its switches, its sizes, its tensors."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from jaxpretrain.interop.tensors import Tensor

BLOCKS = "stack/blocks"


class Family(NamedTuple):
    """One family.

    Attributes:
        preset: of `PRESETS`; what `sizes` does not name is as it says, and cannot vary.
        sizes: our size or rate, to their key in ``config.json``; of several, which are written
            alike, the first is read.
        options: their further keys with the values that our backbone computes, the first of which
            is written; None among them says that the key may be absent.
        table: the tensors.
        absent: our sizes where ``config.json`` does not name theirs, other than the preset's.
    """

    preset: str
    sizes: Mapping[str, tuple[str, ...]]
    options: Mapping[str, tuple]
    table: list[Tensor]
    absent: Mapping[str, Any] = MappingProxyType({})


def bert_table() -> list[Tensor]:
    """``BertForPreTraining``, of which ``BertForMaskedLM`` and ``BertModel`` are parts."""
    head = "cls.predictions"
    return [
        *_encoder_table("bert"),
        *_dense(f"{head}.transform.dense", "head/transform"),
        *_norm(f"{head}.transform.LayerNorm", "head/norm"),
        Tensor(f"{head}.bias", ("head/bias",), "vector"),
        *_dense("bert.pooler.dense", "pair_head/pooler"),
        *_dense("cls.seq_relationship", "pair_head/scores"),
        # SimCSE's projection is what BERT calls its pooler.
        *_dense("bert.pooler.dense", "projection_head/dense"),
    ]


def electra_table() -> list[Tensor]:
    """``ElectraForMaskedLM`` and, with a discriminator's head, ``ElectraForPreTraining``."""
    head, judge = "generator_predictions", "discriminator_predictions"
    return [
        *_encoder_table("electra"),
        *_dense("electra.embeddings_project", "projection"),
        *_dense(f"{head}.dense", "head/transform"),
        *_norm(f"{head}.LayerNorm", "head/norm"),
        Tensor("generator_lm_head.bias", ("head/bias",), "vector"),
        *_dense(f"{judge}.dense", "discriminator_head/dense"),
        *_dense(f"{judge}.dense_prediction", "discriminator_head/score"),
    ]


def gpt2_table() -> list[Tensor]:
    """``GPT2LMHeadModel``, whose matrices are stored input first and whose q, k and v are one."""
    at = "transformer.h.{}"
    parts = [f"{BLOCKS}/attention/{name}" for name in ("query", "key", "value")]
    joined = tuple(f"{part}/kernel" for part in parts)
    return [
        Tensor("transformer.wte.weight", ("tokens/embedding",), "table"),
        Tensor("transformer.wpe.weight", ("positions/embedding",), "table"),
        *_norm(f"{at}.ln_1", f"{BLOCKS}/attention_norm"),
        Tensor(f"{at}.attn.c_attn.weight", joined, "matrix"),
        Tensor(f"{at}.attn.c_attn.bias", tuple(f"{part}/bias" for part in parts), "vector"),
        *_dense(f"{at}.attn.c_proj", f"{BLOCKS}/attention/output", 2, layout="matrix"),
        *_norm(f"{at}.ln_2", f"{BLOCKS}/mlp_norm"),
        *_dense(f"{at}.mlp.c_fc", f"{BLOCKS}/mlp/up", layout="matrix"),
        *_dense(f"{at}.mlp.c_proj", f"{BLOCKS}/mlp/down", layout="matrix"),
        *_norm("transformer.ln_f", "stack/final_norm"),
    ]


def llama_table() -> list[Tensor]:
    """``LlamaForCausalLM``."""
    at, ours = "model.layers.{}", f"{BLOCKS}/attention"
    return [
        Tensor("model.embed_tokens.weight", ("tokens/embedding",), "table"),
        *_scale(f"{at}.input_layernorm", f"{BLOCKS}/attention_norm"),
        *_kernel(f"{at}.self_attn.q_proj", f"{ours}/query"),
        *_kernel(f"{at}.self_attn.k_proj", f"{ours}/key"),
        *_kernel(f"{at}.self_attn.v_proj", f"{ours}/value"),
        *_kernel(f"{at}.self_attn.o_proj", f"{ours}/output", 2),
        *_scale(f"{at}.post_attention_layernorm", f"{BLOCKS}/mlp_norm"),
        *_kernel(f"{at}.mlp.gate_proj", f"{BLOCKS}/mlp/gate"),
        *_kernel(f"{at}.mlp.up_proj", f"{BLOCKS}/mlp/up"),
        *_kernel(f"{at}.mlp.down_proj", f"{BLOCKS}/mlp/down"),
        *_scale("model.norm", "stack/final_norm"),
        Tensor("lm_head.weight", ("head/kernel",), "turned"),
    ]


def t5_table() -> list[Tensor]:
    """``T5ForConditionalGeneration`` of version 1.1: gated, and with a head of its own."""
    table = [Tensor("shared.weight", ("tokens/embedding",), "table")]
    for theirs, ours in (("encoder", "stack"), ("decoder", "decoder")):
        at, blocks = theirs + ".block.{}.layer", f"{ours}/blocks"
        sublayers = [("SelfAttention", "attention")]
        sublayers += [("EncDecAttention", "cross")] if theirs == "decoder" else []
        for number, (attention, name) in enumerate(sublayers):
            table += _scale(f"{at}.{number}.layer_norm", f"{blocks}/{name}_norm")
            for letter, part in zip("qkv", ("query", "key", "value"), strict=True):
                table += _kernel(f"{at}.{number}.{attention}.{letter}", f"{blocks}/{name}/{part}")
            table += _kernel(f"{at}.{number}.{attention}.o", f"{blocks}/{name}/output", 2)
        last = len(sublayers)
        bias = f"{theirs}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        table += [
            Tensor(bias, (f"{ours}/relative_bias/embedding",), "table"),
            *_scale(f"{at}.{last}.layer_norm", f"{blocks}/mlp_norm"),
            *_kernel(f"{at}.{last}.DenseReluDense.wi_0", f"{blocks}/mlp/gate"),
            *_kernel(f"{at}.{last}.DenseReluDense.wi_1", f"{blocks}/mlp/up"),
            *_kernel(f"{at}.{last}.DenseReluDense.wo", f"{blocks}/mlp/down"),
            *_scale(f"{theirs}.final_layer_norm", f"{ours}/final_norm"),
        ]
    return [*table, Tensor("lm_head.weight", ("head/kernel",), "turned")]


def _encoder_table(root: str) -> list[Tensor]:
    """Embeddings and blocks of BERT, which ELECTRA has too."""
    embeddings, at = f"{root}.embeddings", root + ".encoder.layer.{}"
    ours = f"{BLOCKS}/attention"
    tables = {"word": "tokens", "position": "positions", "token_type": "types"}
    return [
        *(
            Tensor(f"{embeddings}.{theirs}_embeddings.weight", (f"{name}/embedding",), "table")
            for theirs, name in tables.items()
        ),
        *_norm(f"{embeddings}.LayerNorm", "embedding_norm"),
        *_dense(f"{at}.attention.self.query", f"{ours}/query"),
        *_dense(f"{at}.attention.self.key", f"{ours}/key"),
        *_dense(f"{at}.attention.self.value", f"{ours}/value"),
        *_dense(f"{at}.attention.output.dense", f"{ours}/output", 2),
        *_norm(f"{at}.attention.output.LayerNorm", f"{BLOCKS}/attention_norm"),
        *_dense(f"{at}.intermediate.dense", f"{BLOCKS}/mlp/up"),
        *_dense(f"{at}.output.dense", f"{BLOCKS}/mlp/down"),
        *_norm(f"{at}.output.LayerNorm", f"{BLOCKS}/mlp_norm"),
    ]


def _kernel(theirs: str, ours: str, input_axes: int = 1, layout: str = "turned") -> list[Tensor]:
    return [Tensor(f"{theirs}.weight", (f"{ours}/kernel",), layout, input_axes)]


def _dense(theirs: str, ours: str, input_axes: int = 1, layout: str = "turned") -> list[Tensor]:
    bias = Tensor(f"{theirs}.bias", (f"{ours}/bias",), "vector")
    return [*_kernel(theirs, ours, input_axes, layout), bias]


def _scale(theirs: str, ours: str) -> list[Tensor]:
    return [Tensor(f"{theirs}.weight", (f"{ours}/scale",), "vector")]


def _norm(theirs: str, ours: str) -> list[Tensor]:
    return [*_scale(theirs, ours), Tensor(f"{theirs}.bias", (f"{ours}/bias",), "vector")]


_BERT_SIZES = {
    "vocab_size": ("vocab_size",),
    "width": ("hidden_size",),
    "layers": ("num_hidden_layers",),
    "heads": ("num_attention_heads",),
    "mlp_width": ("intermediate_size",),
    "max_length": ("max_position_embeddings",),
    "token_types": ("type_vocab_size",),
    "norm_epsilon": ("layer_norm_eps",),
    "dropout": ("hidden_dropout_prob",),
    "attention_dropout": ("attention_probs_dropout_prob",),
    "init_scale": ("initializer_range",),
}
_BERT_OPTIONS = {
    "hidden_act": ("gelu",),
    "position_embedding_type": ("absolute", None),
    "is_decoder": (False, None),
    "add_cross_attention": (False, None),
    "tie_word_embeddings": (True, None),
}

FAMILIES = {
    "bert": Family("bert", _BERT_SIZES, _BERT_OPTIONS, bert_table()),
    "electra": Family(
        "electra",
        _BERT_SIZES | {"embedding_width": ("embedding_size",)},
        _BERT_OPTIONS,
        electra_table(),
    ),
    "gpt2": Family(
        "gpt2",
        {
            "vocab_size": ("vocab_size",),
            "width": ("n_embd",),
            "layers": ("n_layer",),
            "heads": ("n_head",),
            "mlp_width": ("n_inner",),
            "max_length": ("n_positions",),
            "norm_epsilon": ("layer_norm_epsilon",),
            "dropout": ("resid_pdrop", "embd_pdrop"),
            "attention_dropout": ("attn_pdrop",),
            "init_scale": ("initializer_range",),
        },
        {
            "activation_function": ("gelu_new",),
            "scale_attn_weights": (True, None),
            "scale_attn_by_inverse_layer_idx": (False, None),
            "add_cross_attention": (False, None),
            "tie_word_embeddings": (True, None),
        },
        gpt2_table(),
    ),
    "llama": Family(
        "llama",
        {
            "vocab_size": ("vocab_size",),
            "width": ("hidden_size",),
            "layers": ("num_hidden_layers",),
            "heads": ("num_attention_heads",),
            "kv_heads": ("num_key_value_heads",),
            "head_width": ("head_dim",),
            "mlp_width": ("intermediate_size",),
            "max_length": ("max_position_embeddings",),
            "norm_epsilon": ("rms_norm_eps",),
            "attention_dropout": ("attention_dropout",),
            "init_scale": ("initializer_range",),
            "tied_embeddings": ("tie_word_embeddings",),
        },
        {
            "hidden_act": ("silu",),
            "attention_bias": (False, None),
            "mlp_bias": (False, None),
        },
        llama_table(),
        {
            "kv_heads": 0,
            "head_width": 0,
            "max_length": 2048,
            "norm_epsilon": 1e-6,
            "tied_embeddings": False,
        },
    ),
    "t5": Family(
        "t5",
        {
            "vocab_size": ("vocab_size",),
            "width": ("d_model",),
            "layers": ("num_layers",),
            "decoder_layers": ("num_decoder_layers",),
            "heads": ("num_heads",),
            "head_width": ("d_kv",),
            "mlp_width": ("d_ff",),
            "norm_epsilon": ("layer_norm_epsilon",),
            "relative_buckets": ("relative_attention_num_buckets",),
            "relative_max_distance": ("relative_attention_max_distance",),
            "dropout": ("dropout_rate",),
            "attention_dropout": ("dropout_rate",),
        },
        {
            "feed_forward_proj": ("gated-gelu",),
            "tie_word_embeddings": (False,),
        },
        t5_table(),
        {"head_width": 64, "mlp_width": 2048, "decoder_layers": 0},
    ),
}
