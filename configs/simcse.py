"""SimCSE: the same text twice under dropout, on the embedded corpus.

    launch/local.sh --config configs/simcse.py

Measured on two CPU cores (jax 0.10.2): 158 s after installation, of which 121 s of training at
15,300 tokens/s. On the test documents all texts are found among 32, at a loss of 0.006 nats. The
same text under dropout is easy to recognise: within 100 steps nearly all are found, and the mean
cosine of different texts has fallen from 0.77 to 0; little is learned after that.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The backbone of quickstart.py with dropout; 32 rows to be told apart."""
    config = ConfigDict()
    config.source = {"name": "embedded"}
    config.store = {"validation_fraction": 0.05, "test_fraction": 0.05}
    config.tokenizer = {"vocab_size": 4096}
    config.objective = {"name": "simcse"}
    config.model = {"width": 128, "layers": 2, "heads": 2, "dropout": 0.1}
    config.data = {"length": 64, "batch_size": 32}
    config.optimizer = {"learning_rate": 3e-4, "warmup_steps": 50}
    config.train = {"steps": 900}
    config.evaluate = {"every": 300}
    config.checkpoint = {"every": 300}
    return config
