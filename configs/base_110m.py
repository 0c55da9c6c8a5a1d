"""The backbone of the ablations' GPU variants: BERT-base's shape, 110M parameters, rows of 512.

    jaxpretrain ablate --config=configs/ablations/mask_rate.py:gpu \
        --config.source.name=jsonl --config.source.path='data/*.jsonl.gz'

The embedded corpus is far too small for it: name text of your own. Not measured yet: no GPU was at
hand.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """12 layers of width 768; every other key has its default."""
    config = ConfigDict()
    config.source = {"name": "embedded"}
    config.tokenizer = {"vocab_size": 32000}
    config.objective = {"name": "mlm"}
    config.model = {"width": 768, "layers": 12, "heads": 12, "token_types": 2}
    config.data = {"length": 512, "batch_size": 128}
    config.optimizer = {"learning_rate": 5e-4, "warmup_steps": 500}
    config.train = {"steps": 10_000, "log_every": 50}
    config.evaluate = {"every": 1000, "batches": 50}
    config.checkpoint = {"every": 2000}
    return config
