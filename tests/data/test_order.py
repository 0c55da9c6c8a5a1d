"""The order: bijections, the statistics of random permutations, and numbers that stay fixed."""

import math
import time

import numpy as np
import pytest
from scipy import stats

from jaxpretrain.data.order import BLOCK, Order, _mix, permute
from jaxpretrain.errors import UserError

SIZES = [1, 2, 3, 4, 5, 7, 8, 9, 16, 31, 1000, 1023, 1024, 1025, 65536, 100003]
GOLDEN_SEVEN = [0, 2, 4, 5, 6, 3, 1]
GOLDEN_LARGE = [89144, 23635, 79591, 28375, 8377, 82637, 50301, 15964]
GOLDEN_PLAIN = [
    [0, 0, 0, 0, 0, 0],
    [952380, 952380, 952380, 952380, 952380, 952380],
    [365, 23, 612, 604, 462, 487],
]
GOLDEN_WEIGHTED = [
    [0, 0, 0, 0, 1, 1],
    [500000, 499999, 499999, 499999, 10000003, 10000001],
    [197, 83, 493, 1, 30, 16],
]


def test_mix_is_splitmix64():
    # The first outputs for the seed 1234567, as published at rosettacode.org/wiki/Pseudo-random_
    # numbers/Splitmix64; the state advances by the golden gamma.
    gamma = 0x9E3779B97F4A7C15
    states = np.array([(1234567 + i * gamma) % 2**64 for i in range(5)], np.uint64)
    assert _mix(states).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("key", [0, 1, -1, 2**64 - 1])
def test_permute_is_a_bijection(size, key):
    result = permute(np.arange(size), size, key)
    assert result.dtype == np.int64
    assert np.array_equal(np.sort(result), np.arange(size))


def test_permute_takes_one_size_and_key_per_index():
    sizes, keys = np.array([5, 7, 1000]), np.array([3, 4, 5], np.uint64)
    together = permute(np.array([4, 4, 4]), sizes, keys)
    alone = [permute(np.array(4), int(n), int(k)) for n, k in zip(sizes, keys, strict=True)]
    assert together.tolist() == [int(result) for result in alone]


def test_permute_of_a_huge_size_stays_inside_and_distinct():
    size = 2**50 + 7
    index = np.concatenate([np.arange(1000), size - 1 - np.arange(1000)])
    result = permute(index, size, 9)
    assert result.min() >= 0 and result.max() < size
    assert len(np.unique(result)) == 2000
    assert result.max() > size * 0.99 and result.min() < size * 0.01


@pytest.mark.parametrize("size", [3, 4, 5])
def test_every_permutation_of_a_few_is_as_likely(size):
    keys = np.arange(200 * math.factorial(size))
    index = np.tile(np.arange(size), len(keys))
    result = permute(index, size, np.repeat(keys, size).astype(np.uint64)).reshape(-1, size)
    codes, counts = np.unique(result @ size ** np.arange(size), return_counts=True)
    assert len(codes) == math.factorial(size)
    assert stats.chisquare(counts).pvalue > 1e-4


@pytest.mark.parametrize("size", [1000, 1025, 100003])
def test_neighbours_land_independently(size):
    for key in range(3):
        result = permute(np.arange(size), size, key)
        # |x - y| of two independent uniform places: mean n/3, variance n²/18.
        for lag in (1, 2, 31, 317):
            gaps = np.abs(result[lag:] - result[:-lag])
            error = gaps.mean() - size / 3
            assert abs(error) < 4.5 * size / math.sqrt(18 * len(gaps)), (key, lag)
            correlation = stats.pearsonr(result[lag:], result[:-lag]).statistic
            assert abs(correlation) < 4.5 / math.sqrt(len(gaps)), (key, lag)


@pytest.mark.parametrize("size", [7, 100, 1025])
def test_places_are_uniform_over_keys(size):
    keys = np.arange(20000).astype(np.uint64)
    for index in (0, 1, size // 2, size - 1):
        result = permute(np.full(len(keys), index), size, keys)
        counts = np.bincount(result * min(size, 50) // size)
        expected = np.bincount(np.arange(size) * min(size, 50) // size) * len(keys) / size
        assert stats.chisquare(counts, expected).pvalue > 1e-4, index


def test_places_are_uniform_within_a_permutation():
    size, cells = 100003, 20
    result = permute(np.arange(size), size, 3)
    table = np.histogram2d(np.arange(size), result, bins=cells)[0]
    # Rows and columns of the table are fixed, so it varies less than a free one: only too large
    # a statistic is wrong.
    assert stats.chi2_contingency(table).pvalue > 1e-4


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 1000, 1025, 100003])
def test_every_epoch_of_one_set_reads_every_row_once(rows):
    order = Order([rows], None, seed=5)
    for first in (0, 1, 2, 10**6):
        set_index, epoch, row = order.locate(np.arange(first * rows, (first + 1) * rows))
        assert set(set_index) == {0} and set(epoch) == {first}
        assert np.array_equal(np.sort(row), np.arange(rows))


def test_without_weights_an_epoch_reads_every_row_of_every_set_once():
    sizes = [1, 7, 1000, 1025]
    order = Order(sizes, None, seed=5)
    for first in range(3):
        stream = np.arange(first * sum(sizes), (first + 1) * sum(sizes))
        set_index, epoch, row = order.locate(stream)
        assert set(epoch) == {first}
        for number, size in enumerate(sizes):
            assert np.array_equal(np.sort(row[set_index == number]), np.arange(size))
    # The sets are read at the same rate, not one after the other.
    half = set_index[: len(set_index) // 2]
    assert abs((half == 3).sum() - 1025 / 2) < 5 * math.sqrt(1025 / 4)


def test_with_weights_every_epoch_of_every_set_reads_every_row_once():
    sizes = [1, 2, 3, 7, 1000, 1025, 3001]
    order = Order(sizes, [1, 1, 2, 2, 3, 4, 5], seed=5)
    set_index, epoch, row = order.locate(np.arange(20 * BLOCK))
    for number, size in enumerate(sizes):
        mine = set_index == number
        full, rest = divmod(int(mine.sum()), size)
        assert full >= 1
        pairs = epoch[mine] * size + row[mine]
        assert row[mine].max() < size
        # Whole blocks hold the first rows of the set's own stream, each once, in some order.
        assert np.array_equal(np.sort(pairs)[: full * size], np.arange(full * size))
        assert set(epoch[mine]) == set(range(full + (rest > 0)))


@pytest.mark.parametrize(
    ("weights", "shares"),
    [
        # Largest remainders, by hand: 102.4, 204.8, 716.8.
        ([1, 2, 7], [102, 205, 717]),
        ([0.1, 0.2, 0.7], [102, 205, 717]),
        # 307.2, 614.4, 102.4: the first of equal remainders, also where floats are not equal.
        ([3, 6, 1], [307, 615, 102]),
        ([0.3, 0.6, 0.1], [307, 615, 102]),
        ([1, 1, 1], [342, 341, 341]),
        ([5], [1024]),
        ([1, 1023], [1, 1023]),
        ([0.6, 1023.4], [1, 1023]),
    ],
)
def test_mixture_shares_are_exact_in_every_block(weights, shares):
    order = Order([50 + i for i in range(len(weights))], weights, seed=1)
    for first in (0, 1, 2, 999, 10**9):
        set_index, _, _ = order.locate(np.arange(first * BLOCK, (first + 1) * BLOCK))
        assert np.bincount(set_index, minlength=len(weights)).tolist() == shares


def test_blocks_arrange_the_sets_differently():
    # So that no place in a batch always reads the same set.
    order = Order([500, 500], [1, 1], seed=1)
    set_index, _, _ = order.locate(np.arange(64 * BLOCK))
    share = set_index.reshape(64, BLOCK).mean(0)
    assert abs(share - 0.5).max() < 0.4
    assert abs(set_index[1:] == set_index[:-1]).mean() == pytest.approx(0.5, abs=0.01)


def test_epochs_seeds_and_sets_have_orders_of_their_own():
    size = 1000
    orders = []
    for seed in (0, 1, -1, 2**40):
        stream = np.arange(8 * BLOCK)
        set_index, epoch, row = Order([size, size], [1, 1], seed).locate(stream)
        for number in (0, 1):
            for number_epoch in (0, 1, 2):
                orders.append(row[(set_index == number) & (epoch == number_epoch)])
    for i, one in enumerate(orders):
        assert len(one) == size
        for other in orders[:i]:
            # Two random orders agree in one place on average (Poisson).
            assert (one == other).sum() < 10


def test_one_set_has_the_same_order_with_and_without_a_weight_up_to_blocks():
    # Both walk the same epochs; with weights the rows of a block are rearranged.
    plain = Order([300], None, 7).locate(np.arange(BLOCK))
    weighted = Order([300], [2.0], 7).locate(np.arange(BLOCK))
    assert sorted(zip(plain[1], plain[2], strict=True)) == sorted(
        zip(weighted[1], weighted[2], strict=True)
    )


@pytest.mark.parametrize("weights", [None, [3, 1, 1]])
def test_a_position_does_not_depend_on_what_else_is_asked(weights):
    order = Order([10, 20, 30], weights, 3)
    stream = np.arange(5000, 7000)
    together = np.stack(order.locate(stream))
    shuffled = np.random.default_rng(0).permutation(len(stream))
    assert np.array_equal(np.stack(order.locate(stream[shuffled])), together[:, shuffled])
    alone = np.concatenate([np.stack(order.locate(stream[i : i + 1])) for i in range(50)], axis=1)
    assert np.array_equal(alone, together[:, :50])


@pytest.mark.parametrize("weights", [None, [3, 2, 1]])
def test_a_late_step_costs_what_the_first_does(weights):
    order = Order([100003, 7, 65536], weights, 3)

    def seconds(first_step):
        times = []
        for step in range(first_step, first_step + 60):
            start = time.perf_counter()
            order.locate(np.arange(step * 256, (step + 1) * 256))
            times.append(time.perf_counter() - start)
        return sorted(times)[len(times) // 4]

    seconds(0)
    assert seconds(10**9) < 3 * seconds(0)


def test_the_order_never_changes_silently():
    """These numbers fix the order of every run ever made: a change here breaks resuming."""
    assert permute(np.arange(7), 7, 0).tolist() == GOLDEN_SEVEN
    assert permute(np.arange(8), 100003, 12345).tolist() == GOLDEN_LARGE
    set_index, epoch, row = Order([1000, 50], None, 42).locate(np.arange(10**9, 10**9 + 6))
    assert [set_index.tolist(), epoch.tolist(), row.tolist()] == GOLDEN_PLAIN
    set_index, epoch, row = Order([1000, 50], [1, 1], 42).locate(np.arange(10**9, 10**9 + 6))
    assert [set_index.tolist(), epoch.tolist(), row.tolist()] == GOLDEN_WEIGHTED


@pytest.mark.parametrize(
    ("rows", "weights", "words"),
    [
        ([5, 5], [1, 0], ["'wiki'", "0", "above 0"]),
        ([5, 5], [0, 0], ["'code'", "0", "above 0"]),
        ([5, 5], [-1, 2], ["'code'", "-1"]),
        ([5, 5], [1, float("nan")], ["'wiki'", "nan"]),
        ([5, 5], [1, float("inf")], ["'wiki'", "inf"]),
        ([5, 5], [1], ["1 weights", "2 sets"]),
        ([5, 5], [100000, 1], ["'wiki'", "1024", "98"]),
        ([5, 0], None, ["'wiki'", "0 rows"]),
        ([0, 5], [1, 1], ["'code'", "0 rows"]),
        ([], None, ["no set"]),
    ],
)
def test_what_cannot_be_ordered_is_said(rows, weights, words):
    with pytest.raises(UserError) as error:
        Order(rows, weights, 0, names=["code", "wiki"][: len(rows)])
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)
