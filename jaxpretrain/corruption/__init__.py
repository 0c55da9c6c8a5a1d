"""Masks, spans, pairs and crops: pure JAX functions from tokens to corrupted tokens."""
