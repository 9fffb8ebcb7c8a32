"""What both trainers share: repeatable settings, progress, the curve, writing the policy.

kwargs = arguments(rows, batch_size=16, learning_rate=0.002, max_length=256, random_seed=7,
                   evaluations=3, evaluation_size=16, folder=run_folder("sft"))
trl_trainer = SFTTrainer(model=model, args=SFTConfig(**kwargs), train_dataset=rows, ...)
train_and_save(trl_trainer, tokenizer, Report("sft"), "models/sft", record, "libra-sft", params)
"""

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl
import torch
from safetensors import SafetensorError, safe_open
from transformers import PrinterCallback, TrainerCallback, logging

from stages.core.errors import LibraError
from stages.core.tables import write_atomically
from stages.training import adapters, processes
from stages.training.checkpoints import KEEP, Checkpoints, Run
from stages.training.model_params import ModelParams
from stages.training.shared_loss import share_loss

Curve = list[dict[str, float]]
LINE_S = 5.0  # between two lines of progress
NOT_IN_CURVE = ("epoch", "runtime", "per_second", "num_tokens")


def arguments(
    rows,
    batch_size: int,
    learning_rate: float,
    max_length: int,
    random_seed: int,
    evaluations: int,
    evaluation_size: int,
    folder: str,
    bf16: bool = False,
    checkpointing: bool = False,
    weight_decay: float = 0.5,
) -> dict[str, Any]:
    """Keyword arguments of both `SFTConfig` and `DPOConfig`: one pass over `rows` in their order.

    A batch of `batch_size` rows is shared by the processes. There are `evaluations` passes over the
    validation split, in batches of `evaluation_size`. Checkpoints go to `folder`
    (stages.training.checkpoints). With `checkpointing`, activations are recomputed in the backward
    pass. A GPU is used if there is one.
    """
    steps = -(-len(rows) // batch_size)
    count = processes.world_size()
    return {
        "output_dir": folder,
        "num_train_epochs": 1,
        "train_sampling_strategy": "sequential",
        "per_device_train_batch_size": batch_size // count,
        "per_device_eval_batch_size": max(1, evaluation_size // count),
        "max_length": max_length,
        "learning_rate": learning_rate,
        "warmup_steps": min(100, steps // 10),
        "lr_scheduler_type": "cosine",
        "adam_beta2": 0.98,
        "weight_decay": weight_decay,
        "max_grad_norm": 1.0,
        "seed": random_seed,
        "bf16": bf16,
        "use_cpu": not torch.cuda.is_available(),
        "activation_checkpointing": checkpointing,
        "ddp_find_unused_parameters": False,
        "logging_steps": max(1, steps // 100),
        "eval_strategy": "steps",
        "eval_steps": max(1, steps // evaluations),
        "save_strategy": "no",  # stages.training.checkpoints decides when
        "save_total_limit": KEEP,
        "report_to": "none",
        "log_level_replica": "error",
        "disable_tqdm": True,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": False,
    }


class Report(TrainerCallback):
    """Keeps the log as a curve and prints a line every few seconds: step, loss, time left."""

    def __init__(self, label: str):
        self.label = label
        self.rows: Curve = []
        self._started, self._first_step, self._printed = time.monotonic(), 0, 0.0

    def on_train_begin(self, args, state, control, **_):
        self._started, self._first_step = time.monotonic(), state.global_step

    def on_log(self, args, state, control, logs=None, **_):
        if logs and ("loss" in logs or "eval_loss" in logs):
            figures = {
                name: float(value)
                for name, value in logs.items()
                if isinstance(value, (int, float))
                and not any(word in name for word in NOT_IN_CURVE)
            }
            self.rows.append({"step": state.global_step, **figures})

    def on_step_end(self, args, state, control, **_):
        now, step, steps = time.monotonic(), state.global_step, state.max_steps
        if not state.is_world_process_zero or (now - self._printed < LINE_S and step != steps):
            return
        self._printed = now
        per_step = (now - self._started) / (step - self._first_step)
        losses = [row["loss"] for row in self.rows if "loss" in row]
        loss = f", loss {losses[-1]:.3f}" if losses else ""
        left = per_step * (steps - step)
        line = f"{self.label}: step {step}/{steps}{loss}, {left:.0f} s left"
        print(line, file=sys.stderr, flush=True)

    def curve(self) -> Curve:
        """The curve, one row a step: its train and validation figures are merged."""
        merged: dict[float, dict[str, float]] = {}
        for row in self.rows:
            merged.setdefault(row["step"], {}).update(row)
        return [merged[step] for step in sorted(merged)]


def train_and_save(
    trl_trainer,
    tokenizer,
    report: Report,
    folder: str,
    record,
    name: str,
    model_params: ModelParams,
) -> None:
    """Train, write the policy to `folder`, and log curve and model (registered as `name`).

    Resumes from the last checkpoint of the same run, if there is one. Rank 0 writes and records;
    `model_params` say in which form: merged or not, and in which dtype. Raises LibraError if
    adapters are to be merged that are sharded over processes.
    """
    if processes.is_sharded() and model_params.save == "merged":
        raise LibraError(
            "model.save: merged needs the whole model in one process, and FSDP or DeepSpeed shards "
            "it; set it to with_base"
        )
    run = Run(trl_trainer.args.output_dir, report.label)
    model, weights = train(trl_trainer, report, run), None
    if trl_trainer.is_fsdp_enabled or trl_trainer.is_deepspeed_enabled:
        # Called in every process: each has a part.
        weights = trl_trainer.accelerator.get_state_dict(trl_trainer.model_wrapped)
        if not adapters.is_adapted(model):
            dtype = getattr(torch, model_params.dtype)
            weights = {name: values.to(dtype) for name, values in weights.items()}
    if processes.is_main():
        curve = report.curve()
        save_and_record(model, tokenizer, curve, folder, record, name, model_params, run, weights)


def train(trl_trainer, report: Report, run: Run):
    """Train, resuming from the last checkpoint of `run`; the model without distributed wrappers.

    Raises what TRL's `train` does; a checkpoint that can't be written is a warning.
    """
    trl_trainer.add_callback(report)
    trl_trainer.remove_callback(PrinterCallback)
    logging.disable_progress_bar()  # there would be one per checkpoint
    checkpoints = Checkpoints(trl_trainer, report, run)
    if processes.world_size() > 1:
        share_loss(trl_trainer)
    trl_trainer.train(resume_from_checkpoint=checkpoints.last_good())
    return trl_trainer.accelerator.unwrap_model(trl_trainer.model)


def save_and_record(
    model,
    tokenizer,
    curve: Curve,
    folder: str,
    record,
    name: str,
    model_params: ModelParams,
    run: Run,
    weights=None,
) -> None:
    """On rank 0: write the trained `model`, remove the checkpoints of `run`, log curve and model.

    `weights` are as in `save_policy`. Raises LibraError, OSError.
    """
    if weights is None:
        model = adapters.final_model(model, model_params)
    with_base = model_params.save == "with_base"
    save_policy(model, tokenizer, curve, folder, weights, with_base)
    run.remove()
    record.curve(curve)
    record.model(folder, name, adapters.base_folder)


def save_policy(
    model,
    tokenizer,
    curve: Curve,
    folder: str | Path,
    weights: dict[str, Any] | None = None,
    with_base: bool = True,
) -> None:
    """Write model, tokenizer and `training.csv` to `folder`, all or nothing.

    Of an adapted model the adapter is written, and its base if `with_base`; all weights are
    safetensors. `weights` are those of `model` if its own are sharded. Raises LibraError, OSError.
    """
    folder = Path(folder)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        if adapters.is_adapted(model):
            adapters.save_adapter(model, temporary, weights, with_base)
        else:
            model.save_pretrained(temporary, state_dict=weights)
            _set_dtype(temporary)
        tokenizer.save_pretrained(temporary)
        table = pl.DataFrame(curve, infer_schema_length=None)
        csv = temporary / "training.csv"
        write_atomically(csv, lambda path: table.write_csv(path, float_precision=6))
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    except SafetensorError as error:
        raise LibraError(
            f"{folder} can't be written ({error}); free some disk space, then run again"
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _set_dtype(folder: Path) -> None:
    """Correct the dtype in `folder`/config.json: transformers writes float32, FSDP's in memory."""
    with safe_open(next(folder.glob("*.safetensors")), "pt") as file:
        dtype = str(file.get_tensor(next(iter(file.keys()))).dtype).removeprefix("torch.")
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if config["dtype"] != dtype:
        path.write_text(json.dumps(config | {"dtype": dtype}, indent=2) + "\n", encoding="utf-8")
