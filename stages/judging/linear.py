"""Linear models of text, kept as CSV tables: how much each term counts for each label.

    model,label,term,weight
    said,disposal,waste,4.25

    model = read_models(path)["said"]             # {"waste": {"disposal": 4.25, ...}, ...}
    scores({"laboratory", "waste"}, model)        # {"disposal": 6.5, ...}

A term counts once per text. The term BIAS, if a model has one, is for the caller to add.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable
from functools import cache
from pathlib import Path

from stages.core.checked_csv import read_rows, row_error

COLUMNS = ("model", "label", "term", "weight")
BIAS = "(bias)"
Model = dict[str, dict[str, float]]  # term -> {label: weight}


@cache
def read_models(path: Path) -> dict[str, Model]:
    """{model: {term: {label: weight}}} of a table, read once. Raises LibraError for a bad row."""
    rows = read_rows(path, COLUMNS)
    for row in rows:
        try:
            float(row["weight"])
        except ValueError:
            raise row_error(path, row, "weight", f"{row['weight']} is not a number") from None
    return models_of(tuple(row[column] for column in COLUMNS) for row in rows)


def models_of(rows: Iterable[tuple[str, ...]]) -> dict[str, Model]:
    """The models that `rows` of COLUMNS define."""
    models: dict[str, Model] = defaultdict(lambda: defaultdict(dict))
    for model, label, term, weight in rows:
        models[model][term][label] = float(weight)
    return {name: dict(model) for name, model in models.items()}


def write_models(rows: Iterable[tuple[str, ...]], path: Path) -> None:
    from stages.core.tables import write_text

    write_text("".join(f"{','.join(row)}\n" for row in (COLUMNS, *rows)), path)


def scores(terms: Collection[str], model: Model) -> dict[str, float]:
    """{label: sum of the weights of `terms`}, added in alphabetical order; labels without: none."""
    totals: dict[str, float] = {}
    for term in sorted(terms):
        for label, weight in model.get(term, {}).items():
            totals[label] = totals.get(label, 0.0) + weight
    return totals
