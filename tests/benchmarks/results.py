"""Rows of RESULTS.md: one per line of replies.py and contender, in a section per machine."""

import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

from contenders import BARE, HERE, OURS, PEERS, Contender

RESULTS = HERE / "RESULTS.md"
ABOUT = """\
# Results of replies.py

`replies.py` describes what each line measures. Medians of several runs.
"""
HEADER = """\
| what | who | figure | target | met | date, cores busy before |
|---|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Row:
    """A row of the results; only Libra's have a target."""

    line: str
    contender: Contender
    figure: str
    target: str = ""
    met: bool | None = None


def rows_of(
    line: str, figures: dict[Contender, str], target: str = "", met: bool | None = None
) -> list[Row]:
    """The rows of a line; the target is Libra's."""
    rows = []
    for contender, figure in figures.items():
        ours = (target, met) if contender is OURS else ()
        rows.append(Row(line, contender, figure, *ours))
    return rows


def machine() -> str:
    """This machine in words, the title of its section."""
    gibibytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{os.cpu_count()} cores, {gibibytes:.0f} GiB of memory, {platform.system()}, "
        f"Python {platform.python_version()}"
    )


def busy_cores() -> float:
    """How many cores other processes keep busy now, measured for 3 seconds."""
    before = _cpu_seconds()
    time.sleep(3)
    return (_cpu_seconds() - before) / 3


def _cpu_seconds() -> float:
    """CPU time of all processes since boot: all but idle and waiting for a disk."""
    line = Path("/proc/stat").read_text().split("\n", 1)[0]
    fields = [int(field) for field in line.split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


def write_results(rows: list[Row], date: str) -> None:
    """Put `rows` into this machine's section, in place of those of the same line and contender."""
    text = RESULTS.read_text() if RESULTS.exists() else ""
    own, title, others = text.partition("\n## Judging\n")  # which judging.py writes
    sections = _parsed(own)
    section = sections.setdefault(machine(), {})
    for row in rows:
        met = {None: "", True: "yes", False: "**no**"}[row.met]
        figure = row.figure.replace("|", "/")
        cells = [row.line, row.contender.versioned(), figure, row.target, met, date]
        section[row.line, row.contender.name] = cells

    names = [contender.name for contender in (OURS, BARE, *PEERS)]
    parts = [ABOUT]
    for name, section in sections.items():
        lines = list(dict.fromkeys(line for line, _ in section))
        keys = sorted(section, key=lambda key: (lines.index(key[0]), names.index(key[1])))
        table = "".join(f"| {' | '.join(section[key])} |\n" for key in keys)
        parts.append(f"\n## {name}\n\n{HEADER}{table}")
    RESULTS.write_text("".join(parts) + title + others)


def _parsed(text: str) -> dict[str, dict[tuple[str, str], list[str]]]:
    """{machine: {(line, contender): cells}} of RESULTS.md."""
    sections: dict[str, dict[tuple[str, str], list[str]]] = {}
    section: dict[tuple[str, str], list[str]] = {}
    for line in text.splitlines():
        if line.startswith("## "):
            section = sections.setdefault(line[3:], {})
        elif line.startswith("| ") and not line.startswith("| what"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            section[cells[0], cells[1].partition(" (")[0]] = cells
    return sections
