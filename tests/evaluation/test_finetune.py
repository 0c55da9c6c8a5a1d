"""Fine-tuning: it learns what needs the order of tokens, and is the optimizer's own steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.linear_model import LogisticRegression

from jaxpretrain.evaluation.finetune import (
    Labeller,
    Learner,
    batches,
    chosen_rate,
    head_scores,
    rates,
)
from jaxpretrain.evaluation.reading import Rows, stream
from jaxpretrain.objectives import OBJECTIVES
from jaxpretrain.objectives.contrastive import pool
from jaxpretrain.optim import make_optimizer
from jaxpretrain.settings import DownstreamSettings
from support.small import SPECIAL, at_random, small_backbone, small_vocab

VOCAB = small_vocab()
A, B = SPECIAL, SPECIAL + 1
LENGTH = 8


def rows_of(ids):
    ids = np.asarray(ids, np.int32)
    return Rows(ids, np.ones_like(ids), np.zeros_like(ids))


def ordered(count, seed):
    """Whether A comes before B, among other tokens."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(SPECIAL + 2, SPECIAL + 12, (count, LENGTH))
    places = np.array([rng.choice(LENGTH, 2, replace=False) for _ in range(count)])
    ids[np.arange(count), places[:, 0]], ids[np.arange(count), places[:, 1]] = A, B
    return rows_of(ids), (places[:, 0] < places[:, 1]).astype(np.int32)


@pytest.fixture(scope="module")
def model():
    objective = OBJECTIVES["mlm"]().bind(
        small_backbone(VOCAB, layers=1, positions="learned", dropout=0.1), VOCAB
    )
    return objective, at_random(jax.eval_shape(objective.init, jax.random.key(0)), spread=0.1)


def test_what_needs_the_order_of_tokens_is_learned(model):
    (train, y), (test, truth) = ordered(512, 0), ordered(200, 1)
    counts = [(part.ids[:, :, None] == np.arange(VOCAB.size)).sum(1) for part in (train, test)]
    bag = LogisticRegression(max_iter=500).fit(counts[0], y)
    assert np.mean(bag.predict(counts[1]) == truth) < 0.65
    settings = DownstreamSettings(epochs=20, batch_size=32)
    predict = Labeller(*model, 2, 512, settings).fit(train, y, learning_rate=5e-3, seed=0)
    assert np.mean(predict(test) == truth) > 0.9


def test_numbers_are_learned_on_their_own_scale(model):
    """Whether A comes first, in thousands and far from 0: the target is standardised inside."""
    (train, _), (test, _) = ordered(256, 0), ordered(100, 1)
    train, test = (Rows(*(x[:, :2] for x in rows)) for rows in (train, test))
    y, truth = (5000.0 + 1000 * (rows.ids == A).any(1) for rows in (train, test))
    settings = DownstreamSettings(epochs=5, batch_size=32)
    labeller = Labeller(*model, 0, 256, settings)
    found = labeller.fit(train, y, learning_rate=5e-3, seed=0)(test)
    assert found.shape == (100,) and np.mean((found - truth) ** 2) < 0.1 * truth.var()
    constant = labeller.fit(train, np.full(256, 7.0), learning_rate=1e-3, seed=0)(test)
    assert np.abs(constant - 7).max() < 2


def loss_of(objective):
    def loss(params, rows, labels, keys):
        found = head_scores(
            params, pool(stream(objective, params, rows, keys), rows.segments, "mean")
        )
        return optax.softmax_cross_entropy_with_integer_labels(found, labels).mean()

    return loss


def learner(model, rows=8, batch=8, epochs=1, frozen=False):
    settings = DownstreamSettings(epochs=epochs, batch_size=batch)
    return Learner(*model, 2, loss_of(model[0]), rows, settings, frozen=frozen)


@pytest.fixture(scope="module")
def small(model):
    return learner(model), *ordered(8, 2)


@pytest.fixture(scope="module")
def frozen(model):
    """Two epochs of two batches, of the head alone."""
    return learner(model, rows=16, batch=8, epochs=2, frozen=True), *ordered(16, 3)


def flat(tree):
    return {jax.tree_util.keystr(k): np.asarray(v) for k, v in jax.tree.leaves_with_path(tree)}


@pytest.mark.parametrize("rate", [3e-4, 0.02])
def test_steps_at_a_rate_are_those_of_the_optimizer_with_that_rate(model, frozen, rate):
    """Written out with optax's rule at the rate itself."""
    objective, params = model
    train, rows, y = frozen
    got = train.fit(rows, y, learning_rate=rate, seed=5)["task_head"]
    rule = make_optimizer(
        total_steps=4, learning_rate=rate, schedule="linear", warmup_steps=0, final_fraction=0.0,
        beta2=0.999,
    ).update_rule  # fmt: skip
    key, width = jax.random.key(5), objective.backbone.config.width
    head = {"kernel": 0.02 * jax.random.normal(key, (width, 2)), "bias": jnp.zeros(2)}
    state, rng = jax.jit(rule.init)(head), np.random.default_rng(5)
    loss = loss_of(objective)

    @jax.jit
    def step(head, state, part, y):
        def of_head(head):
            return loss(params | {"task_head": head}, part, y, None)

        updates, state = rule.update(jax.grad(of_head)(head), state, head)
        return optax.apply_updates(head, updates), state

    for _ in range(2):
        order = rng.permutation(16)  # of rows that are all equally long
        for chosen in order.reshape(2, 8)[rng.permutation(2)]:
            head, state = step(head, state, rows_of(rows.ids[chosen]), y[chosen])
    for name in ("kernel", "bias"):
        np.testing.assert_allclose(got[name], head[name], rtol=1e-4, atol=1e-7)


def test_one_step_of_everything_is_the_optimizer_s(model, small):
    """Dropout is on, with a key for each row."""
    objective, params = model
    train, rows, y = small
    got = train.fit(rows, y, learning_rate=0.01, seed=1)
    rule = make_optimizer(
        total_steps=2, learning_rate=0.01, schedule="linear", warmup_steps=0, final_fraction=0.0,
        beta2=0.999,
    ).update_rule  # fmt: skip
    key = jax.random.key(1)
    head = {"kernel": 0.02 * jax.random.normal(key, (32, 2)), "bias": jnp.zeros(2)}
    before = {name: params[name] for name in objective.backbone.axes()} | {"task_head": head}
    order = np.random.default_rng(1).permutation(8)
    keys = jax.random.split(jax.random.fold_in(key, 0), 8)

    @jax.jit
    def step(before):
        loss = loss_of(objective)
        gradient = jax.grad(loss)(before, rows_of(rows.ids[order]), y[order], keys)
        return optax.apply_updates(before, rule.update(gradient, rule.init(before), before)[0])

    expected, got, start = flat(step(before)), flat(got), flat(before)
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        # Where the gradient is as good as 0, Adam's step is its sign, which rounding decides.
        np.testing.assert_allclose(np.median(np.abs(got[name] - value)), 0, atol=1e-6)
        moved = np.abs(got[name] - start[name]).max()
        assert moved < 0.0102 + 1e-4 * np.abs(start[name]).max()


def test_a_frozen_backbone_stays_bit_for_bit_and_the_head_moves(model, frozen):
    objective, params = model
    train, rows, y = frozen
    found = train.fit(rows, y, learning_rate=0.1, seed=0)
    for name in objective.backbone.axes():
        before, after = flat(params[name]), flat(found[name])
        assert all(np.array_equal(before[k], after[k]) for k in before)
    head = 0.02 * jax.random.normal(jax.random.key(0), (32, 2))
    assert np.abs(found["task_head"]["kernel"] - head).max() > 0.05


def test_a_seed_gives_the_same_bits_and_another_seed_other_ones(small):
    train, rows, y = small
    one, same, other = (
        flat(train.fit(rows, y, learning_rate=0.01, seed=seed)) for seed in (0, 0, 1)
    )
    assert all(np.array_equal(one[name], same[name]) for name in one)
    assert all(not np.array_equal(one[name], other[name]) for name in one if "kernel" in name)


def test_the_pretrained_parameters_are_left_as_they_are_and_all_of_them_are_trained(model, small):
    objective, params = model
    before = flat(params)
    train, rows, y = small
    after = flat(train.fit(rows, y, learning_rate=0.01, seed=0))
    assert all(np.array_equal(before[name], value) for name, value in flat(params).items())
    kernels = [name for name in after if "kernel" in name and "task_head" not in name]
    assert kernels and all(not np.array_equal(before[name], after[name]) for name in kernels)


def test_the_last_rows_that_fill_no_batch_wait_for_another_order(model):
    """11 rows, batches of 4: two steps an epoch, each of rows of that epoch's order."""
    train, seen = learner(model, rows=11, batch=4, epochs=6), []

    def step(trained, fixed, opt_state, rows, labels, keys, rate):
        seen.append(labels.tolist())
        assert rows.ids[:, 0].tolist() == labels.tolist() and len(set(labels.tolist())) == 4
        return trained, opt_state

    train._step = step
    ids = np.tile(np.arange(11)[:, None], (1, LENGTH))
    train.fit(rows_of(ids), np.arange(11), learning_rate=0.1, seed=0)
    assert len(seen) == 12
    assert all(len({*a, *b}) == 8 for a, b in zip(seen[::2], seen[1::2], strict=True))
    assert len({x for part in seen for x in part}) == 11


def test_the_rate_with_the_best_dev_value_is_chosen():
    values = {1e-5: 0.3, 2e-4: 0.7, 8e-4: 0.6}
    best, grid, what = chosen_rate([*values], lambda rate: (values[rate], f"at {rate}"))
    assert best == 2e-4 and what == "at 0.0002"
    assert grid == {"1e-05": 0.3, "0.0002": 0.7, "0.0008": 0.6}
    assert chosen_rate([1e-3], lambda rate: (-1.0, None)) == (1e-3, {"0.001": -1.0}, None)


def test_a_head_alone_has_ten_times_the_rates():
    settings = DownstreamSettings(learning_rates=[1e-4, 3e-4])
    assert rates(settings, frozen=False) == [1e-4, 3e-4]
    assert rates(settings, frozen=True) == pytest.approx([1e-3, 3e-3])


def test_batches_hold_rows_of_like_length_and_every_row_once():
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 130, 1000)
    found = batches(lengths, 8, np.random.default_rng(1))
    assert len(found) == 125 and sorted(np.concatenate(found).tolist()) == list(range(1000))
    spread = np.mean([np.ptp(lengths[chosen]) for chosen in found])
    assert spread < np.ptp(lengths) / 8
    # Short ones do not all come first.
    means = [lengths[chosen].mean() for chosen in found]
    assert abs(np.corrcoef(means, np.arange(125))[0, 1]) < 0.3
    again = batches(lengths, 8, np.random.default_rng(1))
    assert all((a == b).all() for a, b in zip(found, again, strict=True))


def test_batches_are_random_rows_of_like_length():
    lengths = np.random.default_rng(0).integers(1, 100, 330)
    one, two = (batches(lengths, 10, np.random.default_rng(seed)) for seed in (0, 1))
    assert [part.tolist() for part in one] != [part.tolist() for part in two]
    for found in (one, two):
        assert len(found) == 33 and len({*np.concatenate(found).tolist()}) == 330
        # A sixteenth of 160 sorted rows, but for the ten that are left at the end.
        spreads = np.array([np.ptp(lengths[part]) for part in found])
        assert np.median(spreads) < 15
    assert len(batches(lengths[:29], 10, np.random.default_rng(0))) == 2
