"""The report as Markdown: the same numbers as the page's."""

import re

import pytest

from jaxpretrain.report.blocks import BEST, number
from jaxpretrain.report.markdown import markdown
from support import made_results as made

TEXTS = {name: markdown(make(), made.FINDINGS) for name, make in made.ALL.items()}


@pytest.fixture(params=made.ALL)
def name(request):
    return request.param


def tables(text: str) -> list[list[list[str]]]:
    """The tables, as cells."""
    found = re.findall(r"(?:^\|.*\n)+", text, flags=re.M)
    return [[re.split(r"(?<!\\)\|", line)[1:-1] for line in table.splitlines()] for table in found]


def test_the_table_has_every_number_with_its_interval(name):
    results = made.ALL[name]()
    part = TEXTS[name].split("\n## Results\n")[1].split("\n## ")[0]
    rows = tables(part)[0][2:]
    assert len(rows) == len(results["rows"])
    for row, cells in zip(results["rows"], rows, strict=True):
        for column, cell in zip(results["columns"], cells[1:], strict=True):
            value = row["values"].get(column["key"])
            said = "–"
            if value:
                said = f"{number(value['mean'])} [{number(value['low'])}, {number(value['high'])}]"
            best = column["best"] == row["group"]
            assert cell.strip().replace("**", "") == (f"{BEST} {said}" if best else said)


def test_tables_are_whole(name):
    found = tables(TEXTS[name])
    assert len(found) >= 8
    for head, line, *rows in found:
        assert set("".join(line)) <= set(" -:")
        assert {len(head)} == {len(row) for row in [line, *rows]}


def test_what_is_said_is_shown_as_it_is():
    text = TEXTS["objectives"]
    assert "<" not in text.replace("&lt;", "")
    assert r"odd-&lt;script&gt;&amp;alert('x')\|\*\_\`" in text
    assert "span_mlm" in text


def test_findings_samples_and_what_is_missing():
    text = TEXTS["mask_rates"]
    assert "### A mask rate of 0.3 is best\n" in text
    assert "Advice: Mask more than 15 %, and look again at more tokens." in text
    assert "**Not done, so not in here: 1 cell: mask_rate=0.8,seed=1.**" in text
    assert text.count("  - hidden was: lane") == 5 and "that is not shown" not in text
    assert "the numbers support no finding" in markdown(made.mixture(), [])


def test_sections_with_plots_alone_are_left_out():
    assert "## Learning curves" not in TEXTS["mask_rates"] and "svg" not in TEXTS["mask_rates"]
    assert "## Balance of the mixture" in TEXTS["mixture"]  # it has a table


def test_the_balance_is_told_in_numbers():
    part = TEXTS["mixture"].split("## Balance of the mixture")[1]
    first, *_ = [row for row in tables(part)[0] if row[0].strip() == "equal"]
    assert first[1].strip() == "0.703 → 0.851" and first[2].strip() == "0.297 → 0.149"


def test_the_same_results_give_the_same_text(name):
    assert markdown(made.ALL[name](), made.FINDINGS) == TEXTS[name]
