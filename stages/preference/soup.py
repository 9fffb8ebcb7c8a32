"""A soup: the mean of the weights of several policies (Wortsman et al. 2022).

They are trained one after the other, from one start, each on rows of its own:

    .cache/checkpoints/dpo-9f2c4a01d3b7e655/member-1/finished/     weights.safetensors, curve.json
    .cache/checkpoints/dpo-9f2c4a01d3b7e655/member-2/checkpoint-1600/

A run that was killed doesn't train a finished member again: its weights stay there, in float32 as
they are added up, until the mean is written.
"""

import gc
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from stages.core.tables import write_text
from stages.training import processes, trainer
from stages.training.checkpoints import CURVE, Run, is_intact, log, seal
from stages.training.model_params import ModelParams
from stages.training.trainer import Curve

FINISHED, WEIGHTS = "finished", "weights.safetensors"


class Soup:
    """`count` members, numbered from 0 and added in that order; only rank 0 has their weights."""

    def __init__(self, stage: str, count: int, folder: str):
        self._stage, self._count, self._run = stage, count, Run(folder, stage)
        self._sums: dict[str, torch.Tensor] = {}
        self._curves: list[Curve] = []

    def folder(self, member: int) -> str:
        """Where the checkpoints of `member` are."""
        return str(self._run.folder / f"member-{member + 1}")

    def add(self, member: int, make_trainer: Callable) -> None:
        """Train the result of `make_trainer`, unless an earlier run has finished this member.

        It is a trainer of whole weights that isn't sharded. Call this once the trainer's arguments
        exist: they set up the processes' communication.
        """
        is_finished = broadcast_object_list([processes.is_main() and self._read(member)])[0]
        if is_finished:
            return
        gc.collect()  # the previous member, with its optimizer
        report = trainer.Report(self._label(member))
        model = trainer.train(make_trainer(), report, self._run)
        if processes.is_main():
            weights = {  # tied ones once
                name: values.detach().float().cpu().contiguous()
                for name, values in model.named_parameters()
            }
            self._write(member, weights, report.curve())
            self._add_up(weights, report.curve())

    def save(
        self, model, tokenizer, folder: str, record, name: str, model_params: ModelParams
    ) -> None:
        """Give `model` the mean, then write and record it (`trainer.save_and_record`)."""
        if not processes.is_main():
            return
        with torch.no_grad():
            for key, values in model.named_parameters():
                values.copy_(self._sums[key] / self._count)
        curve = mean_curve(self._curves)
        trainer.save_and_record(
            model, tokenizer, curve, folder, record, name, model_params, self._run
        )

    def _label(self, member: int) -> str:
        return f"{self._stage} {member + 1}/{self._count}"

    def _add_up(self, weights: dict[str, torch.Tensor], curve: Curve) -> None:
        for name, values in weights.items():
            if name in self._sums:
                self._sums[name] += values
            else:
                self._sums[name] = values.clone()
        self._curves.append(curve)

    def _read(self, member: int) -> bool:
        folder = Path(self.folder(member)) / FINISHED
        if not self._run.is_locked or not folder.exists():
            return False
        if not is_intact(folder):
            log(self._label(member), f"{folder} is damaged and is ignored")
            shutil.rmtree(folder)
            return False
        curve = json.loads((folder / CURVE).read_text(encoding="utf-8"))
        self._add_up(load_file(folder / WEIGHTS), curve)
        log(self._label(member), "already trained")
        return True

    def _write(self, member: int, weights: dict[str, torch.Tensor], curve: Curve) -> None:
        """Keep a finished member instead of its checkpoints; if it can't be written, they stay."""
        if not self._run.is_locked:
            return
        folder = Path(self.folder(member)) / FINISHED
        try:
            folder.mkdir(parents=True)
            save_file(weights, folder / WEIGHTS)
            write_text(json.dumps(curve), folder / CURVE)
            seal(folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            fault = str(error).splitlines()[0]
            log(
                self._label(member),
                f"warning: {folder} can't be written ({fault}; is the disk full?); training "
                "continues, and a run that is killed trains the end of this policy again",
            )
        else:
            for checkpoint in folder.parent.glob("checkpoint-*"):
                shutil.rmtree(checkpoint, ignore_errors=True)


def mean_curve(curves: list[Curve]) -> Curve:
    """One curve: for each step and figure the mean over the curves that have it."""
    steps: dict[float, dict[str, list[float]]] = {}
    for curve in curves:
        for row in curve:
            for name, value in row.items():
                steps.setdefault(row["step"], {}).setdefault(name, []).append(value)
    means = (
        {name: sum(values) / len(values) for name, values in steps[step].items()}
        for step in sorted(steps)
    )
    return [row | {"step": int(row["step"])} for row in means]
