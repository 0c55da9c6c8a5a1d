import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpretrain.errors import UserError
from jaxpretrain.optim import is_matrix, make_optimizer
from support.small import small_backbone, small_vocab


def test_adamw_is_its_published_algorithm():
    """Loshchilov & Hutter 2019, algorithm 2, in float64, with clipping before it."""
    settings = {"beta1": 0.8, "beta2": 0.95, "epsilon": 1e-3, "weight_decay": 0.1, "clip_norm": 1.0}
    optimizer = make_optimizer(
        total_steps=10, learning_rate=0.05, schedule="constant", warmup_steps=0, **settings
    )
    rng = np.random.default_rng(0)
    params = {"kernel": rng.normal(size=(3, 2)), "bias": rng.normal(size=2)}
    state = optimizer.update_rule.init(jax.tree.map(jnp.float32, params))
    ours = jax.tree.map(jnp.float32, params)
    m = {k: np.zeros_like(v) for k, v in params.items()}
    v = {k: np.zeros_like(x) for k, x in params.items()}
    for t in range(1, 6):
        g = {k: 3 * rng.normal(size=x.shape) for k, x in params.items()}
        updates, state = optimizer.update_rule.update(jax.tree.map(jnp.float32, g), state, ours)
        ours = jax.tree.map(jnp.add, ours, updates)
        norm = np.sqrt(sum((x**2).sum() for x in g.values()))
        for k in params:
            clipped = g[k] / max(1.0, norm)
            m[k] = 0.8 * m[k] + 0.2 * clipped
            v[k] = 0.95 * v[k] + 0.05 * clipped**2
            step = (m[k] / (1 - 0.8**t)) / (np.sqrt(v[k] / (1 - 0.95**t)) + 1e-3)
            decay = 0.1 * params[k] if k == "kernel" else 0.0
            params[k] = params[k] - 0.05 * (step + decay)
    for k in params:
        np.testing.assert_allclose(ours[k], params[k], rtol=1e-5, atol=1e-6)


def test_the_first_moment_can_be_stored_in_16_bits():
    """As optax has it: what is stored is rounded, and so are its decay and product."""

    def rounded(x):
        return np.asarray(jnp.bfloat16(x), np.float32)

    optimizer = make_optimizer(
        total_steps=10,
        learning_rate=0.05,
        schedule="constant",
        warmup_steps=0,
        weight_decay=0.0,
        clip_norm=0.0,
        first_moment="bfloat16",
    )
    params = {"kernel": jnp.zeros(64)}
    state = optimizer.update_rule.init(params)
    gradients = np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32)
    first, second = np.zeros(64, np.float32), np.zeros(64, np.float32)
    for step, gradient in enumerate(gradients, start=1):
        update, state = optimizer.update_rule.update({"kernel": gradient}, state, params)
        first = rounded(rounded(0.9) * rounded(first)) + 0.1 * gradient
        second = 0.98 * second + 0.02 * gradient**2
        corrected = first / (1 - 0.9**step), second / (1 - 0.98**step)
        expected = -0.05 * corrected[0] / (np.sqrt(corrected[1]) + 1e-6)
        np.testing.assert_allclose(update["kernel"], expected, rtol=1e-5, atol=1e-8)
    kinds = {leaf.dtype.name for leaf in jax.tree.leaves(state) if leaf.ndim}
    assert kinds == {"bfloat16", "float32"}


def test_only_matrices_decay():
    backbone = small_backbone(small_vocab(), biases=True, positions="learned", head_bias=True)
    params = jax.eval_shape(backbone.init, jax.random.key(0))
    flat = jax.tree_util.tree_leaves_with_path(is_matrix(params))
    decayed = {jax.tree_util.keystr(path) for path, value in flat if value}
    assert decayed == {
        "['tokens']['embedding']",
        "['positions']['embedding']",
        *(
            f"['stack']['blocks']['attention']['{n}']['kernel']"
            for n in ("query", "key", "value", "output")
        ),
        *(f"['stack']['blocks']['mlp']['{n}']['kernel']" for n in ("up", "down")),
    }


@pytest.mark.parametrize(
    ("schedule", "points"),
    [
        ("cosine", {0: 0, 5: 0.5, 10: 1, 60: 0.55, 110: 0.1}),
        ("linear", {0: 0, 10: 1, 60: 0.55, 110: 0.1}),
        ("wsd", {0: 0, 10: 1, 60: 1, 88: 1, 99: 0.55, 110: 0.1}),
        ("constant", {0: 0, 5: 0.5, 10: 1, 110: 1}),
    ],
)
def test_schedules_pass_through_their_points(schedule, points):
    optimizer = make_optimizer(
        total_steps=110, learning_rate=2.0, schedule=schedule, warmup_steps=10, decay_fraction=0.2
    )
    for step, share in points.items():
        assert float(optimizer.schedule(step)) == pytest.approx(2.0 * share, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize(
    ("settings", "numbers"),
    [
        ({"warmup_steps": 100}, ("100", "50")),
        ({"learning_rate": 0.0}, ("0.0",)),
        ({"beta2": 1.0}, ("1.0",)),
        ({"clip_norm": -1.0}, ("-1.0",)),
        ({"final_fraction": 1.5}, ("1.5",)),
    ],
)
def test_impossible_values_are_refused(settings, numbers):
    with pytest.raises(UserError) as error:
        make_optimizer(**{"total_steps": 50, "warmup_steps": 5} | settings)
    assert all(number in str(error.value) for number in numbers)
