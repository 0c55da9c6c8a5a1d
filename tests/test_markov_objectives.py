"""The bounds in ``tests/support/markov_objectives.py`` against enumeration of everything."""

import itertools
import math
from collections import defaultdict

import numpy as np
import pytest

from support.markov import MarkovSource
from support.markov_objectives import (
    mtp_loss,
    nsp_bayes_error,
    nsp_bayes_loss,
    nsp_posterior,
    prefix_lm_loss,
    row_entropy,
    sop_bayes_error,
    sop_bayes_loss,
    sop_posterior,
    span_corruption_nll,
    span_corruption_nll_by_token,
)

LENGTH = 5
CHAINS = {
    "settled": MarkovSource.random(3, seed=3, concentration=0.7),
    "two states": MarkovSource([[0.9, 0.1], [0.4, 0.6]]),
    "unsettled": MarkovSource(
        MarkovSource.random(3, seed=4, concentration=0.5).transition, [0.7, 0.2, 0.1]
    ),
    "forbidden steps": MarkovSource([[0.0, 0.6, 0.4], [0.5, 0.0, 0.5], [0.3, 0.7, 0.0]]),
}
SETTLED = [name for name in CHAINS if name != "unsettled"]


def every_row(chain, length):
    """(row, probability) of every possible row, by multiplying the steps out."""
    for row in itertools.product(range(chain.states), repeat=length):
        weight = chain.initial[row[0]]
        for here in range(1, length):
            weight *= chain.transition[row[here - 1], row[here]]
        if weight > 0:
            yield row, weight


def conditional_entropy(chain, length, here, visible):
    """H(x_here | x at the visible positions), by grouping all rows by what is visible."""
    groups = defaultdict(lambda: np.zeros(chain.states))
    for row, weight in every_row(chain, length):
        groups[tuple(row[i] for i in visible)][row[here]] += weight
    return -sum(w * math.log(w / g.sum()) for g in groups.values() for w in g if w > 0)


# --- whole rows ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHAINS)
def test_entropy_of_a_row(name):
    chain = CHAINS[name]
    brute = -sum(w * math.log(w) for _, w in every_row(chain, LENGTH))
    assert row_entropy(chain, LENGTH) == pytest.approx(brute, abs=1e-12)


@pytest.mark.parametrize("name", SETTLED)
def test_entropy_of_a_settled_row_in_closed_form(name):
    chain = CHAINS[name]
    closed = chain.unigram_entropy() + 99 * chain.entropy_rate()
    assert row_entropy(chain, 100) == pytest.approx(closed, rel=1e-12)


@pytest.mark.parametrize("name", CHAINS)
def test_entropy_of_a_row_is_the_optimum_of_masked_diffusion(name):
    chain, m = CHAINS[name], 4
    total = 0.0
    for count in range(1, m + 1):
        masks = list(itertools.combinations(range(m), count))
        for mask in masks:
            visible = [i for i in range(m) if i not in mask]
            losses = sum(conditional_entropy(chain, m, here, visible) for here in mask)
            total += (1 / m) * (1 / len(masks)) * (m / count) * losses
    assert row_entropy(chain, m) == pytest.approx(total, abs=1e-12)


@pytest.mark.parametrize("name", CHAINS)
def test_prefix_lm(name):
    chain = CHAINS[name]
    total, count = 0.0, 0
    for split in range(1, LENGTH):
        for here in range(split, LENGTH):
            total += conditional_entropy(chain, LENGTH, here, range(here))
            count += 1
    assert prefix_lm_loss(chain, LENGTH) == pytest.approx(total / count, abs=1e-12)
    if name in SETTLED:
        assert prefix_lm_loss(chain, 50) == pytest.approx(chain.entropy_rate(), rel=1e-12)


@pytest.mark.parametrize("sees_between", [True, False])
@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("name", CHAINS)
def test_multi_token_prediction(name, depth, sees_between):
    chain = CHAINS[name]
    brute = [
        conditional_entropy(
            chain, LENGTH, i + 1 + depth, range(i + 1 + (depth if sees_between else 0))
        )
        for i in range(LENGTH - 1 - depth)
    ]
    got = mtp_loss(chain, LENGTH, depth, sees_between=sees_between)
    assert got == pytest.approx(np.mean(brute), abs=1e-12)


# --- span corruption ----------------------------------------------------------------------------


def compositions(total, parts):
    for borders in itertools.combinations(range(1, total), parts - 1):
        yield [b - a for a, b in zip((0, *borders), (*borders, total), strict=True)]


def every_corruption(chain, length, hidden, count):
    """{visible segments: {hidden spans: P(both)}} over all rows and both compositions."""
    out = defaultdict(lambda: defaultdict(float))
    kept_sizes = list(compositions(length - hidden, count))
    hidden_sizes = list(compositions(hidden, count))
    for row, weight in every_row(chain, length):
        for kept, lost in itertools.product(kept_sizes, hidden_sizes):
            segments, spans, here = [], [], 0
            for a, b in zip(kept, lost, strict=True):
                segments.append(row[here : here + a])
                spans.append(row[here + a : here + a + b])
                here += a + b
            prior = weight / len(kept_sizes) / len(hidden_sizes)
            out[tuple(segments)][tuple(spans)] += prior
    return out


def targets_of(spans):
    return [t for j, span in enumerate(spans) for t in (("sentinel", j), *span)] + ["end"]


SHAPES = [(4, 1, 1), (5, 3, 1), (5, 3, 2), (6, 4, 2), (6, 3, 3)]  # length, hidden, spans


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", CHAINS)
def test_span_corruption_is_that_of_enumeration(name, shape):
    chain, checked = CHAINS[name], 0
    for segments, ways in every_corruption(chain, *shape).items():
        total = sum(ways.values())
        for spans, weight in ways.items():
            got = span_corruption_nll(chain, segments, spans)
            assert got == pytest.approx(-math.log(weight / total), abs=1e-10)
            checked += 1
    assert checked > 10


@pytest.mark.parametrize("shape", [(5, 3, 1), (5, 3, 2), (6, 3, 3)])
@pytest.mark.parametrize("name", CHAINS)
def test_span_corruption_by_token_is_that_of_enumeration(name, shape):
    chain = CHAINS[name]
    for segments, ways in every_corruption(chain, *shape).items():
        prefixes = defaultdict(float)
        for spans, weight in ways.items():
            targets = targets_of(spans)
            for stop in range(len(targets) + 1):
                prefixes[tuple(targets[:stop])] += weight
        for spans in ways:
            targets = targets_of(spans)
            masses = [prefixes[tuple(targets[:stop])] for stop in range(len(targets) + 1)]
            got = span_corruption_nll_by_token(chain, segments, spans)
            np.testing.assert_allclose(got, -np.diff(np.log(masses)), atol=1e-10)


def test_both_recursions_of_span_corruption_agree_on_long_rows():
    chain, rng = MarkovSource.random(8, seed=5, concentration=0.2), np.random.default_rng(0)
    for length, hidden, count in ((512, 77, 26), (700, 350, 200), (400, 200, 5)):
        row = chain.sample(rng, length, 1)[0].tolist()
        pieces, here = ([], []), 0
        sizes = [
            np.diff([0, *sorted(rng.choice(np.arange(1, total), count - 1, False)), total])
            for total in (length - hidden, hidden)
        ]
        for pair in zip(*sizes, strict=True):
            for kind, size in zip(pieces, pair, strict=True):
                kind.append(row[here : here + size])
                here += size
        by_token = span_corruption_nll_by_token(chain, *pieces)
        assert by_token.shape == (hidden + count + 1,) and (by_token > -1e-9).all()
        assert span_corruption_nll(chain, *pieces) == pytest.approx(by_token.sum(), rel=1e-9)


def test_impossible_spans_and_malformed_pieces():
    chain = CHAINS["forbidden steps"]
    assert span_corruption_nll(chain, [[0], [1]], [[0], [2]]) == math.inf
    assert span_corruption_nll_by_token(chain, [[0], [1]], [[0], [2]])[1] == math.inf
    for segments, spans in (([], []), ([[0], [1]], [[1]]), ([[0]], [[]]), ([[0]], [[3]])):
        for function in (span_corruption_nll, span_corruption_nll_by_token):
            with pytest.raises(ValueError):
                function(chain, segments, spans)


# --- pairs --------------------------------------------------------------------------------------


def brute_bayes(shown):
    """Error, cross-entropy and posterior from {what is shown: [P(it, label 0), P(it, label 1)]}."""
    error = sum(min(joint) for joint in shown.values())
    loss = -sum(w * math.log(w / sum(joint)) for joint in shown.values() for w in joint if w > 0)
    return error, loss, {key: joint[1] / sum(joint) for key, joint in shown.items()}


@pytest.mark.parametrize("cuts", [(1, 1), (2, 2), (1, 2), (3, 1)])
@pytest.mark.parametrize("name", SETTLED)
def test_next_sentence(name, cuts):
    chain, (cut, other_cut), length = CHAINS[name], cuts, 4
    size = min(length - cut, length - other_cut)
    shown = defaultdict(lambda: np.zeros(2))
    rows = list(every_row(chain, length))
    for row, weight in rows:
        shown[row[:cut], row[cut : cut + size]][0] += weight / 2
    for (row, weight), (other, other_weight) in itertools.product(rows, rows):
        second = other[other_cut : other_cut + size]
        shown[row[:cut], second][1] += weight * other_weight / 2
    error, loss, posterior = brute_bayes(shown)
    assert nsp_bayes_error(chain) == pytest.approx(error, abs=1e-12)
    assert nsp_bayes_loss(chain) == pytest.approx(loss, abs=1e-12)
    last = np.array([a[-1] for a, _ in posterior])
    first = np.array([b[0] for _, b in posterior])
    np.testing.assert_allclose(
        nsp_posterior(chain, last, first), list(posterior.values()), atol=1e-12
    )


def test_next_sentence_needs_a_settled_chain():
    for function in (nsp_bayes_error, nsp_bayes_loss, lambda c: nsp_posterior(c, 0, 0)):
        with pytest.raises(ValueError, match="stationary"):
            function(CHAINS["unsettled"])


@pytest.mark.parametrize("length", [2, 3, 6])
@pytest.mark.parametrize("name", CHAINS)
def test_sentence_order(name, length):
    chain = CHAINS[name]
    shown = defaultdict(lambda: np.zeros(2))
    for row, weight in every_row(chain, length):
        for cut in range(1, length):
            share = weight / (length - 1) / 2
            shown[row[:cut], row[cut:]][0] += share
            shown[row[cut:], row[:cut]][1] += share
    error, loss, posterior = brute_bayes(shown)
    assert sop_bayes_error(chain, length) == pytest.approx(error, abs=1e-12)
    assert sop_bayes_loss(chain, length) == pytest.approx(loss, abs=1e-12)
    for (first, second), wanted in posterior.items():
        assert sop_posterior(chain, first, second) == pytest.approx(wanted, abs=1e-12)
