"""What the two trainers share: arguments for a repeatable run, progress for people, the curve, a folder swapped in whole."""

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
from stages.training.models import ModelParams
from stages.training.shared_loss import share_loss


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
    """Keyword arguments of `SFTConfig` and `DPOConfig` alike: one pass over `rows` in their order.

    A batch of `batch_size` rows is shared by the processes. The validation split is looked at `evaluations` times, in batches of
    `evaluation_size`; `folder` is where checkpoints go (stages.training.checkpoints). With `checkpointing` activations are computed again in the backward
    pass. A GPU is used where there is one.
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
        "save_strategy": "no",  # stages.training.checkpoints says when
        "save_total_limit": KEEP,
        "report_to": "none",
        "log_level_replica": "error",
        "disable_tqdm": True,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": False,
    }


class Report(TrainerCallback):
    """Keeps the log as a curve and prints a line every few seconds: step, loss, time left."""

    def __init__(self, what: str):
        self.what, self.rows, self._started, self._first, self._said = (
            what,
            [],
            time.monotonic(),
            0,
            0.0,
        )

    def on_train_begin(self, args, state, control, **_):
        self._started, self._first = time.monotonic(), state.global_step

    def on_log(self, args, state, control, logs=None, **_):
        if logs and ("loss" in logs or "eval_loss" in logs):
            numbers = {
                key: float(value) for key, value in logs.items() if isinstance(value, (int, float))
            }
            dropped = ("epoch", "runtime", "per_second", "num_tokens")
            kept = {
                key: value
                for key, value in numbers.items()
                if not any(word in key for word in dropped)
            }
            self.rows.append({"step": state.global_step, **kept})

    def on_step_end(self, args, state, control, **_):
        now = time.monotonic()
        if state.is_world_process_zero and (
            now - self._said >= 5 or state.global_step == state.max_steps
        ):
            self._said = now
            left = (
                (now - self._started)
                / (state.global_step - self._first)
                * (state.max_steps - state.global_step)
            )
            losses = [row["loss"] for row in self.rows if "loss" in row]
            loss = f", loss {losses[-1]:.3f}" if losses else ""
            print(
                f"{self.what}: step {state.global_step}/{state.max_steps}{loss}, {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )

    def curve(self) -> list[dict[str, float]]:
        """Rows of the curve, merged by step: train and validation figures of one step stand in one row."""
        merged: dict[int, dict[str, float]] = {}
        for row in self.rows:
            merged.setdefault(row["step"], {}).update(row)
        return [merged[step] for step in sorted(merged)]


def train_and_keep(
    trl_trainer, tokenizer, report: Report, folder: str, record, name: str, size: ModelParams
) -> None:
    """Train with `report` listening, write the policy to `folder`, log curve and model (registered as `name`) to `record`.

    Goes on from the last checkpoint of the same run, where there is one. The main process writes and records; `size` says in
    what form: merged or not, in which type. Raises LibraError when adapters are to be merged that are spread over processes.
    """
    if processes.is_sharded() and size.save == "merged":
        raise LibraError(
            "model.save: merged needs the whole model in one process, and FSDP or DeepSpeed spreads it; set it to with_base"
        )
    run = Run(trl_trainer.args.output_dir, report.what)
    model, weights = train(trl_trainer, report, run), None
    if trl_trainer.is_fsdp_enabled or trl_trainer.is_deepspeed_enabled:
        weights = trl_trainer.accelerator.get_state_dict(
            trl_trainer.model_wrapped
        )  # every process has a part
        if not adapters.is_adapted(model):
            weights = {
                name: values.to(getattr(torch, size.dtype)) for name, values in weights.items()
            }
    if processes.is_main():
        keep(model, tokenizer, report.curve(), folder, record, name, size, run, weights)


def train(trl_trainer, report: Report, run: Run):
    """Train with `report` listening, from the last checkpoint that `run` has of it; the model, without what processes wrap it in.

    Raises what TRL's `train` does; a checkpoint that can't be written is a warning.
    """
    trl_trainer.add_callback(report)
    trl_trainer.remove_callback(PrinterCallback)
    logging.disable_progress_bar()  # one for every checkpoint
    checkpoints = Checkpoints(trl_trainer, report, run)
    if processes.world_size() > 1:
        share_loss(trl_trainer)
    trl_trainer.train(resume_from_checkpoint=checkpoints.last_good())
    return trl_trainer.accelerator.unwrap_model(trl_trainer.model)


def keep(
    model,
    tokenizer,
    curve: list[dict[str, float]],
    folder: str,
    record,
    name: str,
    size: ModelParams,
    run: Run,
    weights=None,
) -> None:
    """In the main process: write the trained `model` (`weights`: see `save_policy`), end `run`, log curve and model. Raises LibraError, OSError."""
    if weights is None:
        model = adapters.finished(model, size)
    save_policy(model, tokenizer, curve, folder, weights, with_base=size.save == "with_base")
    run.forget()
    record.curve(curve)
    record.model(folder, name, adapters.base_folder)


def save_policy(
    model,
    tokenizer,
    curve: list[dict[str, float]],
    folder: str | Path,
    weights: dict[str, Any] | None = None,
    with_base: bool = True,
) -> None:
    """Write model, tokenizer and `training.csv` to `folder`, whole or not at all.

    Of an adapted model the adapter is written, with its base beside it or without; all weights are safetensors. `weights` are those
    of `model` where its own are spread over processes. Raises LibraError, OSError.
    """
    folder = Path(folder)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        if adapters.is_adapted(model):
            adapters.write(model, temporary, weights, with_base)
        else:
            model.save_pretrained(temporary, state_dict=weights)
            _name_type(temporary)
        tokenizer.save_pretrained(temporary)
        table = pl.DataFrame(curve, infer_schema_length=None)
        write_atomically(
            temporary / "training.csv", lambda path: table.write_csv(path, float_precision=6)
        )
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    except SafetensorError as error:
        raise LibraError(
            f"{folder} can't be written ({error}); free the disk, then run again"
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _name_type(folder: Path) -> None:
    """Let config.json in `folder` name the type that the weights have there: FSDP's in memory, which transformers names, is float32."""
    with safe_open(next(folder.glob("*.safetensors")), "pt") as file:
        dtype = str(file.get_tensor(next(iter(file.keys()))).dtype).removeprefix("torch.")
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if config["dtype"] != dtype:
        path.write_text(json.dumps(config | {"dtype": dtype}, indent=2) + "\n", encoding="utf-8")
