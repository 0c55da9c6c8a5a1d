import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxpretrain.errors import UserError
from jaxpretrain.sharding import check_batch, make_mesh, parameter_shardings

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


def test_mesh_takes_all_the_devices():
    assert dict(make_mesh().shape) == {"data": 8, "fsdp": 1}
    assert dict(make_mesh(fsdp=4).shape) == {"data": 2, "fsdp": 4}
    assert dict(make_mesh(data=2, fsdp=-1).shape) == {"data": 2, "fsdp": 4}


@pytest.mark.parametrize("sizes", [(3, 1), (-1, 3), (-1, -1), (0, 8), (16, 1)])
def test_sizes_that_do_not_fit_the_devices_are_refused(sizes):
    with pytest.raises(UserError, match="mesh.data is"):
        make_mesh(data=sizes[0], fsdp=sizes[1])


def test_batch_must_divide():
    mesh = make_mesh()
    check_batch(mesh, 32, 4)
    with pytest.raises(UserError, match="30.*8 devices x 2 microbatches.*multiple of 16"):
        check_batch(mesh, 30, 2)


def test_rules_place_each_axis_once_and_only_where_it_divides():
    mesh = make_mesh(data=2, fsdp=4)
    placed = parameter_shardings(mesh, AXES, ARRAYS, {"width": "fsdp", "embed": "fsdp"})
    assert placed["a"].spec == P(None, "fsdp", None)
    assert placed["b"].spec == P(None, None)  # 6 does not divide by 4
    assert placed["c"].spec == P(None)
    assert placed["d"].spec == P("fsdp", None)  # one mesh axis once
    placed = parameter_shardings(mesh, AXES, ARRAYS, {"mlp": "data", "width": "fsdp"})
    assert placed["a"].spec == P(None, "fsdp", "data")
    none = parameter_shardings(mesh, AXES, ARRAYS, {})
    assert all(s.is_fully_replicated for s in jax.tree.leaves(none))


def test_a_rule_for_no_axis_of_the_mesh_is_refused():
    with pytest.raises(UserError, match="mesh.rules.width is 'rows'"):
        parameter_shardings(make_mesh(), AXES, ARRAYS, {"width": "rows"})
