"""DPO on a preference grid on a GPU against TRL's DPOTrainer: an 8B model's LoRA in bfloat16, in one run, as ratios.

    python tests/benchmarks/gpu.py                     # seven minutes on an H200; writes its part of RESULTS.md
    python tests/benchmarks/gpu.py --grids 400         # the same of a part of the epoch, whose time is then scaled up
    python tests/benchmarks/gpu.py --tiny --grids 8    # on a model of two narrow layers, on the CPU too: prints, writes nothing

A Llama of 8B parameters with random weights (Llama 3.1's shape), adapters of rank 16 on all its linear modules, grids of 5 x 5
answers to a prompt, 100 pairs a step. Prompts have 64 to 128 tokens and answers 128 to 192, so that a row has 256 in the mean (multiples
of 8: TRL's batches then have few widths, each of which cuDNN plans for once). Contenders, each a process of its own:

    trl    TRL at its defaults: activation checkpointing, the reference beside every step
    grid   stages.preference.grid as the stage `dpo` sets it up, the reference before the first step; 1,264 grids, 31,600 triplets

The reference of both is the base, adapter off. Of `trl` the median of the last of STEPS steps counts; of `grid` all there is, from the
making of the trainer to the last step. The chip's rate is that of a product of bfloat16 matrices of 8192 x 8192, random numbers. Operations
are those of the matrices that the tokens go through, padding not counted: forward and backward through frozen weights, and forward for
the reference.
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
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RESULTS = HERE / "RESULTS.md"
START, END = "<!-- gpu.py -->", "<!-- end of gpu.py -->"
SIDE, GRIDS, PAIRS, STEPS = 5, 1264, 100, 6
LENGTH = 320  # tokens of the longest row
SIZES = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
SPEED, MFU, EPOCH_S = 8.0, 0.40, 500.0


def rows_of(grids: int, vocabulary: int) -> list[dict]:
    """Pairs of `grids` grids, in order."""
    rng = random.Random(1)

    def text(fewest: int, most: int) -> list[int]:
        return [rng.randrange(10, vocabulary) for _ in range(rng.randrange(fewest, most + 1, 8))]

    rows = []
    for _ in range(grids):
        prompt, answers = text(64, 128), [text(128, 192) for _ in range(2 * SIDE)]
        rows += [
            {"prompt_ids": prompt, "chosen_ids": c, "rejected_ids": r}
            for c in answers[:SIDE]
            for r in answers[SIDE:]
        ]
    return rows


def matrix_rate() -> float:
    """Operations a second of a product of bfloat16 matrices, 8192 x 8192, random numbers: the median of 20."""
    import torch

    one, other = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(25):
        begun, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begun.record()
        one @ other
        ended.record()
        torch.cuda.synchronize()
        times.append(begun.elapsed_time(ended) / 1000)
    return 2 * 8192**3 / statistics.median(times[5:])


def measure(kind: str, grids: int, tiny: bool, folder: str) -> dict:
    """Seconds (of the whole, before the first step, of the reference, of a step), tokens, first loss, peak memory (GiB), in this process."""
    from stages.training.models import deterministic, train_tokenizer

    if kind == "grid":  # as the stage does
        deterministic(1)
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    from stages.preference import grid
    from stages.training import trainer

    on_gpu = torch.cuda.is_available()
    wait = torch.cuda.synchronize if on_gpu else lambda: None
    rate = matrix_rate() if on_gpu else float("nan")
    torch.set_default_device("cuda" if on_gpu else "cpu")
    torch.set_default_dtype(torch.bfloat16)
    vocabulary = 300 if tiny else 128256
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary, pad_token_id=0, eos_token_id=1, **(TINY if tiny else SIZES)
        )
    )
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)
    body = sum(weights.numel() for weights in model.model.layers.parameters())
    head = model.lm_head.weight.numel()

    rows = rows_of(grids, vocabulary)
    arguments = trainer.arguments(
        rows,
        PAIRS,
        1e-4,
        LENGTH,
        1,
        1,
        PAIRS,
        folder,
        bf16=True,
        checkpointing=kind == "trl",
        weight_decay=0.0,
    )
    arguments |= {
        "eval_strategy": "no",
        "logging_steps": 1,
        "precompute_ref_log_probs": kind == "grid",
    }
    stamps, tokens, looked_up = [], {"forward": 0, "scored": 0}, [0.0]
    packed = grid.packed

    def counted(input_ids, labels, per_token):
        shared = packed(input_ids, labels, per_token)
        tokens["forward"] += int((shared["prompt"] > 0).sum())
        tokens["scored"] += int((shared["shift_labels"] != -100).sum())
        return shared

    class Grid(grid.GridTrainer):
        def _reference(self, *given):
            wait()
            begun = time.perf_counter()
            found = super()._reference(*given)
            looked_up[0] = time.perf_counter() - begun
            return found

    class Clock(TrainerCallback):
        def on_train_begin(self, *_, **__):
            self.on_step_end()

        def on_step_end(self, *_, **__):
            wait()
            stamps.append(time.perf_counter())
            if len(stamps) % 50 == 0:
                print(
                    f"{kind}: {len(stamps)} steps, {stamps[-1] - stamps[0]:.0f} s",
                    file=sys.stderr,
                    flush=True,
                )

    class Plain(DPOTrainer):
        def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
            return dataset

    modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    grid.packed = counted
    torch.manual_seed(1)
    wait()
    begun = time.perf_counter()
    made = (Grid if kind == "grid" else Plain)(
        model=model,
        args=DPOConfig(**arguments),
        train_dataset=Dataset.from_list(rows),
        processing_class=train_tokenizer(["a few words"], 300),
        callbacks=[Clock()],
        peft_config=LoraConfig(
            task_type="CAUSAL_LM", r=16, lora_alpha=32, lora_dropout=0.0, target_modules=modules
        ),
    )
    wait()
    before, reference = time.perf_counter() - begun, dict(tokens)
    made.train()
    wait()
    seconds = time.perf_counter() - begun
    steps = [later - earlier for earlier, later in zip(stamps, stamps[1:], strict=False)]
    trained = {name: tokens[name] - reference[name] for name in tokens}
    both = [
        2 * (body * counts["forward"] + head * counts["scored"]) for counts in (reference, trained)
    ]
    return {
        "seconds": seconds,
        "before": before,
        "reference": looked_up[0],
        "step": statistics.median(steps[3:] or steps),
        "steps": len(steps),
        "first_loss": next(
            float(entry["loss"]) for entry in made.state.log_history if "loss" in entry
        ),
        "peak": torch.cuda.max_memory_allocated() / 2**30 if on_gpu else float("nan"),
        "rate": rate,
        "operations": both[0]
        + 2 * both[1],  # backward through frozen weights costs what forward does
        "training_operations": 2 * both[1],
        "tokens": tokens["forward"],
        "paired": 2 * sum(len(row["prompt_ids"]) for row in rows)
        + sum(len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows),
        "parameters": body + 2 * head,
        "device": torch.cuda.get_device_name() if on_gpu else "CPU",
    }


def run(kind: str, grids: int, tiny: bool) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            __file__,
            "--kind",
            kind,
            "--grids",
            str(grids),
            "--folder",
            folder,
            *(["--tiny"] if tiny else []),
        ]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        }
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, cwd=folder, env=environment, check=False
        )
        if done.returncode:
            raise SystemExit(f"{kind} failed")
        found = json.loads(done.stdout.splitlines()[-1])
        print(kind, json.dumps(found), flush=True)
        return found


def table(trl: dict, grid: dict) -> str:
    """The part of RESULTS.md."""
    triplets = PAIRS * grid["steps"]
    scale = GRIDS * SIDE**2 / triplets
    once = grid["before"] - grid["reference"]
    epoch = once + scale * (grid["seconds"] - once)
    speed = trl["step"] * grid["steps"] * scale / epoch
    used = scale * grid["operations"] / epoch / grid["rate"]
    training = grid["training_operations"] / (grid["seconds"] - grid["before"]) / grid["rate"]
    before = (grid["operations"] - grid["training_operations"]) / grid["reference"] / grid["rate"]
    libraries = ", ".join(
        f"{name} {version(name)}" for name in ("torch", "transformers", "trl", "peft")
    )
    met = lambda yes: "yes" if yes else "no"  # noqa: E731
    part = "" if scale == 1 else f" --grids {triplets // SIDE**2}"
    scaled = (
        ""
        if scale == 1
        else f", scaled up from {triplets:,} in {grid['seconds']:.0f} s, of which {once:.0f} s are once a run"
    )
    lines = [
        f"{grid['device']}, {date.today()}, {libraries}; `python tests/benchmarks/gpu.py{part}`: {grid['parameters'] / 1e9:.1f}B parameters, LoRA of rank 16, "
        f"bfloat16, grids of {SIDE} x {SIDE}, {PAIRS} pairs a step. A product of bfloat16 matrices ran at {grid['rate'] / 1e12:.0f} TFLOP/s.",
        "",
        "| what | figure | target | met |",
        "|---|---|---|---|",
        f"| faster than TRL at its defaults, reference included | {speed:.1f} x ({epoch / scale / grid['steps']:.2f} s a step against "
        f"{trl['step']:.2f} s) | {SPEED:.0f} x | {met(speed >= SPEED)} |",
        f"| share of the chip's rate, the epoch whole, tokens without padding | {100 * used:.0f} % (reference {100 * before:.0f} %, training "
        f"{100 * training:.0f} %) | {100 * MFU:.0f} % | {met(used >= MFU)} |",
        f"| epoch of {GRIDS * SIDE**2:,} triplets, reference included | {epoch:.0f} s{scaled} | {EPOCH_S:.0f} s | {met(epoch <= EPOCH_S)} |",
        f"| peak memory, grid / TRL | {grid['peak']:.1f} / {trl['peak']:.1f} GiB | | |",
        f"| tokens forwarded / tokens of the rows that are paired | {grid['tokens'] / grid['paired'] / 2:.3f} | | |",
        f"| loss of the first step, grid / TRL | {grid['first_loss']:.4f} / {trl['first_loss']:.4f} | ln 2 | |",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("--kind", "--folder"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument(
        "--grids", type=int, default=GRIDS, help="prompts of the epoch, with 5 x 5 answers each"
    )
    parser.add_argument("--tiny", action="store_true", help="two narrow layers")
    options = parser.parse_args()
    if options.kind:
        print(json.dumps(measure(options.kind, options.grids, options.tiny, options.folder)))
        return
    trl = run("trl", STEPS * PAIRS // SIDE**2, options.tiny)
    text = table(trl, run("grid", options.grids, options.tiny))
    print(text)
    if not options.tiny:
        before, rest = RESULTS.read_text(encoding="utf-8").split(START)
        RESULTS.write_text(
            f"{before}{START}\n{text}\n{END}{rest.split(END, 1)[1]}", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
