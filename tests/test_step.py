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
from jaxpretrain.step import jit_train_step, run_key
from jaxpretrain.types import Batch
from support.small import document_rows, progress_at, small_backbone, small_batch, small_vocab

VOCAB = small_vocab()
STEPS = 3
# SGD-like epsilon: Adam's first steps divide by the gradient's size, which would turn the rounding
# of a gradient near 0 into a step of full size.
OPTIMIZER = make_optimizer(
    total_steps=10, learning_rate=1e-2, warmup_steps=0, epsilon=1e-2, beta2=0.9
)
BACKBONE = small_backbone(VOCAB, dropout=0.1, token_types=2, layers=1, scan_layers="off")


def rows_of_step(number, objective):
    """Packed rows, or windows of documents with all lengths that there are."""
    make = small_batch if "packed" in objective.views else document_rows
    return make(number, VOCAB, rows=16, length=24)


def prepared(name, *, microbatches=1, data=1, fsdp=1, backbone=BACKBONE):
    """An objective, its compiled step, and how its state is placed."""
    placement = Placement(make_mesh(data=data, fsdp=fsdp, devices=jax.devices()[: data * fsdp]))
    objective = OBJECTIVES[name]().bind(backbone, VOCAB)
    abstract = abstract_state(objective, OPTIMIZER, placement)
    step = jit_train_step(
        objective,
        OPTIMIZER,
        abstract,
        placement,
        total_steps=10,
        microbatches=microbatches,
    )
    return (
        objective,
        step.lower(abstract, rows_of_step(0, objective), np.uint32(0)).compile(),
        abstract,
        placement,
    )


def run(made, steps=STEPS, seed=0):
    """Losses, gradient norms and final parameters of a few steps, dropout on."""
    objective, step, abstract, placement = made
    state, history = init_state(objective, OPTIMIZER, 0, abstract), []
    for number in range(steps):
        batch = rows_of_step(number, objective)
        batch = Batch(*(jax.device_put(x, placement.batch) for x in batch))
        state, metrics = step(state, batch, np.uint32(seed))
        history.append({key: float(value) for key, value in metrics.items()})
    return history, jax.device_get(state.params)


def test_fast_paths_change_nothing_but_rounding():
    """Blocks of the loss and written-out layers, against a loop and plain differentiation."""
    switches = {"dropout": 0.1, "token_types": 2, "layers": 2}
    plain = small_backbone(VOCAB, **switches, scan_layers="on", loss_block=0)
    fast = small_backbone(VOCAB, **switches, scan_layers="off", loss_block=37)
    slow_history, slow_params = run(prepared("clm", backbone=plain), steps=6)
    fast_history, fast_params = run(prepared("clm", backbone=fast), steps=6)
    for a, b in zip(slow_history, fast_history, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=3e-6)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=3e-5)
        assert b["accuracy"] == a["accuracy"]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=5e-6), slow_params, fast_params
    )


# With few slots, paired rows and two terms; tests/objectives/test_contract.py has the others on
# eight devices.
NAME = "bert"


@pytest.fixture(scope="module")
def whole():
    made = prepared(NAME)
    return made, *run(made)


def test_microbatches_and_devices_change_nothing(whole):
    """Microbatches with different numbers of tokens: a mean of means would differ."""
    (objective, *_), history, params = whole
    other, other_params = run(prepared(NAME, data=2, fsdp=4, microbatches=2))
    # Sums of float32 in another order: 2 ** -24 relative to each term, hundreds of terms.
    for a, b in zip(history, other, strict=True):
        assert a["predicted"] == b["predicted"]
        assert b["loss"] == pytest.approx(a["loss"], rel=2e-6)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=2e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-6), params, other_params
    )
    make = jax.jit(partial(objective.example, train=True, progress=progress_at(0.0)))
    for number, metrics in enumerate(history):
        example, _ = make(rows_of_step(number, objective), run_key(0))
        parts = np.sum(split_rows(np.asarray(example.weights), 2), (1, 2))
        assert parts[0] != parts[1] and parts.sum() == metrics["predicted"]


def test_masks_and_dropout_follow_the_seed(whole):
    """From the same parameters and rows; `init_state` above has a seed of its own."""
    made, history, _ = whole
    assert run(made, steps=1, seed=1)[0][0]["loss"] != history[0]["loss"]


def test_a_step_writes_the_new_state_over_the_old(whole):
    """All of it but the counts of steps is donated, so that no second copy of it exists."""
    (_, compiled, abstract, _), *_ = whole
    arrays = [leaf for leaf in jax.tree.leaves(abstract) if leaf.ndim]
    bytes_of_state = sum(leaf.size * leaf.dtype.itemsize for leaf in arrays)
    assert compiled.memory_analysis().alias_size_in_bytes >= bytes_of_state


def test_fsdp_divides_parameters_and_moments_by_the_devices():
    objective = OBJECTIVES["clm"]().bind(BACKBONE, VOCAB)
    abstract = abstract_state(objective, OPTIMIZER, Placement(make_mesh(fsdp=8, data=1)))
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
