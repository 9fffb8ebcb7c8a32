"""What a release costs: checks of a million triplets, push and pull, a fresh machine.

    python tests/benchmarks/release.py                # all lines; 10 minutes on two idle cores
    python tests/benchmarks/release.py --only pull    # some lines

Writes RELEASE.md. Needs the data of a run (`dvc repro` or `dvc pull`). Figures are medians, each
contender is a process of its own.

    million  contract, probes, card, Croissant and diff of 1,062,400 triplets (the combination,
             repeated with 16 sets of seeds), next to pandas
    copy     all that `make release` pushes to a remote of its own, and the dataset alone, to and
             from an S3 server (Swift): DVC's push and pull next to boto3 on the same objects, one
             after the other. The server is 50 ms away (each packet waits 25 ms, as to another
             region), 10 ms away, or on this machine; with and without start and imports
    pull     `git clone` and `dvc pull data/librachemqa` from the remote in Git
"""

import argparse
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

from release_copy import copy
from release_million import million

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "tests/benchmarks/RELEASE.md"
REPEATS = 3
HEAD = ["what", "who", "figure", "target", "met", "date"]
INTRODUCTION = """\
# Results of release.py

`release.py` next to this file says what each line measures. DVC takes half a second to start and
sends a dozen requests one after the other before it copies objects in parallel. So it is slower
than boto3 if there is little to copy or the server is close, and faster over a distance.
"""


def pull() -> list[list[str]]:
    """Clone and pull, from a clone of this repository with its history and a released dataset."""
    from helpers.releasing import call

    author = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    seconds = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        work = folder / "work"
        call(folder, "git", "clone", "-q", "--no-local", str(ROOT), "work")
        shutil.copytree(ROOT / "data/librachemqa", work / "data/librachemqa")
        for name in ("triplets.parquet", "seeds.parquet", "substances.parquet", "domain.json"):
            shutil.copy(ROOT / f"data/{name}", work / f"data/{name}")
        call(work, "dvc", "commit", "-q", "--force", "validate")
        call(work, "dvc", "push", "-q", "data/librachemqa")
        call(work, "git", "add", "-A")
        call(work, "git", *author, "commit", "-q", "--allow-empty", "-m", "released")
        for turn in range(REPEATS):
            start = time.perf_counter()
            call(folder, "git", "clone", "-q", "--no-local", str(work), f"fresh{turn}")
            call(folder / f"fresh{turn}", "dvc", "pull", "-q", "data/librachemqa")
            seconds.append(time.perf_counter() - start)
            assert (folder / f"fresh{turn}/data/librachemqa/SHA256SUMS").exists()
    median = statistics.median(seconds)
    line = "fresh machine after installation: clone, then pull of the release from Git"
    met = "yes" if median <= 60 else "**no**"
    return [[line, "git, DVC", f"{median:.1f} s", "two commands, 60 s", met]]


def write_down(rows: list[list[str]]) -> None:
    """Add rows to this machine's section of RELEASE.md, replacing those of the same line."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    machine = f"{os.cpu_count()} cores, {memory:.0f} GiB of memory, {platform.system()}"
    title = f"{machine}, Python {platform.python_version()}"
    sections: dict[str, dict] = {}
    for line in RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.exists() else []:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("## "):
            section = sections.setdefault(line[3:], {})
        elif line.startswith("| ") and cells != HEAD and cells[0] != "---":
            section[cells[0], cells[1]] = cells
    for row in rows:
        sections.setdefault(title, {})[row[0], row[1]] = [*row, str(date.today())]

    text = INTRODUCTION
    for name, section in sections.items():
        lines = [HEAD, ["---"] * len(HEAD), *section.values()]
        text += f"\n## {name}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)
    RESULTS.write_text(text, encoding="utf-8")


LINES = {"million": million, "copy": copy, "pull": pull}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=LINES,
        default=list(LINES),
        metavar="NAME",
        help=", ".join(LINES),
    )
    for name in parser.parse_args().only:
        rows = LINES[name]()
        for row in rows:
            print(" | ".join(row), flush=True)
        write_down(rows)


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # the stages, and the tests' helpers
    os.chdir(ROOT)
    main()
