"""Plans (see `jaxpretrain.plan`) as text."""

from collections import defaultdict
from typing import Any


def layout_text(mesh: dict[str, int], microbatches: int) -> str:
    """A layout in one word each."""
    axes = " x ".join(f"{axis} {size}" for axis, size in mesh.items() if size > 1) or "one device"
    return f"{axes}, {microbatches} microbatch{'es' if microbatches > 1 else ''}"


def one_line(found: Any) -> str:
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


def describe(found: Any, tokens: int) -> list[str]:
    """A plan as lines to read.

    Args:
        found: a `jaxpretrain.plan.Plan`.
        tokens: of a step.
    """
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
        f"memory, {found.chip.link:.3g} bytes/s in a ring"
        + (f", {found.chip.slow_link:.3g} to other slices" if "between slices" in times else "")
        + ", all of them fully used; matrix products only",
    ]
    return lines


def size_text(count: float) -> str:
    """Bytes in a unit that one can read."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count:.0f} B"
