"""Fit the words of the second offline judge to the train split of chemistry.

    python -m stages.tools fit-words

Reads data/librachemqa/train.parquet and writes stages/judging/words.csv, always the same.
"""

import argparse

from stages.core import cli
from stages.core.errors import LibraError
from stages.domain.description import CHEMISTRY, load_domain_or_default
from stages.judging.linear import write_models
from stages.judging.words import TRAIN, WEIGHTS, fitted


def main(arguments: list[str] | None = None) -> None:
    argparse.ArgumentParser(
        prog="python -m stages.tools fit-words",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args(arguments)
    cli.guarded("fit-words", fit_words)


def fit_words() -> None:
    domain = load_domain_or_default()
    if domain.name != CHEMISTRY:
        raise LibraError(
            f"{WEIGHTS.name} is for {CHEMISTRY}, but {TRAIN} is about {domain.name}, "
            "whose words are fitted when they are needed; there is nothing to run"
        )
    rows = fitted(domain)
    write_models(rows, WEIGHTS)
    print(f"fit-words: {len(rows):,} weights written to {WEIGHTS.name}")
