"""The train step against itself: microbatches, devices and placements give one answer."""

from functools import partial

import jax
import numpy as np
import pytest

from jaxpretrain.objectives import OBJECTIVES
from jaxpretrain.objectives.base import split_rows
from jaxpretrain.optim import make_optimizer
from jaxpretrain.sharding import Placement, make_mesh
from jaxpretrain.state import abstract_state, init_state
from jaxpretrain.step import eval_step, jit_train_step
from jaxpretrain.types import Batch
from support.small import small_backbone, small_batch, small_vocab

VOCAB = small_vocab()
STEPS = 3


BACKBONE = small_backbone(VOCAB, dropout=0.1, token_types=2, layers=1, scan_layers="off")


def run(name, *, microbatches=1, data=1, fsdp=1, steps=STEPS, seed=0, backbone=BACKBONE):
    """Losses, gradient norms and final parameters of a few steps, dropout on."""
    placement = Placement(make_mesh(data=data, fsdp=fsdp, devices=jax.devices()[: data * fsdp]))
    objective = OBJECTIVES[name]().bind(backbone, VOCAB)
    # SGD-like epsilon: Adam's first steps divide by the gradient's size, which would turn the
    # rounding of a gradient near 0 into a step of full size.
    optimizer = make_optimizer(
        total_steps=10, learning_rate=1e-2, warmup_steps=0, epsilon=1e-2, beta2=0.9
    )
    abstract = abstract_state(objective, optimizer, placement)
    state = init_state(objective, optimizer, 0, abstract)
    step = jit_train_step(
        objective,
        optimizer,
        abstract,
        placement,
        total_steps=10,
        microbatches=microbatches,
    )
    history = []
    for number in range(steps):
        batch = small_batch(number, VOCAB, rows=16, length=24, view=objective.views[0])
        batch = Batch(*(jax.device_put(x, placement.batch) for x in batch))
        state, metrics = step(state, batch, np.uint32(seed))
        history.append({key: float(value) for key, value in metrics.items()})
    return history, jax.device_get(state.params), abstract


def test_a_step_writes_the_new_state_over_the_old():
    """All of it but the counts of steps is donated, so that no second copy of it exists."""
    placement = Placement(make_mesh(devices=jax.devices()[:1]))
    objective = OBJECTIVES["clm"]().bind(BACKBONE, VOCAB)
    optimizer = make_optimizer(total_steps=10, warmup_steps=0)
    abstract = abstract_state(objective, optimizer, placement)
    settings = {"total_steps": 10, "microbatches": 1}
    step = jit_train_step(objective, optimizer, abstract, placement, **settings)
    batch = small_batch(0, VOCAB, rows=2, length=24, view=objective.views[0])
    compiled = step.lower(abstract, batch, np.uint32(0)).compile()
    arrays = [leaf for leaf in jax.tree.leaves(abstract) if leaf.ndim]
    bytes_of_state = sum(leaf.size * leaf.dtype.itemsize for leaf in arrays)
    assert compiled.memory_analysis().alias_size_in_bytes >= bytes_of_state


@pytest.mark.parametrize("name", ["clm", "mlm"])
def test_fast_paths_change_nothing_but_rounding(name):
    """Blocks of the loss and written-out layers, against a loop and plain differentiation."""
    switches = {"dropout": 0.1, "token_types": 2, "layers": 3}
    plain = small_backbone(VOCAB, **switches, scan_layers="on", loss_block=0)
    fast = small_backbone(VOCAB, **switches, scan_layers="off", loss_block=37)
    slow_history, slow_params, _ = run(name, backbone=plain, steps=6)
    fast_history, fast_params, _ = run(name, backbone=fast, steps=6)
    for a, b in zip(slow_history, fast_history, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=3e-6)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=3e-5)
        assert b["accuracy"] == a["accuracy"]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=5e-6), slow_params, fast_params
    )


# One with few slots, one with paired rows and two terms.
# tests/objectives/test_contract.py has all of them on eight devices.
SOME = ["mlm", "bert"]


@pytest.fixture(scope="module", params=SOME)
def whole(request):
    return request.param, *run(request.param)[:2]


def test_microbatches_and_devices_change_nothing(whole):
    name, history, params = whole
    other, other_params, _ = run(name, data=2, fsdp=4, microbatches=2)
    # Sums of float32 in another order: 2 ** -24 relative to each term, hundreds of terms.
    for a, b in zip(history, other, strict=True):
        assert a["predicted"] == b["predicted"]
        assert b["loss"] == pytest.approx(a["loss"], rel=2e-6)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=2e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-6), params, other_params
    )


def test_masks_and_dropout_follow_the_seed(whole):
    """From the same parameters and rows; `init_state` above has a seed of its own."""
    name, history, _ = whole
    assert run(name, steps=1, seed=1)[0][0]["loss"] != history[0]["loss"]


def test_the_loss_weighs_tokens_not_microbatches():
    """Microbatches with different numbers of tokens: a mean of means would differ."""
    (history, _, _), (whole, _, _) = (run("clm", microbatches=n, steps=1) for n in (4, 1))
    batch = small_batch(0, VOCAB, rows=16, length=24)
    objective = OBJECTIVES["clm"]().bind(small_backbone(VOCAB), VOCAB)
    params = objective.init(jax.random.key(0))
    parts = jax.tree.map(lambda x: split_rows(x, 4), batch)
    evaluate = jax.jit(partial(eval_step, objective=objective))
    rows = [jax.tree.map(lambda x, part=part: x[part], parts) for part in range(4)]
    weights = [float(evaluate(params, part)[0]["loss"].weight) for part in rows]
    assert len(set(weights)) > 1
    assert history[0]["predicted"] == sum(weights)
    assert history[0]["loss"] == pytest.approx(whole[0]["loss"], rel=2e-6)
    assert history[0]["grad_norm"] == pytest.approx(whole[0]["grad_norm"], rel=2e-5)


def test_fsdp_divides_parameters_and_moments_by_the_devices():
    _, _, abstract = run("clm", fsdp=8, steps=0)
    kernel = abstract.params["stack"]["blocks"]["mlp"]["up"]["kernel"]
    assert kernel.sharding.spec == jax.sharding.PartitionSpec(None, "fsdp", None)
    moments = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(abstract.opt_state)
        if leaf.shape == kernel.shape
    ]
    assert len(moments) == 2
    assert {m.sharding.shard_shape(m.shape) for m in moments} == {(1, 4, 128)}
    scale = abstract.params["stack"]["final_norm"]["scale"]
    assert scale.sharding.spec == jax.sharding.PartitionSpec(None)


def test_split_rows_keeps_every_row_and_stays_on_its_device():
    rows = np.arange(24).reshape(12, 2)
    parts = np.asarray(split_rows(rows, 3))
    assert parts.shape == (3, 4, 2)
    assert sorted(parts[..., 0].ravel()) == sorted(rows[:, 0])
    # With 4 devices of 3 rows each, every part has one row of every device.
    np.testing.assert_array_equal(parts[:, :, 0] // 6, np.tile(np.arange(4), (3, 1)))
