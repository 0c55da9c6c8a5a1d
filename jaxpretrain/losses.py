"""Losses, as sums and weights."""

import jax
import jax.numpy as jnp

from jaxpretrain.types import Array, Sum


def cross_entropy(logits: Array, targets: Array, weights: Array) -> Sum:
    """Weighted negative log-likelihood of the targets.

    Args:
        logits: float ``[..., vocab]``.
        targets: int ``[...]``.
        weights: float ``[...]``.

    Returns:
        The sum in nats and the sum of the weights, both float32 scalars.
    """
    logits = logits.astype(jnp.float32)
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    nats = normaliser - chosen
    return Sum(jnp.sum(nats * weights), jnp.sum(weights))


def accuracy(logits: Array, targets: Array, weights: Array) -> Sum:
    """How many targets have the highest score; arguments as for `cross_entropy`."""
    hit = (jnp.argmax(logits, axis=-1) == targets).astype(jnp.float32)
    return Sum(jnp.sum(hit * weights), jnp.sum(weights))
