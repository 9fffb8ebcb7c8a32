"""Which pairs of a prompt's answers DPO should see, at equal compute: matched, random or the grid.

    python tests/benchmarks/pairs.py     # over an hour on two idle cores; its part of TRAINING.md

12 trainings with their evaluation: the pipeline's own stages at the params of params.yaml, in a
copy of the project, for random seeds other than the default one. For each of these, data and `sft`
once, then `dpo`, `respond`, `judge` and `score` for each option below. All options forward the same
number of (prompt, answer) rows in total (each answer of a prompt once; with replacement for random
pairs) and about as many a step. Figures are those of held-out substances: the mean over the random
seeds, with minimum and maximum.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "tests/benchmarks/TRAINING.md"
START, END = "<!-- pairs.py -->\n", "<!-- end of pairs.py -->"
RANDOM_SEEDS = (7, 8, 9)
OPTIONS = {
    "5 x 5 grid of a prompt, 3 prompts a step, 1 epoch": {
        "pairs": "grid",
        "answers": 5,
        "batch_size": 3,
        "epochs": 1,
    },
    "one matched pair a prompt, 16 prompts a step, 5 epochs": {
        "pairs": "matched",
        "answers": 1,
        "batch_size": 16,
        "epochs": 5,
    },
    "one random pair a prompt, 16 prompts a step, 5 epochs": {
        "pairs": "random",
        "answers": 1,
        "batch_size": 16,
        "epochs": 5,
    },
    "five matched pairs a prompt, 3 prompts a step, 1 epoch": {
        "pairs": "matched",
        "answers": 5,
        "batch_size": 3,
        "epochs": 1,
    },
}
FIGURES = {
    "safety": "safety",
    "utility": "utility",
    "harmonic": "harmonic",
    "dual": "dual_balanced_accuracy",
}


def run(folder: Path, *stages: str) -> None:
    """Run the stages in `folder` on one thread: the same weights, and two runs share two cores."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("DVC_")}
    environment = inherited | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    for stage in stages:
        done = subprocess.run(
            [sys.executable, "-m", f"stages.{stage}"],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"{stage}: {done.stderr[-2000:]}")


def write_params(folder: Path, random_seed: int, dpo: dict) -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["random_seed"] = random_seed
    params["dpo"] |= {"soup": 1} | dpo
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")


def prepare(folder: Path, random_seed: int) -> None:
    """A copy of the project in `folder`, with the data of `random_seed` and its `sft`."""
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for path in listed.stdout.splitlines():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, folder / path)
    write_params(folder, random_seed, {})
    run(folder, "seed", "craft", "rephrase", "combine", "validate", "sft")


def measure(prepared: Path, folder: Path, random_seed: int, option: str) -> dict:
    """The held-out figures of `dpo` in a copy of the prepared folder."""
    shutil.copytree(prepared, folder)
    write_params(folder, random_seed, OPTIONS[option])
    run(folder, "dpo", "respond", "judge", "score")
    metrics = json.loads((folder / "data/eval/metrics.json").read_text(encoding="utf-8"))
    figures = {name: metrics["candidates"]["dpo"][key] for name, key in FIGURES.items()}
    print(f"{random_seed}, {option}: {figures}", flush=True)
    return figures


def write_results(results: dict[str, list[dict]]) -> str:
    """Write the table to TRAINING.md and return it."""
    columns = ["pairs", *FIGURES, "random seeds", "date"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for option, runs in results.items():
        cells = [option]
        for figure in FIGURES:
            values = [figures[figure] for figures in runs]
            cells.append(f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
        lines.append(f"| {' | '.join([*cells, str(len(runs)), str(date.today())])} |")
    table = "\n".join(lines)
    head, rest = RESULTS.read_text(encoding="utf-8").split(START)
    tail = rest.split(END, 1)[1]
    RESULTS.write_text(f"{head}{START}{table}\n{END}{tail}", encoding="utf-8")
    return table


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="libra-pairs-") as name, ThreadPoolExecutor(2) as pool:
        prepared = {random_seed: Path(name) / str(random_seed) for random_seed in RANDOM_SEEDS}
        list(pool.map(prepare, prepared.values(), prepared))
        jobs = {
            option: [
                pool.submit(
                    measure, folder, Path(name) / f"{random_seed}-{number}", random_seed, option
                )
                for random_seed, folder in prepared.items()
            ]
            for number, option in enumerate(OPTIONS)
        }
        results = {option: [job.result() for job in started] for option, started in jobs.items()}
        print(write_results(results))


if __name__ == "__main__":
    main()
