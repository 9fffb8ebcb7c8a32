"""Check all of params.yaml at once, before a run that takes minutes.

    python -m stages.tools check

Every stage checks its own sections when it runs; this finds a mistake in the last stage's params
before the first stage starts. Reads params.yaml and writes nothing.
"""

import argparse
from pathlib import Path
from typing import Any

from stages.chat.budget import BudgetParams
from stages.chat.connections import Connections
from stages.chat.protocol import ChatModel
from stages.combine import CombineParams
from stages.core import cli, params
from stages.core.errors import LibraError
from stages.core.params import check_section
from stages.craft import CraftParams
from stages.dpo import DpoParams
from stages.judge import JudgeParams
from stages.rephrase import RephraseParams
from stages.report import ReportParams
from stages.respond import RespondParams
from stages.score import ScoreParams
from stages.seed import SeedParams
from stages.sft import SftParams
from stages.training.model_params import ModelParams
from stages.training.processes import TrainParams
from stages.validate import ValidateParams

SECTIONS = {
    "seed": SeedParams,
    "teacher": ChatModel,
    "budget": BudgetParams,
    "connections": Connections,
    "craft": CraftParams,
    "rephrase": RephraseParams,
    "combine": CombineParams,
    "validate": ValidateParams,
    "model": ModelParams,
    "train": TrainParams,
    "sft": SftParams,
    "dpo": DpoParams,
    "respond": RespondParams,
    "judge": JudgeParams,
    "score": ScoreParams,
    "report": ReportParams,
}


def check(path: Path = params.PARAMS) -> None:
    """Raises LibraError that names the first section with wrong, missing or unknown keys."""
    values = params.read_yaml(path)
    params.check_random_seed(values.get("random_seed"))
    sections: dict[str, Any] = {}
    for name, model in SECTIONS.items():
        if name not in values:
            raise LibraError(f"{path} has no section `{name}`{params.did_you_mean(name, values)}")
        sections[name] = check_section(name, values[name], model)
    if unknown := sorted(set(values) - set(SECTIONS) - {"random_seed"}):
        hint = params.did_you_mean(unknown[0], SECTIONS)
        raise LibraError(f"{path}: `{unknown[0]}` is not a section{hint}")
    _check_together(path, sections)


def _check_together(path: Path, sections: dict[str, Any]) -> None:
    """What one section requires of another.

    The stage that trains would find out only after the texts were paid for.
    """
    sections["connections"].for_judges(sections["judge"].panel)
    sections["connections"].for_candidates(sections["respond"].candidates)

    processes, dpo = sections["train"].processes, sections["dpo"]
    for name, rows in (("sft", sections["sft"].batch_size), ("dpo", dpo.pairs_per_step)):
        if rows % processes:
            raise LibraError(
                f"{path}: {name}.batch_size makes {rows} rows a step, "
                f"which train.processes = {processes} can't share evenly"
            )
    triplets = sections["combine"].triplets_per_seed // sections["rephrase"].prompts
    if dpo.answers > triplets:
        raise LibraError(
            f"{path}: dpo.answers is {dpo.answers}, but a prompt gets {triplets} triplets; "
            "lower it, or raise combine.triplets_per_seed"
        )
    dpo.check_soup(sections["model"].lora)


def main(arguments: list[str] | None = None) -> None:
    argparse.ArgumentParser(
        prog="python -m stages.tools check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args(arguments)
    cli.guarded("params", check)
