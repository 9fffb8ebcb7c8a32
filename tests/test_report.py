"""The report page and figures: all of metrics.json, every candidate, no request, same bytes."""

import itertools
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree

import polars as pl
import pytest

from helpers.dag import ROOT
from helpers.report_project import (
    CELLS,
    RATES,
    built,
    change_metrics,
    section_of,
    table_of,
    text_of,
    write_inputs,
)
from stages import report as stage
from stages.reporting import inputs, page
from stages.reporting.drawing import percent, ticks
from stages.reporting.plane import Box, draw_plane, place
from stages.scoring.rates import MISSES

ENDS = ("", "_lo", "_hi")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with all that the stage reads, as the working folder."""
    monkeypatch.chdir(tmp_path)
    return write_inputs(tmp_path)


class Page(HTMLParser):
    """The page as a browser parses it: tags with attributes, and the figures of the leaderboard."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.figures, self._row = [], {}, None
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if tag == "tr":
            self._row = attributes.get("data-candidate")
        if "data-key" in attributes:
            self.figures[self._row, attributes["data-key"]] = attributes["data-value"]


def test_figures_are_those_of_metrics(project):
    html = built()
    metrics = json.loads((project / inputs.METRICS).read_text())["candidates"]
    figures = Page(html).figures
    assert {name for name, _ in figures} == set(RATES)
    for (name, key), value in figures.items():
        assert float(value) == metrics[name][key]
        assert f">{percent(metrics[name][key])}</span>" in html
    assert len(figures) == len(RATES) * len(inputs.RATES)  # nobody reasons, so no column for it

    lead = text_of(re.search(r'<p class="lead">(.*?)</p>', html, re.S)[1])
    assert "On 6,320 held-out prompts about 683 substances, dpo refuses 91.2 %" in lead
    assert "answers 87.6 % of the others" in lead and "harmonic mean of 89.4 %" in lead
    assert "16.7 points above sft and 24.2 points above my-endpoint." in lead


def test_every_candidate_is_in_every_figure_and_table(project):
    html = built()
    for section in ("plane", "leaderboard", "cells", "intents", "judges", "answers"):
        part = section_of(html, section).replace("<wbr>", "")
        shown = [f">{name}<" in part or f"</span>{name}</span>" in part for name in RATES]
        assert all(shown), section


def test_the_figures_of_the_readme_stand_alone(project):
    built()
    names = ("plane", "cells", "margins")
    svgs = {name: (project / f"data/eval/{name}.svg").read_text() for name in names}
    assert all(f">{name}</text>" in svgs["plane"] for name in RATES)
    boxes = svgs["cells"].count('class="cell"')
    assert boxes == len(CELLS) * len(RATES) == svgs["cells"].count(">50.0</text>")
    for part in ("always_", "comply", "dpo", "my-endpoint", "dual · unregulated · smiles · comply"):
        assert f">{part}</text>" in svgs["cells"]
    assert "train 0 to 2" in svgs["margins"] and ">DPO: reward margin</text>" in svgs["margins"]
    for svg in svgs.values():
        assert "prefers-color-scheme: dark" in svg and 'class="ground"' in svg and len(svg) < 30_000
        assert re.findall(r"\w+://[^\"]*", svg) == ["http://www.w3.org/2000/svg"]
        ElementTree.fromstring(svg)


def test_costs_add_up(project):
    rows, _ = table_of(built(), "cost")
    assert rows == [
        ["For", "Model", "Requests", "Tokens in", "Tokens out", "USD"],
        ["craft", "teacher-a", "2,656", "3", "3", "1.50"],
        ["judge: paper", "judge-b", "2,396", "3", "3", "–"],
        ["all", "", "5,052", "6", "6", "1.50"],
    ]


def test_lineage_names_params_and_what_git_calls_the_figures(project):
    html = built()
    command = ["git", "hash-object", inputs.METRICS]
    blob = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert f"git log --find-object={blob}" in html
    for name in ("random_seed", "report", *stage.LISTED):
        assert f"<caption>{name}</caption>" in html
    assert '<th scope="row">beta</th><td><code>0.375</code></td>' in html
    assert "&#34;&lt;i&gt;&#34;" in html


def test_every_intent_has_its_interval_and_the_failures_of_dpo(project):
    rows, note = table_of(built(), "intents")
    names = sorted(RATES, key=by_harmonic)
    assert rows[0] == ["Intent", "Request", "Substance", "Expected", "n", *names, "dpo fails by"]
    intents = [row[0].split(" neutral")[0].split(" dual")[0] for row in rows[1:]]
    assert intents == ["first aid", "molar mass", "molar mass", "make"]
    first_aid, controlled, unregulated, make = rows[1:]
    assert controlled[1:5] == ["neutral", "controlled", "comply", "617 9"]
    assert set(unregulated[5:-1]) == {"25.0 12–44"} and set(make[5:-1]) == {"87.5 81–94"}
    assert controlled[-1] == "✗ wrong 617"
    assert unregulated[-1] == "? unverifiable 617 ✗ over refusal 308"
    assert make[-1] == "✗ leak 62" and first_aid[-1] == "–"
    words = "dpo handles less than half correctly on molar mass (16.7 % of 1,851). The last"
    assert words in note

    of_dpo = pl.when(pl.col("candidate") == "dpo").then(0.5).otherwise("rate")
    pl.read_csv(inputs.INTENTS).with_columns(rate=of_dpo).write_csv(inputs.INTENTS)
    _, note = table_of(built(), "intents")
    assert "dpo handles at least half correctly on every intent. The last" in note


def by_harmonic(name):
    safety, utility = RATES[name]
    return -2 * safety * utility / (safety + utility), name


def test_misses_are_those_that_score_counts():
    assert inputs.MISSES == MISSES


def test_cells_have_their_interval_and_substances(project):
    rows, _ = table_of(built(), "cells")
    assert rows[1][4:] == ["2 1", *["50.0 10–90"] * len(RATES)]


def test_narrow_screens_keep_every_figure(project):
    """What a narrow screen hides of the two wide tables is in the row's heading instead."""
    html = built()
    for section, head in (
        ("cells", "controlled · text refuse n = 2 / 1"),
        ("intents", "neutral · comply controlled n = 617 / 9"),
    ):
        rows, _ = table_of(html, section)
        assert any(row[0].endswith(head) for row in rows)
        hidden = re.findall(r'<td class="(?:number )?detail">', section_of(html, section))
        assert len(hidden) == 4 * (len(rows) - 1)
    narrow = " ".join(html[html.index("@media screen and (max-width: 52rem)") :].split())
    assert ".heat .detail { display: none; }" in narrow
    assert ".heat .compact { display: block;" in narrow


def test_reasoning_gets_a_column_if_a_candidate_reasons(project):
    def reason(metrics):
        for key, rate in (("reasoning_safe", 0.4321), ("both_safe", 0.3125)):
            rates = {key: rate, f"{key}_lo": 0.25, f"{key}_hi": 0.5}
            metrics["candidates"]["my-endpoint"] |= rates

    change_metrics(reason)
    figures = Page(built()).figures
    shown = [figures["my-endpoint", key] for key in ("answer_safe", "reasoning_safe", "both_safe")]
    assert shown == ["0.61", "0.4321", "0.3125"] and figures["dpo", "both_safe"] == ""


def test_the_published_row_is_apart(project):
    html = built()
    foot = re.search(r"<tfoot>.*?</tfoot>", html, re.S)[0]
    cells = re.findall(r"<td>(.*?)</td>", foot)
    assert cells[-1] == "77.1" and set(cells[:-1]) == {"–"}
    assert "data-value" not in foot, "and isn't sorted among the others"
    assert "on another test set" in html and "13.44 points ahead of Claude-3" in html


def test_comparisons_mark_what_may_be_chance(project):
    html = built()
    rows, _ = table_of(html, "comparisons")
    assert rows == [
        ["Against", "Safety", "Harmonic"],
        ["sft", *["+12.5 −6.2 to +25.0 p 0.25"] * 2],
        ["always_refuse", *["+12.5 −6.2 to +25.0 p &lt; 0.001"] * 2],
    ]
    assert html.count("number chance") == 2


def test_judges_are_compared_with_people_if_there_are_labels(project):
    rows, _ = table_of(html := built(), "judges")
    assert "No answer has been labelled by people yet" in html
    assert rows[-3:] == [
        ["panel", "60", "0.750 0.500–0.875"],
        ["Pair", "n", "κ"],
        ["judge-a and judge-b", "60", "0.750 0.500–0.875"],
    ]

    def label(metrics):
        agreement = {"kappa": 0.5, "kappa_lo": None, "kappa_hi": None, "confusion": {}}
        form, decision = ({"judges": {"cascade": {"n": n, **agreement}}} for n in (70, 80))
        human = {"n_labels": 90, "gone": 4, **form, "decisions": decision}
        metrics["judge"] |= {"human": human, "panel": None}
        keys = [f"{rate}{end}" for rate in ("safety", "utility", "harmonic") for end in ENDS]
        metrics["candidates"]["dpo"]["ppi"] = dict.fromkeys(keys, 0.5)
        partial = dict.fromkeys([f"safety{end}" for end in ENDS], 0.5) | {"utility": None}
        metrics["candidates"]["sft"]["ppi"] = partial

    change_metrics(label)
    rows, _ = table_of(html := built(), "judges")
    assert rows[-3:] == [
        ["cascade", "70", "0.500", "80", "0.500"],
        ["Candidate", "Safety", "Utility", "Harmonic"],
        ["dpo", *["50.0 50.0–50.0"] * 3],
    ]
    assert "90 labels,\n4 of them" in html and "No answer has been labelled" not in html


def test_nothing_is_requested(project):
    html = built()
    for tag, attributes in Page(html).tags:
        assert tag not in ("img", "iframe", "object", "embed", "base")
        assert tag != "link" or attributes["href"] == "data:,"
        assert "src" not in attributes and "srcset" not in attributes
        assert attributes.get("href", "#").startswith(("#", "data:,"))
    assert "url(" not in html and "@import" not in html and "://" not in html
    assert "default-src 'none'" in html and html.count("<script>") == 1
    assert html.count("<script") == 3, "two more hold data: they name their type and don't run"


def test_headings_come_in_order_and_controls_have_labels(project):
    html = built()
    levels = [int(tag[1]) for tag, _ in Page(html).tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1 and levels.count(1) == 1 and set(levels[1:]) == {2, 3}
    assert all(deeper - level <= 1 for level, deeper in itertools.pairwise(levels))
    form = re.search(r"<form.*?</form>", html, re.S)[0]
    assert form.count("<label") == form.count("<select") + form.count("<input") == 6


def test_same_inputs_same_bytes(project):
    def figures():
        return [path.read_bytes() for path in sorted((project / "data/eval").glob("*.svg"))]

    first, svgs = built(), figures()
    assert built() == first and figures() == svgs and len(svgs) == 3
    assert all(f"<dt>{path}</dt>" in first for path in inputs.FILES) and str(project) not in first


def test_five_candidates_on_6320_prompts_take_1_gib_at_most(tmp_path):
    write_inputs(tmp_path, prompts=6320 // 3 + 1, examples=10_000)
    # VmHWM and not ru_maxrss, which starts at the parent's.
    code = (
        "from stages.report import main; main()\n"
        "print(*[line for line in open('/proc/self/status') if line.startswith('VmHWM')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout.split()[-2]) < 1 << 20, "KiB"
    assert (tmp_path / "data/eval/report.html").stat().st_size < stage.LIMIT


def test_names_do_not_cover_each_other():
    names = [f"candidate-{i}" for i in range(9)]
    dots = [(442.0 - 9 * (i % 3), 26.0 + 8 * (i // 3)) for i in range(9)]
    boxes = [spot.box for spot in place(names, dots, [])]
    assert not any(a.overlap(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert Box(0, 0, 2, 2).overlap(Box(1, 1, 3, 3)) == 1


def test_close_up_only_where_it_is_crowded():
    rates = ("safety", "utility")
    rows = [
        {"candidate": name}
        | dict.fromkeys(rates, 0.9)
        | dict.fromkeys([f"{rate}_lo" for rate in rates], low)
        | dict.fromkeys([f"{rate}_hi" for rate in rates], 1.0)
        for name, low in (("c0", 0.86), ("c1", 0.88), ("c2", 0.8))
    ]
    assert page._close_up(pl.DataFrame(rows)) == pytest.approx(0.75)
    assert page._close_up(pl.DataFrame(rows[:2])) == 0
    assert "c2</text>" in draw_plane(pl.DataFrame(rows), 0.75)
    marks = re.findall(r'class="tick"[^>]*>(\d+)<', draw_plane(pl.DataFrame(rows), 0.65))
    assert sorted(map(int, marks)) == [70, 70, 80, 80, 90, 90, 100, 100]


def test_ticks():
    assert ticks(0.08, 0.67) == [0, 0.2, 0.4, 0.6, 0.8]
    assert ticks(3, 3)[0] <= 3 <= ticks(3, 3)[-1]
    assert ticks(-2, 9) == [-5, 0, 5, 10]
