"""Where arrays live: the device mesh and the rules from logical axis names to mesh axes."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxpretrain.errors import UserError
from jaxpretrain.models.placement import placed_by
from jaxpretrain.types import Array

# Rows are divided over `data` and `fsdp`; `fsdp` also divides parameters and optimizer state
# (ZeRO-3: Rajbhandari et al. 2020, arXiv:1910.02054); `tensor` divides heads, hidden units and the
# vocabulary (Shoeybi et al. 2019, arXiv:1909.08053); `context` divides the positions of a row, all
# keys and values of which are gathered (Llama 3: Grattafiori et al. 2024, arXiv:2407.21783).
MESH_AXES = ("data", "fsdp", "tensor", "context")

# Logical axis of a parameter or an activation -> mesh axes, with commas between; "" leaves it
# whole.
DEFAULT_RULES = {
    "rows": "data,fsdp",
    "length": "context",
    "layers": "",
    "vocab": "tensor",
    "positions": "",
    "types": "",
    "buckets": "",
    "embed": "fsdp",
    "width": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "head": "",
    "mlp": "tensor",
    "norm": "",
    "classes": "",
}


def make_mesh(
    *,
    data: int = -1,
    fsdp: int = 1,
    tensor: int = 1,
    context: int = 1,
    devices: Sequence[Any] | None = None,
) -> Mesh:
    """A mesh over all the devices, with `data` on the slowest network.

    Where the devices are several TPU slices or several nodes of GPUs, `data` is spread over these
    as far as it goes, then `fsdp`; `tensor` and `context`, which talk in every layer, stay inside.

    Args:
        data: devices along the data-parallel axis; -1 takes what the others leave.
        fsdp: devices along the axis that also divides parameters; -1 as for `data`.
        tensor: devices that share heads, hidden units and the vocabulary; -1 as for `data`.
        context: devices that share the positions of a row; -1 as for `data`.
        devices: the devices; None means all of JAX's.

    Raises:
        UserError: the axes do not multiply to the number of devices, or do not fit the slices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = dict(zip(MESH_AXES, (data, fsdp, tensor, context), strict=True))
    asked = ", ".join(f"mesh.{name} {size}" for name, size in sizes.items())
    free = [name for name, size in sizes.items() if size == -1]
    if any(size == 0 or size < -1 for size in sizes.values()) or len(free) > 1:
        raise UserError(
            f"{asked}: sizes are at least 1, and at most one may be -1 for 'all the rest'"
        )
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if free and len(devices) % fixed == 0:
        sizes[free[0]] = len(devices) // fixed
    if math.prod(sizes.values()) != len(devices):
        raise UserError(
            f"{asked}, and there are {len(devices)} devices: the sizes must multiply to the "
            "number of devices"
        )
    slices = sorted({slice_of(device) for device in devices})
    across = dict.fromkeys(MESH_AXES, 1)
    across["data"] = math.gcd(sizes["data"], len(slices))
    across["fsdp"] = math.gcd(sizes["fsdp"], len(slices) // across["data"])
    if math.prod(across.values()) != len(slices):
        raise UserError(
            f"{asked}, and the devices are {len(slices)} slices or nodes: make mesh.data or "
            f"mesh.fsdp a multiple of {len(slices)}, so that mesh.tensor and mesh.context stay "
            "inside of one"
        )
    within = tuple(sizes[name] // across[name] for name in MESH_AXES)
    split = {"allow_split_physical_axes": True}
    if len(slices) == 1:
        grid = mesh_utils.create_device_mesh(within, devices, **split)
    else:
        slow = tuple(across.values())
        grid = mesh_utils.create_hybrid_device_mesh(within, slow, devices, **split)
    return Mesh(grid, MESH_AXES)


def slice_of(device: Any) -> int:
    """Number of the TPU slice, or of the node of GPUs, that a device is in."""
    return getattr(device, "slice_index", None) or 0


class Placement:
    """A mesh, and the rules that place arrays on it by the names of their axes.

    Args:
        mesh: as `make_mesh` makes it.
        rules: logical axis to mesh axes, separated by commas, or to "" for none.

    Raises:
        UserError: a rule names no axis of the mesh.
    """

    def __init__(self, mesh: Mesh, rules: Mapping[str, str] = DEFAULT_RULES):
        self.mesh = mesh
        self._rules = {}
        for logical, physical in rules.items():
            names = tuple(name.strip() for name in physical.split(",") if name.strip())
            if set(names) - set(mesh.axis_names):
                raise UserError(
                    f"mesh.rules.{logical} is {physical!r}: it must be one or more of "
                    f"{list(mesh.axis_names)}, separated by commas, or empty to leave the axis "
                    "whole"
                )
            self._rules[logical] = names

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Placement) and self._content == other._content

    def __hash__(self) -> int:
        return hash(self._content)

    @property
    def _content(self) -> tuple:
        return self.mesh, tuple(sorted(self._rules.items()))

    def spec(self, names: Sequence[str], shape: Sequence[int]) -> PartitionSpec:
        """How an array is divided.

        A mesh axis is used once in an array, by the first logical axis that asks for it, and an
        axis whose size does not divide is left whole.
        """
        taken: set[str] = set()
        spec = []
        for name, size in zip(names, shape, strict=True):
            axes = [axis for axis in self._rules.get(name, ()) if axis not in taken]
            axes = [axis for axis in axes if self.mesh.shape[axis] > 1]
            if size % math.prod(self.mesh.shape[axis] for axis in axes):
                axes = []
            taken.update(axes)
            spec.append(None if not axes else axes[0] if len(axes) == 1 else tuple(axes))
        return PartitionSpec(*spec)

    def parameters(self, axes: dict, shapes: dict) -> dict:
        """A NamedSharding for every parameter.

        Args:
            axes: tree of tuples of logical axis names, as `Objective.axes` gives it.
            shapes: tree of the same structure, of things that have a ``shape``.
        """

        def sharding(names: tuple[str, ...], array: Any) -> NamedSharding:
            return NamedSharding(self.mesh, self.spec(names, array.shape))

        return jax.tree.map(sharding, axes, shapes, is_leaf=lambda node: isinstance(node, tuple))

    @property
    def whole(self) -> NamedSharding:
        """The same array on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def batch(self) -> NamedSharding:
        """The first axis, of rows, divided by its rule, and the others whole."""
        axes = self._rules.get("rows", ())
        return NamedSharding(self.mesh, PartitionSpec(axes) if axes else PartitionSpec())

    def parts(self, name: str) -> int:
        """Over how many devices, or groups of devices, an axis of this name is spread."""
        return math.prod(self.mesh.shape[axis] for axis in self._rules.get(name, ()))

    def constrain(self, x: Array, names: Sequence[str]) -> Array:
        """The same array, placed by the names of its axes; "" is an axis left whole."""
        if self.mesh.size == 1:
            return x
        sharding = NamedSharding(self.mesh, self.spec(names, x.shape))
        return jax.lax.with_sharding_constraint(x, sharding)

    @property
    def platform(self) -> str:
        """Of the devices: "cpu", "gpu" or "tpu"."""
        return self.mesh.devices.flat[0].platform

    def mapped(
        self,
        function: Callable[..., Array],
        names_in: Sequence[tuple[str, ...]],
        names_out: tuple[str, ...],
        *arrays: Array,
    ) -> Array:
        """See `models.placement.on_each_device`. The result has the shape of the first array."""
        if self.mesh.size == 1:
            return function(*arrays)
        specs = tuple(self.spec(n, x.shape) for n, x in zip(names_in, arrays, strict=True))
        out = self.spec(names_out, arrays[0].shape)
        divided = jax.shard_map(
            function, mesh=self.mesh, in_specs=specs, out_specs=out, check_vma=False
        )
        return divided(*arrays)

    @contextmanager
    def of_activations(self) -> Iterator[None]:
        """A context in which the models that are traced place their activations so."""
        with placed_by(self):
            yield


def check_batch(placement: Placement, batch_size: int, microbatches: int) -> None:
    """Raises UserError unless the rows of a step divide over microbatches and devices."""
    if microbatches < 1:
        raise UserError(f"train.microbatches is {microbatches}: it must be at least 1")
    if batch_size < 1:
        raise UserError(f"data.batch_size is {batch_size}: it must be at least 1")
    parts = placement.parts("rows")
    if batch_size % (microbatches * parts):
        raise UserError(
            f"data.batch_size is {batch_size}, which does not divide over {parts} devices (or "
            f"groups of them) x {microbatches} microbatches: make it a multiple of "
            f"{parts * microbatches}"
        )
