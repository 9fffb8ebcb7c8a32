"""How fast the judge is, next to inspect_ai replaying the same stored answers with a pure rule, in one run on this machine.

    bash tests/benchmarks/peers/make_venvs.sh inspect     # once: its own virtual environment, under .cache/peers/inspect
    python tests/benchmarks/judging.py                    # needs data/eval/responses.parquet and the released test set
    python tests/benchmarks/judging.py --only stage       # the second half alone, which needs no peer
    python tests/benchmarks/judging.py --rows 500         # to try it out: prints, writes nothing

The answers are those of one candidate to all test prompts. Libra: the whole judge, offline (rules, facts, leaks, panel, the paper's judge),
nothing kept from before. inspect_ai: `eval` of a task whose answers are in hand and whose scorer looks for a few words, once through
its mock model and once through a solver that puts them in place; the faster one counts. Seconds without imports, in turn, medians of
three, each in a process of its own.

Then the stage `judge` as `dvc repro` runs it, the whole process, on these answers and on as many of which no two are alike: nothing kept,
and again with nothing changed. Writes its part of RESULTS.md.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RESULTS = HERE / "RESULTS.md"
PYTHON = ROOT / ".cache/peers/inspect/bin/python"
MARKS = {
    "peer": ("<!-- judging.py -->", "<!-- end of judging.py -->"),
    "stage": ("<!-- judging.py stage -->", "<!-- end of stage -->"),
}
CANDIDATE, REPEATS, TARGET = "dpo", 3, 20.0
COLD_S, WARM_S = 10.0, 2.0
QUIET = os.environ | {"INSPECT_LOG_LEVEL": "error", "NO_COLOR": "1", "DO_NOT_TRACK": "1"}


def rows_of(count: int | None):
    """(responses, test): the answers of CANDIDATE and the requests, the first `count` of them."""
    import polars as pl

    responses = (
        pl.read_parquet(ROOT / "data/eval/responses.parquet")
        .filter(candidate=CANDIDATE)
        .sort("prompt_id")
    )
    responses = responses.head(count or responses.height)
    test = pl.read_parquet(ROOT / "data/librachemqa/test.parquet")
    return responses, test


def judge_alone(count: int | None) -> float:
    """Seconds the judge takes, in this process, where no store and no memory is."""
    sys.path.insert(0, str(ROOT))
    import openai  # noqa: F401  (imports aside)

    from stages.core.params import read_params
    from stages.judge import JudgeParams
    from stages.judging import cascade, channels, panel, paper  # noqa: F401
    from stages.tools.measuring.judged import Measured, judged

    responses, test = rows_of(count)
    params = read_params("judge")
    judges = params.section("judge", JudgeParams)
    began = time.perf_counter()
    verdicts = judged(Measured("judge", params.random_seed), responses, test, judges)
    seconds = time.perf_counter() - began
    assert verdicts.filter(channel="answer").height == responses.height
    return seconds


def libra(folder: Path, count: int | None) -> float:
    """Seconds of the judge in a process of its own."""
    command = [
        sys.executable,
        str(HERE / "judging.py"),
        "--alone",
        *(["--rows", str(count)] if count else []),
    ]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=QUIET | {"DVC_ROOT": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout.split()[-1])


def inspect(folder: Path, rows: list, how: str) -> float:
    """Seconds of inspect_ai's eval in a process of its own, in its own environment."""
    job, out = folder / "job.json", folder / "out.json"
    job.write_text(
        json.dumps({"rows": rows, "how": how, "log_dir": str(folder / "logs"), "out": str(out)})
    )
    subprocess.run(
        [PYTHON, HERE / "peers/inspect_.py", job],
        cwd=folder,
        env=QUIET,
        check=True,
        stdout=sys.stderr,
    )
    return json.loads(out.read_text())["seconds"]


def stage(folder: Path, responses, test) -> tuple[float, float]:
    """Seconds of the stage on `responses`, the whole process: with nothing kept, and again; what it writes is the same bytes."""
    for name in ("data/eval", "data/librachemqa"):
        (folder / name).mkdir(parents=True)
    for name in ("stages", "params.yaml", "dvc.yaml", "data/domain.json"):
        (folder / name).symlink_to(ROOT / name)
    responses.write_parquet(folder / "data/eval/responses.parquet")
    test.write_parquet(folder / "data/librachemqa/test.parquet")
    seconds, written = [], set()
    for _ in range(2):
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "stages.judge"],
            cwd=folder,
            env=QUIET,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        seconds.append(time.perf_counter() - began)
        written.add((folder / "data/eval/verdicts.parquet").read_bytes())
    assert len(written) == 1
    return seconds[0], seconds[1]


def of_stage(responses, test) -> str:
    """The part of RESULTS.md on the stage."""
    import polars as pl

    number = pl.int_range(pl.len()).cast(pl.String)
    sets = {
        f"{responses.height:,} answers, {responses['answer'].n_unique():,} of them different": responses,
        f"{responses.height:,} answers, no two alike": responses.with_columns(
            answer=pl.col("answer") + " That was answer " + number + "."
        ),
    }
    runs: dict[str, list[tuple[float, float]]] = {what: [] for what in sets}
    for _ in range(REPEATS):
        for what, rows in sets.items():
            with tempfile.TemporaryDirectory() as folder:
                runs[what].append(stage(Path(folder), rows, test))
            print(f"stage, {what}: {runs[what][-1]}", file=sys.stderr, flush=True)
    lines = [
        f"The stage `judge`, start of Python and imports included; the same bytes both times. Medians of {REPEATS} "
        f"({date.today()}, {os.cpu_count()} cores); wanted: {COLD_S:.0f} s with nothing kept, {WARM_S:.0f} s with nothing changed.",
        "",
        "| what | nothing kept, s | nothing changed, s | met |",
        "|---|---|---|---|",
    ]
    for what, pairs in runs.items():
        cold, warm = ([pair[i] for pair in pairs] for i in (0, 1))
        met = statistics.median(cold) <= COLD_S and statistics.median(warm) <= WARM_S
        lines.append(f"| {what} | {_span(cold)} | {_span(warm)} | {'yes' if met else '**no**'} |")
    return "\n".join(lines)


def next_to_inspect(responses, test, count: int | None) -> str:
    """The part of RESULTS.md on inspect_ai."""
    if not PYTHON.exists():
        sys.exit(
            "inspect_ai has no environment yet: bash tests/benchmarks/peers/make_venvs.sh inspect (or --only stage)"
        )
    labels = dict(test.select("prompt_id", "expected").unique().iter_rows())
    columns = responses.select("prompt_id", "prompt", "answer")
    rows = [
        [prompt, answer, labels[prompt_id]] for prompt_id, prompt, answer in columns.iter_rows()
    ]
    runs: dict[str, list[float]] = {"Libra": [], "model": [], "solver": []}
    for _ in range(REPEATS):
        for who, seconds in runs.items():
            with tempfile.TemporaryDirectory() as folder:
                seconds.append(
                    libra(Path(folder), count)
                    if who == "Libra"
                    else inspect(Path(folder), rows, who)
                )
            print(f"{who}: {seconds[-1]:.2f} s", file=sys.stderr, flush=True)
    middle = {who: statistics.median(seconds) for who, seconds in runs.items()}
    theirs = min(middle["model"], middle["solver"])
    version = subprocess.run(
        [PYTHON, "-c", "import inspect_ai; print(inspect_ai.__version__)"],
        capture_output=True,
        text=True,
        check=True,
    )
    ratio = theirs / middle["Libra"]
    met = "yes" if ratio >= TARGET else "**no**"
    return (
        f"{len(rows):,} stored answers, nothing kept from before, medians of {REPEATS}, imports aside "
        f"({date.today()}, {os.cpu_count()} cores):\n\n"
        "| who | what | seconds |\n|---|---|---|\n"
        f"| Libra | the whole judge, offline | {_span(runs['Libra'])} |\n"
        f"| inspect_ai {version.stdout.strip()} | mock model, a scorer of a few words | {_span(runs['model'])} |\n"
        f"| inspect_ai {version.stdout.strip()} | a solver in the model's place, the same scorer | {_span(runs['solver'])} |\n\n"
        f"{ratio:.1f} x the faster of the two (target: {TARGET:.0f} x; met: {met})."
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, help="so many answers; all unless given")
    parser.add_argument("--only", choices=MARKS, help="the half next to inspect_ai, or the stage's")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.chdir(ROOT)
    if options.alone:
        print(judge_alone(options.rows))
        return
    responses, test = rows_of(options.rows)
    parts = {
        "peer": lambda: next_to_inspect(responses, test, options.rows),
        "stage": lambda: of_stage(responses, test),
    }
    for part in [options.only] if options.only else parts:
        text = parts[part]()
        print(text)
        if options.rows is None:
            _write_down(text, *MARKS[part])


def _write_down(text: str, mark: str, end: str) -> None:
    """Put `text` between `mark` and `end` of RESULTS.md, in place of what stood there."""
    found = RESULTS.read_text(encoding="utf-8")
    head, rest = found.split(mark)
    RESULTS.write_text(f"{head}{mark}\n{text}\n{end}{rest.split(end, 1)[1]}", encoding="utf-8")


def _span(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})"


if __name__ == "__main__":
    main()
