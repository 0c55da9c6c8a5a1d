"""Causal language modelling with a Llama-style decoder of 1.0 billion parameters.

For a TPU slice of 16 v5e chips. Planned, never trained:

    jaxpretrain plan --config=configs/llama_1b.py --topology=v5e:4x4
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The shape of Llama 3.2 1B, with a vocabulary of 32,768 pieces, on C4."""
    config = ConfigDict()
    config.source = {"name": "tfds", "dataset": "c4/en"}
    config.tokenizer = {"vocab_size": 32_768}
    config.objective = {"name": "clm"}
    config.model = {"preset": "llama", "remat": "dots"}
    config.data = {"length": 2048, "batch_size": 256}
    config.optimizer = {"learning_rate": 4e-4, "warmup_steps": 1000, "beta2": 0.95}
    config.train = {"steps": 40_000, "microbatches": 4}
    config.mesh = {"data": 1, "fsdp": -1}
    config.evaluate = {"every": 1000, "batches": 16}
    config.checkpoint = {"every": 1000}
    return config
