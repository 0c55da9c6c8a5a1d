"""The report of an ablation as one HTML file that needs nothing else."""

import html as markup
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jaxpretrain.report.blocks import (
    Cell,
    Drawn,
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
from jaxpretrain.report.style import CSS

if TYPE_CHECKING:
    from jaxpretrain.report.findings import Finding


def html(results: Results, findings: Sequence["Finding"]) -> str:
    """The page; the same text for the same arguments."""
    found = sections(results, findings)
    links = "\n".join(f'<a href="#{part.name}">{_safe(part.title)}</a>' for part in found)
    body = "\n".join(
        f'<section id="{part.name}">\n<h2>{_safe(part.title)}</h2>\n'
        f"{_blocks(part.blocks)}\n</section>"
        for part in found
    )
    name = _safe(results["name"])
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{name}</title>
<style>{CSS}</style>
</head>
<body>
<main>
<h1>{name}</h1>
{_blocks(top(results))}
<nav aria-label="Contents">
{links}
</nav>
{body}
</main>
</body>
</html>
"""


def _blocks(blocks: Sequence[Any]) -> str:
    return "\n".join(_BLOCKS[type(block)](block) for block in blocks)


def _text(block: Text) -> str:
    if block.kind == "code":
        return f'<pre tabindex="0">{_safe(block.text)}</pre>'
    kind = f' class="{block.kind}"' if block.kind else ""
    return f"<p{kind}>{_safe(block.text)}</p>"


def _told(block: Told) -> str:
    return (
        f'<article class="finding"><h3>{_safe(block.title)}</h3>'
        f"<p>{_safe(block.evidence)}</p>"
        + (f"<p><b>Advice:</b> {_safe(block.advice)}</p>" if block.advice else "")
        + "</article>"
    )


def _shown(block: Shown) -> str:
    given = _safe(block.given).replace("[MASK]", "<mark>[MASK]</mark>")
    truth = f"<dt>hidden was</dt><dd>{_safe(block.truth)}</dd>" if block.truth else ""
    return (
        f'<dl class="sample"><dt>given</dt><dd>{given}</dd>'
        f"<dt>the model says</dt><dd>{_safe(block.made)}</dd>{truth}</dl>"
    )


def _table(block: Table) -> str:
    heads = "".join(_cell("th", cell, ' scope="col"') for cell in block.heads)
    rows = "\n".join(
        "<tr>"
        + _cell("th", first, ' scope="row"')
        + "".join(_cell("td", cell) for cell in rest)
        + "</tr>"
        for first, *rest in block.rows
    )
    notes = "".join(f'\n<p class="note">{_safe(note)}</p>' for note in block.notes)
    kind = ' class="prose"' if block.prose else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="Table">\n<table{kind}>\n'
        f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>\n</div>{notes}"
    )


def _cell(tag: str, cell: Cell | str, more: str = "") -> str:
    cell = cell_of(cell)
    kind = f' class="{cell.mark}"' if cell.mark else ""
    small = "".join(f'<span class="small">{_safe(line)}</span>' for line in cell.small)
    text = _safe(cell.text)
    if "row" in more:  # a name: it may break where it has a sign
        text = re.sub(r"(?<=[,/])(?=\w)", "<wbr>", text)
        text = re.sub(r"[\w=.]{19,}", lambda long: long[0].replace("_", "_<wbr>"), text)
        return f'<{tag}{more}{kind}><span class="name">{text}{small}</span></{tag}>'
    return f"<{tag}{more}{kind}>{text}{small}</{tag}>"


def _plots(block: Plots) -> str:
    drawn: Drawn = block.draw()
    legend = "".join(f"<li>{svg}<span>{_safe(name)}</span></li>" for svg, name in drawn.legend)
    pictures = "\n".join(
        f"<div><b>{_safe(picture.title)}</b>{picture.svg}</div>" for picture in drawn.pictures
    )
    return (
        "<figure>\n"
        + (f'<ul class="legend">{legend}</ul>\n' if legend else "")
        + f'<div class="plots">\n{pictures}\n</div>\n'
        + f"<figcaption>{_safe(drawn.caption.strip())}</figcaption>\n</figure>"
    )


def _fold(block: Fold) -> str:
    return (
        f"<details>\n<summary>{_safe(block.title)}</summary>\n{_blocks(block.blocks)}\n</details>"
    )


def _heading(block: Heading) -> str:
    return f"<h3>{_safe(block.text)}</h3>"


def _safe(text: str) -> str:
    return markup.escape(text)


_BLOCKS = {
    Text: _text,
    Told: _told,
    Shown: _shown,
    Table: _table,
    Plots: _plots,
    Fold: _fold,
    Heading: _heading,
}
