"""Fit the weights of the second offline judge (stages/judging/words.csv) from data/librachemqa/train.parquet."""

import argparse

from stages.core import cli
from stages.core.errors import LibraError
from stages.domain.description import CHEMISTRY, domain_here
from stages.judging.words import TRAIN, WEIGHTS, fitted


def main(arguments: list[str] | None = None) -> None:
    argparse.ArgumentParser(
        prog="python -m stages.tools fit-words", description=__doc__
    ).parse_args(arguments)
    cli.guarded("fit-words", fit_words)


def fit_words() -> None:
    from stages.core.tables import write_text

    domain = domain_here()
    if domain.name != CHEMISTRY:
        raise LibraError(
            f"{WEIGHTS.name} is chemistry's, and {TRAIN} is of {domain.name}, whose words are fitted as they are needed"
        )
    lines = ["side,topic,word,weight", *map(",".join, fitted(domain))]
    write_text("\n".join(lines) + "\n", WEIGHTS)
    print(f"words: {len(lines) - 1:,} weights in {WEIGHTS.name}")
