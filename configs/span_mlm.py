"""SpanBERT: masked spans and the span-boundary objective, on the embedded corpus.

    launch/local.sh --config configs/span_mlm.py

Measured on two CPU cores (jax 0.10.2): 252 s after installation, of which 176 s of training at
10,500 tokens/s. On the test documents 5.92 nats per hidden token (a unigram model: 6.15) and 5.88
from the borders of the spans. The neighbours of a hidden token are mostly hidden too, so this takes
longer to leave the unigram model behind than mlm does: quickstart.py comes to 4.59 in as many
steps.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The backbone of quickstart.py; spans of words are hidden."""
    config = ConfigDict()
    config.source = {"name": "embedded"}
    config.store = {"validation_fraction": 0.05, "test_fraction": 0.05}
    config.tokenizer = {"vocab_size": 4096}
    config.objective = {"name": "span_mlm"}
    config.model = {"width": 128, "layers": 2, "heads": 2}
    config.data = {"length": 128, "batch_size": 16}
    config.optimizer = {"learning_rate": 3e-3, "warmup_steps": 50}
    config.train = {"steps": 900}
    config.evaluate = {"every": 300}
    config.checkpoint = {"every": 300}
    return config
