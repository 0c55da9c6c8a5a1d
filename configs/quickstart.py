"""Quickstart."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The documentation of the running Python, a small encoder, masked language modelling."""
    config = ConfigDict()
    config.objective = {"name": "mlm"}
    config.tokenizer = {"vocab_size": 4096}
    config.model = {"width": 128, "layers": 2, "heads": 2}
    config.data = {"length": 128, "batch_size": 32}
    config.optimizer = {"learning_rate": 2e-3}
    config.train = {"steps": 300}
    return config
