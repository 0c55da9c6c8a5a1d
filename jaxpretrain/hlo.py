"""What a compiled program does, read off its text: what it sends, and what it moves in memory.

XLA's own cost analysis counts the body of a loop once, however often it runs; here each loop counts
as often as its condition says. Only counted loops are compiled from `lax.scan`, which is all that
this project uses.
"""

import math
import re
from collections import defaultdict
from typing import NamedTuple

import numpy as np

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
_BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128}
_SHAPE = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\](\{[^}]*\})?")
_CALLED = re.compile(r"(?:calls|to_apply|body|branch_computations|called_computations)=")
_NAME = re.compile(r"%([\w.\-]+)")


class Instruction(NamedTuple):
    """One line of a computation: name, type, what it does, to what, and the rest of the line."""

    name: str
    type: str
    opcode: str
    arguments: str
    rest: str
    is_root: bool

    @property
    def operands(self) -> list[str]:
        """Names of what it is applied to."""
        return _NAME.findall(self.arguments)


class Collective(NamedTuple):
    """A collective of a program, as often as it runs in a step.

    Attributes:
        kind: one of `COLLECTIVES`, as what it is used for: an all-reduce of slices that were put
            into zeros is an all-gather, though it sends as much as an all-reduce.
        groups: of devices that talk to each other, by their numbers in the program.
        size: bytes of its largest array on one device.
        sent: bytes that one device sends in a step, all runs together, around a ring.
        runs: how often it runs in a step.
    """

    kind: str
    groups: frozenset[frozenset[int]]
    size: int
    sent: float
    runs: int


def computations(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """The computations of a module by name, and the name of the one it begins with."""
    found: dict[str, list[Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%([\w.\-]+) \(.*\{$", line)
        if head:
            current = found.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif current is not None and " = " in line and line.startswith("  "):
            current.append(_instruction(line))
    return found, entry


def _instruction(line: str) -> Instruction:
    left, right = line.split(" = ", 1)
    end = _closing(right, 0) if right.startswith("(") else right.index(" ")
    kind, rest = right[:end], right[end:].lstrip()
    begin = rest.index("(")
    close = _closing(rest, begin)
    name, is_root = _NAME.search(left)[1], left.lstrip().startswith("ROOT")
    return Instruction(name, kind, rest[:begin], rest[begin + 1 : close - 1], rest[close:], is_root)


def _closing(text: str, start: int) -> int:
    """Index after the parenthesis that closes the one at `start`."""
    depth = 0
    for index in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[index], 0)
        if depth == 0:
            return index + 1
    raise ValueError(f"unbalanced: {text[start : start + 80]}")


def sizes(kind: str, *, slow_only: bool = False) -> list[int]:
    """Bytes of each array of a type; with `slow_only`, 0 for those that are kept on the chip."""
    found = []
    for name, dims, layout in _SHAPE.findall(kind):
        bits = _BITS.get(name) or int(re.search(r"\d+", name)[0] if re.search(r"\d", name) else 0)
        count = math.prod(int(d) for d in dims.split(",") if d)
        near = slow_only and "S(" in layout
        found.append(0 if near else count * bits // 8)
    return found


def runs(found: dict[str, list[Instruction]], entry: str) -> dict[str, int]:
    """How often each computation runs in a step."""
    count: dict[str, int] = defaultdict(int)

    def visit(name: str, times: int) -> None:
        count[name] += times
        for line in found.get(name, ()):
            called = _called(line)
            if line.opcode == "while":
                condition = re.search(r"condition=%([\w.\-]+)", line.rest)[1]
                inner = times * trips(found[condition])
                visit(condition, inner)
                for other in called:
                    visit(other, inner)
            else:
                for other in called:
                    visit(other, times)

    visit(entry, 1)
    return dict(count)


def _called(line: Instruction) -> list[str]:
    names = []
    for match in _CALLED.finditer(line.rest):
        after = line.rest[match.end() :]
        part = after[: after.index("}") + 1] if after.startswith("{") else after.split(",")[0]
        names += _NAME.findall(part)
    return names


def trips(condition: list[Instruction]) -> int:
    """How often a loop with this condition runs: it counts from 0 up to a number."""
    by_name = {line.name: line for line in condition}
    root = next(line for line in condition if line.is_root)
    for operand in root.operands:
        line = by_name.get(operand)
        if line and line.opcode == "constant":
            return int(line.arguments)
    return max((int(x.arguments) for x in condition if x.arguments.isdigit()), default=1)


def collectives(text: str, devices: int) -> list[Collective]:
    """The collectives of a compiled program.

    Args:
        text: of the optimised module, ``compiled.as_text()``.
        devices: number of them.
    """
    found, entry = computations(text)
    times = runs(found, entry)
    seen: dict[object, Collective] = {}
    for name, lines in found.items():
        for line in lines:
            kind = line.opcode.removesuffix("-start")
            if kind not in COLLECTIVES or not times.get(name):
                continue
            arrays = sizes(line.type)
            size, groups = max(arrays), _groups(line.rest, devices)
            members = max(len(group) for group in groups) if groups else 1
            share = (members - 1) / members
            if kind == "all-reduce":
                each = 2 * share * sum(arrays)
                if name.startswith("all-reduce-scatter"):  # a TPU's name for it
                    kind, each = "reduce-scatter", each / 2
                elif _gathers(line, lines, found):
                    kind = "all-gather"
            elif kind == "reduce-scatter":
                size *= members
                each = share * size
            else:
                each = (1.0 if kind == "collective-permute" else share) * size
            one = Collective(kind, groups, size, each * times[name], times[name])
            # Parts of one collective that the compiler has spread over a loop have one channel, and
            # the collective runs as often as the loop is begun.
            channel = re.search(r"channel_id=(\d+)", line.rest)
            key = channel[1] if channel else (name, line.name)
            if key not in seen or one.runs < seen[key].runs:
                seen[key] = one
    return list(seen.values())


def between_slices(text: str) -> list[Collective]:
    """What a compiled program for several TPU slices sends to the others, in no groups.

    Within it the collectives are those of one slice; the rest goes through the hosts.
    """
    found, entry = computations(text)
    times = runs(found, entry)
    sent = []
    for name, lines in found.items():
        for line in lines:
            if line.opcode != "send" or "xla_megascale_runtime" not in line.rest:
                continue
            kind = re.search(r'_xla_host_transfer_rendezvous="([a-z-]+)', line.rest)
            size, often = sizes(line.type)[0], times.get(name, 0)
            if often:
                what = kind[1].rstrip("-") if kind else "send"
                sent.append(Collective(what, frozenset(), size, float(size * often), often))
    return sent


def _gathers(line: Instruction, lines: list[Instruction], found) -> bool:
    """Whether an all-reduce only puts together what each device has written into zeros."""
    by_name = {one.name: one for one in lines}
    for operand in line.operands:
        source, inside = by_name.get(operand), by_name
        while source is not None and source.opcode in ("bitcast", "copy", "fusion"):
            if source.opcode == "fusion":
                inner = found.get(_called(source)[0], [])
                inside = {one.name: one for one in inner}
                source = next((one for one in inner if one.is_root), None)
            else:
                source = inside.get(source.operands[0])
        if source is None or source.opcode != "dynamic-update-slice":
            return False
    return True


def _groups(rest: str, devices: int) -> frozenset[frozenset[int]]:
    pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", rest)
    if pairs:
        links = re.findall(r"\{(\d+),(\d+)", pairs[0])
        return _connected([(int(a), int(b)) for a, b in links])
    named = re.search(r"replica_groups=mesh\[(.*?)\](?:<=\S+)? \{(.*?)\}", rest)
    if named:
        axes = re.findall(r"'?([\w]+)'?=(\d+)", named[1])
        names = [name for name, _ in axes]
        grid = np.arange(math.prod(int(n) for _, n in axes)).reshape([int(n) for _, n in axes])
        inside = [names.index(name) for name in re.findall(r"\w+", named[2]) if name in names]
        return _rows(np.moveaxis(grid, inside, range(grid.ndim - len(inside), grid.ndim)),
                     math.prod(grid.shape[i] for i in inside))  # fmt: skip
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest)
    if iota:
        shape, source = ([int(n) for n in part.split(",")] for part in (iota[1], iota[2]))
        grid = np.arange(math.prod(source)).reshape(source)
        if iota[3]:
            grid = grid.transpose([int(n) for n in iota[3].split(",")])
        return _rows(grid, shape[-1])
    listed = re.search(r"replica_groups=\{(.*?)\}\}", rest)
    if listed:
        groups = re.findall(r"\{([\d,]+)", listed[0])
        return frozenset(frozenset(int(n) for n in g.split(",") if n) for g in groups)
    return frozenset([frozenset(range(devices))])


def _rows(grid: np.ndarray, length: int) -> frozenset[frozenset[int]]:
    return frozenset(frozenset(row.tolist()) for row in grid.reshape(-1, max(length, 1)))


def _connected(links: list[tuple[int, int]]) -> frozenset[frozenset[int]]:
    group = {node: {node} for link in links for node in link}
    for a, b in links:
        if group[a] is not group[b]:
            group[a] |= group[b]
            for node in group[b]:
                group[node] = group[a]
    return frozenset(frozenset(members) for members in group.values())


# What moves no data of its own.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional",
    "call", "after-all", "partition-id", "iota", "opt-barrier",
}  # fmt: skip


def memory_traffic(text: str) -> float:
    """Bytes that a device reads and writes in its slow memory in a step, roughly.

    Every instruction reads its operands and writes its result, once; of what is only sliced inside
    a fusion, the slice is read; what is updated in place is as large as the update. What stays in a
    TPU's vector memory is not counted.
    """
    found, entry = computations(text)
    fused = {name for lines in found.values() for line in lines if line.opcode == "fusion"
             for name in _called(line)}  # fmt: skip
    total = 0.0
    for name, times in runs(found, entry).items():
        if name in fused or name not in found:
            continue
        kinds = {line.name: line.type for line in found[name]}
        for line in found[name]:
            if line.opcode in _FREE or line.opcode.endswith("-done"):
                continue
            total += times * _moved(line, kinds, found)
    return total


def _moved(line: Instruction, kinds: dict[str, str], found) -> float:
    reads = [sum(sizes(kinds.get(operand, ""), slow_only=True)) for operand in line.operands]
    writes = sum(sizes(line.type, slow_only=True))
    inner = None
    if line.opcode == "fusion":
        inner = found.get(_called(line)[0])
    if inner is None:
        if line.opcode in ("dynamic-slice", "slice", "gather"):
            return 2 * writes
        if line.opcode == "dynamic-update-slice":
            return 2 * (reads[1] if len(reads) > 1 else 0)
        return sum(reads) + writes
    by_name = {one.name: one for one in inner}
    uses = defaultdict(list)
    for one in inner:
        for place, operand in enumerate(one.operands):
            uses[operand].append((one, place))
    for one in inner:
        if one.opcode != "parameter":
            continue
        number = int(one.arguments)
        if number >= len(reads) or not reads[number]:
            continue
        part = 0
        for user, place in uses[one.name]:
            if user.opcode in ("dynamic-slice", "slice", "gather") and place == 0:
                part += sum(sizes(user.type))
            elif user.opcode == "dynamic-update-slice" and place == 0:
                continue
            else:
                part = reads[number]
                break
        reads[number] = min(part, reads[number])
    updates = [one for one in inner if one.opcode == "dynamic-update-slice"]
    for one in updates:
        whole = sum(sizes(one.type))
        update = by_name.get(one.operands[1])
        if update and writes >= whole:
            writes -= whole - sum(sizes(update.type))
    return sum(reads) + writes
