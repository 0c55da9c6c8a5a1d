"""The report of an ablation as Markdown: all of it but the plots."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jaxpretrain.report.blocks import (
    Cell,
    Fold,
    Heading,
    Plots,
    Shown,
    Table,
    Text,
    Told,
    cell_of,
)
from jaxpretrain.report.content import sections, top
from jaxpretrain.report.results import Results

if TYPE_CHECKING:
    from jaxpretrain.report.findings import Finding


def markdown(results: Results, findings: Sequence["Finding"]) -> str:
    """The text; the same for the same arguments."""
    parts = [f"# {_safe(results['name'])}", *_blocks(top(results), 3)]
    for section in sections(results, findings):
        blocks = _blocks(section.blocks, 3)
        if blocks:
            parts += [f"## {_safe(section.title)}", *blocks]
    return "\n\n".join(parts) + "\n"


def _blocks(blocks: Sequence[Any], level: int) -> list[str]:
    return [text for block in blocks for text in _block(block, level)]


def _block(block: Any, level: int) -> list[str]:
    """A block as paragraphs."""
    match block:
        case Text(text, "code"):
            return ["\n".join(f"    {line}" for line in text.splitlines())]
        case Text(text, kind):
            said = _safe(text)
            return [f"**{said}**" if kind == "warning" else said]
        case Heading(text):
            return [f"{'#' * level} {_safe(text)}"]
        case Fold(title, inner):
            return [f"{'#' * level} {_safe(title)}", *_blocks(inner, level + 1)]
        case Told(title, evidence, advice):
            told = [f"{'#' * level} {_safe(title)}"]
            return [*told, _safe(evidence), *([f"Advice: {_safe(advice)}"] if advice else [])]
        case Shown(given, made, truth):
            lines = [f"- given: {_safe(given)}", f"  - the model says: {_safe(made)}"]
            return ["\n".join([*lines, *([f"  - hidden was: {_safe(truth)}"] if truth else [])])]
        case Table():
            return [_table(block), *map(_safe, block.notes)]
        case Plots():
            return []
    raise TypeError(block)


def _table(table: Table) -> str:
    rows = [table.heads, *table.rows]
    lines = [f"| {' | '.join(map(_cell, row))} |" for row in rows]
    numbers = "---" if table.prose else "---:"
    lines.insert(1, f"| --- |{f' {numbers} |' * (len(table.heads) - 1)}")
    return "\n".join(lines)


def _cell(cell: Cell | str) -> str:
    cell = cell_of(cell)
    text = _safe(cell.text)
    text = f"**{text}**" if cell.mark else text
    small = "; ".join(map(_safe, cell.small))
    if not small:
        return text
    return f"{text} {small}" if len(cell.small) == 1 else f"{text} ({small})"


def _safe(text: str) -> str:
    """Text that Markdown shows as it is, in one line."""
    text = " ".join(text.split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*|])", r"\\\1", text)
    text = re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)
    return re.sub(r"^([#+-]|\d+[.)])(?=\s)", r"\\\1", text)
