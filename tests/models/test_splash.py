"""The TPU's kernel, interpreted here, against the plain path: values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpretrain.errors import UserError
from jaxpretrain.models.attention import Sight, attention, sight
from jaxpretrain.models.splash import splash_attention
from jaxpretrain.sharding import Placement, make_mesh


def made(rows, length, heads, shared, width=16, seed=0):
    rng = np.random.default_rng(seed)
    query = rng.normal(size=(rows, length, heads, width)).astype(np.float32)
    key, value = rng.normal(size=(2, rows, length, shared, width)).astype(np.float32)
    cuts = np.sort(rng.integers(0, length, (rows, 3)), axis=1)
    segments = 1 + (np.arange(length) >= cuts[:, :2, None]).sum(1)
    segments = np.where(np.arange(length) < cuts[:, 2:], segments, 0).astype(np.int32)
    return query, key, value, segments


def both(function, pulled):
    def run(query, key, value):
        out, back = jax.vjp(function, query, key, value)
        return out, back(pulled)

    return jax.jit(run)


@pytest.mark.parametrize(
    ("causal", "window", "length", "shared", "devices"),
    [
        (True, None, 256, 2, 1),
        (False, None, 150, 4, 1),
        (True, 20, 130, 4, 4),
        (False, 30, 150, 4, 1),
    ],
)
def test_splash_is_plain_attention(causal, window, length, shared, devices):
    query, key, value, segments = made(4, length, 4, shared)
    assert (segments == 0).any() and len(np.unique(segments)) == 4
    pulled = np.random.default_rng(1).normal(size=query.shape).astype(np.float32)
    # Two devices for rows and two for heads, where there are four.
    mesh = make_mesh(data=max(1, devices // 2), tensor=min(2, devices), fsdp=1, context=1,
                     devices=jax.devices()[:devices])  # fmt: skip

    def fused(query, key, value):
        with Placement(mesh).of_activations():
            how = {"causal": causal, "window": window, "scale": 0.3, "interpret": True}
            return splash_attention(query, key, value, jnp.asarray(segments), **how)

    def plain(query, key, value):
        seen = sight(jnp.asarray(segments), None, "causal" if causal else "full")
        seen = seen if window is None else seen.near(window)
        return attention(query, key, value, sight=seen, scale=0.3, implementation="xla")

    with jax.default_matmul_precision("highest"):
        out, back = both(fused, pulled)(query, key, value)
        expected, expected_back = both(plain, pulled)(query, key, value)
    np.testing.assert_allclose(out, expected, rtol=0, atol=5e-6)
    for ours, exact in zip(back, expected_back, strict=True):
        np.testing.assert_allclose(ours, exact, rtol=0, atol=3e-5)


def test_what_splash_needs_is_said():
    query, key, value, segments = made(1, 128, 2, 2)
    seen = sight(segments, None, "causal")

    def asked(seen):
        attention(query, key, value, sight=seen, scale=1.0, implementation="splash")

    with Placement(make_mesh(devices=jax.devices()[:1])).of_activations():
        with pytest.raises(UserError, match="'splash', which needs a TPU: use 'auto'"):
            asked(seen)
        with pytest.raises(UserError, match="a TPU and rows that see themselves"):
            asked(Sight(seen.mask))
    # Of several devices, a kernel can be divided only by who knows the mesh.
    with pytest.raises(UserError, match="one device, or steps that are placed"):
        asked(seen)
