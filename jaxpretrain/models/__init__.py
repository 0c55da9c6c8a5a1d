"""The backbone: one Flax NNX Transformer with switches, and its named shapes."""
