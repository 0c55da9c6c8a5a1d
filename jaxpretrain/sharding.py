"""Where arrays live: the device mesh and the rules from logical axis names to mesh axes."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxpretrain.errors import UserError

# Rows of a batch are divided over both axes; fsdp also divides parameters and optimizer state
# (ZeRO-3: Rajbhandari et al. 2020, arXiv:1910.02054).
MESH_AXES = ("data", "fsdp")
BATCH_SPEC = PartitionSpec(MESH_AXES)

# Logical axis of a parameter -> mesh axis; "" leaves it whole.
DEFAULT_RULES = {
    "layers": "",
    "vocab": "",
    "positions": "",
    "types": "",
    "buckets": "",
    "embed": "fsdp",
    "width": "fsdp",
    "heads": "",
    "kv_heads": "",
    "head": "",
    "mlp": "",
    "norm": "",
    "classes": "",
}


def make_mesh(*, data: int = -1, fsdp: int = 1, devices: list | None = None) -> Mesh:
    """A mesh over all the devices.

    Args:
        data: devices along the data-parallel axis; -1 takes what `fsdp` leaves.
        fsdp: devices along the axis that also divides parameters; -1 takes what `data` leaves.
        devices: the devices; None means all of JAX's.

    Raises:
        UserError: the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {"data": data, "fsdp": fsdp}
    free = [name for name, size in sizes.items() if size == -1]
    if any(size == 0 or size < -1 for size in sizes.values()) or len(free) > 1:
        raise UserError(
            f"mesh.data is {data} and mesh.fsdp {fsdp}: sizes are at least 1, and at most one "
            "may be -1 for 'all the rest'"
        )
    fixed = int(np.prod([size for size in sizes.values() if size != -1]))
    if free and len(devices) % fixed == 0:
        sizes[free[0]] = len(devices) // fixed
    if int(np.prod(list(sizes.values()))) != len(devices):
        raise UserError(
            f"mesh.data is {data} and mesh.fsdp {fsdp}, and there are {len(devices)} devices: "
            "the sizes must multiply to the number of devices"
        )
    shape = tuple(sizes[name] for name in MESH_AXES)
    return Mesh(np.asarray(devices).reshape(shape), MESH_AXES)


def check_batch(mesh: Mesh, batch_size: int, microbatches: int) -> None:
    """Raises UserError unless the rows of a step divide over microbatches and devices."""
    if microbatches < 1:
        raise UserError(f"train.microbatches is {microbatches}: it must be at least 1")
    if batch_size < 1:
        raise UserError(f"data.batch_size is {batch_size}: it must be at least 1")
    if batch_size % (microbatches * mesh.size):
        raise UserError(
            f"data.batch_size is {batch_size}, which does not divide over {mesh.size} devices x "
            f"{microbatches} microbatches: make it a multiple of {mesh.size * microbatches}"
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows divided over all the devices."""
    return NamedSharding(mesh, BATCH_SPEC)


def parameter_shardings(
    mesh: Mesh, axes: dict, shapes: dict, rules: Mapping[str, str] = DEFAULT_RULES
) -> dict:
    """A NamedSharding for every parameter.

    Args:
        mesh: the mesh.
        axes: tree of tuples of logical axis names, as `Objective.axes` gives it.
        shapes: tree of the same structure, of things that have a ``shape``.
        rules: logical axis to mesh axis, or to "" for none.

    Returns:
        A tree of NamedSharding. An axis whose size does not divide is left whole, and a mesh axis
        is used once in an array, by the first logical axis that asks for it.

    Raises:
        UserError: a rule names no axis of the mesh.
    """
    for logical, physical in rules.items():
        if physical and physical not in mesh.axis_names:
            raise UserError(
                f"mesh.rules.{logical} is {physical!r}: it must be one of {list(mesh.axis_names)}, "
                "or empty to leave the axis whole"
            )

    def place(names: tuple[str, ...], array: Any) -> NamedSharding:
        spec: list[str | None] = []
        for name, size in zip(names, array.shape, strict=True):
            axis = rules.get(name)
            free = axis and axis not in spec and size % mesh.shape[axis] == 0
            spec.append(axis if free else None)
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(place, axes, shapes, is_leaf=lambda node: isinstance(node, tuple))
