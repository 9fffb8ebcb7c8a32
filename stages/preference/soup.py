"""A soup: the mean of the weights of policies trained one after the other, from one start on other rows (Wortsman et al. 2022).

    .cache/checkpoints/dpo-9f2c4a01d3b7e655/member-1/finished/   weights.safetensors, curve.json, whole.json
    .cache/checkpoints/dpo-9f2c4a01d3b7e655/member-2/checkpoint-1600/

A run that was killed trains no finished member again: its weights are kept until the mean is written, in float32, as they are added.
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
from stages.training.checkpoints import CURVE, Run, is_whole, say, seal
from stages.training.models import ModelParams

FINISHED, WEIGHTS = "finished", "weights.safetensors"
Curve = list[dict[str, float]]


class Soup:
    """`count` members, numbered from 0 and added in that order; the main process alone holds their weights."""

    def __init__(self, stage: str, count: int, folder: str):
        self._stage, self._count, self._run = stage, count, Run(folder, stage)
        self._sums: dict[str, torch.Tensor] = {}
        self._curves: list[Curve] = []

    def folder(self, member: int) -> str:
        """Where `member` keeps its checkpoints."""
        return str(self._run.folder / f"member-{member + 1}")

    def add(self, member: int, make: Callable) -> None:
        """Train what `make` makes, a trainer of whole weights that isn't sharded, unless a run before this one has finished it.

        Call it with the trainer's arguments made: several processes know of each other from then on.
        """
        kept = [processes.is_main() and self._read(member)]
        if broadcast_object_list(kept)[0]:
            return
        gc.collect()  # the member before this one, with its optimizer
        report = trainer.Report(self._what(member))
        model = trainer.train(make(), report, self._run)
        if processes.is_main():
            weights = {
                name: values.detach().float().cpu().contiguous()
                for name, values in model.named_parameters()
            }  # tied ones once
            self._write(member, weights, report.curve())
            self._sum(weights, report.curve())

    def keep(self, model, tokenizer, folder: str, record, name: str, size: ModelParams) -> None:
        """Give `model` the mean, and write and record it as one policy (`trainer.keep`)."""
        if processes.is_main():
            with torch.no_grad():
                for key, values in model.named_parameters():
                    values.copy_(self._sums[key] / self._count)
            trainer.keep(
                model, tokenizer, mean_curve(self._curves), folder, record, name, size, self._run
            )

    def _what(self, member: int) -> str:
        return f"{self._stage} {member + 1}/{self._count}"

    def _sum(self, weights: dict[str, torch.Tensor], curve: Curve) -> None:
        for name, values in weights.items():
            if name in self._sums:
                self._sums[name] += values
            else:
                self._sums[name] = values.clone()
        self._curves.append(curve)

    def _read(self, member: int) -> bool:
        folder = Path(self.folder(member)) / FINISHED
        if not self._run.keeps or not folder.exists():
            return False
        if not is_whole(folder):
            say(self._what(member), f"{folder} is damaged and isn't used")
            shutil.rmtree(folder)
            return False
        self._sum(
            load_file(folder / WEIGHTS), json.loads((folder / CURVE).read_text(encoding="utf-8"))
        )
        say(self._what(member), "was trained before")
        return True

    def _write(self, member: int, weights: dict[str, torch.Tensor], curve: Curve) -> None:
        """Keep a finished member in the place of its checkpoints; where that can't be, they stay."""
        if not self._run.keeps:
            return
        folder = Path(self.folder(member)) / FINISHED
        try:
            folder.mkdir(parents=True)
            save_file(weights, folder / WEIGHTS)
            write_text(json.dumps(curve), folder / CURVE)
            seal(folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            fault = f"{folder} can't be written ({str(error).splitlines()[0]}; is the disk full?)"
            say(
                self._what(member),
                f"warning: {fault}; training goes on, and a run that is killed trains this policy's end again",
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
