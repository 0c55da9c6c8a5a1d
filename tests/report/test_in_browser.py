"""The page in Chromium, on a desktop and on a phone. Skipped where there is no Chromium."""

import shutil

import pytest

from jaxpretrain.report.page import html
from support import made_results as made

webdriver = pytest.importorskip("selenium.webdriver")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver"),
]

FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WIDTHS = (1280, 390)

# What sticks out to the right of the window without being in a box that scrolls.
STICKING_OUT = """
return [...document.querySelectorAll("body *")].filter(e =>
  !e.closest(".scroll > *, pre > *, svg *") && e.getClientRects().length
  && e.getBoundingClientRect().right > document.documentElement.clientWidth + 0.5
).map(e => e.tagName + "." + e.className + ": " + e.textContent.slice(0, 40));
"""
OVERFLOW = """
const page = document.documentElement;
return [page.scrollWidth, page.clientWidth, window.innerWidth];
"""
# Of each plot: its size, how many things are drawn, and how far text sticks out of it.
PLOTS = """
return [...document.querySelectorAll("svg")].map(svg => {
  const box = svg.getBoundingClientRect();
  const out = [...svg.querySelectorAll("text")].map(t => t.getBoundingClientRect()).map(t =>
    Math.max(box.left - t.left, t.right - box.right, box.top - t.top, t.bottom - box.bottom));
  const drawn = [...svg.querySelectorAll("path, use")].filter(e => {
    const one = e.getBoundingClientRect();
    return one.width > 0 || one.height > 0;
  });
  return {width: box.width, height: box.height, drawn: drawn.length, out: Math.max(0, ...out),
    title: svg.getAttribute("aria-label")};
});
"""
# The smallest letters, as they are on the screen, in pixels.
LETTERS = """
const sizes = [];
const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walk.nextNode()) {
  const parent = walk.currentNode.parentElement;
  if (!walk.currentNode.data.trim() || parent.tagName == "title") continue;
  const scale = parent.getScreenCTM ? parent.getScreenCTM() : null;
  const by = scale ? Math.hypot(scale.a, scale.b) : 1;
  sizes.push([parseFloat(getComputedStyle(parent).fontSize) * by, walk.currentNode.data]);
}
return sizes.sort((a, b) => a[0] - b[0]).slice(0, 5);
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in [*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module", params=made.ALL)
def page(request, browser, tmp_path_factory):
    """The browser with a report open, with all its details open too."""
    file = tmp_path_factory.mktemp("report") / "report.html"
    file.write_text(html(made.ALL[request.param](), made.FINDINGS))
    browser.get(f"file://{file}")
    browser.execute_script('document.querySelectorAll("details").forEach(d => d.open = true)')
    return browser


@pytest.fixture(params=WIDTHS)
def wide(request, page):
    """The report in a window of that width."""
    size = {"width": request.param, "height": 844, "deviceScaleFactor": 1, "mobile": False}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    return page


def test_the_page_never_scrolls_sideways(wide):
    content, visible, window = wide.execute_script(OVERFLOW)
    assert window in WIDTHS
    assert content <= visible
    assert wide.execute_script(STICKING_OUT) == []


def test_plots_are_drawn_and_nothing_of_them_is_cut_off(wide):
    plots = wide.execute_script(PLOTS)
    assert len(plots) > 8
    for plot in plots:
        key = plot["title"] is None  # of a legend
        assert plot["width"] >= (30 if key else 300) and plot["height"] >= (8 if key else 80), plot
        assert plot["drawn"] >= (2 if key else 10), plot
        assert plot["out"] <= 1, plot


def test_letters_can_be_read(wide):
    for size, text in wide.execute_script(LETTERS):
        assert size >= 11, text


def test_the_first_column_stays_when_a_table_scrolls(page):
    size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": False}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    before, after, room = page.execute_script(
        """
        const box = document.querySelector("#results .scroll"), name = box.querySelector("td, th");
        box.scrollLeft = 0;
        const before = name.getBoundingClientRect().left;
        box.scrollLeft = 80;
        const after = name.getBoundingClientRect().left;
        return [before, after, [box.scrollLeft, name.getBoundingClientRect().width]];
        """
    )
    assert room[0] == pytest.approx(min(80, room[0])) and room[0] > 20
    assert after == pytest.approx(before, abs=1)
    assert room[1] <= 180  # leaves room for numbers


def test_plots_stay_on_white_in_the_dark(page):
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": dark})
    paper, cards = page.execute_script(
        """
        const of = e => getComputedStyle(e).backgroundColor;
        return [of(document.body),
          [...document.querySelectorAll(".plots > div, .legend")].map(of)];
        """
    )
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert paper == "rgb(20, 24, 29)"
    assert set(cards) == {"rgb(255, 255, 255)"}


def test_the_console_has_no_errors(page):
    assert [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"] == []
