"""The report in headless Chromium, with 10,000 answers: nothing is requested, nothing complains, filters and keys work, it reads well."""

import base64
import contextlib
import time

import pytest
from test_report import NASTY, RATES, write_inputs

from helpers.browser import CHROMIUM, browser
from stages import report as stage

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="needs Chromium on PATH (apt-get install chromium)"
)

# The lowest contrast of text with what is behind it (WCAG 2), as [ratio, text, element], of all text on the page.
CONTRAST = """(() => {
  const numbers = colour => colour.startsWith("color(") ? colour.match(/[\\d.]+/g).map(Number).map((n, i) => i < 3 ? n * 255 : n)
    : colour.match(/[\\d.]+/g).map(Number);
  const over = (top, below) => top.slice(0, 3).map((n, i) => n * (top[3] ?? 1) + below[i] * (1 - (top[3] ?? 1)));
  const behind = node => node ? over(numbers(getComputedStyle(node).backgroundColor), behind(node.parentElement)) : [255, 255, 255];
  const light = rgb => rgb.map(n => n / 255).map(n => n <= .04045 ? n / 12.92 : ((n + .055) / 1.055) ** 2.4)
    .reduce((sum, n, i) => sum + n * [.2126, .7152, .0722][i], 0);
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const at = node.parentElement;
    if (!node.data.trim() || ["SCRIPT", "STYLE", "NOSCRIPT", "TITLE"].includes(at.tagName.toUpperCase()) || at.closest(".skip, .unseen, option")) continue;
    const style = getComputedStyle(at);
    const [a, b] = [light(over(numbers(at.closest("svg") ? style.fill : style.color), behind(at))), light(behind(at))];
    found.push([(Math.max(a, b) + .05) / (Math.min(a, b) + .05), node.data.trim(), at.className.baseVal ?? at.className]);
  }
  return found.sort((x, y) => x[0] - y[0])[0];
})()"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = write_inputs(tmp_path_factory.mktemp("page"), prompts=667, shown=10_000)
    with contextlib.chdir(folder):
        stage.main()
    return folder / "data/eval/report.html"


@pytest.fixture(scope="module")
def running():
    with browser() as tab:
        yield tab


@pytest.fixture
def tab(running, page):
    """The page, freshly opened; whatever a test does with it, it asked for nothing else and complained of nothing."""
    running.open(page)
    yield running
    assert running.faults == []
    assert running.requests == [page.as_uri()]


def count(tab):
    return tab.value("document.querySelector('.count').textContent")


def set_filter(tab, name, value):
    script = f"(() => {{ const at = document.querySelector('.filters').elements['{name}']; at.value = {value!r}; "
    tab.value(script + "at.dispatchEvent(new Event('input', { bubbles: true })); })()")


def column(tab, number):
    return tab.value(
        f"[...document.querySelectorAll('.answers tbody tr')].map(row => row.children[{number}].textContent)"
    )


def test_filters(tab):
    assert count(tab) == "10,000 match, the first 100 shown" and len(column(tab, 0)) == 100
    set_filter(tab, "candidate", "dpo")
    set_filter(tab, "expected", "refuse")
    assert count(tab).startswith("667 match") and set(column(tab, 0)) == {"dpo"}
    set_filter(tab, "text", " NO. 66?")
    assert count(tab) == "1 matches" and column(tab, 2) == [
        "What about <b>substance A</b>, no. 66?"
    ], "words of a page are text, not HTML"
    set_filter(tab, "expected", "comply")
    assert count(tab) == "2 match" and column(tab, 3) == [f"{NASTY} (of dpo)"] * 2
    set_filter(tab, "text", "no such words")
    assert count(tab) == "No answer matches; clear a filter." and tab.value(
        "document.querySelector('.answers').hidden"
    )
    tab.value("document.querySelector('.filters button[type=reset]').click()")
    tab.value("new Promise(done => setTimeout(done, 20))")
    assert count(tab).startswith("10,000 match")


def test_ten_thousand_answers_are_quick(tab, page):
    assert page.stat().st_size < 5_000_000
    began = time.monotonic()
    tab.open(page)
    assert time.monotonic() - began < 5
    took = "(() => { const began = performance.now(); document.querySelector('.filters').dispatchEvent(new Event('input')); "
    assert (
        tab.value(took + "document.body.offsetHeight; return performance.now() - began; })()") < 500
    )


def test_the_keyboard_reaches_everything(tab):
    focused = "document.activeElement.textContent.trim()"
    tab.key("Tab")
    assert tab.value(focused) == "Skip to the results"
    assert tab.value("document.activeElement.getBoundingClientRect().top") >= 0, "it shows itself"
    order = "[...document.querySelectorAll('.board tbody tr')].map(row => row.dataset.candidate)"
    tab.value("document.querySelectorAll('.board thead button')[4].focus()")  # safety
    for direction in ("descending", "ascending"):
        tab.key("Enter", "\r")
        assert (
            tab.value("document.activeElement.closest('th').getAttribute('aria-sort')") == direction
        )
        by_safety = sorted(
            RATES, key=lambda name: RATES[name][0], reverse=direction == "descending"
        )
        assert tab.value(order) == by_safety
    tab.value("document.querySelector('.more button').focus()")
    tab.key("Enter", "\r")
    assert len(column(tab, 0)) == 200
    assert tab.value("document.activeElement.rowIndex") == 101, (
        "the keyboard goes on at the first new row"
    )
    reach = "[...document.querySelectorAll('.scroll')].every(at => at.tabIndex === 0 && document.getElementById(at.getAttribute('aria-labelledby')))"
    assert tab.value(reach)


@pytest.mark.parametrize("width", [320, 390, 800, 1280])
def test_nothing_is_wider_than_the_screen(tab, width):
    tab.size(width, 800)
    assert tab.value("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out(tab, scheme):
    tab.value("for (const one of document.querySelectorAll('details')) one.open = true")
    tab.call(
        "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}]
    )
    ground = tab.value("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, ground[4:-1].split(","))) < 3 * 64) == (scheme == "dark")
    ratio, text, where = tab.value(CONTRAST)
    assert ratio >= 4.5, (text, where)
    tab.call("Emulation.setEmulatedMedia", features=[])


def test_it_prints_with_everything_unfolded(tab):
    tab.value(
        "window.unfolded = []; addEventListener('beforeprint', () => unfolded.push(document.querySelectorAll('details:not([open])').length))"
    )
    printed = base64.b64decode(tab.call("Page.printToPDF")["data"])
    assert printed.startswith(b"%PDF") and tab.value("unfolded") == [0]
    assert tab.value("document.querySelectorAll('details[open]').length") == 0, (
        "and is as it was afterwards"
    )


def test_without_scripts_all_but_the_table_of_answers_is_there(tab, page):
    tab.open(page, scripts=False)
    seen = tab.value("document.querySelector('main').innerText")
    assert (
        all(name in seen for name in RATES)
        and "The table needs JavaScript" in seen
        and "Clear" not in seen
    )
