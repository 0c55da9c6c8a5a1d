"""The references in ``tests/support`` against brute force: what other tests lean on is right."""

import itertools
import math
from collections import defaultdict

import numpy as np
import pytest

from support.markov import Channel, MarkovSource
from support.mlm_reference import (
    binomial,
    expected_shares,
    measure,
    mlm_corrupt,
    number_predicted,
    sample_statistics,
    take_words,
    words_of,
    z_score,
)

# --- the Markov chain ---------------------------------------------------------------------------

STATES, LENGTH = 3, 6
CHAINS = {
    "settled": MarkovSource.random(STATES, seed=3, concentration=0.7),
    "unsettled": MarkovSource(
        MarkovSource.random(STATES, seed=4, concentration=0.5).transition, [0.7, 0.2, 0.1]
    ),
    "forbidden steps": MarkovSource([[0.0, 0.6, 0.4], [0.5, 0.0, 0.5], [0.3, 0.7, 0.0]]),
}


def every_sequence(chain, length):
    """All sequences [states^length, length] and their probabilities, by multiplying them out."""
    sequences = np.array(list(itertools.product(range(chain.states), repeat=length)))
    weights = chain.initial[sequences[:, 0]]
    for here in range(1, length):
        weights = weights * chain.transition[sequences[:, here - 1], sequences[:, here]]
    return sequences, weights


def every_mask(length, count):
    return [
        np.isin(np.arange(length), chosen)
        for chosen in itertools.combinations(range(length), count)
    ]


def entropy(weights):
    return -sum(w * math.log(w) for w in weights if w > 0)


def brute_posterior(chain, inputs, hidden, sees="both"):
    sequences, weights = every_sequence(chain, len(inputs))
    out = np.zeros((len(inputs), chain.states))
    for here in range(len(inputs)):
        visible = ~hidden & (np.arange(len(inputs)) < (len(inputs) if sees == "both" else here))
        agree = weights * (sequences[:, visible] == inputs[visible]).all(axis=1)
        for state in range(chain.states):
            out[here, state] = agree[sequences[:, here] == state].sum() / agree.sum()
    return out


@pytest.mark.parametrize("sees", ["both", "left"])
@pytest.mark.parametrize("name", CHAINS)
def test_posterior_is_that_of_enumeration(name, sees):
    chain, rng = CHAINS[name], np.random.default_rng(0)
    inputs = chain.sample(rng, LENGTH, 40)
    hidden = rng.random(inputs.shape) < rng.choice([0.2, 0.5, 0.9], size=(40, 1))
    got = chain.posterior(inputs, hidden, sees=sees)
    wanted = [brute_posterior(chain, *pair, sees) for pair in zip(inputs, hidden, strict=True)]
    np.testing.assert_allclose(got, wanted, atol=1e-12)
    np.testing.assert_array_equal(chain.posterior(inputs[0], hidden[0], sees=sees), got[0])


def brute_channel_posterior(chain, inputs, hidden, channel):
    """P(x_i | shown, i predicted) by summing over all sequences and all sets of predicted ones."""
    sequences, weights = every_sequence(chain, len(inputs))
    keep = 1 - channel.mask_share - channel.random_share
    out = np.zeros((len(inputs), chain.states))
    for mask in every_mask(len(inputs), channel.predicted):
        joint = weights.copy()
        for here, asked in enumerate(mask):
            same = sequences[:, here] == inputs[here]
            if hidden[here]:
                joint *= channel.mask_share if asked else 0.0
            elif asked:
                joint *= channel.random_share / chain.states + keep * same
            else:
                joint *= same
        for here in np.flatnonzero(mask):
            np.add.at(out[here], sequences[:, here], joint)
    with np.errstate(invalid="ignore"):
        return out / out.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("shares", [(0.8, 0.1), (0.4, 0.6), (0.3, 0.0)])
@pytest.mark.parametrize("name", CHAINS)
def test_posterior_through_the_channel_is_that_of_enumeration(name, shares):
    chain, rng = CHAINS[name], np.random.default_rng(1)
    channel = Channel(predicted=3, mask_share=shares[0], random_share=shares[1])
    for hidden_count in (0, 1, 2, 3):
        inputs = chain.sample(rng, LENGTH, 1)[0]
        if shares[1] > 0 and hidden_count < 3:
            inputs[2] = (inputs[2] + 1) % STATES
        hidden = np.arange(LENGTH) >= LENGTH - hidden_count
        got = chain.posterior(inputs, hidden, channel)
        wanted = brute_channel_posterior(chain, inputs, hidden, channel)
        np.testing.assert_allclose(got, wanted, atol=1e-12)  # NaN at the same places too


def test_posterior_of_long_rows_neither_underflows_nor_drifts():
    chain = MarkovSource.random(8, seed=5, concentration=0.2)
    rng = np.random.default_rng(2)
    inputs = chain.sample(rng, 3000, 2)
    hidden = rng.random(inputs.shape) < 0.3
    for channel in (None, Channel(predicted=5)):
        two = np.broadcast_to(np.isin(np.arange(3000), [7, 1500]), hidden.shape)
        shown = hidden if channel is None else two
        posterior = chain.posterior(inputs, shown, channel)
        np.testing.assert_allclose(posterior.sum(axis=-1), 1, atol=1e-9)
    visible = chain.posterior(inputs, hidden)[~hidden]
    np.testing.assert_array_equal(visible.argmax(axis=-1), inputs[~hidden])


def brute_mask_entropy(chain, mask, sees="both"):
    """Mean of H(x_i | all visible) over the hidden i, by grouping all sequences."""
    sequences, weights = every_sequence(chain, len(mask))
    total = 0.0
    for here in np.flatnonzero(mask):
        visible = ~mask & (np.arange(len(mask)) < (len(mask) if sees == "both" else here))
        groups = defaultdict(lambda: np.zeros(chain.states))
        for row, weight in zip(sequences, weights, strict=True):
            groups[tuple(row[visible])][row[here]] += weight
        total += sum(entropy(g) - entropy([g.sum()]) for g in groups.values())
    return total / mask.sum()


@pytest.mark.parametrize("sees", ["both", "left"])
@pytest.mark.parametrize("name", ["settled", "forbidden steps"])
def test_entropies_of_masks_are_those_of_enumeration(name, sees):
    chain, length = CHAINS[name], 5
    for count, rate in ((1, 0.15), (2, 0.4), (4, 0.8), (5, 1.0)):
        brute = [brute_mask_entropy(chain, mask, sees) for mask in every_mask(length, count)]
        got = [chain.two_sided_entropy(mask, sees=sees) for mask in every_mask(length, count)]
        np.testing.assert_allclose(got, brute, atol=1e-10)
        exact = chain.exact_masked_entropy(length, rate, sees=sees)
        assert exact == pytest.approx(np.mean(brute), abs=1e-10)


@pytest.mark.parametrize("estimator", ["entropy", "nll"])
@pytest.mark.parametrize("sees", ["both", "left"])
def test_simulated_masked_entropy_agrees_with_the_closed_form(sees, estimator):
    chain = MarkovSource.random(8, seed=6, concentration=0.3)
    rng = np.random.default_rng(3)
    mean, error = chain.masked_entropy(rng, 64, 0.15, 400, sees=sees, estimator=estimator)
    assert 0 < error < 0.03
    assert abs(mean - chain.exact_masked_entropy(64, 0.15, sees=sees)) < 4 * error
    if sees == "left" and estimator == "entropy":
        again = chain.causal_only_masked_entropy(np.random.default_rng(3), 64, 0.15, 400)
        assert again == (mean, error)


def test_simulated_channel_loss_is_that_of_enumeration():
    chain, length, channel = CHAINS["settled"], 4, Channel(predicted=2)
    sequences, weights = every_sequence(chain, length)
    chance = (0.1 / STATES, 0.1 + 0.1 / STATES)  # of showing another symbol; the original
    groups = defaultdict(lambda: np.zeros(STATES))
    masks = every_mask(length, 2)
    for mask in masks:
        asked = np.flatnonzero(mask)
        for shown_as in itertools.product((None, 0, 1, 2), repeat=2):
            for row, weight in zip(sequences, weights, strict=True):
                shown, joint = list(row), weight / len(masks)
                for here, symbol in zip(asked, shown_as, strict=True):
                    shown[here] = symbol
                    joint *= 0.8 if symbol is None else chance[int(symbol == row[here])]
                for here in asked:
                    groups[here, tuple(shown)][row[here]] += joint
    exact = sum(entropy(g) - entropy([g.sum()]) for g in groups.values()) / 2
    rng = np.random.default_rng(4)
    for estimator in ("entropy", "nll"):
        mean, error = chain.masked_entropy(
            rng, length, 0.5, 6000, channel=channel, estimator=estimator
        )
        assert abs(mean - exact) < 4 * error and error < 0.01


def test_poorer_views_cost_more():
    chain = MarkovSource.random(8, seed=6, concentration=0.3)
    both = chain.exact_masked_entropy(128, 0.15)
    left = chain.exact_masked_entropy(128, 0.15, sees="left")
    assert both + 0.1 < chain.entropy_rate() < left < chain.unigram_entropy()


def test_entropy_rate_and_stationary_are_those_of_a_long_sample():
    chain = MarkovSource.random(6, seed=7, concentration=0.4)
    sample = chain.sample(np.random.default_rng(5), 20_000, 20)
    pairs = np.zeros((6, 6))
    np.add.at(pairs, (sample[:, :-1].ravel(), sample[:, 1:].ravel()), 1)
    np.testing.assert_allclose(pairs.sum(axis=1) / pairs.sum(), chain.stationary(), atol=0.005)
    counted = pairs / pairs.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(counted, chain.transition, atol=0.02)
    # The plug-in entropy of the sample knows nothing of the chain but the sample itself.
    plug_in = -(pairs * np.log(np.where(pairs > 0, counted, 1))).sum() / pairs.sum()
    assert plug_in == pytest.approx(chain.entropy_rate(), abs=0.005)
    nll = -np.log(chain.transition[sample[:, :-1], sample[:, 1:]]).mean()
    assert nll == pytest.approx(chain.entropy_rate(), abs=0.005)


@pytest.mark.parametrize("name", CHAINS)
def test_causal_loss_is_that_of_enumeration(name):
    chain = CHAINS[name]
    sequences, weights = every_sequence(chain, LENGTH)
    first = entropy(chain.initial)
    wanted = (entropy(weights) - first) / (LENGTH - 1)  # the chain rule of entropy
    assert chain.causal_loss(LENGTH) == pytest.approx(wanted, abs=1e-12)
    if name != "unsettled":
        assert chain.causal_loss(LENGTH) == pytest.approx(chain.entropy_rate(), abs=1e-12)
        assert first == pytest.approx(chain.unigram_entropy(), abs=1e-12)


def test_first_symbols_follow_initial():
    first = CHAINS["unsettled"].sample(np.random.default_rng(6), 1, 20_000)[:, 0]
    np.testing.assert_allclose(np.bincount(first) / 20_000, [0.7, 0.2, 0.1], atol=0.015)


# --- BERT's masking -----------------------------------------------------------------------------

MASK, FIRST, VOCAB = 3, 5, 25
TOKENS = np.array([0, 10, 11, 12, 13, 1, 14, 15, 16, 17, 18, 19, 2, 2])
MASKABLE = TOKENS >= FIRST
STARTS = np.isin(np.arange(14), [1, 3, 7, 8, 11])  # 6 begins a word because 5 is special
WORDS = [[1, 2], [3, 4], [6], [7], [8, 9, 10], [11]]
IDS = {"mask_id": MASK, "first_regular": FIRST, "vocab_size": VOCAB}


@pytest.mark.parametrize(
    ("rate", "maskable", "wanted"),
    [(0.15, 0, 0), (0.15, 1, 1), (0.15, 3, 1), (0.15, 10, 2), (0.15, 30, 5), (0.15, 126, 19)]
    + [(0.15, 128, 19), (0.3, 5, 2), (0.285, 100, 29), (1.0, 7, 7), (0.4, 512, 205)],
)
def test_number_predicted_by_hand(rate, maskable, wanted):
    assert number_predicted(rate, maskable) == wanted


def test_nothing_maskable_changes_nothing():
    for starts in (None, STARTS):
        inputs, predicted = mlm_corrupt(
            np.random.default_rng(0), TOKENS, np.zeros(14, bool), rate=0.5, word_start=starts, **IDS
        )
        assert not predicted.any()
        np.testing.assert_array_equal(inputs, TOKENS)


def test_masking_has_the_published_moments():
    draws, number = 20_000, 3  # .3 of 9 is 2.7
    tokens, maskable = TOKENS[:12], MASKABLE[:12]
    maskable = maskable & (np.arange(12) != 11)
    assert maskable.sum() == 9
    stats = sample_statistics(
        np.random.default_rng(1), tokens, maskable, draws=draws, rate=0.3, **IDS
    )
    assert (stats.counts == number).all() and stats.untouched
    frequency = np.where(maskable, number / 9, 0)
    assert np.abs(z_score(stats.position_frequency, frequency, draws)).max() < 4.5
    both = maskable[:, None] & maskable[None] & ~np.eye(12, dtype=bool)
    pairs = np.where(both, number * (number - 1) / (9 * 8), 0) + np.diag(frequency)
    assert np.abs(z_score(stats.pair_frequency, pairs, draws)).max() < 4.5
    shares = np.array(expected_shares(regular=VOCAB - FIRST))
    assert shares.sum() == pytest.approx(1) and shares[1] == pytest.approx(0.095)
    observed = np.array([stats.masked, stats.changed, stats.kept])
    assert np.abs(z_score(observed, shares, stats.predicted_total)).max() < 4.5
    together = np.bincount(stats.masked_counts, minlength=number + 1) / draws
    assert np.abs(z_score(together, binomial(number, 0.8), draws)).max() < 4.5
    # Id v stands in for any predicted token but v: uniform up to how often v is the original.
    original = np.bincount(tokens[maskable], minlength=VOCAB) / 9
    by_id = np.where(np.arange(VOCAB) >= FIRST, 0.1 / (VOCAB - FIRST) * (1 - original), 0)
    observed = stats.changed_ids / stats.predicted_total
    assert np.abs(z_score(observed, by_id, stats.predicted_total)).max() < 4.5


def test_words_by_hand():
    assert words_of(MASKABLE, STARTS) == WORDS
    assert take_words(WORDS, [4, 0, 1, 2, 3, 5], 4) == [8, 9, 10, 6]
    assert take_words([[0, 1], [2, 3]], [1, 0], 1) == []


def test_whole_word_masking_is_that_of_enumerated_orders():
    draws, budget = 20_000, 4
    frequency = np.zeros(14)
    counts = np.zeros(budget + 1)
    orders = list(itertools.permutations(range(len(WORDS))))
    for order in orders:
        left = budget
        for index in order:
            if len(WORDS[index]) <= left:
                left -= len(WORDS[index])
                frequency[WORDS[index]] += 1 / len(orders)
        counts[budget - left] += 1 / len(orders)
    stats = sample_statistics(
        np.random.default_rng(2), TOKENS, MASKABLE, draws=draws, rate=0.4, word_start=STARTS, **IDS
    )
    assert np.abs(z_score(stats.position_frequency, frequency, draws)).max() < 4.5
    observed = np.bincount(stats.counts, minlength=budget + 1) / draws
    assert np.abs(z_score(observed, counts, draws)).max() < 4.5
    for word in WORDS:  # whole: two positions of a word are predicted together or not at all
        block = stats.pair_frequency[np.ix_(word, word)]
        np.testing.assert_allclose(block, stats.position_frequency[word[0]])
    shares = expected_shares(regular=VOCAB - FIRST)
    observed = [stats.masked, stats.changed, stats.kept]
    assert np.abs(z_score(observed, shares, stats.predicted_total)).max() < 4.5
    assert stats.untouched
    full = stats.masked_counts[stats.counts == budget]  # the tokens of a word are decided apart
    together = np.bincount(full, minlength=budget + 1) / len(full)
    assert np.abs(z_score(together, binomial(budget, 0.8), len(full))).max() < 4.5


def test_shares_are_options():
    stats = sample_statistics(
        np.random.default_rng(3), TOKENS, MASKABLE, draws=4000, rate=0.4, mask_share=0.0,
        random_share=0.6, **IDS,
    )  # fmt: skip
    shares = expected_shares(regular=VOCAB - FIRST, mask_share=0.0, random_share=0.6)
    observed = [stats.masked, stats.changed, stats.kept]
    assert stats.masked == 0
    assert np.abs(z_score(observed, shares, stats.predicted_total)).max() < 4.5


def test_statistics_notice_a_changed_bystander():
    predicted = np.arange(14) == 3
    shown = np.where(predicted, MASK, TOKENS)
    ids = {"mask_id": MASK, "vocab_size": VOCAB}
    assert measure(TOKENS, shown[None], predicted[None], **ids).untouched
    shown[8] = 20
    assert not measure(TOKENS, shown[None], predicted[None], **ids).untouched
