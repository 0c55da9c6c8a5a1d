"""Which of our parameters each tensor of a Hugging Face model is, one table for each family."""

from jaxpretrain.interop.tensors import Tensor

BLOCKS = "stack/blocks"


def bert_table() -> list[Tensor]:
    """``BertForPreTraining``, of which ``BertForMaskedLM`` and ``BertModel`` are parts."""
    head = "cls.predictions"
    return [
        *_encoder_table("bert"),
        *_dense(f"{head}.transform.dense", "head/transform"),
        *_norm(f"{head}.transform.LayerNorm", "head/norm"),
        Tensor(f"{head}.bias", ("head/bias",), "vector"),
        Tensor(f"{head}.decoder.weight", ("head/kernel",), "turned"),
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
        Tensor("generator_lm_head.weight", ("head/kernel",), "turned"),
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
        Tensor("lm_head.weight", ("head/kernel",), "turned"),
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
    """``T5ForConditionalGeneration``; since version 1.1 gated, and with a head of its own."""
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
        gate = f"{blocks}/mlp/gate/kernel"
        [plain] = _kernel(f"{at}.{last}.DenseReluDense.wi", f"{blocks}/mlp/up")
        [gated] = _kernel(f"{at}.{last}.DenseReluDense.wi_1", f"{blocks}/mlp/up")
        bias = f"{theirs}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        table += [
            Tensor(bias, (f"{ours}/relative_bias/embedding",), "table"),
            *_scale(f"{at}.{last}.layer_norm", f"{blocks}/mlp_norm"),
            plain._replace(unless=gate),
            gated._replace(given=gate),
            *_kernel(f"{at}.{last}.DenseReluDense.wi_0", f"{blocks}/mlp/gate"),
            *_kernel(f"{at}.{last}.DenseReluDense.wo", f"{blocks}/mlp/down"),
            *_scale(f"{theirs}.final_layer_norm", f"{ours}/final_norm"),
        ]
    return [*table, Tensor("lm_head.weight", ("head/kernel",), "turned")]


def modernbert_table() -> list[Tensor]:
    """``ModernBertForMaskedLM``, of which the first layer has no norm before its attention."""
    at, ours = "model.layers.{}", f"{BLOCKS}/attention"
    joined = tuple(f"{ours}/{name}/kernel" for name in ("query", "key", "value"))
    wide = tuple(f"{BLOCKS}/mlp/{name}/kernel" for name in ("gate", "up"))
    [first] = _scale(f"{at}.attn_norm", f"{BLOCKS}/attention_norm")
    return [
        Tensor("model.embeddings.tok_embeddings.weight", ("tokens/embedding",), "table"),
        *_scale("model.embeddings.norm", "embedding_norm"),
        first._replace(first=1),
        Tensor(f"{at}.attn.Wqkv.weight", joined, "turned"),
        *_kernel(f"{at}.attn.Wo", f"{ours}/output", 2),
        *_scale(f"{at}.mlp_norm", f"{BLOCKS}/mlp_norm"),
        Tensor(f"{at}.mlp.Wi.weight", wide, "turned"),
        *_kernel(f"{at}.mlp.Wo", f"{BLOCKS}/mlp/down"),
        *_scale("model.final_norm", "stack/final_norm"),
        *_dense("head.dense", "head/transform"),
        *_scale("head.norm", "head/norm"),
        Tensor("decoder.bias", ("head/bias",), "vector"),
        Tensor("decoder.weight", ("head/kernel",), "turned"),
    ]


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
