"""UL2: a mixture of denoisers on the embedded corpus, on a single stack.

    launch/local.sh --config configs/ul2.py

Measured on two CPU cores (jax 0.10.2): 457 s after installation, of which 396 s of training at
4,600 tokens/s. On the test documents 4.66 nats per target; 5.12 per token of text (a unigram model:
6.21). By denoiser: R 4.43, S 4.67, X 4.70.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The backbone of quickstart.py; each row has a denoiser, told by a mode piece."""
    config = ConfigDict()
    config.source = {"name": "embedded"}
    config.store = {"validation_fraction": 0.05, "test_fraction": 0.05}
    config.tokenizer = {"vocab_size": 4096}
    config.objective = {"name": "ul2"}
    config.model = {"width": 128, "layers": 2, "heads": 2}
    config.data = {"length": 128, "batch_size": 16}
    config.optimizer = {"learning_rate": 3e-3, "warmup_steps": 50}
    config.train = {"steps": 900}
    config.evaluate = {"every": 300}
    config.checkpoint = {"every": 300}
    return config
