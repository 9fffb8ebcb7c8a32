"""DPO on a preference grid against TRL's DPOTrainer, on the CPU: ratios of time for the same pairs.

    python tests/benchmarks/training.py              # 15 minutes on two idle cores; TRAINING.md
    python tests/benchmarks/training.py --grids 2 1  # some of them; the other rows stay

Grids of 5 x 5, 2 x 2 and 1 x 1 answers per prompt, from data/librachemqa/train.parquet, with fresh
weights of the default policy's size; 50 pairs a step, 40 steps, the same pairs in the same order
for all but `best`. Contenders, in turn, each in a process of its own:

    trl       TRL at its defaults but fp32: a reference model beside the policy, activation
              checkpointing
    best      TRL without checkpointing, rows grouped by length (transformers'
              LengthGroupedSampler), reference log-probabilities computed when the trainer is made,
              which isn't counted
    grid      stages.preference.grid, reference included (against `trl`) or computed beforehand
              (against `best`)

`rows` is the rows that grid forwards per row of the pairs. The losses of the last step must be
equal to 1e-4 (except for `best`, which trains in another order).
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
STEPS, PAIRS = 40, 50  # starting a trainer takes as long as ten steps on a grid
SIDES = (5, 2, 1)
KINDS = ("trl", "grid", "best", "grid, reference before")
HEADER = (
    "| grid | faster than TRL's defaults | than TRL's best, training alone | rows | "
    "peak memory, grid / TRL | speed | runs | date |"
)


def measure(kind: str, side: int, folder: Path) -> dict:
    """Seconds and last loss of STEPS steps, and peak memory in MiB, in this process."""
    import resource

    import yaml

    from stages.training import data, trainer
    from stages.training.determinism import deterministic
    from stages.training.model_params import ModelParams
    from stages.training.scratch import new_model, train_tokenizer

    deterministic(1)
    import torch
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    from stages.preference.grid import GridTrainer

    class Plain(DPOTrainer):
        def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
            return dataset

    os.chdir(ROOT)
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    model_params = ModelParams(**params["model"])
    table = data.triplets("train")
    roles = ("prompt", "chosen", "rejected")
    texts = [text for role in roles for text in table[role].unique().sort()]
    tokenizer = train_tokenizer(texts, model_params.vocab_size)
    rows = grid_rows(table, tokenizer, side)

    torch.manual_seed(1)
    policy, reference = new_model(model_params, tokenizer), new_model(model_params, tokenizer)
    arguments = trainer.arguments(
        rows, PAIRS, 1e-3, model_params.max_length, 1, 1, PAIRS, str(folder)
    )
    arguments |= {
        "eval_strategy": "no",
        "logging_steps": 1,
        "activation_checkpointing": kind == "trl",
        "precompute_ref_log_probs": kind in ("best", "grid, reference before"),
    }
    if kind == "best":
        for row in rows:
            longest = max(len(row["chosen_ids"]), len(row["rejected_ids"]))
            row["length"] = len(row["prompt_ids"]) + longest
        arguments |= {
            "train_sampling_strategy": "group_by_length",
            "length_column_name": "length",
            "remove_unused_columns": False,
        }
    trl_trainer = (GridTrainer if kind.startswith("grid") else Plain)(
        model=policy,
        ref_model=reference,
        args=DPOConfig(**arguments),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    started = time.perf_counter()
    trl_trainer.train()
    seconds = time.perf_counter() - started

    sides = ("chosen_ids", "rejected_ids")
    answers = {(tuple(row["prompt_ids"]), tuple(row[side])) for row in rows for side in sides}
    losses = [float(entry["loss"]) for entry in trl_trainer.state.log_history if "loss" in entry]
    return {
        "seconds": seconds,
        "loss": losses[-1],
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "pairs": len(rows),
        "rows": len(answers) / (2 * len(rows)),
    }


def grid_rows(table, tokenizer, side: int) -> list[dict]:
    """STEPS x PAIRS pairs of grids of `side` x `side` answers, of random seeds."""
    import polars as pl

    from stages.training.encode import encode_answers, encode_prompts, encode_rejected

    unique = table["rejected"].unique().sort().to_list()
    rejected_ids = dict(zip(unique, encode_rejected(tokenizer, unique), strict=True))
    seeds = table.group_by("seed_id", maintain_order=True).agg(
        pl.col("prompt", "chosen", "rejected").unique(maintain_order=True)
    )
    shuffled = random.Random(1).sample(seeds.drop("seed_id").rows(), seeds.height)
    rows: list[dict] = []
    for prompts, chosen, rejected in shuffled:
        if len(rows) >= STEPS * PAIRS:
            break
        chosen_ids = encode_answers(tokenizer, chosen[:side])
        for prompt in encode_prompts(tokenizer, prompts[: max(1, 2 // side)]):
            rows += [
                {"prompt_ids": prompt, "chosen_ids": ids, "rejected_ids": rejected_ids[text]}
                for ids in chosen_ids
                for text in rejected[:side]
            ]
    return rows[: STEPS * PAIRS]


def run(kind: str, side: int) -> dict:
    """`measure` in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--kind", kind, "--side", str(side), "--folder", folder]
        done = subprocess.run(
            [sys.executable, __file__, *options],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            check=False,
        )
    if done.returncode:
        raise SystemExit(f"{kind}, {side} x {side}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(side: int, repeats: int) -> str:
    """The row of the table for a grid."""
    runs: dict[str, list[dict]] = {kind: [] for kind in KINDS}
    name = f"{side} x {side}"
    for _ in range(repeats):
        for kind in KINDS:
            figures = run(kind, side)
            runs[kind].append(figures)
            print(f"{name}, {kind}: {figures['seconds']:.1f} s, loss {figures['loss']:.5f}")
    losses = [runs[kind][0]["loss"] for kind in KINDS if kind != "best"]
    if max(losses) - min(losses) > 1e-4 * max(1.0, abs(losses[0])):
        raise SystemExit(f"{name}: the last losses differ: {losses}")

    def median(kind: str, figure: str) -> float:
        return statistics.median(figures[figure] for figures in runs[kind])

    grid, first = median("grid", "seconds"), runs["grid"][0]
    than_best = median("best", "seconds") / median("grid, reference before", "seconds")
    cells = [
        name,
        f"{median('trl', 'seconds') / grid:.1f} x",
        f"{than_best:.1f} x",
        f"{first['rows']:.2f}",
        f"{median('grid', 'peak'):.0f} / {median('trl', 'peak'):.0f} MiB",
        f"{first['pairs'] / grid:.0f} pairs/s",
        str(repeats),
        str(date.today()),
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("--kind", "--side", "--folder"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each; medians are shown")
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
        rows[f"{side} x {side}"] = compare(side, options.repeats)
    table = "\n".join([HEADER, "|---" * 8 + "|", *rows.values()])
    RESULTS.write_text(f"{head}{START}{table}\n{END}{tail}", encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
