"""The report as a page: its numbers, its marks, its plots, and that nothing in it is markup."""

import copy
import re
from html.parser import HTMLParser

import pytest

from jaxpretrain.report.blocks import BEST, number
from jaxpretrain.report.page import html
from jaxpretrain.report.tables import varied
from jaxpretrain.report.write import write_report
from support import made_results as made


class Read(HTMLParser):
    """The elements of a page, and its text."""

    def __init__(self, page: str):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.text, self.open = "", []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag in ("style", "script"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in ("style", "script"):
            self.open.pop()

    def handle_data(self, data):
        if not self.open:
            self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


PAGES = {name: html(make(), made.FINDINGS) for name, make in made.ALL.items()}
ABOUT = "One line\nand its end.\n\n    key   a\n    loss  1\n\nThe rest."
BARE = html(made.mixture() | {"about": ABOUT}, [])


@pytest.fixture(params=made.ALL)
def name(request):
    return request.param


def section(page: str, name: str) -> str:
    return page.split(f'<section id="{name}">')[1].split("</section>")[0]


def svgs(text: str) -> list[str]:
    """The plots, without the keys of legends."""
    return re.findall(r'<svg role="img".*?</svg>', text, flags=re.S)


def axis_labels(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def test_the_table_has_every_number_of_every_group(name):
    results = made.ALL[name]()
    table = section(PAGES[name], "results")
    rows = re.findall(r"<tr>.*?</tr>", table, flags=re.S)[1:]
    assert len(rows) == len(results["rows"])
    for row, found in zip(results["rows"], rows, strict=True):
        cells = re.findall(r"<td[^>]*>(.*?)</td>", found, flags=re.S)
        for column, cell in zip(results["columns"], cells, strict=True):
            value = row["values"].get(column["key"])
            if value is None:
                assert cell == "–"
            else:
                low, high = number(value["low"]), number(value["high"])
                assert cell.removeprefix(f"{BEST} ") == (
                    f'{number(value["mean"])}<span class="small">[{low}, {high}]</span>'
                )


def test_best_is_marked_where_it_is_named_and_nowhere_else(name):
    results = made.ALL[name]()
    named = [column for column in results["columns"] if column["best"] is not None]
    table = section(PAGES[name], "results")
    marked = re.findall(rf'<td class="best">{BEST} ([\d.]+)<', table)
    values = {row["group"]: row["values"] for row in results["rows"]}
    assert marked == [number(values[c["best"]][c["key"]]["mean"]) for c in named]
    assert PAGES[name].count('class="best"') == len(named)
    assert PAGES[name].count(BEST) == len(named) + bool(named)  # once more to say what it is


def test_what_is_not_comparable_says_so_and_why(name):
    page, results = PAGES[name], made.ALL[name]()
    apart = [column for column in results["columns"] if not column["comparable"]]
    assert section(page, "results").count('<span class="small">not comparable</span>') == len(apart)
    for text in (section(page, "results"), section(page, "curves"), section(page, "fit")):
        assert ("each objective predicts other tokens" in text) == bool(apart)


def test_chance_is_below_the_name_of_a_task():
    heads = re.findall(r"<th scope=\"col\">.*?</th>", section(PAGES["objectives"], "results"))
    assert [h.count("chance 0.500") for h in heads] == [0, 0, 1, 0, 0, 1]
    assert "chance 0.226" in heads[3] and "chance" not in heads[4]


def test_nothing_is_fetched_and_nothing_runs(name):
    read = Read(PAGES[name])
    for tag, attributes in read.elements:
        assert tag not in ("script", "img", "iframe", "object", "embed", "base", "image"), tag
        for key, value in attributes.items():
            assert not key.startswith("on"), (tag, key)
            if key in ("src", "href", "xlink:href", "srcset", "data", "action"):
                assert value.startswith(("#", "data:")), (tag, key, value)
    assert "http:" not in PAGES[name] and "https:" not in PAGES[name]
    style = PAGES[name].split("<style>")[1].split("</style>")[0]
    assert "@import" not in style and "url(" not in style


def test_names_and_samples_are_text():
    read = Read(PAGES["objectives"])
    assert f"odd-{made.NASTY}" in read.text  # of the group, in tables and legends
    assert f"x (0.9), {made.NASTY}" in read.text  # of a sample
    assert "<script" not in PAGES["objectives"] and "&amp;amp;" in PAGES["objectives"]
    assert all(f"odd-{made.NASTY}" in Read(svg).text for svg in svgs(
        section(PAGES["objectives"], "tasks"))[:3])  # fmt: skip


def test_other_texts_are_text_too():
    def nasty(where):
        put.append(f"{where} {made.NASTY} {where}")
        return put[-1]

    put, results = [], made.mixture()
    results |= {"name": nasty("name"), "about": nasty("about")}
    results |= {"missing": [nasty("missing")], "studied": [nasty("studied")]}
    results["columns"][0] |= {"comparable": False, "note": nasty("note")}
    for column in results["columns"]:  # names of plots too
        column["label"] = column["unit"] = f'"{made.NASTY}'
    equal = results["cells"]["equal"]
    equal["versions"][nasty("library")] = nasty("version")
    equal["settings"][nasty("key")] = nasty("value")
    told = made.Told(*map(nasty, ("title", "evidence", "advice")), made.NASTY)
    page = html(results, [told])
    assert "<script" not in page
    text = Read(page).text
    assert [one for one in put if one not in text] == []
    assert f'"{made.NASTY}' in text


def test_the_same_results_give_the_same_bytes():
    assert html(copy.deepcopy(made.objectives()), made.FINDINGS) == PAGES["objectives"]


def test_ids_are_unique_and_all_that_is_referred_to_is_there(name):
    ids = [a["id"] for _, a in Read(PAGES[name]).elements if "id" in a]
    assert len(ids) == len(set(ids))
    referred = set(re.findall(r'(?:href="|url\()#([^")]+)', PAGES[name]))
    assert referred <= set(ids)
    assert len(referred) > 20


UNITS = {
    "curves": r"tokens read \((thousands|millions)\)|\(10[⁰-⁹¹²³]+ FLOPs\)|\((seconds|minutes)\)",
    "tasks": r"\((accuracy|spearman)\)$",
    "sweep": r"objective\.mask_rate \(setting\)",
    "balance": r"step \(updates\)",
}


def test_each_plot_has_a_title_and_axes_with_units(name):
    plots = svgs(PAGES[name])
    for key, unit in UNITS.items():
        if f'<section id="{key}">' not in PAGES[name]:
            continue
        inside = svgs(section(PAGES[name], key))
        assert inside
        for svg in inside:
            plots.remove(svg)
            assert any(re.search(unit, label) for label in axis_labels(svg)), axis_labels(svg)
            assert re.search(r'aria-label="[^"]+".*?<title>[^<]+</title>', svg)
            if key != "tasks":  # there the groups are one of the axes; else both have a unit
                up = re.findall(r"rotate\(-90[^>]*>([^<]*)<", svg)
                assert re.search(r"\((nats per token|accuracy|0 to 1|-1 to 1)\)$", " ".join(up)), up
    assert not plots  # each was in one of the sections


def test_which_plots_there_are():
    titles = {n: re.findall(r'<svg role="img" aria-label="([^"]*)"', p) for n, p in PAGES.items()}
    against = ["tokens read", "training compute", "training time"]
    assert titles["mask_rates"] == [
        *(f"held-out loss against {x}" for x in against),
        "sst2 against tokens read",
        "sst2 (probe) by group",
        "trec (fine-tune) by group",
        *(f"{y} against objective.mask_rate"
          for y in ("test loss", "sst2 (probe)", "trec (fine-tune)")),
    ]  # fmt: skip
    assert len(titles["objectives"]) == 4 + 4
    assert titles["mixture"][-4:] == [
        f"{group}: {what}" for group in ("equal", "balanced")
        for what in ("share of the gradient", "cosine of the gradients")
    ]  # fmt: skip


def test_a_series_looks_like_no_other():
    legend = section(PAGES["objectives"], "curves").split("</ul>")[0]
    keys = re.findall(r"<li>(<svg.*?</svg>)", legend)
    shapes = [re.sub(r"plot\d+-\w+", "", key) for key in keys]
    assert len(set(shapes)) == len(shapes) == len(made.OBJECTIVES)
    colourless = [re.sub(r"#[0-9a-f]{6}", "", shape) for shape in shapes]
    assert len(set(colourless)) == len(shapes)  # by marker and line alone


def test_a_dot_is_where_its_number_is():
    """The dots of a task, read back from the plot through its ticks."""
    svg = svgs(section(PAGES["mask_rates"], "tasks"))[0]
    pairs = re.findall(r'<text[^>]*x="([\d.]+)"[^>]*>(0\.\d+)</text>', svg)
    (x0, v0), (x1, v1) = [(float(x), float(v)) for x, v in (pairs[0], pairs[-1])]
    use = r'<use href="#[^"]*" x="([\d.]+)" y="[\d.]+" style="fill: (#\w{6})'
    dots = {colour: float(x) for x, colour in re.findall(use, svg)}  # a dot ends its bar
    found = sorted(v0 + (x - x0) / (x1 - x0) * (v1 - v0) for x in dots.values())
    means = sorted(row["values"]["sst2/probe"]["mean"] for row in made.mask_rates()["rows"])
    assert found == pytest.approx(means, abs=1e-3)


def test_a_probe_that_learns_shuffled_labels_is_not_passed_over():
    assert "1 NOT at chance: something leaks" in section(PAGES["objectives"], "shuffled")
    assert (
        section(PAGES["objectives"], "shuffled").count('<td class="bad">') == 2
    )  # open and folded
    assert "something leaks" not in PAGES["mask_rates"]
    assert "each is at chance" in section(PAGES["mask_rates"], "shuffled")


def test_findings_or_that_there_are_none():
    for told in made.FINDINGS:
        read = Read(section(PAGES["mask_rates"], "findings"))
        assert told.title in read.text and told.evidence in read.text and told.advice in read.text
    assert "the numbers support no finding" in section(BARE, "findings")


def test_missing_cells_and_the_short_of_it_come_first():
    before = Read(PAGES["mask_rates"].split("<nav")[0]).text
    assert "1 cell: mask_rate=0.8,seed=1" in before
    assert "mask_rate=0.3 is best in test loss" in before
    assert "5 groups with 1 to 2 seeds each, 3 million tokens for each run" in before


def test_only_what_there_is_has_a_section():
    def named(page):
        return re.findall(r'<section id="(\w+)">', page)

    assert {"others", "sources", "pairs"} <= set(named(PAGES["objectives"]))
    assert not {"others", "sources", "pairs", "sweep"} & set(named(PAGES["mixture"]))
    bare = made.mixture()
    for cell in bare["cells"].values():
        cell |= {"curve": [], "balance": [], "tasks": {}, "samples": [], "train": None}
    assert named(html(bare, [])) == ["findings", "compared", "results", "fit", "data", "settings"]
    bare |= {"cells": {}, "rows": [], "columns": [], "data": [], "missing": ["equal", "balanced"]}
    page = html(bare, [])
    assert "Not done, so not in here: 2 cells: equal, balanced" in page


def test_a_run_that_blew_up_and_an_interval_of_no_width_can_be_drawn():
    results = made.mask_rates()
    for entry in next(iter(results["cells"].values()))["curve"][10:]:
        entry |= {"eval_loss": float("inf"), "loss": float("nan"), "task/sst2": None}
    results["rows"][0]["values"]["loss"] = {"mean": float("nan")} | dict.fromkeys(
        ("low", "high"), float("nan")
    )
    narrow = {"mean": 0.5, "low": 0.5 + 1e-16, "high": 0.5 - 1e-16}
    results["rows"][1]["values"]["sst2/probe"] = narrow
    page = html(results, [])
    assert ">nan<" in section(page, "results") and "0.500" in section(page, "results")
    labels = axis_labels(svgs(section(page, "curves"))[0])
    assert "7" in labels and "8" not in labels  # the start is left out as ever
    assert not re.search(r"[^a-z](nan|inf)[^a-z]", section(page, "curves"), flags=re.I)


def test_values_of_several_orders_are_told_apart():
    results = made.mask_rates()
    rates = [1e-4, 3e-4, 1e-3, 1e-2, 1e-1]
    for rate, row in zip(rates, results["rows"], strict=True):
        row["varied"] = {"optimizer.learning_rate": rate, "seed": 0}
    svg = svgs(section(html(results, []), "sweep"))[0]
    at = re.findall(r'<text[^>]*x="([\d.]+)"[^>]*>(0\.\d+|1e-\d+)</text>', svg)
    places = {label: float(x) for x, label in at}
    assert list(places) == ["0.0001", "0.0003", "0.001", "0.01", "0.1"]
    gaps = [places["0.001"] - places["0.0001"], places["0.1"] - places["0.01"]]
    assert gaps[0] == pytest.approx(gaps[1], abs=0.01)
    results["rows"][0]["varied"]["model.layers"] = 2  # now two keys vary
    assert 'id="sweep"' not in html(results, [])


def test_the_examples_of_a_docstring_stay_as_they_are():
    assert '<p class="about">One line and its end.</p>' in BARE
    assert ">key   a\nloss  1</pre>" in BARE


def test_both_files_are_written(tmp_path):
    write_report(tmp_path, made.mixture(), made.FINDINGS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.md"]
    assert (tmp_path / "report.html").read_text() == PAGES["mixture"]


def test_settings_that_a_group_does_not_have_are_not_listed():
    results = made.mask_rates()
    results["rows"][0]["varied"] = {"objective.name": "mlm", "objective.pooling": None}
    assert varied(results).rows[0][1] == "objective.name = mlm"
