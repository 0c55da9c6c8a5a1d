"""MLM's masks against an independent NumPy reference of the published definition."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpretrain.corruption.masks import budget, choose_words, random_tokens, slots_for
from jaxpretrain.errors import UserError
from jaxpretrain.objectives.mlm import MLM
from support import mlm_reference as reference
from support.small import SPECIAL, progress_at, small_batch, small_vocab

VOCAB = small_vocab()
# Frequencies over many draws are held to this many standard deviations; with some hundreds of
# comparisons below, a correct program fails once in a thousand choices of the seed.
SIGMAS = 5.0


@cache
def compiled(objective, train):
    return jax.jit(partial(objective.bind(None, VOCAB).example, train=train))


def corrupt(objective, batch, key, *, train=True, progress=0.0):
    """Inputs and predicted positions [rows, length] of a batch, masks keyed by the row."""
    example, _ = compiled(objective, train)(batch, key, progress=progress_at(progress))
    predicted = np.zeros(batch.tokens.shape, bool)
    rows = np.arange(len(predicted))[:, None]
    # Slots are distinct, so setting them one after another loses nothing.
    predicted[rows, np.asarray(example.slots)] = np.asarray(example.weights) > 0
    return np.asarray(example.inputs), predicted, example


def copies(row, draws):
    """The same row many times over, under different numbers."""
    batch = jax.tree.map(
        lambda x: np.repeat(x[row : row + 1], draws, axis=0), small_batch(1, VOCAB)
    )
    return batch._replace(row_ids=np.arange(draws, dtype=np.int32))


def maskable(batch):
    return (batch.tokens >= SPECIAL) & (batch.segments > 0)


@pytest.mark.parametrize(
    ("whole_words", "rate"),
    [(False, rate) for rate in (0.02, 0.15, 0.5, 1.0)]
    + [(True, rate) for rate in (0.02, 0.3, 0.8)],
)
def test_rate_is_exact_in_every_row_and_special_tokens_are_never_chosen(rate, whole_words):
    objective = MLM(mask_rate=rate, whole_words=whole_words)
    for seed in range(4):
        batch = small_batch(seed, VOCAB, rows=32)
        inputs, predicted, example = corrupt(objective, batch, jax.random.key(seed))
        assert not (predicted & ~maskable(batch)).any()
        np.testing.assert_array_equal(inputs[~predicted], batch.tokens[~predicted])
        assert ((inputs == VOCAB.mask) <= predicted).all()
        assert (inputs[predicted & (inputs != VOCAB.mask)] >= SPECIAL).all()
        counts = [reference.number_predicted(rate, int(n)) for n in maskable(batch).sum(1)]
        if whole_words:
            assert (predicted.sum(1) <= counts).all()
        else:
            np.testing.assert_array_equal(predicted.sum(1), counts)
        used = np.asarray(example.weights) > 0
        np.testing.assert_array_equal(used.sum(1), predicted.sum(1))
        chosen = np.take_along_axis(batch.tokens, np.asarray(example.slots), 1)
        np.testing.assert_array_equal(np.asarray(example.targets)[used], chosen[used])


@pytest.mark.parametrize(
    ("whole_words", "shares"),
    [(False, shares) for shares in ((0.8, 0.1), (1.0, 0.0), (0.3, 0.6), (0.0, 0.0))]
    + [(True, (0.8, 0.1))],
)
def test_distribution_is_that_of_the_reference(shares, whole_words):
    draws, row, rate = 20_000, 2, 0.3
    batch = copies(row, draws)
    tokens, can = batch.tokens[0], maskable(batch)[0]
    mask_share, random_share = shares
    objective = MLM(
        mask_rate=rate,
        mask_share=mask_share,
        random_share=random_share,
        whole_words=whole_words,
    )
    inputs, predicted, _ = corrupt(objective, batch, jax.random.key(3))
    common = {"mask_id": VOCAB.mask, "vocab_size": VOCAB.size}
    ours = reference.measure(tokens, inputs, predicted, **common)
    assert ours.untouched

    # Shares: closed form. A random token that happens to be the original looks kept.
    expected = reference.expected_shares(
        regular=VOCAB.size - SPECIAL, mask_share=mask_share, random_share=random_share
    )
    found = (ours.masked, ours.changed, ours.kept)
    assert np.abs(reference.z_score(found, expected, ours.predicted_total)).max() < SIGMAS

    # Positions and pairs: the reference's own draws, of half the number, so twice the variance.
    theirs = reference.sample_statistics(
        np.random.default_rng(0),
        tokens,
        can,
        draws=draws // 4,
        rate=rate,
        mask_share=mask_share,
        random_share=random_share,
        first_regular=SPECIAL,
        word_start=VOCAB.is_word_start[tokens] if whole_words else None,
        **common,
    )
    for name in ("position_frequency", "pair_frequency"):
        a, b = getattr(ours, name), getattr(theirs, name)
        pooled = (a * 4 + b) / 5
        deviation = np.sqrt(pooled * (1 - pooled) * (1 / draws + 4 / draws)) + 1e-9
        assert (np.abs(a - b) / deviation).max() < SIGMAS, name

    # Replacements are uniform over the ordinary pieces and decided for each token by itself.
    ids = ours.changed_ids[SPECIAL:]
    assert ours.changed_ids[:SPECIAL].sum() == 0
    if random_share and not whole_words:
        chances = np.array([np.mean(tokens[can] != i) for i in range(SPECIAL, VOCAB.size)])
        chances = chances / chances.sum()
        z = reference.z_score(ids / ids.sum(), chances, ids.sum())
        assert np.abs(z).max() < SIGMAS
    if not whole_words and 0 < mask_share < 1:
        n = int(ours.counts[0])
        law = reference.binomial(n, mask_share)
        frequency = np.bincount(ours.masked_counts, minlength=n + 1) / draws
        assert np.abs(reference.z_score(frequency, law, draws)[law > 1e-3]).max() < SIGMAS


def test_whole_words_are_taken_as_the_reference_takes_them_in_the_same_order():
    rng = np.random.default_rng(0)
    choose = jax.jit(choose_words, static_argnames="slots")
    for trial in range(60):
        length = 40
        can = rng.random(length) < 0.85
        starts = rng.random(length) < 0.5
        key = jax.random.key(trial)
        count = int(rng.integers(0, can.sum() + 1))
        choice = choose(key, can, starts, count, slots=length)
        # The order in which the library tries its words is that of its random numbers.
        order = np.asarray(jnp.argsort(jax.random.uniform(key, (length,))))
        words = reference.words_of(can, starts)
        order = [index for index in order if index < len(words)]
        expected = sorted(reference.take_words(words, order, count))
        assert sorted(np.asarray(choice.slots)[np.asarray(choice.used)].tolist()) == expected


def test_a_word_is_hidden_whole():
    batch = small_batch(5, VOCAB, rows=64)
    _, predicted, _ = corrupt(MLM(mask_rate=0.3, whole_words=True), batch, jax.random.key(0))
    for row in range(64):
        for word in reference.words_of(
            maskable(batch)[row], VOCAB.is_word_start[batch.tokens[row]]
        ):
            assert predicted[row, word].all() or not predicted[row, word].any()


def test_budget_is_the_nearest_number_and_fits_the_slots():
    for rate in (0.01, 0.15, 0.285, 0.3, 0.4, 0.99, 1.0):
        for total in (0, 1, 2, 3, 7, 64, 100, 510, 512):
            eligible = np.arange(512) < total
            found = int(budget(eligible, rate))
            assert abs(found - rate * total) <= 0.5 + 1e-4 or (found == 1 and rate * total < 0.5)
            assert found <= slots_for(512, rate) and found <= total
            assert (found == 0) == (total == 0)


def test_slots_are_enough_at_every_length_and_rate():
    # Both round in their own way; 0.145 of 100 once came to 15 tokens for 14 slots.
    for length in range(2, 600):
        eligible = np.ones(length, bool)
        for rate in (0.145, 0.175, 0.285, 0.35, 0.45):
            exact = reference.number_predicted(rate, length)
            assert exact <= slots_for(length, rate) <= exact + 1
        if length % 50 == 0:
            for rate in (0.145, 0.175, 0.285):
                assert int(budget(eligible, rate)) <= slots_for(length, rate)


def test_rate_follows_its_schedule_and_evaluation_does_not():
    batch = small_batch(0, VOCAB, rows=16)
    objective = MLM(mask_rate=0.5, final_mask_rate=0.1, eval_mask_rate=0.2)
    can = maskable(batch).sum(1)
    for progress, rate in ((0.0, 0.5), (0.25, 0.4), (1.0, 0.1)):
        _, predicted, _ = corrupt(objective, batch, jax.random.key(0), progress=progress)
        np.testing.assert_array_equal(
            predicted.sum(1), [reference.number_predicted(rate, int(n)) for n in can]
        )
        _, predicted, _ = corrupt(
            objective, batch, jax.random.key(0), train=False, progress=progress
        )
        np.testing.assert_array_equal(
            predicted.sum(1), [reference.number_predicted(0.2, int(n)) for n in can]
        )


def test_evaluation_is_the_same_whatever_is_compared():
    batch = small_batch(0, VOCAB, rows=16)
    base, _, example = corrupt(MLM(), batch, jax.random.key(0), train=False)
    hidden = np.take_along_axis(base, np.asarray(example.slots), 1)
    assert (hidden[np.asarray(example.weights) > 0] == VOCAB.mask).all()
    for other in (
        MLM(mask_rate=0.6),
        MLM(whole_words=True),
        MLM(mask_share=0.2, random_share=0.7),
        MLM(final_mask_rate=0.9),
    ):
        inputs, _, _ = corrupt(other, batch, jax.random.key(0), train=False)
        np.testing.assert_array_equal(base, inputs)


def test_masks_are_dynamic_but_fixed_for_a_row_of_an_epoch():
    objective, key = MLM(), jax.random.key(0)
    batch = small_batch(0, VOCAB)
    first, where, _ = corrupt(objective, batch, key)
    again, _, _ = corrupt(objective, batch, key)
    np.testing.assert_array_equal(first, again)
    order = np.array([5, 0, 7])
    some, _, _ = corrupt(objective, jax.tree.map(lambda x: x[order], batch), key)
    np.testing.assert_array_equal(some, first[order])
    _, next_epoch, _ = corrupt(objective, batch._replace(epochs=batch.epochs + 1), key)
    _, other_seed, _ = corrupt(objective, batch, jax.random.key(1))
    assert (next_epoch != where).any(1).all() and (other_seed != where).any(1).all()
    assert (where[0] != where[1]).any()


@pytest.mark.parametrize(
    ("settings", "number"),
    [
        ({"mask_rate": 1.7}, "1.7"),
        ({"mask_rate": 0.0}, "0.0"),
        ({"eval_mask_rate": -0.1}, "-0.1"),
        ({"final_mask_rate": 2.0}, "2.0"),
        ({"mask_share": 0.8, "random_share": 0.3}, "0.3"),
    ],
)
def test_impossible_rates_are_refused(settings, number):
    with pytest.raises(UserError, match=number):
        MLM(**settings)


def test_random_tokens_are_those_of_a_range_where_the_special_pieces_come_first():
    key, shape = jax.random.key(3), (4, 500)
    found = random_tokens(key, shape, VOCAB.ordinary, jnp.int32)
    wanted = jax.random.randint(key, shape, SPECIAL, VOCAB.size, jnp.int32)
    assert found.dtype == wanted.dtype and (found == wanted).all()
    scattered = np.array([2, 5, 11], np.int32)
    found = random_tokens(key, shape, scattered, jnp.int32)
    shares = np.bincount(np.ravel(found), minlength=12) / found.size
    assert shares[scattered].min() > 0.3 and shares.sum() == pytest.approx(1)
    assert shares[scattered].sum() == pytest.approx(1)
