"""Multi-token prediction on the embedded corpus: causal, and the token after the next one too.

    launch/local.sh --config configs/mtp.py

Not measured yet.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The backbone of quickstart.py, and one module to look ahead."""
    config = ConfigDict()
    config.source = {"name": "embedded"}
    config.store = {"validation_fraction": 0.05, "test_fraction": 0.05}
    config.tokenizer = {"vocab_size": 4096}
    config.objective = {"name": "mtp"}
    config.model = {"width": 128, "layers": 2, "heads": 2, "scan_layers": False}
    config.data = {"length": 128, "batch_size": 16}
    config.optimizer = {"learning_rate": 3e-3, "warmup_steps": 50}
    config.train = {"steps": 900}
    config.evaluate = {"every": 300}
    config.checkpoint = {"every": 300}
    return config
