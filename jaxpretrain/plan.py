"""The ``plan`` command: the real training step, compiled for devices that need not be there.

What it prints is what XLA's compiler says of that program, and a roofline: the time that the chip
needs at the least for its operations, for its memory traffic and for its messages.
"""

import itertools
import math
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from ml_collections import ConfigDict

from jaxpretrain import hlo
from jaxpretrain.assemble import Pieces, abstract_batch, build
from jaxpretrain.chips import Chip, chip_of
from jaxpretrain.data.vocab import blank_vocab
from jaxpretrain.errors import UserError
from jaxpretrain.sharding import MESH_AXES
from jaxpretrain.step import jit_train_step

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
        sent = sum(collective.sent for _, _, collective in self.collectives)
        return {
            "compute": self.flops / self.chip.flops,
            "memory": self.traffic / self.chip.bandwidth,
            "network": sent / self.chip.link,
        }

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
        search: compile so many of the legal meshes and microbatches, those that look best, and rank
            them; 0 only looks at what the config says.

    Raises:
        UserError: there is no such topology, or nothing fits.
    """
    devices = devices_of(topology, slices)
    config = for_platform(config, devices[0].platform)
    where = f"{len(devices)} x {devices[0].device_kind}" + (f" ({topology})" if topology else "")
    print(f"{config.objective.name} on {where}", flush=True)
    if not search:
        found = compiled(config, devices)
        for line in describe(found, config):
            print(line)
        return [found]
    plans = []
    for mesh, microbatches in itertools.islice(candidates(config, devices), search):
        one = with_layout(config, mesh, microbatches)
        try:
            found = compiled(one, devices)
        except UserError as error:
            print(f"  {layout_text(mesh, microbatches)}: {error}")
            continue
        plans.append(found)
        print(f"  {one_line(found)}", flush=True)
    fitting = [p for p in plans if p.fits is not False]
    if not fitting:
        raise UserError(
            f"none of the {len(plans)} layouts that were compiled fits into the memory: take more "
            "chips, or lower data.batch_size or data.length, or set model.remat=full"
        )
    best = sorted(fitting, key=lambda p: sum(p.seconds.values()) or p.peak)
    print("\nbest first, by the time with nothing overlapped:")
    for rank, found in enumerate(best, start=1):
        flags = " ".join(f"--config.mesh.{axis}={n}" for axis, n in found.mesh.items())
        print(f"{rank:3} {one_line(found)}")
        print(f"      {flags} --config.train.microbatches={found.microbatches}")
    print()
    for line in describe(best[0], config):
        print(line)
    return best


def devices_of(topology: str, slices: int = 1) -> Sequence[Any]:
    """The devices of a topology that need not be here, or those that are.

    Raises:
        UserError: there is no such topology, or no ``libtpu`` to compile with.
    """
    if not topology:
        return jax.devices()
    # What it would ask of a TPU machine's metadata server.
    for name, value in {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}.items():
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
    if config.model.dtype == "auto":
        config.model.dtype = "float32" if platform == "cpu" else "bfloat16"
    return config.lock()


def compiled(config: ConfigDict, devices: Sequence[Any]) -> Plan:
    """Compiles the training step of a config for devices and reads off what it comes to."""
    pieces = build(config, blank_vocab(config.tokenizer.vocab_size), devices=list(devices))
    traced = jit_train_step(
        pieces.objective,
        pieces.optimizer,
        pieces.abstract,
        pieces.placement,
        seed=config.seed,
        total_steps=config.train.steps,
        microbatches=config.train.microbatches,
        largest_grad_norm=config.guard.largest_grad_norm,
    ).trace(pieces.abstract, abstract_batch(pieces))
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
    try:
        program = traced.lower().compile()
    except Exception as error:  # XLA's errors have no type of their own
        if not any(word in str(error) for word in OUT_OF_MEMORY):
            raise
        return Plan(fits=False, activations=0, peak=0, traffic=0.0, collectives=[], **common)
    memory, text = program.memory_analysis(), program.as_text()
    kept = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    peak = kept + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
    return Plan(
        fits=None if chip is None else peak <= chip.memory,
        activations=memory.temp_size_in_bytes,
        peak=peak,
        traffic=hlo.memory_traffic(text),
        collectives=named(hlo.collectives(text, chips), pieces),
        **common,
    )


def bytes_here(tree: Any) -> int:
    """Bytes of a placed tree on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def executed_flops(jaxpr: Any) -> float:
    """Operations of all matrix products in a program, recomputed ones too, on all devices."""
    total = 0.0
    for line in jaxpr.eqns:
        times = line.params.get("length", 1) if line.primitive.name == "scan" else 1
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


def named(found: list[hlo.Collective], pieces: Pieces) -> list[tuple[str, str, hlo.Collective]]:
    """Collectives with the mesh axes that they go over, those that send most first."""
    mesh = pieces.placement.mesh
    numbers = np.arange(mesh.size).reshape(mesh.devices.shape)
    wide = [i for i, axis in enumerate(MESH_AXES) if mesh.shape[axis] > 1]
    names = {}
    for count in range(1, len(wide) + 1):
        for axes in itertools.combinations(wide, count):
            rows = np.moveaxis(numbers, axes, range(-count, 0))
            rows = rows.reshape(-1, math.prod(numbers.shape[axis] for axis in axes))
            groups = frozenset(frozenset(row.tolist()) for row in rows)
            names[groups] = "+".join(MESH_AXES[axis] for axis in axes)
    pairs = [(one.kind, names.get(one.groups, "some devices"), one) for one in found]
    return sorted(pairs, key=lambda item: -item[2].sent)


def candidates(config: ConfigDict, devices: Sequence[Any]) -> Iterator[tuple[dict[str, int], int]]:
    """Legal meshes and microbatches, those that promise most first.

    Promising are layouts that send little: few devices along `tensor` and `context`, parameters
    divided no further than they must be to fit, and as few microbatches as the memory allows.
    """
    chip = chip_of(devices[0].device_kind)
    memory = chip.memory if chip else math.inf
    found = []
    for mesh in meshes(len(devices)):
        for microbatches in (1, 2, 4, 8, 16):
            try:
                pieces = build(
                    with_layout(config, mesh, microbatches),
                    blank_vocab(config.tokenizer.vocab_size),
                    devices=list(devices),
                )
            except UserError:
                continue
            model = pieces.objective.backbone.config
            if mesh["tensor"] > 1 and model.heads % mesh["tensor"]:
                continue
            state = bytes_here(pieces.abstract)
            rows = config.data.batch_size // (mesh["data"] * mesh["fsdp"] * microbatches)
            # What a layer keeps of a row: its input alone if the rest is computed again.
            kept = 2 if model.remat == "full" else 34
            stream = rows * config.data.length * model.width / mesh["context"]
            logits = rows * config.data.length * model.vocab_size * 8
            estimate = (
                state * 4 / 3
                + kept * stream * model.layers
                + logits / (mesh["context"] * mesh["tensor"])
            )
            if estimate > 1.2 * memory:
                continue
            parameters = sum(leaf.size for leaf in jax.tree.leaves(pieces.abstract.params))
            gathered = 6 * microbatches * parameters * (mesh["fsdp"] > 1)
            reduced = 8 * parameters / mesh["fsdp"] * (mesh["data"] > 1)
            inside = 16 * stream * microbatches * model.layers
            inside *= (mesh["tensor"] > 1) + (mesh["context"] > 1) * 0.5
            cost = (gathered + reduced) / (mesh["tensor"]) + inside
            found.append((cost, microbatches, mesh["fsdp"], mesh))
    found.sort(key=lambda item: item[:3])
    for _, microbatches, _, mesh in found:
        yield mesh, microbatches


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


def layout_text(mesh: dict[str, int], microbatches: int) -> str:
    """A layout in one word each."""
    axes = " x ".join(f"{axis} {size}" for axis, size in mesh.items() if size > 1) or "one device"
    return f"{axes}, {microbatches} microbatch{'es' if microbatches > 1 else ''}"


def one_line(found: Plan) -> str:
    """A plan in a line."""
    text = layout_text(found.mesh, found.microbatches)
    if found.fits is False:
        return f"{text}: does not fit" + (f" ({size_text(found.peak)})" if found.peak else "")
    if not found.seconds:
        return f"{text}: {size_text(found.peak)}"
    low, high = found.utilisation
    return (
        f"{text}: {size_text(found.peak)}, "
        f"{max(found.seconds.values()):.3g} to {sum(found.seconds.values()):.3g} s a step, "
        f"utilisation {low:.0%} to {high:.0%}"
    )


def describe(found: Plan, config: ConfigDict) -> list[str]:
    """A plan as lines to read."""
    tokens = config.data.batch_size * config.data.length
    lines = [
        f"  {layout_text(found.mesh, found.microbatches)}; {tokens:,} tokens a step",
        "  on each chip",
        f"    parameters   {size_text(found.parameters)}",
        f"    optimizer    {size_text(found.optimizer)}",
    ]
    if found.fits is False and not found.peak:
        lines.append(
            "    does not fit: the compiler found no way to lay it out in "
            f"{size_text(found.chip.memory)}; raise train.microbatches or mesh.fsdp, or try "
            "--search"
        )
        return lines
    share = f" of {size_text(found.chip.memory)}" if found.chip else ""
    verdict = "" if found.fits is not False else ": DOES NOT FIT"
    lines += [
        f"    activations  {size_text(found.activations)} (with gradients and buffers)",
        f"    peak         {size_text(found.peak)}{share}{verdict}",
        f"    operations   {found.flops:.3g} a step, of which the model's own "
        f"{found.model_flops:.3g}",
        f"    memory       {size_text(found.traffic)} read and written a step",
    ]
    sent: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0, 0])
    for kind, axes, one in found.collectives:
        entry = sent[kind, axes]
        entry[0] += one.sent
        entry[1] += one.runs
        entry[2] = max(entry[2], one.size)
    lines.append(
        "    network      "
        + (f"{size_text(sum(e[0] for e in sent.values()))} sent a step" if sent else "nothing sent")
    )
    for (kind, axes), (total, times, size) in sorted(sent.items(), key=lambda item: -item[1][0]):
        lines.append(
            f"      {kind:<19} over {axes:<12} {size_text(total):>10}, {times:,} times, "
            f"the largest {size_text(size)}"
        )
    if found.chip is None:
        return [*lines, "  no roofline: the speed of this device is not known"]
    times, (low, high) = found.seconds, found.utilisation
    lines += [
        "  roofline: " + ", ".join(f"{name} {seconds:.3g} s" for name, seconds in times.items()),
        f"    a step takes {max(times.values()):.3g} s if all of these overlap, "
        f"{sum(times.values()):.3g} s if none does: {tokens / sum(times.values()):,.0f} to "
        f"{tokens / max(times.values()):,.0f} tokens/s",
        f"    utilisation (the model's own operations against the peak) {low:.0%} to {high:.0%}",
        f"    assuming {found.chip.flops:.3g} operations/s, {found.chip.bandwidth:.3g} bytes/s of "
        f"memory, {found.chip.link:.3g} bytes/s in a ring, all of them fully used; matrix products "
        "only; nothing between slices",
    ]
    return lines


def size_text(count: float) -> str:
    """Bytes in a unit that one can read."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count:.0f} B"
