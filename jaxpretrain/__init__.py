"""jaxpretrain: pretrain one Transformer under any objective, on one stream of tokens."""

__version__ = "0.1.0"
