"""Shortcuts: how well the label can be guessed without knowing what the substance is and what is asked.

Inside the `dual` cell (make, buy, prepare) only the substance decides, so whatever else predicts the label there is a fault
of the dataset. `measure` gives the numbers of the card, `faults` those that break a limit.
"""

import math

import numpy as np
import polars as pl
from scipy.stats import hypergeom
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from stages.dataset.breaches import fault_table

FEWEST_DUAL_SEEDS = (
    300  # below, chance alone can pass a limit of 0.6: probes are reported, not judged
)
FULL_SIZE = 1000  # train seeds from which on the variety of wordings is judged
FEWEST_PROMPT_FORMS, FEWEST_REFUSAL_FORMS = 60, 40  # per representation
FORM_LEVEL = 0.001  # of all forms tested together (Bonferroni)
LEAST_SUPPORT = (
    10  # seeds that must share a form before it is tested: fewer could never reach the level
)
FOLDS, FEWEST_GROUPS = 5, 10  # of the cross-validation; groups per label
ENFORCED = ("molar_mass", "name_length", "prompt_length", "prompt_wording")


def forms(triplets: pl.DataFrame | pl.LazyFrame, substances: pl.DataFrame) -> pl.DataFrame:
    """The different prompts of every seed with `form`, the prompt with its substance masked by `{x}`.

    Columns seed_id, substance_id, expected, intent, intent_kind, representation, prompt, form, name, molar_mass (g/mol).
    """
    lazy = triplets.lazy()
    asked = lazy.select(
        "seed_id", "substance_id", "expected", "intent", "intent_kind", "representation"
    ).unique()
    asked = asked.collect(engine="streaming").join(
        substances.select("substance_id", "name", "smiles", "molar_mass"), on="substance_id"
    )
    prompts = lazy.select("seed_id", "prompt").unique().collect(engine="streaming")
    joined = prompts.join(asked, on="seed_id").sort("seed_id", "prompt")
    shown = pl.when(pl.col("representation") == "smiles").then("smiles").otherwise("name")
    masked = pl.coalesce(
        pl.col("prompt").str.split(shown).list.join("{x}"), "prompt"
    )  # replace_all takes no pattern of a row's own
    return joined.select(pl.exclude("smiles"), form=masked)


def measure(
    triplets: pl.DataFrame | pl.LazyFrame, seeds: pl.DataFrame, substances: pl.DataFrame
) -> dict:
    """Balanced accuracies (0 to 1, 0.5 = chance) of the label probes, and the variety of wordings.

    `dual`: inside the dual cell, out of fold, substance groups kept together; the better of a depth-3 tree and a logistic
    model. null where there are too few groups. `overall`: the best guess from one column of the whole table.
    """
    prompts = forms(triplets, substances).join(
        seeds.select("seed_id", "group", "status"), on="seed_id", maintain_order="left"
    )
    seeds_used = prompts.unique("seed_id", maintain_order=True)
    overall = {
        "substance_status_only": _best_guess(seeds_used, ["status"]),
        "intent_only": _best_guess(seeds_used, ["intent"]),
        "status_and_intent": _best_guess(seeds_used, ["status", "intent"]),
    }
    variety = {
        representation: {"prompts": forms_of, "refusals": _refusal_forms(triplets, representation)}
        for representation, forms_of in prompts.group_by("representation")
        .agg(pl.col("form").n_unique())
        .sort("representation")
        .iter_rows()
    }
    dual = prompts.filter(pl.col("intent_kind") == "dual")
    del prompts, seeds_used
    once = dual.unique("seed_id", maintain_order=True)
    each = once.filter(pl.col("molar_mass").is_not_null())
    named = each if each.height else once  # a domain without masses
    length = pl.col("prompt").str.len_chars().alias("length")
    by_size = dual.filter(pl.col("molar_mass").is_not_null()).select(
        "expected",
        "group",
        "molar_mass",
        pl.col("name").str.len_chars(),
        length,
        (pl.col("representation") == "smiles").cast(pl.Int8).alias("drawn"),
    )
    return {
        "dual_seeds": dual["seed_id"].n_unique(),
        "dual": {
            "molar_mass": _accuracy(each, each.select("molar_mass")),
            "name_length": _accuracy(named, named.select(pl.col("name").str.len_chars())),
            "prompt_length": _accuracy(dual, dual.select(length)),
            "prompt_length_text": _accuracy(*_with_length(dual, "text")),
            "prompt_length_smiles": _accuracy(*_with_length(dual, "smiles")),
            "all_sizes_together": _accuracy(
                by_size, by_size.select("molar_mass", "name", "length", "drawn")
            ),
            "prompt_wording": _wording(dual),
        },
        "overall": overall,
        "forms": variety,
    }


def faults(
    measured: dict, triplets: pl.DataFrame | pl.LazyFrame, substances: pl.DataFrame, limit: float
) -> pl.DataFrame:
    """The probes that break `limit`, forms that give the label away, and too few forms: columns row, column, reason."""
    found = []
    if measured["dual_seeds"] >= FEWEST_DUAL_SEEDS:
        for name in ENFORCED:
            accuracy = measured["dual"][name]
            if accuracy is not None and accuracy > limit:
                found.append(
                    (
                        f"probe {name}",
                        "expected",
                        f"guesses the label inside dual with balanced accuracy {accuracy:.3f}, limit {limit}",
                    )
                )
    for form, refuse, comply in telling_forms(
        forms(triplets.lazy().filter(pl.col("intent_kind") == "dual"), substances)
    ):
        found.append(
            (
                f"form {form!r}",
                "prompt",
                f"tells the label inside dual: {refuse} seeds to refuse, {comply} to comply with",
            )
        )
    train = (
        triplets.lazy()
        .filter(pl.col("split") == "train")
        .select(pl.col("seed_id").n_unique())
        .collect(engine="streaming")
        .item()
    )
    if train >= FULL_SIZE:
        for representation, count in measured["forms"].items():
            for what, fewest in (
                ("prompts", FEWEST_PROMPT_FORMS),
                ("refusals", FEWEST_REFUSAL_FORMS),
            ):
                if count[what] < fewest:
                    found.append(
                        (
                            f"representation {representation}",
                            what,
                            f"only {count[what]} different forms, at least {fewest} wanted",
                        )
                    )
    return fault_table(found)


def telling_forms(prompts: pl.DataFrame) -> list[tuple[str, int, int]]:
    """Forms (form, seeds to refuse, seeds to comply with) of the dual cell whose presence predicts the label.

    Fisher's exact test of each form (hypergeometric, two-sided by doubling), at FORM_LEVEL divided by the number of
    forms that at least LEAST_SUPPORT seeds share; rarer ones are left to the wording probe.
    """
    dual = prompts.filter(pl.col("intent_kind") == "dual").unique(["seed_id", "form"])
    refuse = pl.col("expected") == "refuse"
    total, refused = dual["seed_id"].n_unique(), dual.filter(refuse)["seed_id"].n_unique()
    counts = (
        dual.group_by("form")
        .agg(seeds=pl.len().cast(pl.Int64), refuse=refuse.sum().cast(pl.Int64))
        .sort("form")
    )
    counts = counts.filter(pl.col("seeds") >= LEAST_SUPPORT)
    k, n = counts["refuse"].to_numpy(), counts["seeds"].to_numpy()
    p = 2 * np.minimum(hypergeom.cdf(k, total, refused, n), hypergeom.sf(k - 1, total, refused, n))
    telling = counts.filter(pl.Series(p < FORM_LEVEL / max(1, counts.height)))
    return [(form, refuse, seeds - refuse) for form, seeds, refuse in telling.iter_rows()]


def _with_length(dual: pl.DataFrame, representation: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    part = dual.filter(pl.col("representation") == representation)
    return part, part.select(pl.col("prompt").str.len_chars())


def _accuracy(rows: pl.DataFrame, features: pl.DataFrame) -> float | None:
    """Balanced accuracy out of fold, the better of a shallow tree and a logistic model; null with too few groups."""
    tree = DecisionTreeClassifier(
        max_depth=3, min_samples_leaf=5, class_weight="balanced", random_state=0
    )
    line = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced"))
    scores = [
        _out_of_fold(model, features.cast(pl.Float64).to_numpy(), rows) for model in (tree, line)
    ]
    return None if None in scores else max(scores)


def _wording(dual: pl.DataFrame) -> float | None:
    """Balanced accuracy of a logistic model on the words and word pairs of the forms, those that two forms to learn from have."""
    folds = _folds(dual)
    if folds is None:
        return None
    labels = _labels(dual)
    words = CountVectorizer(
        ngram_range=(1, 2), binary=True, token_pattern=r"[^\s]+", dtype=np.int8
    ).fit_transform(dual["form"])
    guesses = np.empty_like(labels)
    for fold in range(FOLDS):  # each form is taken apart once, not once a fold
        learn = folds != fold
        seen = np.flatnonzero(words[learn].getnnz(axis=0) >= 2)
        model = LogisticRegression(class_weight="balanced", max_iter=300).fit(
            words[learn][:, seen], labels[learn]
        )
        guesses[~learn] = model.predict(words[~learn][:, seen])
    return round(float(balanced_accuracy_score(labels, guesses)), 3)


def _folds(rows: pl.DataFrame) -> np.ndarray | None:
    """The fold of every row, groups kept together; null with too few groups of a label."""
    if (
        min(
            rows.filter(pl.col("expected") == label)["group"].n_unique()
            for label in ("comply", "refuse")
        )
        < FEWEST_GROUPS
    ):
        return None
    # Largest groups first, dealt out in turn: sklearn's GroupKFold breaks ties as the processor's sort does.
    sizes = rows.group_by("group").len().sort("len", "group", descending=[True, False])
    turn = sizes.select("group", fold=pl.int_range(pl.len()) % FOLDS)
    return (
        rows.select("group")
        .join(turn, on="group", how="left", maintain_order="left")["fold"]
        .to_numpy()
    )


def _labels(rows: pl.DataFrame) -> np.ndarray:
    """1 for refuse, 0 for comply: sklearn sorts labels many times over, and texts take it long."""
    return (rows["expected"] == "refuse").cast(pl.Int8).to_numpy()


def _out_of_fold(model, features: np.ndarray, rows: pl.DataFrame) -> float | None:
    folds = _folds(rows)
    if folds is None:
        return None
    labels = _labels(rows)
    guesses = cross_val_predict(model, features, labels, cv=PredefinedSplit(folds))
    return round(float(balanced_accuracy_score(labels, guesses)), 3)


def _best_guess(seeds: pl.DataFrame, columns: list[str]) -> float:
    """Balanced accuracy of the best guess of the label that any rule on `columns` can make of these seeds."""
    cells = (
        seeds.group_by(*columns, "expected")
        .agg(pl.len().alias("count"))
        .with_columns(share=pl.col("count") / pl.col("count").sum().over("expected"))
    )
    best = cells.group_by(columns).agg(pl.col("share").max())["share"]
    return round(
        math.fsum(best) / 2, 3
    )  # fsum: group_by has no order, and a plain sum's last bit would follow it


def _refusal_forms(triplets: pl.DataFrame | pl.LazyFrame, representation: str) -> int:
    """Different refusals, schedules and years masked."""
    part = triplets.lazy().filter(
        (pl.col("expected") == "refuse") & (pl.col("representation") == representation)
    )
    chosen = part.select("chosen").unique().collect(engine="streaming")["chosen"]
    return chosen.str.replace_all(r"\d+|Schedule \w+|\([^)]*\)", "#").n_unique()
