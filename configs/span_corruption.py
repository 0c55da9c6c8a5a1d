"""T5: span corruption on the embedded corpus, with an encoder and a decoder.

    launch/local.sh --config configs/span_corruption.py

Not measured yet.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Two layers of width 128 each in encoder and decoder, relative positions as T5 has them."""
    config = ConfigDict()
    config.source = {"name": "embedded"}
    config.store = {"validation_fraction": 0.05, "test_fraction": 0.05}
    config.tokenizer = {"vocab_size": 4096}
    config.objective = {"name": "span_corruption"}
    config.model = {
        "width": 128,
        "layers": 2,
        "heads": 2,
        "scan_layers": False,
        "decoder_layers": 2,
        "positions": "relative",
        "norm": "rmsnorm",
        "biases": False,
    }
    config.data = {"length": 128, "batch_size": 16}
    config.optimizer = {"learning_rate": 3e-3, "warmup_steps": 50}
    config.train = {"steps": 900}
    config.evaluate = {"every": 300}
    config.checkpoint = {"every": 300}
    return config
