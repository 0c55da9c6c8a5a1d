"""What a compiled program is said to send and to move, and what `plan` makes of the configs."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxpretrain import hlo
from jaxpretrain.config import load
from jaxpretrain.errors import UserError
from jaxpretrain.main import main
from jaxpretrain.models.splash import splash_attention
from jaxpretrain.plan import (
    Plan,
    compiled,
    devices_of,
    executed_flops,
    for_platform,
    plan,
)
from jaxpretrain.sharding import Placement, make_mesh

CONFIGS = Path(__file__).parents[1] / "configs"
MESH = Mesh(np.array(jax.devices()).reshape(2, 4), ("a", "b"))


def program(function, *arguments, ins, outs):
    placed = [NamedSharding(MESH, PartitionSpec(*spec)) for spec in ins]
    out = NamedSharding(MESH, PartitionSpec(*outs))
    return jax.jit(function, in_shardings=placed, out_shardings=out).lower(*arguments).compile()


def groups(axis):
    numbers = np.arange(8).reshape(2, 4)
    return frozenset(frozenset(g) for g in (numbers if axis == "b" else numbers.T).tolist())


def test_a_collective_in_a_loop_counts_as_often_as_the_loop_runs():
    """Five products whose terms are spread over the devices: five all-reduces of the result."""

    def loop(x, w):
        def body(x, _):
            return jnp.tanh(jax.lax.with_sharding_constraint(x @ w, whole)), None

        return jax.lax.scan(body, x, None, length=5)[0]

    whole = NamedSharding(MESH, PartitionSpec(None, None))
    x, w = jnp.zeros((16, 32)), jnp.zeros((32, 32))
    done = program(loop, x, w, ins=[(None, None), (("a", "b"), None)], outs=(None, None))
    everyone = frozenset([frozenset(range(8))])
    found = [c for c in hlo.collectives(done.as_text(), 8) if c.kind == "all-reduce"]
    assert [(c.groups, c.runs, c.size) for c in found] == [(everyone, 5, 16 * 32 * 4)]
    assert found[0].sent == pytest.approx(5 * 2 * 7 / 8 * 16 * 32 * 4)


def test_a_gather_is_over_its_axis():
    x = jnp.zeros((64, 8))
    done = program(lambda x: x + 1, x, ins=[("a", None)], outs=(None, None))
    [found] = hlo.collectives(done.as_text(), 8)
    assert (found.kind, found.groups, found.runs) == ("all-gather", groups("a"), 1)
    assert found.sent == pytest.approx(64 * 8 * 4 / 2)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("replica_groups=[2,4]<=[8]", groups("b")),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", groups("a")),
        ("replica_groups={{0,1,2,3},{4,5,6,7}}, x={1}", groups("b")),
        ("replica_groups=mesh['x'=2,'y'=4] {'y'}, use", groups("b")),
        ("replica_groups=mesh['x'=2,'y'=4] {'x'}, use", groups("a")),
        ("source_target_pairs={{0,4},{4,0},{1,5},{5,1},{2,6},{6,2},{3,7},{7,3}}, y", groups("a")),
    ],
)
def test_groups_as_compilers_write_them(text, expected):
    assert hlo._groups(text, 8) == expected


def test_operations_are_counted_with_loops_and_recomputation():
    def loss(w, x):
        step = jax.checkpoint(lambda x, _: (jnp.tanh(x @ w), None))
        return jax.lax.scan(step, x, None, length=3)[0].sum()

    w, x = jnp.zeros((8, 8)), jnp.zeros((4, 8))
    once = 2 * 4 * 8 * 8
    forward = jax.make_jaxpr(loss)(w, x)
    assert executed_flops(forward.jaxpr) == 3 * once
    both = jax.make_jaxpr(jax.grad(loss, (0, 1)))(w, x)
    # Forward, forward again, and two products backward.
    assert executed_flops(both.jaxpr) == 3 * (1 + 1 + 2) * once


@pytest.mark.parametrize("devices", [1, 4])
def test_operations_of_a_kernel_are_those_of_its_tiles_on_all_devices(devices):
    rows, length, heads, width = 4, 256, 4, 64
    query = jax.ShapeDtypeStruct((rows, length, heads, width), jnp.bfloat16)
    key = jax.ShapeDtypeStruct((rows, length, 2, width), jnp.bfloat16)
    mesh = make_mesh(
        data=max(1, devices // 2), tensor=min(2, devices), devices=jax.devices()[:devices]
    )

    def loss(query, key, value):
        with Placement(mesh).of_activations():
            segments = jnp.ones((rows, length), jnp.int32)
            mixed = splash_attention(query, key, value, segments, causal=False, scale=1.0)
        return jnp.sum(mixed.astype(jnp.float32))

    traced = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1, 2)))(query, key, key)
    # Two products forward, five backward: the scores again, and four gradients.
    expected = 7 * 2 * rows * heads * length**2 * width
    assert executed_flops(traced.jaxpr) == pytest.approx(expected, rel=1e-3)


def test_memory_traffic_of_a_copy_and_of_a_slice():
    x = jnp.zeros((1000, 256))
    text = jax.jit(lambda x: x + 1.0).lower(x).compile().as_text()
    assert hlo.memory_traffic(text) == pytest.approx(2 * x.nbytes, rel=0.01)
    text = jax.jit(lambda x, i: jax.lax.dynamic_slice(x, (i, 0), (1, 256)) + 1.0)
    text = text.lower(x, 3).compile().as_text()
    assert hlo.memory_traffic(text) < x.nbytes / 50


def test_the_local_devices_can_be_planned_too(tiny_config_file, capsys):
    config = load(str(tiny_config_file), {"mesh.fsdp": "8", "mesh.data": "1"})
    [found] = plan(config, "")
    assert found.fits is None and found.peak > found.parameters > 0
    assert found.optimizer == pytest.approx(2 * found.parameters, rel=0.1)
    assert {axes for _, axes, _ in found.collectives} == {"fsdp"}
    assert found.flops >= found.model_flops > 0
    out = capsys.readouterr().out
    assert "8 x cpu" in out and "no roofline" in out and "all-gather" in out


has_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu: jaxpretrain[plan]"
)


@pytest.fixture
def plainly():
    """Compiles with XLA's optimisation off, in a third of the time."""
    before = jax.config.jax_optimization_level
    jax.config.update("jax_optimization_level", "O0")
    yield
    jax.config.update("jax_optimization_level", before)


@has_libtpu
@pytest.mark.parametrize(
    ("name", "topology", "billions"),
    # The larger on four of its chips, with fewer rows for each, which takes half the time to
    # compile for: a model that fits there fits on the whole.
    [("llama_1b", "v5e:4x4", 1.04), ("llama_8b", "v5p:2x2x1", 8.05)],
)
def test_the_example_configs_fit_their_slices(plainly, name, topology, billions):
    changes = {"data.batch_size": "12"} if name == "llama_8b" else {}
    config = for_platform(load(str(CONFIGS / f"{name}.py"), changes), "tpu")
    found = compiled(config, devices_of(topology))
    chips = int(np.prod(list(found.mesh.values())))
    parameters = found.parameters / 4 * chips
    assert parameters == pytest.approx(billions * 1e9, rel=0.01)
    assert found.fits and found.peak < 0.9 * found.chip.memory
    assert found.optimizer == pytest.approx(2 * found.parameters, rel=0.01)
    # What is expected of FSDP: in each microbatch the parameters are gathered in 16 bits, for the
    # forward pass, for its recomputation and for the backward pass, and gradients are summed.
    # Activations of a microbatch are as large as this, and are not among them:
    stream = config.data.batch_size * config.data.length * config.model.width * 2
    sent = sum(one.sent for _, _, one in found.collectives)
    assert sent < found.microbatches * 7 * 2 * 2 * parameters
    one_layer = max(config.model.width * config.tokenizer.vocab_size * 4, 1)
    for kind, axes, one in found.collectives:
        assert axes == "fsdp", (kind, axes)
        assert one.size <= one_layer < 4 * parameters / 2, (kind, one.size)
        assert one.size != stream // found.microbatches, kind
        assert kind != "collective-permute"  # of weights that are multiplied piece by piece


@has_libtpu
def test_search_ranks_what_fits(plainly, tiny_config_file, capsys):
    config = load(str(tiny_config_file), {"data.batch_size": "64", "data.length": "128"})
    best = plan(config, "v5e:2x2", search=2)
    assert len(best) == 2 and all(found.fits for found in best)
    times = [sum(found.seconds.values()) for found in best]
    assert times == sorted(times) and times[0] > 0
    assert "best first" in capsys.readouterr().out


def test_a_search_goes_on_until_enough_fits(tiny_config_file, monkeypatch, capsys):
    """With a stand-in for the compiler, to which nothing fits in fewer than four microbatches."""
    asked = []

    def stand_in(config, devices):
        asked.append(config.train.microbatches)
        mesh = {axis: config.mesh[axis] for axis in ("data", "fsdp", "tensor", "context")}
        fits = config.train.microbatches >= 4
        return Plan(mesh, asked[-1], fits, 1, 1, 1, 1, 1.0, 1.0, 1.0, [], None)

    monkeypatch.setattr("jaxpretrain.plan.compiled", stand_in)
    config = load(str(tiny_config_file), {"data.batch_size": "64"})
    best = plan(config, "", search=2)
    assert len(best) == 2 and all(found.microbatches >= 4 for found in best)
    # What was expected to need as much as one that did not fit was not tried.
    assert len(asked) <= 4 and "does not fit" in capsys.readouterr().out
    monkeypatch.setattr("jaxpretrain.plan.candidates", lambda *_: iter([({}, 1, 1.0)] * 9))
    monkeypatch.setattr("jaxpretrain.plan.with_layout", lambda config, *_: config)
    with pytest.raises(UserError, match="none of the 1 layouts that were compiled fits"):
        plan(config, "", search=2)


@has_libtpu
def test_what_does_not_fit_is_said_before_it_is_paid_for(plainly, tiny_config_file, capsys):
    """A vocabulary head on rows of 100 GB: the compiler itself gives up."""
    large = {"data.batch_size": "262144", "data.length": "2048", "model.width": "64"}
    config = load(str(tiny_config_file), large | {"model.max_length": "2048"})
    [found] = plan(config, "v5e:2x2")
    assert found.fits is False
    assert "does not fit" in capsys.readouterr().out


@has_libtpu
def test_between_slices_only_gradients_travel(plainly, tiny_config_file, capsys):
    """Two slices: parameters are divided within each, and `data` is between them."""
    overrides = {"mesh.data": "2", "mesh.fsdp": "4", "data.batch_size": "32"}
    overrides |= {"model.width": "256"}  # so that padding is of no account
    [found] = plan(load(str(tiny_config_file), overrides), "v5e:2x2", slices=2)
    assert found.mesh["data"] == 2 and found.mesh["fsdp"] == 4
    assert {axes for _, axes, _ in found.collectives} == {"fsdp", "slices"}
    across = [(kind, one) for kind, axes, one in found.collectives if axes == "slices"]
    assert {kind for kind, _ in across} == {"all-reduce"}
    # Each chip has a quarter of the gradient, in float32; a few sums besides.
    gradient = found.parameters
    assert gradient <= sum(one.sent for _, one in across) <= 1.25 * gradient
    assert found.seconds["between slices"] > 0
    out = capsys.readouterr().out
    assert "over slices" in out and "3.12e+09 to other slices" in out


@has_libtpu
def test_a_topology_that_does_not_exist_is_one_line(tiny_config_file, capsys):
    assert main(["plan", f"--config={tiny_config_file}", "--topology=v9z:3x3"]) == 2
    error = capsys.readouterr().err
    assert "there is no TPU topology 'v9z:3x3'" in error and "v5e:4x4" in error
