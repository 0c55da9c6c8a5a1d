"""Replaced-token detection: what the discriminator reads, its labels, and who learns from what."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpretrain.errors import UserError
from jaxpretrain.objectives.rtd import RTD, replaced
from support import masks_reference as reference
from support.small import SPECIAL, progress_at, small_backbone, small_batch, small_vocab

VOCAB = small_vocab()
BATCH = small_batch(0, VOCAB, rows=64, length=24)
START = progress_at(0.0)
EXAMPLE = jax.jit(partial(RTD().bind(None, VOCAB).example, train=True, progress=START))


def test_labels_are_those_of_the_reference():
    """A sampled token that is the original counts as original."""
    rng = np.random.default_rng(0)
    example, _ = EXAMPLE(BATCH, jax.random.key(0))
    slots, used = np.asarray(example.slots), np.asarray(example.weights) > 0
    # From so few tokens that many samples hit the original.
    sampled = np.where(
        rng.random(slots.shape) < 0.5,
        np.take_along_axis(BATCH.tokens, slots, 1),
        rng.integers(SPECIAL, VOCAB.size, slots.shape),
    )
    shown, labels = replaced(BATCH.tokens, slots, example.weights, jnp.asarray(sampled))
    for row in range(64):
        chosen = np.zeros(24, bool)
        chosen[slots[row][used[row]]] = True
        new = BATCH.tokens[row].copy()
        new[slots[row][used[row]]] = sampled[row][used[row]]
        expected = reference.rtd_labels(BATCH.tokens[row], example.inputs[row], chosen, new)
        np.testing.assert_array_equal(shown[row], expected[0])
        np.testing.assert_array_equal(labels[row], expected[1])
    assert 0 < labels.sum() < used.sum()


def test_the_generator_reads_85_percent_masks_and_no_random_tokens():
    batch = small_batch(1, VOCAB, rows=2000, length=24)
    example, _ = EXAMPLE(batch, jax.random.key(0))
    used = np.asarray(example.weights) > 0
    shown = np.take_along_axis(np.asarray(example.inputs), np.asarray(example.slots), 1)[used]
    masked = shown == VOCAB.mask
    assert abs(masked.mean() - 0.85) < 5 * np.sqrt(0.85 * 0.15 / len(shown))
    np.testing.assert_array_equal(shown[~masked], np.asarray(example.targets)[used][~masked])


def test_the_weight_and_the_generator_are_those_of_the_paper():
    assert RTD().coefficients(START) == {"generator_loss": 1.0, "discriminator_loss": 50.0}
    assert RTD().generator_size == 0.25


@pytest.fixture(scope="module")
def model():
    """An objective, and its parameters."""
    backbone = small_backbone(VOCAB, layers=1, width=16, heads=2, head_bias=True, scan_layers="off")
    objective = RTD().bind(backbone, VOCAB)
    return objective, jax.jit(objective.init)(jax.random.key(0))


@pytest.fixture(scope="module")
def sums_where(model):
    """What the losses are on 500 rows, given parameters and the bias of the generator's head."""
    loss = jax.jit(partial(model[0].loss, train=True, progress=START))

    def run(params, bias, batch):
        generator = params["generator"] | {"head": params["generator"]["head"] | {"bias": bias}}
        example, keys = EXAMPLE(batch, jax.random.key(0))
        return example, loss(params | {"generator": generator}, example, keys)

    return run


@pytest.fixture(scope="module")
def gradients(model):
    """Of each term by itself."""
    objective, params = model
    example, keys = EXAMPLE(BATCH, jax.random.key(0))

    @jax.jit
    @jax.jacrev
    def both(params):
        sums = objective.loss(params, example, keys, train=True, progress=START)
        return {term: sums[term].mean() for term in objective.coefficients(START)}

    return params, jax.device_get(both(params))


def size(tree):
    return float(sum(np.abs(leaf).sum() for leaf in jax.tree.leaves(tree)))


def test_no_gradient_goes_from_the_discriminator_to_the_generator(gradients):
    params, gradient = gradients
    assert size(gradient["discriminator_loss"]["generator"]) == 0
    assert size(gradient["discriminator_loss"]["stack"]) > 0
    assert size(gradient["generator_loss"]["generator"]) > 0
    assert size(gradient["generator_loss"]["stack"]) == 0


def test_the_embeddings_are_shared_and_learn_from_both(gradients):
    params, gradient = gradients
    assert "tokens" not in params["generator"]
    for term in gradient:
        assert size(gradient[term]["tokens"]) > 0


ROWS = small_batch(2, VOCAB, rows=500, length=24)
NO_BIAS = np.zeros(VOCAB.size, np.float32)


def only(piece, bias):
    return np.where(np.arange(VOCAB.size) == piece, bias, NO_BIAS).astype(np.float32)


def test_sampled_tokens_follow_the_generator(model, sums_where):
    """With a generator that is certain of one token, every chosen token becomes that one."""
    _, params = model
    certain = SPECIAL + 2
    example, sums = sums_where(params, only(certain, 1e3), ROWS)
    used = np.asarray(example.weights) > 0
    expected = (np.asarray(example.targets)[used] != certain).sum()
    assert float(sums["replaced"].total) == expected
    # What was sampled is what the discriminator reads.
    _, other = sums_where(params, only(certain + 1, 1e3), ROWS)
    assert abs(other["discriminator_loss"].mean() - sums["discriminator_loss"].mean()) > 1e-4


def test_a_generator_that_knows_nothing_samples_every_piece_alike(model, sums_where):
    """And a discriminator that knows nothing takes everything for the original."""
    _, params = model
    example, sums = sums_where(jax.tree.map(np.zeros_like, params), NO_BIAS, ROWS)
    chosen = float(np.sum(example.weights))
    miss = 1 / VOCAB.size
    found = float(sums["replaced"].total) / chosen
    assert abs(found - (1 - miss)) < 5 * np.sqrt(miss * (1 - miss) / chosen)
    np.testing.assert_allclose(sums["discriminator_loss"].mean(), np.log(2), rtol=1e-6)
    np.testing.assert_allclose(
        sums["discriminator_accuracy"].mean(), 1 - sums["replaced"].mean(), rtol=1e-6
    )


def test_sampled_tokens_have_the_probabilities_of_the_generator(model, sums_where):
    """In a text of one token alone, what is not replaced tells that token's probability."""
    _, params = model
    token, probability = SPECIAL + 2, 0.7
    odds = probability / (1 - probability) * (VOCAB.size - 1)
    regular = ROWS.tokens >= SPECIAL
    batch = ROWS._replace(tokens=np.where(regular, token, ROWS.tokens))
    example, sums = sums_where(
        jax.tree.map(np.zeros_like, params), only(token, np.log(odds)), batch
    )
    chosen = float(np.sum(example.weights))
    kept = 1 - float(sums["replaced"].total) / chosen
    assert abs(kept - probability) < 5 * np.sqrt(probability * (1 - probability) / chosen)


def test_a_generator_wider_than_the_discriminator_is_refused():
    with pytest.raises(UserError, match="generator_size is 1.5"):
        RTD(generator_size=1.5)
