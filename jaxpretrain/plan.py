"""The ``plan`` command: the real training step, compiled for devices that need not be there.

What it prints is what XLA's compiler says of that program, and a roofline: the time that the chip
needs at the least for its operations, for its memory traffic and for its messages.
"""

import itertools
import math
import os
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from ml_collections import ConfigDict

from jaxpretrain import hlo
from jaxpretrain.assemble import Pieces, build, traced_step
from jaxpretrain.chips import Chip, chip_of
from jaxpretrain.config import model_config
from jaxpretrain.data.vocab import blank_vocab
from jaxpretrain.errors import UserError
from jaxpretrain.models.config import settled
from jaxpretrain.report.plans import describe, layout_text, one_line
from jaxpretrain.sharding import MESH_AXES, Placement, make_mesh

SLICES = "slices"  # in the place of mesh axes
OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "Ran out of memory")


class Plan(NamedTuple):
    """What one layout of a config comes to, for each chip and step.

    Attributes:
        mesh: size of each axis.
        microbatches: parts of a step.
        fits: whether the compiler could lay it out in the chip's memory; None if that is unknown.
        parameters: bytes.
        optimizer: bytes of its state.
        activations: bytes of all that lives inside a step: activations, gradients, buffers.
        peak: bytes at the worst moment.
        model_flops: operations of the model, forward and backward, without recomputation.
        flops: operations that are carried out.
        traffic: bytes read and written in the chip's memory.
        collectives: what is sent, by kind and mesh axes.
        chip: None where it is not known.
    """

    mesh: dict[str, int]
    microbatches: int
    fits: bool | None
    parameters: int
    optimizer: int
    activations: int
    peak: int
    model_flops: float
    flops: float
    traffic: float
    collectives: list[tuple[str, str, hlo.Collective]]
    chip: Chip | None

    @property
    def seconds(self) -> dict[str, float]:
        """The least time that each resource of the chip needs for a step."""
        if self.chip is None:
            return {}
        near, far = 0.0, 0.0
        for _, axes, one in self.collectives:
            near, far = (near, far + one.sent) if axes == SLICES else (near + one.sent, far)
        times = {
            "compute": self.flops / self.chip.flops,
            "memory": self.traffic / self.chip.bandwidth,
            "network": near / self.chip.link,
        }
        return times | ({"between slices": far / self.chip.slow_link} if far else {})

    @property
    def utilisation(self) -> tuple[float, float]:
        """Model operations against the peak: with nothing overlapped, and with everything."""
        times = self.seconds.values()
        least = self.model_flops / self.chip.flops
        return least / sum(times), least / max(times)


def plan(config: ConfigDict, topology: str, *, slices: int = 1, search: int = 0) -> list[Plan]:
    """Plans a config for devices, prints what comes out, and returns it, the best first.

    Args:
        config: complete; needs no store, only ``tokenizer.vocab_size``.
        topology: of a TPU slice, as ``v5e:4x4`` or ``v5p:4x4x4``; "" for the devices that are here.
        slices: how many such slices.
        search: compile legal meshes and microbatches, those that look best first, until so many
            fit (or three times as many were tried), and rank them; 0 only looks at what the config
            says.

    Raises:
        UserError: there is no such topology, or nothing fits.
    """
    devices = devices_of(topology, slices)
    config = for_platform(config, devices[0].platform)
    where = f"{len(devices)} x {devices[0].device_kind}" + (f" ({topology})" if topology else "")
    print(f"{config.objective.name} on {where}", flush=True)
    tokens = config.data.batch_size * config.data.length
    if not search:
        found = compiled(config, devices)
        for line in describe(found, tokens):
            print(line)
        return [found]
    fitting, tried, too_much = [], 0, math.inf
    for mesh, microbatches, memory in candidates(config, devices):
        if len(fitting) == search or tried == 3 * search:
            break
        if memory >= too_much:  # what was expected to need less did not fit
            continue
        tried += 1
        try:
            found = compiled(with_layout(config, mesh, microbatches), devices)
        except UserError as error:
            print(f"  {layout_text(mesh, microbatches)}: {error}")
            continue
        print(f"  {one_line(found)}", flush=True)
        if found.fits is False:
            too_much = memory
        else:
            fitting.append(found)
    if not fitting:
        raise UserError(
            f"none of the {tried} layouts that were compiled fits into the memory: take more "
            "chips, or lower data.batch_size or data.length, or set model.remat=full"
        )
    best = sorted(fitting, key=lambda p: sum(p.seconds.values()) or p.peak)
    print("\nbest first, by the time with nothing overlapped:")
    for rank, found in enumerate(best, start=1):
        flags = " ".join(f"--config.mesh.{axis}={n}" for axis, n in found.mesh.items())
        print(f"{rank:3} {one_line(found)}")
        print(f"      {flags} --config.train.microbatches={found.microbatches}")
    print()
    for line in describe(best[0], tokens):
        print(line)
    return best


def devices_of(topology: str, slices: int = 1) -> Sequence[Any]:
    """The devices of a topology that need not be here, or those that are.

    Raises:
        UserError: there is no such topology, or no ``libtpu`` to compile with.
    """
    if not topology:
        return jax.devices()
    # What libtpu would ask of a TPU machine, and complain about elsewhere.
    answers = {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-16",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # nobody takes a TPU from anybody by compiling
    }
    for name, value in answers.items():
        os.environ.setdefault(name, value)
    try:
        options = {"num_slices": slices} if slices > 1 else {}
        found = topologies.get_topology_desc(topology, platform="tpu", **options)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        if "libtpu" in reason.lower() or "plugin" in reason.lower():
            raise UserError(
                "planning for a TPU needs libtpu, which compiles for it anywhere: "
                "pip install 'jaxpretrain[plan]'"
            ) from None
        raise UserError(
            f"there is no TPU topology {topology!r} ({reason}): write the kind and the shape of "
            "the slice, as v5e:4x4, v6e:4x4, v4:2x2x4 or v5p:4x4x4"
        ) from None
    return list(found.devices)


def for_platform(config: ConfigDict, platform: str) -> ConfigDict:
    """The config with what "auto" is on that platform, which is not the one that compiles."""
    config = ConfigDict(config.to_dict())
    there = settled(model_config(config, config.tokenizer.vocab_size), platform)
    for name in ("dtype", "scan_layers", "loss_block"):
        config.model[name] = getattr(there, name)
    return config.lock()


def compiled(config: ConfigDict, devices: Sequence[Any]) -> Plan:
    """Compiles the training step of a config for devices and reads off what it comes to."""
    pieces = build(config, blank_vocab(config.tokenizer.vocab_size), devices=list(devices))
    traced = traced_step(pieces)
    chips, chip = len(devices), chip_of(devices[0].device_kind)
    shape = dict(pieces.placement.mesh.shape)
    model_flops = pieces.objective.flops(config.data.length) * config.data.batch_size / chips
    common = {
        "mesh": shape,
        "microbatches": config.train.microbatches,
        "parameters": bytes_here(pieces.abstract.params),
        "optimizer": bytes_here(pieces.abstract.opt_state),
        "model_flops": model_flops,
        "flops": max(executed_flops(traced.jaxpr.jaxpr) / chips, model_flops),
        "chip": chip,
    }
    keep = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)  # it could not be read again
    try:
        program = traced.lower().compile()
    except Exception as error:  # XLA's errors have no type of their own
        if not any(word in str(error) for word in OUT_OF_MEMORY):
            raise
        return Plan(fits=False, activations=0, peak=0, traffic=0.0, collectives=[], **common)
    finally:
        jax.config.update("jax_enable_compilation_cache", keep)
    memory, text = program.memory_analysis(), program.as_text()
    kept = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    peak = kept + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
    return Plan(
        fits=None if chip is None else peak <= chip.memory,
        activations=memory.temp_size_in_bytes,
        peak=peak,
        traffic=hlo.memory_traffic(text),
        collectives=named(text, pieces),
        **common,
    )


def bytes_here(tree: Any) -> int:
    """Bytes of a placed tree on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def executed_flops(jaxpr: Any) -> float:
    """Operations of all matrix products in a program, recomputed ones too, on all devices.

    Of a kernel, those of all its tiles, though it passes over some that the mask hides.
    """
    total = 0.0
    for line in jaxpr.eqns:
        times = {
            "scan": lambda params: params["length"],
            "pallas_call": lambda params: math.prod(params["grid_mapping"].grid),
            "shard_map": lambda params: params["mesh"].size,
        }.get(line.primitive.name, lambda params: 1)(line.params)
        if line.primitive.name == "dot_general":
            (contracted, _), _ = line.params["dimension_numbers"]
            inner = math.prod(line.invars[0].aval.shape[axis] for axis in contracted)
            total += 2.0 * math.prod(line.outvars[0].aval.shape) * inner
        for value in line.params.values():
            for part in value if isinstance(value, tuple | list) else [value]:
                inner = getattr(part, "jaxpr", part)
                if hasattr(inner, "eqns"):
                    total += times * executed_flops(inner)
    return total


def named(text: str, pieces: Pieces) -> list[tuple[str, str, hlo.Collective]]:
    """Collectives with the mesh axes that they go over, those that send most first.

    The program of several slices is that of one, in which `data` is as long as in one slice.
    """
    mesh = pieces.placement.mesh
    slices = len({getattr(device, "slice_index", 0) for device in mesh.devices.flat})
    shape = list(mesh.devices.shape)
    shape[MESH_AXES.index("data")] //= slices
    numbers = np.arange(math.prod(shape)).reshape(shape)
    wide = [i for i, size in enumerate(shape) if size > 1]
    names = {}
    for count in range(1, len(wide) + 1):
        for axes in itertools.combinations(wide, count):
            rows = np.moveaxis(numbers, axes, range(-count, 0))
            rows = rows.reshape(-1, math.prod(numbers.shape[axis] for axis in axes))
            groups = frozenset(frozenset(row.tolist()) for row in rows)
            names[groups] = "+".join(MESH_AXES[axis] for axis in axes)
    # A compiler may leave in what goes from each device to itself.
    found = [one for one in hlo.collectives(text, numbers.size) if one.sent]
    pairs = [(one.kind, names.get(one.groups, "some devices"), one) for one in found]
    pairs += [(one.kind, SLICES, one) for one in hlo.between_slices(text)]
    return sorted(pairs, key=lambda item: -item[2].sent)


def candidates(
    config: ConfigDict, devices: Sequence[Any]
) -> Iterator[tuple[dict[str, int], int, float]]:
    """Legal meshes and microbatches, those that promise most first, and the bytes they may need.

    Promising are layouts that send little: few devices along `tensor` and `context`, parameters
    divided no further than they must be to fit, and as few microbatches as the memory allows.
    """
    chip = chip_of(devices[0].device_kind)
    memory = chip.memory if chip else math.inf
    alone = with_layout(config, dict.fromkeys(MESH_AXES, 1), 1)
    pieces = build(alone, blank_vocab(config.tokenizer.vocab_size), devices=[devices[0]])
    objective, params, rules = pieces.objective, pieces.abstract.params, config.mesh.rules.to_dict()
    model, rows, length = objective.backbone.config, config.data.batch_size, config.data.length
    parameters, axes = sum(leaf.size for leaf in jax.tree.leaves(params)), objective.axes()
    longest = objective.longest_input(length, rows)
    fused = devices[0].platform in ("tpu", "gpu") and model.attention != "xla"
    fused = fused and model.positions != "relative" and not model.attention_dropout
    moment_bytes = bytes_here(pieces.abstract.opt_state) / parameters

    @cache
    def is_legal(parts: int, microbatches: int) -> bool:
        try:
            objective.check_run(
                length=length, batch_size=rows, devices=parts, microbatches=microbatches
            )
        except UserError:
            return False
        return rows % (parts * microbatches) == 0

    found = []
    for mesh in meshes(len(devices)):
        if model.heads % mesh["tensor"] or longest % mesh["context"]:
            continue
        try:
            placement = Placement(make_mesh(**mesh, devices=devices), rules)
        except UserError:  # between slices
            continue
        shardings = jax.tree.leaves(placement.parameters(axes, params))
        shapes = [leaf.shape for leaf in jax.tree.leaves(params)]
        here = sum(math.prod(s.shard_shape(x)) for s, x in zip(shardings, shapes, strict=True))
        # With the parameters and a gradient, of 4 bytes each.
        moments = here * moment_bytes
        for microbatches in (1, 2, 4, 8, 16):
            if not is_legal(placement.parts("rows"), microbatches):
                continue
            share = rows / (placement.parts("rows") * microbatches)
            # What a layer keeps of a row: its input alone if the rest is computed again.
            kept = 2 if model.remat == "full" else 34
            stream = share * length * model.width / mesh["context"]
            divided = mesh["context"] * mesh["tensor"]
            predicted = share * length
            if model.loss_block:
                predicted = min(predicted, model.loss_block * mesh["context"])
            logits = predicted * model.vocab_size * 8 / divided
            # Scores, their softmax and its gradient, in the layers that are not computed again;
            # a fused kernel has none.
            scores = share * model.heads * length**2 * 12 / divided
            scores *= 1 if model.remat == "full" else model.layers
            scores *= not fused or mesh["context"] > 1
            need = moments + 8 * here + kept * stream * model.layers + logits + scores
            if need > 1.2 * memory:
                continue
            gathered = 6 * microbatches * parameters * (mesh["fsdp"] > 1)
            reduced = 8 * parameters / mesh["fsdp"] * (mesh["data"] > 1)
            talk = (mesh["tensor"] > 1) + 0.5 * (mesh["context"] > 1)
            inside = 16 * stream * microbatches * model.layers * talk
            cost = (gathered + reduced) / mesh["tensor"] + inside
            found.append((cost, microbatches, mesh["fsdp"], mesh, need))
    found.sort(key=lambda item: item[:3])
    for _, microbatches, _, mesh, need in found:
        yield mesh, microbatches, need


def meshes(devices: int) -> Iterator[dict[str, int]]:
    """All ways to divide devices over the axes, by powers of two where they are one."""
    for tensor, context, fsdp in itertools.product(*[divisors(devices)] * 3):
        if tensor <= 8 and context <= 8 and devices % (tensor * context * fsdp) == 0:
            data = devices // (tensor * context * fsdp)
            yield {"data": data, "fsdp": fsdp, "tensor": tensor, "context": context}


def divisors(number: int) -> list[int]:
    """Of a number, ascending."""
    return [n for n in range(1, number + 1) if number % n == 0]


def with_layout(config: ConfigDict, mesh: dict[str, int], microbatches: int) -> ConfigDict:
    """The config on another mesh, in other parts."""
    config = ConfigDict(config.to_dict())
    config.mesh.update(mesh)
    config.train.microbatches = microbatches
    return config.lock()
