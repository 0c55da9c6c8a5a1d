"""Losses, as sums and weights."""

import jax
import jax.numpy as jnp

from jaxpretrain.types import Array, Sum, Sums


def cross_entropy(logits: Array, targets: Array, weights: Array) -> Sum:
    """Weighted negative log-likelihood of the targets.

    Args:
        logits: float ``[..., vocab]``.
        targets: int ``[...]``.
        weights: float ``[...]``.

    Returns:
        The sum in nats and the sum of the weights, both float32 scalars.
    """
    return Sum(jnp.sum(token_nats(logits, targets) * weights), jnp.sum(weights))


def token_nats(logits: Array, targets: Array) -> Array:
    """Negative log-likelihood of each target in nats, float32 ``[...]``."""
    logits = logits.astype(jnp.float32)
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return normaliser - chosen


def accuracy(logits: Array, targets: Array, weights: Array) -> Sum:
    """How many targets have the highest score; arguments as for `cross_entropy`."""
    hit = (jnp.argmax(logits, axis=-1) == targets).astype(jnp.float32)
    return Sum(jnp.sum(hit * weights), jnp.sum(weights))


def binary_cross_entropy(logits: Array, labels: Array, weights: Array) -> Sum:
    """Weighted negative log-likelihood of labels 0 and 1 under ``sigmoid(logits)``.

    Args:
        logits: float ``[...]``.
        labels: bool or int ``[...]``.
        weights: float ``[...]``.

    Returns:
        The sum in nats and the sum of the weights.
    """
    logits = logits.astype(jnp.float32)
    sign = 1.0 - 2.0 * labels.astype(jnp.float32)
    return Sum(jnp.sum(jax.nn.softplus(sign * logits) * weights), jnp.sum(weights))


def info_nce(
    queries: Array,
    keys: Array,
    weights: Array,
    *,
    temperature: float,
    hard_negatives: Array | None = None,
    symmetric: bool = False,
) -> Sums:
    """InfoNCE over a batch (van den Oord et al. 2018, arXiv:1807.03748): find one's own key.

    Every row's key is a negative of all the other rows. Under `jax.jit` the rows are those of the
    whole batch, whatever devices they are on.

    Args:
        queries: float ``[rows, width]``; normalised here, so that scores are cosines.
        keys: float ``[rows, width]``.
        weights: float ``[rows]``, 0 for a row that is neither query nor negative.
        temperature: what the cosines are divided by.
        hard_negatives: float ``[rows, n, width]``, further negatives of every query.
        symmetric: take the mean with the loss of keys finding their queries.

    Returns:
        "loss" in nats per row; "accuracy", how many queries are nearest to their own key; and the
        mean cosines of a query and its own key, "positive_cosine", and of a query and the key of
        another row, "negative_cosine": both near 1 means that all vectors have collapsed into one.
    """
    queries, keys = unit(queries), unit(keys)
    present = weights > 0
    # Over a small temperature, products of rounded factors would be off by whole logits.
    cosines = jnp.matmul(queries, keys.T, precision="highest")
    forward = jnp.where(present[None, :], cosines / temperature, -jnp.inf)
    if hard_negatives is not None:
        hard = unit(hard_negatives)
        more = jnp.einsum("qw,knw->qkn", queries, hard, precision="highest") / temperature
        more = jnp.where(present[None, :, None], more, -jnp.inf)
        forward = jnp.concatenate([forward, more.reshape(len(queries), -1)], axis=1)
    own = jnp.arange(len(queries))
    # A row that is left out would find nothing but -inf; its scores are set to 0 instead.
    forward = jnp.where(present[:, None], forward, 0.0)
    nats = token_nats(forward, own)
    if symmetric:
        backward = jnp.where(present[:, None], cosines / temperature, -jnp.inf).T
        nats = 0.5 * (nats + token_nats(jnp.where(present[:, None], backward, 0.0), own))
    both = weights[:, None] * weights[None, :]
    same = jnp.eye(len(queries))
    return {
        "loss": Sum(jnp.sum(jnp.where(present, nats * weights, 0.0)), jnp.sum(weights)),
        "accuracy": accuracy(forward, own, weights),
        "positive_cosine": Sum(jnp.sum(cosines * both * same), jnp.sum(both * same)),
        "negative_cosine": Sum(jnp.sum(cosines * both * (1 - same)), jnp.sum(both * (1 - same))),
    }


def unit(x: Array) -> Array:
    """Vectors along the last axis at length 1, in float32."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-12))
