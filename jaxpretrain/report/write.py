"""Writes the report of an ablation."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxpretrain.report.markdown import markdown
from jaxpretrain.report.page import html
from jaxpretrain.report.results import Results
from jaxpretrain.storage import AnyPath, write

if TYPE_CHECKING:
    from jaxpretrain.report.findings import Finding


def write_report(workdir: AnyPath, results: Results, findings: Sequence["Finding"]) -> None:
    """Writes ``report.html`` and ``report.md`` into a workdir."""
    write(workdir / "report.html", html(results, findings))
    write(workdir / "report.md", markdown(results, findings))
