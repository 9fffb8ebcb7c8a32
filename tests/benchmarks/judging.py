"""How fast the judge is, and inspect_ai on the same stored answers, in one run on this machine.

    bash tests/benchmarks/peers/make_venvs.sh inspect   # once: its environment, in .cache/peers/
    python tests/benchmarks/judging.py                  # needs the stages up to `respond`
    python tests/benchmarks/judging.py --only stage     # the second half, which needs no peer
    python tests/benchmarks/judging.py --rows 500       # to try it out: prints, writes nothing

The answers are those of one candidate to all test prompts. Libra runs the whole judge offline
(rules, facts, leaks, panel, the paper's judge) with nothing cached. inspect_ai runs `eval` on a
task with these answers and a scorer that looks for a few words: once through its mock model and
once through a solver that inserts the answers; the faster one counts. Seconds without imports,
medians of three, in turn, each in a process of its own.

Then the stage `judge` as `dvc repro` runs it, the whole process, on these answers and on as many
that are all different: with nothing cached, and again with nothing changed. Writes its parts of
RESULTS.md.
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


def stored_answers(count: int | None):
    """(responses, test): CANDIDATE's answers, the first `count` if given, and the requests."""
    import polars as pl

    path = ROOT / "data/eval/responses.parquet"
    responses = pl.read_parquet(path).filter(candidate=CANDIDATE).sort("prompt_id")
    test = pl.read_parquet(ROOT / "data/librachemqa/test.parquet")
    return responses.head(count or responses.height), test


def judge_alone(count: int | None) -> float:
    """Seconds of the judge in this process, which should have no store and no cache."""
    sys.path.insert(0, str(ROOT))
    import openai  # noqa: F401  (not to count its import)

    from stages.chat.connections import Connections
    from stages.core.params import read_params
    from stages.judge import JudgeParams
    from stages.judging import cascade, channels, panel, paper  # noqa: F401
    from stages.tools.measuring.judged import Measured, judged

    responses, test = stored_answers(count)
    params = read_params("judge")
    members = params.section("judge", JudgeParams).panel
    endpoints = params.settings("connections", Connections).for_judges(members)
    start = time.perf_counter()
    verdicts = judged(Measured("judge", params.random_seed), responses, test, endpoints)
    seconds = time.perf_counter() - start
    assert verdicts.filter(channel="answer").height == responses.height
    return seconds


def time_libra(folder: Path, count: int | None) -> float:
    """Seconds of the judge in a process of its own."""
    command = [sys.executable, str(HERE / "judging.py"), "--alone"]
    if count:
        command += ["--rows", str(count)]
    env = QUIET | {"DVC_ROOT": str(folder)}
    process = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    return float(process.stdout.split()[-1])


def time_inspect(folder: Path, rows: list, how: str) -> float:
    """Seconds of inspect_ai's eval in a process and an environment of its own."""
    job, out = folder / "job.json", folder / "out.json"
    settings = {"rows": rows, "how": how, "log_dir": str(folder / "logs"), "out": str(out)}
    job.write_text(json.dumps(settings))
    command = [PYTHON, HERE / "peers/inspect_.py", job]
    subprocess.run(command, cwd=folder, env=QUIET, check=True, stdout=sys.stderr)
    return json.loads(out.read_text())["seconds"]


def time_stage(folder: Path, responses, test) -> tuple[float, float]:
    """Seconds of the whole process with nothing cached, and again; both write the same bytes."""
    for name in ("data/eval", "data/librachemqa"):
        (folder / name).mkdir(parents=True)
    for name in ("stages", "params.yaml", "dvc.yaml", "data/domain.json"):
        (folder / name).symlink_to(ROOT / name)
    responses.write_parquet(folder / "data/eval/responses.parquet")
    test.write_parquet(folder / "data/librachemqa/test.parquet")

    seconds, outputs = [], set()
    for _ in range(2):
        start = time.perf_counter()
        command = [sys.executable, "-m", "stages.judge"]
        process = subprocess.run(command, cwd=folder, env=QUIET, capture_output=True, text=True)
        assert process.returncode == 0, process.stderr
        seconds.append(time.perf_counter() - start)
        outputs.add((folder / "data/eval/verdicts.parquet").read_bytes())
    assert len(outputs) == 1
    return seconds[0], seconds[1]


def stage_results(responses, test) -> str:
    """The part of RESULTS.md on the stage."""
    import polars as pl

    count, number = responses.height, pl.int_range(pl.len()).cast(pl.String)
    distinct = pl.col("answer") + " That was answer " + number + "."
    sets = {
        f"{count:,} answers, {responses['answer'].n_unique():,} of them different": responses,
        f"{count:,} answers, no two alike": responses.with_columns(answer=distinct),
    }
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in sets}
    for _ in range(REPEATS):
        for name, rows in sets.items():
            with tempfile.TemporaryDirectory() as folder:
                runs[name].append(time_stage(Path(folder), rows, test))
            print(f"stage, {name}: {runs[name][-1]}", file=sys.stderr, flush=True)

    lines = [
        "The stage `judge`, with the start of Python and imports; the same bytes both times. "
        f"Medians of {REPEATS} ({date.today()}, {os.cpu_count()} cores); targets: "
        f"{COLD_S:.0f} s with nothing cached, {WARM_S:.0f} s with nothing changed.",
        "",
        "| answers | nothing cached, s | nothing changed, s | met |",
        "|---|---|---|---|",
    ]
    for name, pairs in runs.items():
        cold, warm = zip(*pairs, strict=True)
        met = statistics.median(cold) <= COLD_S and statistics.median(warm) <= WARM_S
        cells = (name, median_and_span(cold), median_and_span(warm), yes_or_no(met))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def peer_results(responses, test, count: int | None) -> str:
    """The part of RESULTS.md on inspect_ai."""
    if not PYTHON.exists():
        sys.exit(
            "inspect_ai has no environment yet; run `bash tests/benchmarks/peers/make_venvs.sh "
            "inspect`, or measure the stage alone with --only stage"
        )
    labels = dict(test.select("prompt_id", "expected").unique().iter_rows())
    columns = responses.select("prompt_id", "prompt", "answer").iter_rows()
    rows = [[prompt, answer, labels[prompt_id]] for prompt_id, prompt, answer in columns]
    runs: dict[str, list[float]] = {"Libra": [], "model": [], "solver": []}
    for _ in range(REPEATS):
        for name, seconds in runs.items():
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder)
                libra = name == "Libra"
                seconds.append(time_libra(path, count) if libra else time_inspect(path, rows, name))
            print(f"{name}: {seconds[-1]:.2f} s", file=sys.stderr, flush=True)

    command = [PYTHON, "-c", "import inspect_ai; print(inspect_ai.__version__)"]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    peer = f"inspect_ai {process.stdout.strip()}"
    medians = {name: statistics.median(seconds) for name, seconds in runs.items()}
    ratio = min(medians["model"], medians["solver"]) / medians["Libra"]
    table = [
        ("Libra", "the whole judge, offline", "Libra"),
        (peer, "mock model, a scorer of a few words", "model"),
        (peer, "a solver instead of the model, the same scorer", "solver"),
    ]
    lines = [
        f"{len(rows):,} stored answers, nothing cached, medians of {REPEATS}, without imports "
        f"({date.today()}, {os.cpu_count()} cores):",
        "",
        "| who | what | seconds |",
        "|---|---|---|",
        *(f"| {who} | {run} | {median_and_span(runs[name])} |" for who, run, name in table),
        "",
        f"{ratio:.1f} x the faster of the two "
        f"(target: {TARGET:.0f} x; met: {yes_or_no(ratio >= TARGET)}).",
    ]
    return "\n".join(lines)


def write_results(text: str, mark: str, end: str) -> None:
    """Put `text` between `mark` and `end` of RESULTS.md."""
    head, rest = RESULTS.read_text(encoding="utf-8").split(mark)
    tail = rest.split(end, 1)[1]
    RESULTS.write_text(f"{head}{mark}\n{text}\n{end}{tail}", encoding="utf-8")


def median_and_span(seconds) -> str:
    return f"{statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})"


def yes_or_no(met: bool) -> str:
    return "yes" if met else "**no**"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, help="how many answers; all by default")
    parser.add_argument("--only", choices=MARKS, help="compare with inspect_ai, or time the stage")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.chdir(ROOT)
    if options.alone:
        print(judge_alone(options.rows))
        return

    responses, test = stored_answers(options.rows)
    for part in [options.only] if options.only else MARKS:
        if part == "peer":
            text = peer_results(responses, test, options.rows)
        else:
            text = stage_results(responses, test)
        print(text)
        if options.rows is None:
            write_results(text, *MARKS[part])


if __name__ == "__main__":
    main()
