"""The masks of dropout; that they are keyed by the row is tested with the backbone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpretrain.models.dropout import random_words, row_dropout


def test_dropout_drops_its_rate_and_keeps_the_mean():
    keys = jax.random.split(jax.random.key(0), 50)
    y = np.asarray(row_dropout(jnp.ones((50, 1000)), 0.3, keys))
    # 50,000 draws: four standard errors of a share are 0.0082.
    assert (y == 0).mean() == pytest.approx(0.3, abs=0.0082)
    np.testing.assert_allclose(y[y > 0], 1 / 0.7, rtol=1e-6)
    odd = np.asarray(row_dropout(jnp.ones((50, 7, 333)), 0.3, keys))
    assert (odd == 0).mean() == pytest.approx(0.3, abs=0.0054)  # 116,550 draws


@pytest.mark.parametrize("keys", ["split", "in a row"])
def test_the_words_of_dropout_are_as_random_as_coins(keys):
    """Each bit is even, and so is whether it is that of a near place, row or place in the word:
    within 5.5 standard errors, as chance has it in all 1,400 such tests but one time in 20,000."""
    rows, size = 48, 4096
    if keys == "split":
        keys = jax.random.split(jax.random.key(0), rows)
    else:
        data = np.stack([np.zeros(rows), np.arange(rows)], axis=1).astype(np.uint32)
        keys = jax.random.wrap_key_data(data)
    words = np.asarray(jax.jit(random_words, static_argnums=1)(keys, (64, 64))).reshape(rows, size)
    bits = (words[..., None] >> np.arange(32, dtype=np.uint32)) & 1
    bits = bits.astype(np.int8)

    def check(each):
        draws = each.shape[0] * each.shape[1]
        off = np.abs(each.mean(axis=(0, 1)) - 0.5)
        assert off.max() < 5.5 * 0.5 / draws**0.5, (off.argmax(), off.max())

    check(bits)
    for shift in (1, 2, 63, 64, 65):
        check(bits[:, shift:] ^ bits[:, :-shift])
    for shift in (1, 2, 16):
        check(bits[shift:] ^ bits[:-shift])
        check(bits[shift:, shift:] ^ bits[:-shift, :-shift])
    for shift in range(1, 32):
        check(bits ^ np.roll(bits, shift, axis=-1))
    assert len(np.unique(words)) > 0.999 * words.size * (1 - words.size / 2**33)
