"""Which pairs of a prompt's answers DPO should see, at equal compute: matched, random, or the whole grid.

    python tests/benchmarks/pairs.py        # 12 trainings with their evaluation, more than an hour on two idle cores; writes TRAINING.md

The pipeline's own stages at the params of params.yaml, in a copy of the project, for random seeds other than the default one: for each,
data and `sft` once, then `dpo`, `respond`, `judge` and `score` for each way below. All ways forward as many (prompt, answer) rows in all
(each answer of a prompt once; drawn with replacement where pairs are random) and about as many a step. Figures are those of held-out substances: the
mean over the random seeds, with the least and the greatest.
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
RANDOM_SEEDS = (7, 8, 9)
WAYS = {
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
    """Run the stages in `folder`, on one thread: the weights are the same, and two trainings share two cores well."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("DVC_")}
    environment = inherited | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    for stage in stages:
        done = subprocess.run(
            [sys.executable, "-m", f"stages.{stage}"],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(f"{stage}: {done.stderr[-2000:]}")


def write_params(folder: Path, random_seed: int, dpo: dict) -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8")) | {
        "random_seed": random_seed
    }
    params["dpo"] |= {"soup": 1} | dpo
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")


def prepare(folder: Path, random_seed: int) -> None:
    """A copy of the project in `folder` with the data of `random_seed` and `sft` trained on it."""
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\n")
    for path in filter(None, tracked):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, folder / path)
    write_params(folder, random_seed, {})
    run(folder, "seed", "craft", "rephrase", "combine", "validate", "sft")


def measure(prepared: Path, folder: Path, random_seed: int, way: str) -> dict:
    """The held-out figures of `dpo` in a copy of what is prepared."""
    shutil.copytree(prepared, folder)
    write_params(folder, random_seed, WAYS[way])
    run(folder, "dpo", "respond", "judge", "score")
    metrics = json.loads((folder / "data/eval/metrics.json").read_text(encoding="utf-8"))[
        "candidates"
    ]["dpo"]
    figures = {short: metrics[key] for short, key in FIGURES.items()}
    print(f"{random_seed}, {way}: {figures}", flush=True)
    return figures


def write_down(found: dict[str, list[dict]]) -> str:
    """The table of what was measured, put into TRAINING.md."""
    lines = [
        f"| pairs | {' | '.join(FIGURES)} | random seeds | date |",
        "|---" * (len(FIGURES) + 3) + "|",
    ]
    for way, runs in found.items():
        cells = []
        for figure in FIGURES:
            values = [one[figure] for one in runs]
            cells.append(f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
        lines.append(f"| {way} | {' | '.join(cells)} | {len(runs)} | {date.today()} |")
    table = "\n".join(lines)
    text = RESULTS.read_text(encoding="utf-8")
    start, end = "<!-- pairs.py -->\n", "<!-- end of pairs.py -->"
    head, rest = text.split(start)
    RESULTS.write_text(head + start + table + "\n" + end + rest.split(end, 1)[1], encoding="utf-8")
    return table


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="libra-pairs-") as name, ThreadPoolExecutor(2) as pool:
        prepared = {random_seed: Path(name) / str(random_seed) for random_seed in RANDOM_SEEDS}
        list(pool.map(prepare, prepared.values(), prepared))
        jobs = {
            way: [
                pool.submit(
                    measure, folder, Path(name) / f"{random_seed}-{number}", random_seed, way
                )
                for random_seed, folder in prepared.items()
            ]
            for number, way in enumerate(WAYS)
        }
        print(write_down({way: [job.result() for job in of_way] for way, of_way in jobs.items()}))


if __name__ == "__main__":
    main()
