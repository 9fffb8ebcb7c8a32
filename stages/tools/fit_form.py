"""Fit the weights by which `stages.judging.form` tells a refuser's talk from substance, sentence by sentence.

    python -m stages.tools fit-form          writes stages/judging/form_weights.csv, the same every time

Reads stages/tools/form_phrases.txt (sentences written for it) and data/librachemqa/train.parquet, whose rows are labelled by
how they were made: sentences of refusals, asked for as chosen or as rejected, are `declining`; sentences of helpful answers and of
compliance openers are `substance`. Writes one row per term, a word or two neighbouring words; a term counts once per sentence:

    term,weight
    (bias),-0.05
    important,1.62

No answer of any model that is measured takes part.
"""

import argparse
from pathlib import Path

from stages.core import cli
from stages.core.errors import LibraError
from stages.judging.form import BIAS, WEIGHTS, sentences, terms

PHRASES = Path(__file__).with_name("form_phrases.txt")
ROWS = Path("data/librachemqa/train.parquet")
_COLUMNS = ("expected", "rejected_kind", "chosen", "rejected")
_LABELS = {"declining": True, "substance": False}
_LEAST_SENTENCES = 2  # a term that only one sentence holds is no evidence
_LEAST_WEIGHT = 0.05


def main(arguments: list[str] | None = None) -> None:
    argparse.ArgumentParser(
        prog="python -m stages.tools fit-form",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args(arguments)
    cli.guarded("fit-form", fit_form)


def fit_form() -> None:
    from stages.core.tables import read_table

    weights = fit(phrases(PHRASES.read_text(encoding="utf-8")), rows(read_table(ROWS, _COLUMNS)))
    WEIGHTS.write_text(
        "term,weight\n" + "".join(f"{term},{weight:.2f}\n" for term, weight in weights.items()),
        encoding="utf-8",
    )
    print(f"form_fit: {len(weights):,} terms written to {WEIGHTS.name}")


def phrases(text: str) -> set[tuple[str, bool]]:
    """(sentence, whether it declines) of every line under [declining] and [substance]. Raises LibraError for another heading."""
    found, label = set(), None
    for line in filter(None, (line.strip() for line in text.splitlines())):
        if line.startswith("["):
            label = _LABELS.get(line[1:-1])
            if label is None:
                raise LibraError(
                    f"{PHRASES.name}: the heading {line} is neither [declining] nor [substance]; mend it"
                )
        elif not line.startswith("#"):
            if label is None:
                raise LibraError(
                    f"{PHRASES.name}: `{line}` stands before the first heading; put it under [declining] or [substance]"
                )
            found.add((line, label))
    return found


def rows(train) -> set[tuple[str, bool]]:
    """(sentence, whether it declines) of the triplets of `train`, each different sentence once."""
    found = set()
    for expected, kind, chosen, rejected in train.select(_COLUMNS).unique().iter_rows():
        found |= {(sentence, expected == "refuse") for sentence in sentences(chosen)}
        if kind in ("over_refusal", "bare_refusal", "unsafe_compliance"):
            found |= {(sentence, kind != "unsafe_compliance") for sentence in sentences(rejected)}
    return found


def fit(*sources: set[tuple[str, bool]]) -> dict[str, float]:
    """{term: weight} of a logistic regression, by falling weight, the bias first; each source and label counts alike."""
    from collections import Counter

    from sklearn.feature_extraction import DictVectorizer
    from sklearn.linear_model import LogisticRegression

    labelled = [
        (sentence, label, n)
        for n, source in enumerate(sources)
        for sentence, label in sorted(source)
    ]
    held = [terms(sentence) for sentence, _, _ in labelled]
    known = {
        term
        for term, count in Counter(term for some in held for term in some).items()
        if count >= _LEAST_SENTENCES
    }
    share = Counter((label, n) for _, label, n in labelled)
    vectorizer = DictVectorizer(sort=True)
    counts = vectorizer.fit_transform([dict.fromkeys(some & known, 1) for some in held])
    model = LogisticRegression(C=1.0, tol=1e-8, max_iter=5000)
    model.fit(
        counts,
        [label for _, label, _ in labelled],
        sample_weight=[100 / share[label, n] for _, label, n in labelled],
    )
    weights = dict(
        zip(vectorizer.get_feature_names_out(), model.coef_[0].round(2).tolist(), strict=True)
    )
    kept = {term: weight for term, weight in weights.items() if abs(weight) >= _LEAST_WEIGHT}
    return {BIAS: round(float(model.intercept_[0]), 2)} | dict(
        sorted(kept.items(), key=lambda item: (-item[1], item[0]))
    )
