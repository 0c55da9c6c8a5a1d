"""The mesh, the rules, and that no mesh changes what is computed."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxpretrain.errors import UserError
from jaxpretrain.objectives import OBJECTIVES
from jaxpretrain.sharding import MESH_AXES, Placement, check_batch, make_mesh
from jaxpretrain.step import gradient_and_sums, progress_at
from support.small import small_backbone, small_batch, small_vocab

ARRAYS = {
    "a": np.zeros((2, 8, 16)),
    "b": np.zeros((6, 8)),
    "c": np.zeros(8),
    "d": np.zeros((8, 8)),
}
AXES = {
    "a": ("layers", "width", "mlp"),
    "b": ("width", "mlp"),
    "c": ("norm",),
    "d": ("width", "embed"),
}


def shape(**sizes):
    return dict.fromkeys(MESH_AXES, 1) | sizes


def test_mesh_takes_all_the_devices():
    assert dict(make_mesh().shape) == shape(data=8)
    assert dict(make_mesh(fsdp=4).shape) == shape(data=2, fsdp=4)
    assert dict(make_mesh(data=2, fsdp=-1).shape) == shape(data=2, fsdp=4)
    assert dict(make_mesh(tensor=2, context=2).shape) == shape(data=2, tensor=2, context=2)


@pytest.mark.parametrize("sizes", [(3, 1), (-1, 3), (-1, -1), (0, 8), (16, 1)])
def test_sizes_that_do_not_fit_the_devices_are_refused(sizes):
    with pytest.raises(UserError, match=f"mesh.data {sizes[0]}, mesh.fsdp {sizes[1]}, mesh.tensor"):
        make_mesh(data=sizes[0], fsdp=sizes[1])


@dataclass(frozen=True)
class StandIn:
    """A device that is nowhere."""

    id: int
    slice_index: int
    platform: str = "gpu"
    device_kind: str = "stand-in"


def slices(number, each):
    """The devices of several slices, in an order that mixes them."""
    return [StandIn(id=i, slice_index=i % number) for i in range(number * each)]


@pytest.mark.parametrize(
    ("sizes", "slow"),
    [
        ((4, 2, 1, 1), {"data": 2}),
        ((2, 1, 2, 2), {"data": 2}),
        ((1, 4, 2, 1), {"fsdp": 2}),
        ((4, 1, 1, 2), {"data": 4}),
        ((2, 2, 2, 1), {"data": 2, "fsdp": 2}),
    ],
)
def test_slices_are_told_apart_by_the_outer_part_of_data_then_of_fsdp(sizes, slow):
    across = int(np.prod(list(slow.values())))
    grid = make_mesh(
        **dict(zip(MESH_AXES, sizes, strict=True)), devices=slices(across, 8 // across)
    ).devices
    assert grid.shape == sizes and len({device.id for device in grid.flat}) == 8
    number = np.vectorize(lambda device: device.slice_index)(grid)
    data, fsdp = (slow.get(axis, 1) for axis in ("data", "fsdp"))
    block = number.reshape(data, sizes[0] // data, fsdp, sizes[1] // fsdp, *sizes[2:])
    assert (block == np.arange(across).reshape(data, 1, fsdp, 1, 1, 1)).all()


def test_an_axis_that_talks_in_every_layer_does_not_leave_its_slice():
    with pytest.raises(
        UserError, match="2 slices or nodes: make mesh.data or mesh.fsdp a multiple"
    ):
        make_mesh(data=1, tensor=8, devices=slices(2, 4))


def test_batch_must_divide():
    placement = Placement(make_mesh())
    check_batch(placement, 32, 4)
    with pytest.raises(UserError, match="30.*8 devices .* x 2 microbatches.*multiple of 16"):
        check_batch(placement, 30, 2)
    check_batch(Placement(make_mesh(tensor=4)), 2, 1)  # rows are not divided over `tensor`


def test_rules_place_each_axis_once_and_only_where_it_divides():
    mesh = make_mesh(data=2, fsdp=4)
    placed = Placement(mesh, {"width": "fsdp", "embed": "fsdp"}).parameters(AXES, ARRAYS)
    assert placed["a"].spec == P(None, "fsdp", None)
    assert placed["b"].spec == P(None, None)  # 6 does not divide by 4
    assert placed["c"].spec == P(None)
    assert placed["d"].spec == P("fsdp", None)  # one mesh axis once
    placed = Placement(mesh, {"mlp": "data", "width": "fsdp"}).parameters(AXES, ARRAYS)
    assert placed["a"].spec == P(None, "fsdp", "data")
    placed = Placement(mesh, {"mlp": "data,fsdp"}).parameters(AXES, ARRAYS)
    assert placed["a"].spec == P(None, None, ("data", "fsdp"))
    none = Placement(mesh, {}).parameters(AXES, ARRAYS)
    assert all(s.is_fully_replicated for s in jax.tree.leaves(none))


def test_a_rule_for_no_axis_of_the_mesh_is_refused():
    with pytest.raises(UserError, match="mesh.rules.width is 'rows'"):
        Placement(make_mesh(), {"width": "rows"})


# One with a slot per position, one with few slots, one with an encoder and a decoder, and one that
# compares all the rows; tests/objectives/test_contract.py has the others on one of the meshes.
VOCAB = small_vocab()
SOME = {
    "clm": {},
    "mlm": {},
    "span_corruption": {"decoder_layers": 1, "positions": "relative"},
    "simcse": {"dropout": 0.1},
}
# Each on one that divides parameters, heads and positions at once, and each mesh with one of them.
ALL_AXES = (1, 2, 2, 2)
MESHES = {
    "clm": [ALL_AXES, (1, 8, 1, 1), (2, 1, 1, 4)],
    "mlm": [ALL_AXES, (1, 2, 4, 1)],
    "span_corruption": [ALL_AXES, (2, 2, 2, 1)],
    "simcse": [ALL_AXES, (8, 1, 1, 1)],
}


class Case:
    """An objective, its parameters and a batch."""

    def __init__(self, name):
        # Blocks of the loss that the tokens of a device do not divide into.
        switches = {"layers": 1, "heads": 4, "scan_layers": "off", "loss_block": 7} | SOME[name]
        self.objective = OBJECTIVES[name]().bind(small_backbone(VOCAB, **switches), VOCAB)
        self.params = jax.device_get(self.objective.init(jax.random.key(0)))
        self.batch = small_batch(0, VOCAB, rows=16, length=32, view=self.objective.views[0])
        self.on_one_device = self.gradient_and_loss((1, 1, 1, 1))

    def gradient_and_loss(self, sizes):
        devices = jax.devices()[: int(np.prod(sizes))]
        placement = Placement(
            make_mesh(**dict(zip(MESH_AXES, sizes, strict=True)), devices=devices)
        )

        def compute(params, batch):
            with placement.of_activations():
                gradient, sums, _ = gradient_and_sums(
                    params,
                    batch,
                    objective=self.objective,
                    coefficients={"loss": 1.0},
                    seed=0,
                    progress=progress_at(jnp.int32(0), 10),
                    microbatches=1,
                )
            return gradient, sums["loss"]

        params = placement.parameters(self.objective.axes(), self.params)
        both = jax.jit(
            compute,
            in_shardings=(params, placement.batch),
            out_shardings=(params, placement.whole),
        )
        return jax.device_get(both(self.params, self.batch))


@pytest.fixture(scope="module")
def case(request):
    return Case(request.param)


@pytest.mark.parametrize(
    ("case", "sizes"),
    [(name, sizes) for name, several in MESHES.items() for sizes in several],
    indirect=["case"],
    ids=str,
)
def test_no_mesh_changes_the_loss_or_its_gradient(case, sizes):
    """To the rounding of float32 sums in another order."""
    gradient, loss = case.on_one_device
    other, other_loss = case.gradient_and_loss(sizes)
    assert other_loss.weight == loss.weight
    np.testing.assert_allclose(other_loss.total, loss.total, rtol=2e-6)
    scale = np.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(gradient)))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * scale), gradient, other
    )


def test_activations_are_divided_as_the_rules_say():
    """Their memory on a device: what each of eight holds is a small part of the whole."""
    memory = {}
    for sizes in ((1, 1, 1, 1), (1, 1, 2, 4)):
        mesh = make_mesh(
            **dict(zip(MESH_AXES, sizes, strict=True)), devices=jax.devices()[: int(np.prod(sizes))]
        )
        placement = Placement(mesh)
        backbone = small_backbone(VOCAB, heads=4, layers=8, width=64, scan_layers="on")
        objective = OBJECTIVES["clm"]().bind(backbone, VOCAB)
        params = placement.parameters(
            objective.axes(), jax.eval_shape(partial(objective.init, jax.random.key(0)))
        )
        batch = small_batch(0, VOCAB, rows=8, length=256)

        def loss(params, batch, objective=objective, placement=placement):
            with placement.of_activations():
                example, keys = objective.example(
                    batch, jax.random.key(0), train=True, progress=progress_at(jnp.int32(0), 10)
                )
                return objective.loss(params, example, keys, train=True, progress=None)["loss"][0]

        compiled = (
            jax.jit(jax.grad(loss), in_shardings=(params, placement.batch), out_shardings=params)
            .lower(jax.eval_shape(partial(objective.init, jax.random.key(0))), batch)
            .compile()
        )
        memory[sizes] = compiled.memory_analysis().temp_size_in_bytes
    whole = memory.pop((1, 1, 1, 1))
    for sizes, bytes_ in memory.items():
        assert bytes_ < whole / 4, (sizes, bytes_, whole)
