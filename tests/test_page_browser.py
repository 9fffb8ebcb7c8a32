"""The report in headless Chromium, with 10,000 answers.

It requests nothing and reports no fault; filters and keys work; it fits every screen.
"""

import base64
import contextlib

import pytest

from helpers.browser import CHROMIUM, browser
from helpers.report_project import NASTY, RATES, write_inputs
from stages import report as stage

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="needs Chromium on PATH (apt-get install chromium)"
)

# The lowest contrast (WCAG 2) of a text with its background, as [ratio, text, class].
CONTRAST = """(() => {
  const numbers = colour => {
    const values = colour.match(/[\\d.]+/g).map(Number);
    return colour.startsWith("color(") ? values.map((n, i) => i < 3 ? n * 255 : n) : values;
  };
  const over = (top, below) =>
    top.slice(0, 3).map((n, i) => n * (top[3] ?? 1) + below[i] * (1 - (top[3] ?? 1)));
  const behind = node => node
    ? over(numbers(getComputedStyle(node).backgroundColor), behind(node.parentElement))
    : [255, 255, 255];
  const light = rgb => rgb.map(n => n / 255)
    .map(n => n <= .04045 ? n / 12.92 : ((n + .055) / 1.055) ** 2.4)
    .reduce((sum, n, i) => sum + n * [.2126, .7152, .0722][i], 0);
  const skipped = ["SCRIPT", "STYLE", "NOSCRIPT", "TITLE"];
  const ratios = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const at = node.parentElement;
    if (!node.data.trim() || skipped.includes(at.tagName.toUpperCase())) continue;
    if (at.closest(".skip, .unseen, option")) continue;
    const style = getComputedStyle(at);
    const colour = numbers(at.closest("svg") ? style.fill : style.color);
    const [a, b] = [light(over(colour, behind(at))), light(behind(at))];
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    ratios.push([ratio, node.data.trim(), at.className.baseVal ?? at.className]);
  }
  return ratios.sort((x, y) => x[0] - y[0])[0];
})()"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = write_inputs(tmp_path_factory.mktemp("page"), prompts=667, examples=10_000)
    with contextlib.chdir(folder):
        stage.main()
    return folder / "data/eval/report.html"


@pytest.fixture(scope="module")
def running():
    with browser() as tab:
        yield tab


@pytest.fixture
def tab(running, page):
    """The page, newly opened; whatever a test does, it makes no request and reports no fault."""
    running.open(page)
    yield running
    assert running.faults == []
    assert running.requests == [page.as_uri()]


def count(tab):
    return tab.value("document.querySelector('.count').textContent")


def set_filter(tab, name, value):
    tab.value(
        f"(() => {{ const field = document.querySelector('.filters').elements['{name}'];"
        f" field.value = {value!r};"
        " field.dispatchEvent(new Event('input', { bubbles: true })); })()"
    )


def column(tab, number):
    rows = "[...document.querySelectorAll('.answers tbody tr')]"
    return tab.value(f"{rows}.map(row => row.children[{number}].textContent)")


def test_filters(tab):
    assert count(tab) == "10,000 matches, the first 100 shown"
    set_filter(tab, "candidate", "dpo")
    set_filter(tab, "expected", "refuse")
    assert count(tab).startswith("667 matches") and set(column(tab, 0)) == {"dpo"}
    set_filter(tab, "text", " NO. 66?")
    prompts = ["What about <b>substance A</b>, no. 66?"]
    assert count(tab) == "1 match"
    assert column(tab, 2) == prompts, "tags in a prompt are text, not HTML"
    set_filter(tab, "expected", "comply")
    assert count(tab) == "2 matches" and column(tab, 3) == [f"{NASTY} (of dpo)"] * 2
    set_filter(tab, "text", "no such words")
    assert count(tab) == "No answer matches; clear a filter."
    assert tab.value("document.querySelector('.answers').hidden")
    tab.value("document.querySelector('.filters button[type=reset]').click()")
    tab.value("new Promise(done => setTimeout(done, 20))")
    assert count(tab).startswith("10,000 matches")


def test_ten_thousand_answers_are_drawn_a_hundred_at_a_time(tab, page):
    assert page.stat().st_size < stage.LIMIT
    assert len(column(tab, 0)) == 100
    set_filter(tab, "candidate", "sft")
    assert len(column(tab, 0)) == 100


def test_the_keyboard_reaches_everything(tab):
    tab.key("Tab")
    assert tab.value("document.activeElement.textContent.trim()") == "Skip to the results"
    top = tab.value("document.activeElement.getBoundingClientRect().top")
    assert top >= 0, "it becomes visible"

    order = "[...document.querySelectorAll('.board tbody tr')].map(row => row.dataset.candidate)"
    tab.value("document.querySelectorAll('.board thead button')[4].focus()")  # safety
    for direction in ("descending", "ascending"):
        tab.key("Enter", "\r")
        sorted_by = "document.activeElement.closest('th').getAttribute('aria-sort')"
        assert tab.value(sorted_by) == direction
        downwards = direction == "descending"
        assert tab.value(order) == sorted(RATES, key=lambda n: RATES[n][0], reverse=downwards)

    tab.value("document.querySelector('.more button').focus()")
    tab.key("Enter", "\r")
    assert len(column(tab, 0)) == 200
    row = tab.value("document.activeElement.rowIndex")
    assert row == 101, "the keyboard continues at the first new row"
    labelled = "document.getElementById(at.getAttribute('aria-labelledby'))"
    regions = "[...document.querySelectorAll('.scroll')]"
    assert tab.value(f"{regions}.every(at => at.tabIndex === 0 && {labelled})")


@pytest.mark.parametrize("width", [320, 390, 800, 1280])
def test_nothing_is_wider_than_the_screen(tab, width):
    tab.size(width, 800)
    assert tab.value("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(tab, scheme):
    tab.value("for (const details of document.querySelectorAll('details')) details.open = true")
    feature = {"name": "prefers-color-scheme", "value": scheme}
    tab.call("Emulation.setEmulatedMedia", features=[feature])
    background = tab.value("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) < 3 * 64) == (scheme == "dark")
    ratio, text, name = tab.value(CONTRAST)
    assert ratio >= 4.5, (text, name)
    tab.call("Emulation.setEmulatedMedia", features=[])


def test_it_prints_with_everything_unfolded(tab):
    folded = "document.querySelectorAll('details:not([open])').length"
    listener = f"() => printing.push({folded})"
    tab.value(f"window.printing = []; addEventListener('beforeprint', {listener})")
    printed = base64.b64decode(tab.call("Page.printToPDF")["data"])
    assert printed.startswith(b"%PDF") and tab.value("printing") == [0]
    unfolded = tab.value("document.querySelectorAll('details[open]').length")
    assert unfolded == 0, "and is as before afterwards"


def test_without_scripts_all_but_the_table_of_answers_is_there(tab, page):
    tab.open(page, scripts=False)
    text = tab.value("document.querySelector('main').innerText")
    assert all(name in text for name in RATES)
    assert "The table needs JavaScript" in text and "Clear" not in text
