"""How the reply store and its client do, next to a bare loop and to other libraries, against a fake endpoint on this machine.

    python tests/benchmarks/replies.py                      # all lines, Libra and the bare loop: 8 minutes
    python tests/benchmarks/replies.py --only speed edits   # some lines
    python tests/benchmarks/replies.py --peers              # other libraries too (first: tests/benchmarks/peers/make_venvs.sh)
    python tests/benchmarks/replies.py --rows 300           # to try it out: prints, writes nothing

Figures go into tests/benchmarks/RESULTS.md, a row for each line and contender; a later run on such a machine replaces the rows it
measures. Not part of the tests: a figure needs an idle machine. Every contender is a process of its own, started anew for each
run in an empty folder; the endpoint is another process on the same cores. The lines (--only):

    speed    requests/s (first request to all rows in hand), time to the first request, peak memory, and the same run again
    edits    20 rows edited, 100 appended, 10 deleted, a run after each: requests sent
    matrix   nine edits, each of the same finished run: rows that answer another question than the one asked now
    kill     kill -9 ten times at random moments, then a run to the end
    cap      a server that takes 20 requests a second and refuses the rest
    latency  exponential latency: share of the rate that there would be if nothing but latency took time
    memory   50 times the rows: the process's peak
"""

import argparse
import json
import os
import platform
import random
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import date
from operator import truediv
from pathlib import Path

from fake_endpoint import ideal_seconds, reply_text

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
RESULTS = HERE / "RESULTS.md"
ROWS, MATRIX_ROWS = 2000, 200
AT_ONCE = 64
REPEATS, LATENCY_REPEATS = 5, 3  # medians are shown
KILLS = 10
CAP = 20  # requests a second
LONGEST = 900.0  # seconds a run may take; what takes longer counts as never finished
SETTINGS = {  # telemetry off, and no look-ups on a network that a run has no need of
    "DO_NOT_TRACK": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1", "TELEMETRY_ENABLED": "false",
    "NEMO_TELEMETRY_ENABLED": "false", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_PROXY": "127.0.0.1",
}  # fmt: skip


@dataclass(frozen=True)
class Contender:
    """A script that does a job (contender.py), the Python that runs it, and the package whose version is shown."""

    name: str
    script: Path
    python: Path = Path(sys.executable)
    package: str | None = None

    def versioned(self) -> str:
        """Its name with its package's version."""
        if self.package is None:
            return self.name
        code = f"from importlib.metadata import version; print(version({self.package!r}))"
        found = subprocess.run(
            [self.python, "-c", code], check=True, capture_output=True, text=True
        ).stdout.strip()
        return f"{self.name} ({self.package} {found})"


def _peer(name: str, folder: str, package: str, script: str) -> Contender:
    return Contender(
        name,
        HERE / "peers" / script,
        REPOSITORY / ".cache" / "peers" / folder / "bin" / "python",
        package,
    )


OURS = Contender("Libra", HERE / "ours.py")
BARE = Contender("bare loop", HERE / "bare.py", package="openai")
CURATOR = _peer("Bespoke Curator", "curator", "bespokelabs-curator", "curator.py")
DATA_DESIGNER = _peer("NeMo Data Designer", "data_designer", "data-designer", "data_designer_.py")
DISTILABEL = _peer("distilabel", "distilabel", "distilabel", "distilabel_.py")
TOKEN_TABLE = (
    "lib/python*/site-packages/litellm/litellm_core_utils/tokenizers"  # of Curator's environment
)
PEERS = (CURATOR, DATA_DESIGNER, DISTILABEL)
LEAST_RATE = {BARE: 0.85, CURATOR: 1.0, DISTILABEL: 4.0}  # of ours, as a multiple of theirs


@dataclass(frozen=True)
class Question:
    """What is asked about the rows; the edits of the matrix are changes of it."""

    model: str = "m"
    temperature: float = 0.0
    system: str | None = None
    template: str = "plain"
    parser: str = "plain"

    def answers(self, path: str, rows: list[str]) -> list[str]:
        """What the rows must come to."""
        users = [f"Question: {row}" if self.template == "edited" else row for row in rows]
        texts = [
            reply_text(f"{path}/chat/completions", self.model, self.temperature, self.system, user)
            for user in users
        ]
        return [text.upper() for text in texts] if self.parser == "edited" else texts


PLAIN = Question()


@dataclass(frozen=True)
class Run:
    """What a run came to. Times in seconds; `first` and `asking` mean nothing when nothing was sent."""

    served: int
    refused: int
    first: float  # process start to the first request
    asking: float  # first request to all rows in hand
    working: float  # imports done to all rows in hand
    peak: float  # MiB, of the contender's largest process
    stale: int  # rows that aren't what they must be, are missing or too many
    ordered: bool  # every row in its place

    @property
    def whole(self) -> float:
        """Process start to all rows in hand."""
        return self.first + self.asking


@dataclass(frozen=True)
class Row:
    """A row of the results; only ours have a target."""

    what: str
    who: Contender
    figure: str
    target: str = ""
    met: bool | None = None


class Failed(Exception):
    """A contender that stopped with an error or didn't finish."""


class Server:
    """A fake endpoint in a process of its own."""

    def __init__(self, *arguments: str):
        command = [sys.executable, str(HERE / "fake_endpoint.py"), *arguments]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.address = f"http://127.0.0.1:{self._process.stdout.readline().strip()}"

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.communicate()

    def counts(self, anew: bool = False) -> dict:
        """What came in; `anew` begins to count from nothing."""
        request = urllib.request.Request(
            f"{self.address}/counts", method="DELETE" if anew else "GET"
        )
        with urllib.request.urlopen(request) as response:
            return json.load(response)


@contextmanager
def empty_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="libra-benchmark-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def say(text: str) -> None:
    print(f"    {text}", file=sys.stderr, flush=True)


def start(
    who: Contender, url: str, folder: Path, rows: list[str], asked: Question
) -> subprocess.Popen:
    """The contender at work in `folder`; what it prints goes into log.txt there."""
    job = {
        "url": url,
        "rows": rows,
        "out": str(folder / "out.json"),
        "concurrency": AT_ONCE,
        **asdict(asked),
    }
    (folder / "job.json").write_text(json.dumps(job))
    (folder / "out.json").unlink(missing_ok=True)
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("DVC_", "PYTHON", "OPENAI_"))
    }
    environment = (
        inherited
        | SETTINGS
        | {"PYTHONPATH": f"{HERE}{os.pathsep}{REPOSITORY}", "HOME": str(folder)}
    )
    for table_folder in CURATOR.python.parent.parent.glob(
        TOKEN_TABLE
    ):  # else tiktoken, which two peers use, downloads it
        environment["TIKTOKEN_CACHE_DIR"] = str(table_folder)
    command = [str(who.python), str(who.script), str(folder / "job.json")]
    with open(folder / "log.txt", "wb") as log:
        return subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )


def run(
    who: Contender,
    server: Server,
    folder: Path,
    rows: list[str],
    asked: Question = PLAIN,
    path: str = "/v1",
    anew: bool = True,
) -> Run:
    """One run to its end; what it keeps in `folder` is there for the next. `anew`: what came in before doesn't count."""
    counts = server.counts(anew)
    started = time.monotonic()
    process = start(who, server.address + path, folder, rows, asked)
    while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
        if time.monotonic() - started > LONGEST:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise Failed(
                f"not done after {LONGEST:.0f} s ({server.counts()['served']:,} of {len(rows):,} requests served)"
            )
        time.sleep(0.02)
    process.returncode = os.waitstatus_to_exitcode(ended[1])
    counts = server.counts()
    if not (folder / "out.json").exists():
        last = (folder / "log.txt").read_text(errors="replace").strip().splitlines()[-1:]
        raise Failed(f"stopped after {counts['served']:,} requests ({' '.join(last)[:120]})")
    out, wanted = json.loads((folder / "out.json").read_text()), asked.answers(path, rows)
    missing, extra = Counter(wanted) - Counter(out["rows"]), Counter(out["rows"]) - Counter(wanted)
    first = counts["first"] or out["finished"]
    return Run(
        served=counts["served"],
        refused=counts["refused"],
        first=first - started,
        asking=out["finished"] - first,
        working=out["finished"] - out["began"],
        peak=ended[2].ru_maxrss / 1024,
        stale=max(missing.total(), extra.total()),
        ordered=out["rows"] == wanted,
    )


def table(
    what: str, figures: dict[Contender, str], target: str = "", met: bool | None = None
) -> list[Row]:
    """A line's rows; the target is for ours."""
    return [
        Row(what, who, figure, *((target, met) if who is OURS else ()))
        for who, figure in figures.items()
    ]


def prompts(count: int) -> list[str]:
    return [f"prompt {i}" for i in range(count)]


def speed(contenders: list[Contender], count: int) -> list[Row]:
    firsts: dict[Contender, list[Run]] = {who: [] for who in contenders}
    seconds: dict[Contender, list[Run]] = {who: [] for who in contenders if who is not BARE}
    with Server("--latency", "0.05") as server:
        for _ in range(REPEATS):
            for who in contenders:  # in turn, so that what else the machine does hits all alike
                with empty_folder() as folder:
                    firsts[who].append(one := run(who, server, folder, prompts(count)))
                    rate = f"{count / one.asking:.0f} requests/s"
                    say(
                        f"{who.name}: {rate}, the first after {one.first:.2f} s, {one.stale} rows wrong"
                    )
                    if who in seconds:
                        seconds[who].append(one := run(who, server, folder, prompts(count)))
                        say(
                            f"{who.name} again: {one.served} sent, {one.working:.2f} s, {one.stale} rows wrong"
                        )
    rows = []
    for what, field in (
        ("first request to last row", "asking"),
        ("process start to last row", "whole"),
    ):
        rates = {who: [count / getattr(one, field) for one in runs] for who, runs in firsts.items()}
        figures = {
            who: f"{statistics.median(rate):.0f} ({min(rate):.0f} to {max(rate):.0f})"
            for who, rate in rates.items()
        }
        # Round by round: what slows the machine for a while slows both.
        times = {
            who: statistics.median(map(truediv, rates[OURS], rate))
            for who, rate in rates.items()
            if who is not OURS
        }
        figures[OURS] += "".join(f"; {ratio:.2f} x {who.name}" for who, ratio in times.items())
        target = "; ".join(f"{least:g} x {who.name}" for who, least in LEAST_RATE.items())
        met = (
            all(times[who] >= least for who, least in LEAST_RATE.items())
            if times.keys() >= LEAST_RATE.keys()
            else None
        )
        rows += table(
            f"{count:,} requests, {AT_ONCE} at once, 50 ms latency: requests/s, {what}",
            figures,
            target,
            met,
        )
    first = {who: statistics.median(one.first for one in runs) for who, runs in firsts.items()}
    again = {who: statistics.median(one.working for one in runs) for who, runs in seconds.items()}
    sent = {who: max(one.served for one in runs) for who, runs in seconds.items()}
    peak = {who: statistics.median(one.peak for one in runs) for who, runs in firsts.items()}
    figures = {who: f"{value:.2f} s" for who, value in first.items()}
    rows += table(
        "time to the first request, imports included", figures, "2.5 s", first[OURS] <= 2.5
    )
    figures = {who: f"{sent[who]:,}, {value:.2f} s" for who, value in again.items()}
    met = (
        sent[OURS] == 0
        and again[OURS] <= 2
        and all(one.ordered for one in firsts[OURS] + seconds[OURS])
    )
    rows += table(
        f"the same {count:,} again: requests sent, time without imports", figures, "0, 2 s", met
    )
    return rows + table(
        f"peak memory for {count:,} requests",
        {who: f"{value:.0f} MiB" for who, value in peak.items()},
    )


def edits(contenders: list[Contender], count: int) -> list[Row]:
    base = prompts(count)
    edited = [
        f"{row}, edited" if i % (count // 20) == 0 and i < count // 20 * 20 else row
        for i, row in enumerate(base)
    ]
    appended = edited + [f"appended {i}" for i in range(100)]
    deleted = [row for i, row in enumerate(appended) if not (i % 7 == 3 and i < 70)]
    figures, met = {}, None
    with Server("--latency", "0.05") as server:
        for who in contenders:
            if who is BARE:
                continue
            try:
                with empty_folder() as folder:
                    run(who, server, folder, base)
                    runs = [run(who, server, folder, rows) for rows in (edited, appended, deleted)]
            except Failed as error:
                figures[who] = str(error)
            else:
                sent, stale = [one.served for one in runs], [one.stale for one in runs]
                figures[who] = (
                    f"{' / '.join(map(str, sent))}; stale rows {' / '.join(map(str, stale))}"
                )
                if who is OURS:
                    met = (
                        sent == [20, 100, 0]
                        and stale == [0, 0, 0]
                        and all(one.ordered for one in runs)
                    )
            say(f"{who.name}: {figures[who]}")
    return table(
        f"of {count:,} rows 20 edited / 100 appended / 10 deleted: requests sent",
        figures,
        "20 / 100 / 0",
        met,
    )


def matrix(contenders: list[Contender], count: int) -> list[Row]:
    base = prompts(min(count, MATRIX_ROWS))
    nine: dict[str, tuple[list[str], Question, str]] = {
        "row": ([*base[:5], "another row", *base[6:]], PLAIN, "/v1"),
        "append": ([*base, "one more row"], PLAIN, "/v1"),
        "delete": ([*base[:5], *base[6:]], PLAIN, "/v1"),
        "template": (base, replace(PLAIN, template="edited"), "/v1"),
        "system prompt": (base, replace(PLAIN, system="Be brief."), "/v1"),
        "model": (base, replace(PLAIN, model="another"), "/v1"),
        "temperature": (base, replace(PLAIN, temperature=0.5), "/v1"),
        "base URL": (base, PLAIN, "/another/v1"),
        "parser": (base, replace(PLAIN, parser="edited"), "/v1"),
    }
    figures, met = {}, None
    with Server("--latency", "0.05") as server:
        for who in contenders:
            if who is BARE:
                continue
            stale, failed = {}, []
            with empty_folder() as folder:
                kept, work = (
                    folder / "kept",
                    folder / "work",
                )  # always at work in the same folder: some keep absolute paths
                work.mkdir()
                run(who, server, work, base)
                work.rename(kept)
                for edit, (rows, asked, path) in nine.items():
                    shutil.copytree(kept, work)
                    try:
                        one = run(who, server, work, rows, asked, path)
                    except Failed as error:
                        failed.append(edit)
                        say(f"{who.name}, {edit}: {error}")
                    else:
                        stale[edit] = one.stale + (who is OURS and not one.ordered)
                        say(f"{who.name}, {edit}: {one.served} sent, {one.stale} rows stale")
                    shutil.rmtree(work)
            bad = [f"{edit} {number}" for edit, number in stale.items() if number]
            figures[who] = f"{sum(stale.values()):,}" + (f" ({', '.join(bad)})" if bad else "")
            figures[who] += f"; stopped with an error: {', '.join(failed)}" if failed else ""
            if who is OURS:
                met = not bad and not failed
    return table(f"nine edits of a run of {len(base)}: stale rows in all", figures, "0", met)


def kill(contenders: list[Contender], count: int) -> list[Row]:
    lot, rows = random.Random(), prompts(count)
    with Server("--latency", "0.05") as server, empty_folder() as folder:
        for _ in range(KILLS):
            # On average a twentieth of the rows each: the ten kills fall into the first half or so.
            until = server.counts()["served"] + lot.uniform(1, count / KILLS)
            process = start(OURS, f"{server.address}/v1", folder, rows, PLAIN)
            while server.counts()["served"] < until and process.poll() is None:
                time.sleep(0.005)
            time.sleep(lot.uniform(0, 0.05))
            process.kill()
            process.wait()
            say(f"killed at {server.counts()['served']:,} requests")
            time.sleep(0.2)  # what was still in a socket is counted before the next run begins
        last = run(OURS, server, folder, rows, anew=False)
        kept = (
            sqlite3.connect(folder / ".cache" / "replies.sqlite")
            .execute("select count(*) from replies")
            .fetchone()[0]
        )
    most = count + KILLS * AT_ONCE
    wrong = max(last.stale, int(not last.ordered), abs(kept - count))
    figure = f"{last.served:,} sent, {wrong} rows lost or duplicated"
    say(figure)
    met = last.served <= most and wrong == 0
    target = f"{most:,} ({AT_ONCE} in flight at each kill), 0"
    return table(
        f"{count:,} requests, kill -9 {KILLS} times: requests sent in all",
        {OURS: figure},
        target,
        met,
    )


def cap(contenders: list[Contender], count: int) -> list[Row]:
    figures, met = {}, None
    with Server("--latency", "0.05", "--per-second", str(CAP)) as server:
        for who in contenders:
            if who is BARE:  # has no answer to a refusal
                continue
            with empty_folder() as folder:
                try:
                    one = run(who, server, folder, prompts(count))
                except Failed as error:
                    figures[who] = str(error)
                else:
                    figures[who] = (
                        f"{one.refused / one.served:.1%} of those served; {one.served / one.asking:.1f} served/s"
                    )
                    figures[who] += f", {one.stale} rows wrong" if one.stale else ""
                    if who is OURS:
                        met = one.refused <= 0.1 * one.served and not one.stale
            say(f"{who.name}: {figures[who]}")
    return table(
        f"{count:,} requests, server takes {CAP} a second: refused with 429", figures, "10 %", met
    )


def latency(contenders: list[Contender], count: int) -> list[Row]:
    ideal = ideal_seconds(count, AT_ONCE, 0.5, exponential=True)
    shares: dict[Contender, list[float]] = {who: [] for who in contenders}
    with Server("--latency", "0.5", "--exponential") as server:
        for _ in range(LATENCY_REPEATS):
            for who in contenders:
                with empty_folder() as folder:
                    shares[who].append(ideal / run(who, server, folder, prompts(count)).asking)
                say(f"{who.name}: {shares[who][-1]:.2f} of the ideal {count / ideal:.0f}/s")
    share = {who: statistics.median(values) for who, values in shares.items()}
    what = f"{count:,} requests, exponential latency of mean 0.5 s, {AT_ONCE} at once: share of the ideal rate"
    return table(
        what, {who: f"{value:.2f}" for who, value in share.items()}, "0.85", share[OURS] >= 0.85
    )


def memory(contenders: list[Contender], count: int) -> list[Row]:
    with Server("--latency", "0.05") as server, empty_folder() as folder:
        one = run(OURS, server, folder, prompts(50 * count))
    say(f"{one.peak:.0f} MiB, {one.served / one.asking:.0f} requests/s, {one.stale} rows wrong")
    figure = f"{one.peak:.0f} MiB ({one.served / one.asking:.0f} requests/s)"
    return table(
        f"peak memory for {50 * count:,} requests",
        {OURS: figure},
        "300 MiB",
        one.peak <= 300 and one.ordered,
    )


LINES = {
    "speed": speed,
    "edits": edits,
    "matrix": matrix,
    "kill": kill,
    "cap": cap,
    "latency": latency,
    "memory": memory,
}


def machine() -> str:
    """In words."""
    gibibytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores, {gibibytes:.0f} GiB of memory, {platform.system()}, Python {platform.python_version()}"


def busy() -> float:
    """How many cores other processes keep busy now, while this one waits."""

    def used() -> float:
        fields = [
            int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
        ]
        return (sum(fields) - fields[3] - fields[4]) / os.sysconf(
            "SC_CLK_TCK"
        )  # all but idle and waiting for a disk

    before = used()
    time.sleep(3)
    return (used() - before) / 3


def write_down(rows: list[Row], when: str) -> None:
    """Put rows into this machine's section of RESULTS.md, in place of those of the same line and contender."""
    sections: dict[str, dict[tuple[str, str], list[str]]] = {}
    own, title, others = (RESULTS.read_text() if RESULTS.exists() else "").partition(
        "\n## Judging\n"
    )  # that is judging.py's
    for line in own.splitlines():
        if line.startswith("## "):
            section = sections.setdefault(line[3:], {})
        elif line.startswith("| ") and not line.startswith("| what"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            section[cells[0], cells[1].partition(" (")[0]] = cells
    section = sections.setdefault(machine(), {})
    for row in rows:
        met = {None: "", True: "yes", False: "**no**"}[row.met]
        section[row.what, row.who.name] = [
            row.what,
            row.who.versioned(),
            row.figure.replace("|", "/"),
            row.target,
            met,
            when,
        ]
    text = "# Results of replies.py\n\n`replies.py` describes what each line measures. Medians of several runs.\n"
    names = [who.name for who in (OURS, BARE, *PEERS)]
    for title, section in sections.items():
        lines = list(dict.fromkeys(what for what, _ in section))
        text += f"\n## {title}\n\n| what | who | figure | target | met | date, cores busy before |\n|---|---|---|---|---|---|\n"
        for key in sorted(section, key=lambda key: (lines.index(key[0]), names.index(key[1]))):
            text += f"| {' | '.join(section[key])} |\n"
    RESULTS.write_text(text + title + others)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument(
        "--peers", action="store_true", help="other libraries too, those whose environment is there"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=LINES,
        default=list(LINES),
        metavar="NAME",
        help=", ".join(LINES),
    )
    options = parser.parse_args()
    contenders = [OURS, BARE, *(who for who in PEERS if options.peers and who.python.exists())]
    for name in options.only:
        others = busy()
        print(f"{name} (other processes use {others:.2f} cores):", file=sys.stderr, flush=True)
        rows = LINES[name](contenders, options.rows)
        for row in rows:
            target = f"  [{row.target}: {'met' if row.met else 'NOT MET'}]" if row.target else ""
            print(f"{row.what} | {row.who.name}: {row.figure}{target}", flush=True)
        if options.rows == ROWS:
            write_down(rows, f"{date.today()}, {others:.2f}")


if __name__ == "__main__":
    main()
