"""Causal language modelling with a Llama-style decoder of 8 billion parameters.

For a TPU slice of 64 v5p chips. Planned, never trained:

    jaxpretrain plan --config=configs/llama_8b.py --topology=v5p:4x4x4

says (jax 0.10.2, libtpu 0.0.42; a minute on two CPU cores): 61 of 95 GB at the peak, 1.95 to 2.93 s
for a step of a million tokens, an implied utilisation of 59 to 88 %.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The shape of Llama 3 8B, with a vocabulary of 131,072 pieces, on C4."""
    config = ConfigDict()
    config.source = {"name": "tfds", "dataset": "c4/en"}
    config.tokenizer = {"vocab_size": 131_072}
    config.objective = {"name": "clm"}
    config.model = {
        "preset": "llama",
        "width": 4096,
        "layers": 32,
        "mlp_width": 14_336,
        "tied_embeddings": False,
        "remat": "dots",
    }
    config.data = {"length": 4096, "batch_size": 256}
    config.optimizer = {"learning_rate": 3e-4, "warmup_steps": 1000, "beta2": 0.95}
    config.train = {"steps": 40_000, "microbatches": 1}
    config.mesh = {"data": 1, "fsdp": -1}
    config.evaluate = {"every": 1000, "batches": 16}
    config.checkpoint = {"every": 1000}
    return config
