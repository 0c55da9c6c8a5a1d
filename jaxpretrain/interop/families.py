"""What each family of Hugging Face models is in our terms: its switches and its sizes."""

from collections.abc import Callable, Container, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from jaxpretrain.interop import config_json, tables
from jaxpretrain.interop.tensors import Tensor
from jaxpretrain.models.attention import Visibility


class Family(NamedTuple):
    """One family.

    Attributes:
        preset: of `PRESETS`; what `sizes` does not name is as it says, and cannot vary.
        sizes: our size or rate, to their key in ``config.json``; of several, which are written
            alike, the first is read.
        options: their further keys with the values that our backbone computes, the first of which
            is written; None among them says that the key may be absent.
        table: the tensors.
        twins: a name in `table` and another that the same tensor may have in a file.
        classes: of `transformers`, by the heads of ours that they have: ("head",) predicts tokens,
            () has none. Of several that would do, the first is written.
        sees: who sees whom in it, as an objective's `visibility`.
        base: what their names begin with in a model that has a head, and not in one without.
        absent: our sizes where ``config.json`` does not name theirs, other than the preset's.
        read: brings a ``config.json`` to the keys of `sizes` and `options`.
        written: adds to a ``config.json`` what `read` takes away.
        settled: a ``config.json``, and what it leaves open said by the names of the tensors.
    """

    preset: str
    sizes: Mapping[str, tuple[str, ...]]
    options: Mapping[str, tuple]
    table: list[Tensor]
    twins: tuple[tuple[str, str], ...]
    classes: Mapping[tuple[str, ...], str]
    sees: Visibility
    base: str = ""
    absent: Mapping[str, Any] = MappingProxyType({})
    read: Callable[[Mapping], Mapping] = lambda config: config
    written: Callable[[dict], dict] = lambda config: config
    settled: Callable[[Mapping, Container[str]], Mapping] = lambda config, names: config


_SIZES = {
    "vocab_size": ("vocab_size",),
    "width": ("hidden_size",),
    "layers": ("num_hidden_layers",),
    "heads": ("num_attention_heads",),
    "mlp_width": ("intermediate_size",),
    "max_length": ("max_position_embeddings",),
    "init_scale": ("initializer_range",),
    "tied_embeddings": ("tie_word_embeddings",),
}
_BERT_SIZES = _SIZES | {
    "token_types": ("type_vocab_size",),
    "norm_epsilon": ("layer_norm_eps",),
    "dropout": ("hidden_dropout_prob",),
    "attention_dropout": ("attention_probs_dropout_prob",),
}
_BERT_OPTIONS = {
    "hidden_act": ("gelu", "gelu_python", None),
    "position_embedding_type": ("absolute", None),
    "is_decoder": (False, None),
    "add_cross_attention": (False, None),
}

FAMILIES = {
    "bert": Family(
        "bert",
        _BERT_SIZES,
        _BERT_OPTIONS,
        tables.bert_table(),
        (
            ("bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),
            ("cls.predictions.bias", "cls.predictions.decoder.bias"),
        ),
        {
            ("head", "pair_head"): "BertForPreTraining",
            ("head",): "BertForMaskedLM",
            ("pair_head",): "BertForNextSentencePrediction",
            ("projection_head",): "BertModel",
            (): "BertModel",
        },
        "full",
        "bert.",
    ),
    "electra": Family(
        "electra",
        _BERT_SIZES | {"embedding_width": ("embedding_size",)},
        _BERT_OPTIONS,
        tables.electra_table(),
        (("electra.embeddings.word_embeddings.weight", "generator_lm_head.weight"),),
        {
            ("discriminator_head",): "ElectraForPreTraining",
            ("head",): "ElectraForMaskedLM",
            (): "ElectraModel",
        },
        "full",
        "electra.",
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
            "tied_embeddings": ("tie_word_embeddings",),
        },
        {
            "activation_function": ("gelu_new", "gelu_pytorch_tanh", None),
            "scale_attn_weights": (True, None),
            "scale_attn_by_inverse_layer_idx": (False, None),
            "add_cross_attention": (False, None),
        },
        tables.gpt2_table(),
        (("transformer.wte.weight", "lm_head.weight"),),
        {("head",): "GPT2LMHeadModel", (): "GPT2Model"},
        "causal",
        "transformer.",
    ),
    "llama": Family(
        "llama",
        _SIZES
        | {
            "kv_heads": ("num_key_value_heads",),
            "head_width": ("head_dim",),
            "norm_epsilon": ("rms_norm_eps",),
            "attention_dropout": ("attention_dropout",),
            "rotary_base": ("rope_theta",),
            **{ours: (ours,) for ours in config_json.LLAMA3},
        },
        {
            "hidden_act": ("silu", None),
            "attention_bias": (False, None),
            "mlp_bias": (False, None),
        },
        tables.llama_table(),
        (("model.embed_tokens.weight", "lm_head.weight"),),
        {("head",): "LlamaForCausalLM", (): "LlamaModel"},
        "causal",
        "model.",
        {
            "kv_heads": 0,
            "head_width": 0,
            "max_length": 2048,
            "norm_epsilon": 1e-6,
            "tied_embeddings": False,
        },
        config_json.read_llama,
        config_json.written_llama,
    ),
    "modernbert": Family(
        "modernbert",
        _SIZES
        | {
            "norm_epsilon": ("norm_eps",),
            # Theirs in the feed-forward layer is before its last matrix.
            "dropout": ("embedding_dropout", "mlp_dropout"),
            "attention_dropout": ("attention_dropout",),
            "rotary_base": ("global_rope_theta",),
            "local_rotary_base": ("local_rope_theta",),
            "local_window": ("local_window",),
            "global_every": ("global_attn_every_n_layers",),
        },
        {
            "hidden_activation": ("gelu", None),
            "classifier_activation": ("gelu", None),
            "classifier_bias": (False, None),
            "decoder_bias": (True, None),
            "norm_bias": (False, None),
            "attention_bias": (False, None),
            "mlp_bias": (False, None),
        },
        tables.modernbert_table(),
        (("model.embeddings.tok_embeddings.weight", "decoder.weight"),),
        {("head",): "ModernBertForMaskedLM", (): "ModernBertModel"},
        "full",
        "model.",
        read=config_json.read_modernbert,
        written=config_json.written_modernbert,
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
            "activation": ("activation",),
            "tied_embeddings": ("tie_word_embeddings",),
            "head_scale": ("head_scale",),
            "dropout": ("dropout_rate",),
            "attention_dropout": ("dropout_rate",),
        },
        {"feed_forward_proj": tuple(config_json.FEED_FORWARD)},
        tables.t5_table(),
        tuple(
            ("shared.weight", f"{other}.weight")
            for other in ("encoder.embed_tokens", "decoder.embed_tokens", "lm_head")
        ),
        {("head",): "T5ForConditionalGeneration"},
        "causal",
        absent={"head_width": 64, "mlp_width": 2048},
        read=config_json.read_t5,
        written=config_json.written_t5,
        settled=config_json.settled_t5,
    ),
}
