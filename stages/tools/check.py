"""Check all of params.yaml at once, before a run that takes minutes.

    python -m stages.tools check

Every stage checks its own sections when it runs; this finds a mistake in the last stage's params
before the first stage starts. Reads params.yaml and writes nothing.
"""

import argparse
from pathlib import Path

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
    found = {}
    for name, section in SECTIONS.items():
        if name not in values:
            raise LibraError(f"{path} has no section `{name}`{params.did_you_mean(name, values)}")
        found[name] = check_section(name, values[name], section)
    if strays := sorted(set(values) - set(SECTIONS) - {"random_seed"}):
        raise LibraError(
            f"{path}: `{strays[0]}` is no section{params.did_you_mean(strays[0], SECTIONS)}"
        )
    _fit_together(path, found)


def _fit_together(path: Path, found: dict) -> None:
    """What one section asks of another: the stage that trains would find out only after the texts were paid for."""
    found["connections"].for_judges(found["judge"].panel)
    found["connections"].for_candidates(found["respond"].candidates)
    processes, dpo = found["train"].processes, found["dpo"]
    for name, rows in (("sft", found["sft"].batch_size), ("dpo", dpo.pairs_per_step)):
        if rows % processes:
            raise LibraError(
                f"{path}: {name}.batch_size makes {rows} rows a step, which train.processes = {processes} can't share evenly"
            )
    each = found["combine"].triplets_per_seed // found["rephrase"].prompts
    if dpo.answers > each:
        raise LibraError(
            f"{path}: dpo.answers is {dpo.answers}, but a prompt gets {each} triplets; lower it, or raise combine.triplets_per_seed"
        )
    dpo.check_soup(found["model"].lora)


def main(arguments: list[str] | None = None) -> None:
    argparse.ArgumentParser(
        prog="python -m stages.tools check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args(arguments)
    cli.guarded("params", check)
