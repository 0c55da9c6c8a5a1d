"""What the benchmarks of training measure: an objective, and a size.

    python -m benchmarks.train --config=benchmarks/configs.py:mlm
    python -m benchmarks.train --config=benchmarks/configs.py:clm-gpu

Each is a preset that Hugging Face has too, so that the two sides can be held against each other.
The text is random tokens: what is in it makes no difference to the time.
"""

from ml_collections import ConfigDict

from jaxpretrain.errors import UserError

# Objective: the preset, and what both sides have switched.
OBJECTIVES = {
    "mlm": "bert",
    "bert": "bert",
    "clm": "gpt2",
    "llama": "llama",
    "span_corruption": "t5",
    "rtd": "electra",
    "simcse": "bert",
}
# Width, layers, heads, vocabulary, length, rows.
SIZES = {
    "small": (128, 2, 2, 16_384, 128, 32),
    "cpu": (256, 4, 4, 16_384, 128, 32),
    "gpu": (768, 12, 12, 32_768, 512, 64),
}


def get_config(what: str = "mlm") -> ConfigDict:
    """OBJECTIVE or OBJECTIVE-SIZE; "llama" is clm with that preset, 1B parameters at size gpu."""
    name, _, size = what.partition("-")
    if name not in OBJECTIVES or size not in ("", *SIZES):
        raise UserError(
            f"there is no {what!r}: write one of {', '.join(OBJECTIVES)}, and for another size one "
            f"of -{', -'.join(SIZES)} after it"
        )
    width, layers, heads, vocab, length, rows = SIZES[size or "cpu"]
    preset = OBJECTIVES[name]
    model = {"preset": preset, "width": width, "layers": layers, "heads": heads}
    if preset == "t5":
        model |= {"decoder_layers": layers, "mlp_width": 2 * width, "head_width": width // heads}
    if preset == "electra":
        model |= {"embedding_width": width // 2}
    if preset == "llama":
        model |= {"kv_heads": heads // 2, "mlp_width": 4 * width}
    if size == "gpu" and name == "clm":
        length, rows = 1024, 32
    if size == "gpu" and name == "llama":  # the preset's own shape, Llama 3.2 1B
        model, length, rows = {"preset": preset, "remat": "dots"}, 2048, 8
    if size == "gpu" and name == "rtd":  # ELECTRA-base: the embeddings are not projected
        model |= {"embedding_width": width}
    model["max_length"] = length + 3  # for cls and two sep
    if name != "simcse":  # which cannot do without
        model |= {"dropout": 0.0, "attention_dropout": 0.0}
    config = ConfigDict()
    config.source = {"name": "embedded"}
    config.tokenizer = {"vocab_size": vocab}
    config.objective = {"name": "clm" if name == "llama" else name}
    config.model = model
    config.data = {"length": length, "batch_size": rows}
    config.train = {"steps": 1000}
    return config
