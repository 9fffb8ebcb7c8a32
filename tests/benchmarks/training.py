"""DPO on a preference grid against TRL's DPOTrainer, on the CPU: time of the same pairs, in one run, as ratios.

    python tests/benchmarks/training.py              # a quarter of an hour on two idle cores; writes tests/benchmarks/TRAINING.md
    python tests/benchmarks/training.py --grids 2 1  # some of them; the other rows stay

Grids of 5 x 5, 2 x 2 and 1 x 1 answers to each prompt, from data/librachemqa/train.parquet, on the default policy's size with
fresh weights; 50 pairs a step, 40 steps, the same pairs in the same order for all but `best`. Contenders, each a process of its own, in turn:

    trl       TRL at its defaults but fp32: a reference model beside the policy, activation checkpointing
    best      TRL without checkpointing, rows grouped by length (transformers' LengthGroupedSampler), reference log-probabilities computed
              when the trainer is made, and not counted
    grid      stages.preference.grid, reference included (against `trl`), or computed beforehand (against `best`)

`rows` is rows forwarded by grid / rows of the pairs. Losses of the last step are compared: they must be equal to 1e-4 (`best` trains in
another order).
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RESULTS = HERE / "TRAINING.md"
START, END = "<!-- training.py -->\n", "<!-- end -->"
STEPS, PAIRS = 40, 50  # a trainer's start alone takes as long as ten steps on a grid
SIDES = (5, 2, 1)
KINDS = ("trl", "grid", "best", "grid, reference before")


def measure(kind: str, side: int, folder: Path) -> dict:
    """Seconds and last loss of STEPS steps of PAIRS pairs, and peak memory in MiB, in this process."""
    import resource

    import polars as pl
    import yaml

    from stages.training import data, trainer
    from stages.training.encode import encode_answers, encode_prompts, encode_rejected
    from stages.training.models import ModelParams, deterministic, new_model, train_tokenizer

    deterministic(1)
    import torch
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    from stages.preference.grid import GridTrainer

    class Plain(DPOTrainer):
        def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
            return dataset

    os.chdir(ROOT)
    table = data.triplets("train")
    size = ModelParams(**yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))["model"])
    texts = [
        text for role in ("prompt", "chosen", "rejected") for text in table[role].unique().sort()
    ]
    tokenizer = train_tokenizer(texts, size.vocab_size)
    seeds = table.group_by("seed_id", maintain_order=True).agg(
        pl.col("prompt", "chosen", "rejected").unique(maintain_order=True)
    )
    unique = table["rejected"].unique().sort().to_list()
    rejected_ids = dict(zip(unique, encode_rejected(tokenizer, unique), strict=True))
    rows: list[dict] = []
    for prompts, chosen, rejected in random.Random(1).sample(
        seeds.drop("seed_id").rows(), seeds.height
    ):
        if len(rows) >= STEPS * PAIRS:
            break
        good, bad = (
            encode_answers(tokenizer, chosen[:side]),
            [rejected_ids[text] for text in rejected[:side]],
        )
        for prompt in encode_prompts(tokenizer, prompts[: max(1, 2 // side)]):
            rows += [
                {"prompt_ids": prompt, "chosen_ids": c, "rejected_ids": r}
                for c in good
                for r in bad
            ]
    rows = rows[: STEPS * PAIRS]
    torch.manual_seed(1)
    policy, reference = new_model(size, tokenizer), new_model(size, tokenizer)
    before = kind in ("best", "grid, reference before")
    arguments = trainer.arguments(rows, PAIRS, 1e-3, size.max_length, 1, 1, PAIRS, str(folder)) | {
        "eval_strategy": "no",
        "logging_steps": 1,
    }
    arguments |= {"activation_checkpointing": kind == "trl", "precompute_ref_log_probs": before}
    if kind == "best":
        rows = [
            row
            | {
                "length": len(row["prompt_ids"])
                + max(len(row["chosen_ids"]), len(row["rejected_ids"]))
            }
            for row in rows
        ]
        arguments |= {
            "train_sampling_strategy": "group_by_length",
            "length_column_name": "length",
            "remove_unused_columns": False,
        }
    made = (GridTrainer if kind.startswith("grid") else Plain)(
        model=policy,
        ref_model=reference,
        args=DPOConfig(**arguments),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    started = time.perf_counter()
    made.train()
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    answers = {
        (tuple(r["prompt_ids"]), tuple(r[k])) for r in rows for k in ("chosen_ids", "rejected_ids")
    }
    loss = [float(entry["loss"]) for entry in made.state.log_history if "loss" in entry][-1]
    return {
        "seconds": seconds,
        "loss": loss,
        "peak": peak,
        "pairs": len(rows),
        "rows": len(answers) / (2 * len(rows)),
    }


def run(kind: str, side: int) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            __file__,
            "--kind",
            kind,
            "--side",
            str(side),
            "--folder",
            folder,
        ]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"{kind}, {side} x {side}: {done.stderr[-2000:]}")
        return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("--kind", "--side", "--folder"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument(
        "--repeats", type=int, default=3, help="runs of each, of which the medians are shown"
    )
    parser.add_argument(
        "--grids",
        type=int,
        nargs="+",
        choices=SIDES,
        default=SIDES,
        help="2 is the grid of 2 x 2 answers",
    )
    options = parser.parse_args()
    if options.kind:
        print(json.dumps(measure(options.kind, int(options.side), Path(options.folder))))
        return
    head, rest = RESULTS.read_text(encoding="utf-8").split(START)
    before, tail = rest.split(END, 1)
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in before.splitlines()[2:]}
    for side in options.grids:
        figures: dict[str, list[dict]] = {kind: [] for kind in KINDS}
        for _ in range(options.repeats):
            for kind, found in figures.items():
                found.append(run(kind, side))
                print(
                    f"{side} x {side}, {kind}: {found[-1]['seconds']:.1f} s, loss {found[-1]['loss']:.5f}",
                    flush=True,
                )
        losses = [found[0]["loss"] for kind, found in figures.items() if kind != "best"]
        if max(losses) - min(losses) > 1e-4 * max(1.0, abs(losses[0])):
            raise SystemExit(f"{side} x {side}: the last losses differ: {losses}")
        middle = {
            kind: statistics.median(one["seconds"] for one in found)
            for kind, found in figures.items()
        }
        peak = {
            kind: statistics.median(one["peak"] for one in found) for kind, found in figures.items()
        }
        rows[f"{side} x {side}"] = (
            f"| {side} x {side} | {middle['trl'] / middle['grid']:.1f} x | "
            f"{middle['best'] / middle['grid, reference before']:.1f} x | {figures['grid'][0]['rows']:.2f} | "
            f"{peak['grid']:.0f} / {peak['trl']:.0f} MiB | {figures['grid'][0]['pairs'] / middle['grid']:.0f} pairs/s | {options.repeats} | {date.today()} |"
        )
    table = "\n".join(
        [
            "| grid | faster than TRL's defaults | than TRL's best, training alone | rows | peak memory, grid / TRL | speed | runs | date |",
            "|---|---|---|---|---|---|---|---|",
            *rows.values(),
        ]
    )
    RESULTS.write_text(f"{head}{START}{table}\n{END}{tail}", encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
