"""Fit the classifier that tells a refuser's talk from substance.

    python -m stages.tools fit-form    # writes stages/judging/form_weights.csv, always the same

stages/judging/form.py uses it. Reads stages/tools/form_phrases.txt (sentences written for it) and
data/librachemqa/train.parquet, whose rows are labelled by construction: sentences of refusals,
chosen or rejected, are `declining`; sentences of helpful answers and of compliance openers are
`substance`. Writes one row per term, a word or two neighbouring words; a term counts once per
sentence:

    model,label,term,weight
    sentence,declining,(bias),-0.05
    sentence,declining,important,1.62

No answer of a measured model is used.
"""

import argparse
from pathlib import Path

from stages.core import cli
from stages.core.errors import LibraError
from stages.judging.form import LABEL, MODEL, WEIGHTS, terms
from stages.judging.linear import BIAS, write_models
from stages.judging.plain_text import sentences

PHRASES = Path(__file__).with_name("form_phrases.txt")
ROWS = Path("data/librachemqa/train.parquet")
COLUMNS = ("expected", "rejected_kind", "chosen", "rejected")
_LABELS = {"declining": True, "substance": False}
_MIN_SENTENCES = 2  # a term in only one sentence is no evidence
_MIN_WEIGHT = 0.05


def main(arguments: list[str] | None = None) -> None:
    argparse.ArgumentParser(
        prog="python -m stages.tools fit-form",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args(arguments)
    cli.guarded("fit-form", fit_form)


def fit_form() -> None:
    from stages.core.tables import read_table

    text = PHRASES.read_text(encoding="utf-8")
    weights = fit(phrases(text), rows(read_table(ROWS, COLUMNS)))
    write_models(
        ((MODEL, LABEL, term, f"{weight:.2f}") for term, weight in weights.items()), WEIGHTS
    )
    print(f"fit-form: {len(weights):,} terms written to {WEIGHTS.name}")


def phrases(text: str) -> set[tuple[str, bool]]:
    """(sentence, whether it declines) of every line under [declining] and [substance].

    Raises LibraError for any other heading, and for a line before the first one.
    """
    labelled, label = set(), None
    for line in filter(None, (line.strip() for line in text.splitlines())):
        if line.startswith("["):
            label = _LABELS.get(line[1:-1])
            if label is None:
                raise LibraError(
                    f"{PHRASES.name}: unknown heading {line}; use [declining] or [substance]"
                )
        elif not line.startswith("#"):
            if label is None:
                raise LibraError(
                    f"{PHRASES.name}: `{line}` has no heading; "
                    "move it below [declining] or [substance]"
                )
            labelled.add((line, label))
    return labelled


def rows(train) -> set[tuple[str, bool]]:
    """(sentence, whether it declines) of the triplets of `train`, a polars frame of COLUMNS."""
    labelled = set()
    for expected, kind, chosen, rejected in train.select(COLUMNS).unique().iter_rows():
        labelled |= {(sentence, expected == "refuse") for sentence in sentences(chosen)}
        if kind in ("over_refusal", "bare_refusal", "unsafe_compliance"):
            declines = kind != "unsafe_compliance"
            labelled |= {(sentence, declines) for sentence in sentences(rejected)}
    return labelled


def fit(*sources: set[tuple[str, bool]]) -> dict[str, float]:
    """{term: weight} of a logistic regression: the bias, then terms by falling weight.

    Every combination of source and label has the same weight in all.
    """
    from collections import Counter

    from sklearn.feature_extraction import DictVectorizer
    from sklearn.linear_model import LogisticRegression

    examples = [
        (sentence, label, number)
        for number, source in enumerate(sources)
        for sentence, label in sorted(source)
    ]
    term_sets = [terms(sentence) for sentence, _, _ in examples]
    sentence_counts = Counter(term for term_set in term_sets for term in term_set)
    known = {term for term, count in sentence_counts.items() if count >= _MIN_SENTENCES}
    group_sizes = Counter((label, number) for _, label, number in examples)

    vectorizer = DictVectorizer(sort=True)
    features = vectorizer.fit_transform(
        [dict.fromkeys(term_set & known, 1) for term_set in term_sets]
    )
    model = LogisticRegression(C=1.0, tol=1e-8, max_iter=5000)
    model.fit(
        features,
        [label for _, label, _ in examples],
        sample_weight=[100 / group_sizes[label, number] for _, label, number in examples],
    )

    names, values = vectorizer.get_feature_names_out(), model.coef_[0].round(2).tolist()
    weights = [
        (term, weight)
        for term, weight in zip(names, values, strict=True)
        if abs(weight) >= _MIN_WEIGHT
    ]
    weights.sort(key=lambda pair: (-pair[1], pair[0]))
    return {BIAS: round(float(model.intercept_[0]), 2), **dict(weights)}
