"""DPO on a preference grid against TRL's DPOTrainer, on a GPU: an 8B model's LoRA in bfloat16.

    python tests/benchmarks/gpu.py                   # 7 minutes on an H200; its part of RESULTS.md
    python tests/benchmarks/gpu.py --grids 400       # on a part of the epoch, scaled up
    python tests/benchmarks/gpu.py --tiny --grids 8  # a tiny model, also on the CPU: only prints

A Llama of 8B parameters with random weights (Llama 3.1's shape), adapters of rank 16 on all its
linear modules, grids of 5 x 5 answers to a prompt, 100 pairs a step. Prompts have 64 to 128 tokens
and answers 128 to 192, so that a row has 256 on average (multiples of 8: TRL's batches then have
few widths, each of which cuDNN plans for once). Contenders, each in a process of its own:

    trl    TRL at its defaults: activation checkpointing, the reference beside every step
    grid   stages.preference.grid as the stage `dpo` sets it up, the reference before the first
           step; 1,264 grids, 31,600 triplets

The reference of both is the base, with its adapter off. Of `trl` the median of the last of STEPS
steps counts; of `grid` everything, from making the trainer to the last step. The chip's rate is
that of a product of random bfloat16 matrices of 8192 x 8192. Operations are those of the matrices
that tokens go through, without padding: forward and backward through frozen weights, and forward
for the reference.
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
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
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
SPEED, MFU, EPOCH_S = 8.0, 0.40, 500.0  # targets


def grid_rows(grids: int, vocabulary: int) -> list[dict]:
    """Pairs of `grids` grids, in order."""
    rng = random.Random(1)

    def text(least: int, most: int) -> list[int]:
        return [rng.randrange(10, vocabulary) for _ in range(rng.randrange(least, most + 1, 8))]

    rows = []
    for _ in range(grids):
        prompt, answers = text(64, 128), [text(128, 192) for _ in range(2 * SIDE)]
        rows += [
            {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
            for chosen in answers[:SIDE]
            for rejected in answers[SIDE:]
        ]
    return rows


def matrix_rate() -> float:
    """Operations per second of a product of bfloat16 matrices of 8192 x 8192: median of 20."""
    import torch

    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(25):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        a @ b
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1000)
    return 2 * 8192**3 / statistics.median(times[5:])


def new_model(tiny: bool, vocabulary: int):
    """A Llama with random bfloat16 weights, on the GPU if there is one."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = TINY if tiny else SIZES
    torch.set_default_device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_default_dtype(torch.bfloat16)
    config = LlamaConfig(vocab_size=vocabulary, pad_token_id=0, eos_token_id=1, **sizes)
    model = LlamaForCausalLM(config)
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)
    return model


def measure(kind: str, grids: int, tiny: bool, folder: str) -> dict:
    """Seconds, tokens, operations, first loss and peak memory (GiB), in this process."""
    from stages.training.determinism import deterministic
    from stages.training.scratch import train_tokenizer

    if kind == "grid":  # as the stage does
        deterministic(1)
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer

    from stages.preference import grid, packing
    from stages.training import trainer

    on_gpu = torch.cuda.is_available()
    synchronize = torch.cuda.synchronize if on_gpu else lambda: None
    rate = matrix_rate() if on_gpu else float("nan")
    vocabulary = 300 if tiny else 128256
    model = new_model(tiny, vocabulary)
    layer_weights = sum(weights.numel() for weights in model.model.layers.parameters())
    head_weights = model.lm_head.weight.numel()

    rows = grid_rows(grids, vocabulary)
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

    tokens = {"forward": 0, "scored": 0}
    pack = packing.pack

    def counted(input_ids, labels, per_token):
        packed = pack(input_ids, labels, per_token)
        tokens["forward"] += int((packed["prompt"] > 0).sum())
        tokens["scored"] += int((packed["shift_labels"] != -100).sum())
        return packed

    packing.pack = counted
    reference_s, stamps = [0.0], []

    class Grid(grid.GridTrainer):
        def _compute_reference(self, *args):
            synchronize()
            started = time.perf_counter()
            values = super()._compute_reference(*args)
            reference_s[0] = time.perf_counter() - started
            return values

    class Plain(DPOTrainer):
        def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
            return dataset

    class Clock(TrainerCallback):
        def on_train_begin(self, *_, **__):
            self.on_step_end()

        def on_step_end(self, *_, **__):
            synchronize()
            stamps.append(time.perf_counter())
            if len(stamps) % 50 == 0:
                line = f"{kind}: {len(stamps)} steps, {stamps[-1] - stamps[0]:.0f} s"
                print(line, file=sys.stderr, flush=True)

    torch.manual_seed(1)
    synchronize()
    started = time.perf_counter()
    trl_trainer = (Grid if kind == "grid" else Plain)(
        model=model,
        args=DPOConfig(**arguments),
        train_dataset=Dataset.from_list(rows),
        processing_class=train_tokenizer(["a few words"], 300),
        callbacks=[Clock()],
        peft_config=LoraConfig(
            task_type="CAUSAL_LM", r=16, lora_alpha=32, lora_dropout=0.0, target_modules=MODULES
        ),
    )
    synchronize()
    before_s, reference_tokens = time.perf_counter() - started, dict(tokens)
    trl_trainer.train()
    synchronize()
    seconds = time.perf_counter() - started

    def forward_operations(counts: dict[str, int]) -> float:
        return 2 * (layer_weights * counts["forward"] + head_weights * counts["scored"])

    # Backward through frozen weights costs what forward does.
    training_tokens = {name: tokens[name] - reference_tokens[name] for name in tokens}
    training = 2 * forward_operations(training_tokens)
    steps = [end - start for start, end in zip(stamps, stamps[1:], strict=False)]
    paired = sum(
        2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"])
        for row in rows
    )
    losses = [float(entry["loss"]) for entry in trl_trainer.state.log_history if "loss" in entry]
    return {
        "seconds": seconds,
        "before": before_s,
        "reference": reference_s[0],
        "step": statistics.median(steps[3:] or steps),
        "steps": len(steps),
        "first_loss": losses[0],
        "peak": torch.cuda.max_memory_allocated() / 2**30 if on_gpu else float("nan"),
        "rate": rate,
        "operations": forward_operations(reference_tokens) + training,
        "training_operations": training,
        "tokens": tokens["forward"],
        "paired": paired,
        "parameters": layer_weights + 2 * head_weights,
        "device": torch.cuda.get_device_name() if on_gpu else "CPU",
    }


def run(kind: str, grids: int, tiny: bool) -> dict:
    """`measure` in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--kind", kind, "--grids", str(grids), "--folder", folder]
        paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            [sys.executable, __file__, *options, *(["--tiny"] if tiny else [])],
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=os.environ | {"PYTHONPATH": paths},
            check=False,
        )
    if done.returncode:
        raise SystemExit(f"{kind} failed")
    figures = json.loads(done.stdout.splitlines()[-1])
    print(kind, json.dumps(figures), flush=True)
    return figures


def report(trl: dict, grid: dict) -> str:
    """The part of RESULTS.md."""
    triplets, epoch_triplets = PAIRS * grid["steps"], GRIDS * SIDE**2
    scale = epoch_triplets / triplets
    once = grid["before"] - grid["reference"]
    epoch = once + scale * (grid["seconds"] - once)
    per_step = epoch / scale / grid["steps"]
    speed = trl["step"] / per_step
    used = scale * grid["operations"] / epoch / grid["rate"]
    training = grid["training_operations"] / (grid["seconds"] - grid["before"]) / grid["rate"]
    reference = (grid["operations"] - grid["training_operations"]) / grid["reference"]
    reference /= grid["rate"]
    libraries = ("torch", "transformers", "trl", "peft")
    versions = ", ".join(f"{name} {version(name)}" for name in libraries)
    option = scaled = ""
    if scale != 1:
        option = f" --grids {triplets // SIDE**2}"
        scaled = (
            f", scaled up from {triplets:,} in {grid['seconds']:.0f} s, "
            f"of which {once:.0f} s are once per run"
        )

    def met(is_met: bool) -> str:
        return "yes" if is_met else "no"

    lines = [
        f"{grid['device']}, {date.today()}, {versions}; "
        f"`python tests/benchmarks/gpu.py{option}`: {grid['parameters'] / 1e9:.1f}B parameters, "
        f"LoRA of rank 16, bfloat16, grids of {SIDE} x {SIDE}, {PAIRS} pairs a step. A product of "
        f"bfloat16 matrices ran at {grid['rate'] / 1e12:.0f} TFLOP/s.",
        "",
        "| what | figure | target | met |",
        "|---|---|---|---|",
        f"| faster than TRL at its defaults, reference included | {speed:.1f} x "
        f"({per_step:.2f} s a step against {trl['step']:.2f} s) | {SPEED:.0f} x "
        f"| {met(speed >= SPEED)} |",
        f"| share of the chip's rate over the epoch, tokens without padding | {100 * used:.0f} % "
        f"(reference {100 * reference:.0f} %, training {100 * training:.0f} %) "
        f"| {100 * MFU:.0f} % | {met(used >= MFU)} |",
        f"| epoch of {epoch_triplets:,} triplets, reference included | {epoch:.0f} s{scaled} "
        f"| {EPOCH_S:.0f} s | {met(epoch <= EPOCH_S)} |",
        f"| peak memory, grid / TRL | {grid['peak']:.1f} / {trl['peak']:.1f} GiB | | |",
        "| tokens forwarded / tokens of the paired rows "
        f"| {grid['tokens'] / grid['paired'] / 2:.3f} | | |",
        "| loss of the first step, grid / TRL "
        f"| {grid['first_loss']:.4f} / {trl['first_loss']:.4f} | ln 2 | |",
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
    parser.add_argument("--tiny", action="store_true", help="a model of two narrow layers")
    options = parser.parse_args()
    if options.kind:
        print(json.dumps(measure(options.kind, options.grids, options.tiny, options.folder)))
        return

    trl = run("trl", STEPS * PAIRS // SIDE**2, options.tiny)
    text = report(trl, run("grid", options.grids, options.tiny))
    print(text)
    if not options.tiny:
        before, rest = RESULTS.read_text(encoding="utf-8").split(START)
        after = rest.split(END, 1)[1]
        RESULTS.write_text(f"{before}{START}\n{text}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
