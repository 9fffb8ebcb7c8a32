"""Shortcuts: how well the label can be guessed without the substance's status and the intent.

In the `dual` cell (make, buy, prepare) only the substance decides, so anything else that predicts
the label there is a fault of the dataset. `measure` gives the figures of the card, `probe_faults`
those that exceed a limit.
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

from stages.dataset.fault_tables import fault_table

MIN_DUAL_SEEDS = 300  # with fewer, chance alone can exceed a limit of 0.6: measured, not judged
FULL_SIZE = 1000  # train seeds from which the variety of wordings is judged
MIN_FORMS = {"prompts": 60, "refusals": 40}  # per representation
FORM_LEVEL = 0.001  # significance level of all forms tested together (Bonferroni)
MIN_SUPPORT = 10  # seeds that share a form before it is tested; fewer can't reach the level
FOLDS = 5
MIN_GROUPS = 10  # per label, for a cross-validation
ENFORCED = ("molar_mass", "name_length", "prompt_length", "prompt_wording")


def prompt_forms(triplets: pl.DataFrame | pl.LazyFrame, substances: pl.DataFrame) -> pl.DataFrame:
    """The distinct prompts of each seed with their `form`: the substance replaced by `{x}`.

    Columns seed_id, substance_id, expected, intent, intent_kind, representation, prompt, form,
    name, molar_mass (g/mol).
    """
    lazy = triplets.lazy()
    columns = ("seed_id", "substance_id", "expected", "intent", "intent_kind", "representation")
    seeds = lazy.select(columns).unique().collect(engine="streaming")
    names = substances.select("substance_id", "name", "smiles", "molar_mass")
    seeds = seeds.join(names, on="substance_id")
    prompts = lazy.select("seed_id", "prompt").unique().collect(engine="streaming")
    joined = prompts.join(seeds, on="seed_id").sort("seed_id", "prompt")

    # Split and join, since replace_all takes no pattern from a row's own column.
    name = pl.when(pl.col("representation") == "smiles").then("smiles").otherwise("name")
    form = pl.coalesce(pl.col("prompt").str.split(name).list.join("{x}"), "prompt")
    return joined.select(pl.exclude("smiles"), form=form)


def measure(
    triplets: pl.DataFrame | pl.LazyFrame, seeds: pl.DataFrame, substances: pl.DataFrame
) -> dict:
    """Balanced accuracies of the label probes (0 to 1, 0.5 is chance), and the number of wordings.

    `dual`: in the dual cell, out of fold with substance groups kept together; the better of a tree
    of depth 3 and a logistic model, None with too few groups. `overall`: the best rule on one
    column of the whole table.
    """
    of_seeds = seeds.select("seed_id", "group", "status")
    prompts = prompt_forms(triplets, substances)
    prompts = prompts.join(of_seeds, on="seed_id", maintain_order="left")
    seed_rows = prompts.unique("seed_id", maintain_order=True)
    overall = {
        "substance_status_only": _best_guess(seed_rows, ["status"]),
        "intent_only": _best_guess(seed_rows, ["intent"]),
        "status_and_intent": _best_guess(seed_rows, ["status", "intent"]),
    }
    form_counts = prompts.group_by("representation").agg(pl.col("form").n_unique())
    forms = {
        representation: {"prompts": count, "refusals": _refusal_forms(triplets, representation)}
        for representation, count in form_counts.sort("representation").iter_rows()
    }

    dual = prompts.filter(pl.col("intent_kind") == "dual")
    del prompts, seed_rows  # they hold every text
    return {
        "dual_seeds": dual["seed_id"].n_unique(),
        "dual": _dual_accuracies(dual),
        "overall": overall,
        "forms": forms,
    }


def _dual_accuracies(dual: pl.DataFrame) -> dict[str, float | None]:
    """{probe: balanced accuracy} for the prompts of the dual cell."""
    sizes = dual.select(
        "seed_id",
        "expected",
        "group",
        "molar_mass",
        name_length=pl.col("name").str.len_chars(),
        length=pl.col("prompt").str.len_chars(),
        is_smiles=(pl.col("representation") == "smiles").cast(pl.Int8),
    )
    seeds = sizes.unique("seed_id", maintain_order=True)
    has_mass = pl.col("molar_mass").is_not_null()
    weighed, weighed_seeds = sizes.filter(has_mass), seeds.filter(has_mass)
    named = weighed_seeds if weighed_seeds.height else seeds  # a domain without masses
    return {
        "molar_mass": _accuracy(weighed_seeds, "molar_mass"),
        "name_length": _accuracy(named, "name_length"),
        "prompt_length": _accuracy(sizes, "length"),
        "prompt_length_text": _accuracy(sizes.filter(is_smiles=0), "length"),
        "prompt_length_smiles": _accuracy(sizes.filter(is_smiles=1), "length"),
        "all_sizes_together": _accuracy(
            weighed, "molar_mass", "name_length", "length", "is_smiles"
        ),
        "prompt_wording": _wording_accuracy(dual),
    }


def probe_faults(
    measured: dict, triplets: pl.DataFrame | pl.LazyFrame, substances: pl.DataFrame, limit: float
) -> pl.DataFrame:
    """Probes above `limit`, forms that give the label away, and too few forms, as a fault table."""
    lazy = triplets.lazy()
    faults = []
    if measured["dual_seeds"] >= MIN_DUAL_SEEDS:
        for name in ENFORCED:
            accuracy = measured["dual"][name]
            if accuracy is not None and accuracy > limit:
                reason = (
                    "guesses the label inside dual with balanced accuracy "
                    f"{accuracy:.3f}, limit {limit}"
                )
                faults.append((f"probe {name}", "expected", reason))

    forms = prompt_forms(lazy.filter(pl.col("intent_kind") == "dual"), substances)
    for form, refuse, comply in telling_forms(forms):
        reason = f"tells the label inside dual: {refuse} seeds to refuse, {comply} to comply with"
        faults.append((f"form {form!r}", "prompt", reason))

    train = lazy.filter(pl.col("split") == "train").select(pl.col("seed_id").n_unique())
    if train.collect(engine="streaming").item() >= FULL_SIZE:
        for representation, counts in measured["forms"].items():
            for role, least in MIN_FORMS.items():
                if counts[role] < least:
                    reason = f"only {counts[role]} different forms; at least {least} are required"
                    faults.append((f"representation {representation}", role, reason))
    return fault_table(faults)


def telling_forms(prompts: pl.DataFrame) -> list[tuple[str, int, int]]:
    """Forms of the dual cell that predict the label: (form, seeds to refuse, to comply with).

    Fisher's exact test of each form (hypergeometric, two-sided by doubling) at FORM_LEVEL divided
    by the number of forms that at least MIN_SUPPORT seeds share. Rarer ones are left to the
    wording probe.
    """
    dual = prompts.filter(pl.col("intent_kind") == "dual").unique(["seed_id", "form"])
    refuse = pl.col("expected") == "refuse"
    total, refused = dual["seed_id"].n_unique(), dual.filter(refuse)["seed_id"].n_unique()
    counts = (
        dual.group_by("form")
        .agg(seeds=pl.len().cast(pl.Int64), refuse=refuse.sum().cast(pl.Int64))
        .filter(pl.col("seeds") >= MIN_SUPPORT)
        .sort("form")
    )
    k, n = counts["refuse"].to_numpy(), counts["seeds"].to_numpy()
    p = 2 * np.minimum(hypergeom.cdf(k, total, refused, n), hypergeom.sf(k - 1, total, refused, n))
    significant = counts.filter(pl.Series(p < FORM_LEVEL / max(1, counts.height)))
    return [(form, refuse, seeds - refuse) for form, seeds, refuse in significant.iter_rows()]


def _accuracy(rows: pl.DataFrame, *features: str) -> float | None:
    """Balanced accuracy out of fold, the better of a shallow tree and a logistic model."""
    folds = _folds(rows)
    if folds is None:
        return None
    tree = DecisionTreeClassifier(
        max_depth=3, min_samples_leaf=5, class_weight="balanced", random_state=0
    )
    logistic = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced"))
    labels, matrix = _labels(rows), rows.select(features).cast(pl.Float64).to_numpy()
    accuracies = []
    for model in (tree, logistic):
        guesses = cross_val_predict(model, matrix, labels, cv=PredefinedSplit(folds))
        accuracies.append(round(float(balanced_accuracy_score(labels, guesses)), 3))
    return max(accuracies)


def _wording_accuracy(dual: pl.DataFrame) -> float | None:
    """Balanced accuracy, out of fold, of a logistic model on words and word pairs of the forms.

    Only those that occur in at least two of the forms it learns from.
    """
    folds = _folds(dual)
    if folds is None:
        return None
    labels = _labels(dual)
    words = CountVectorizer(
        ngram_range=(1, 2), binary=True, token_pattern=r"[^\s]+", dtype=np.int8
    ).fit_transform(dual["form"])  # once for all folds

    guesses = np.empty_like(labels)
    for fold in range(FOLDS):
        learned = folds != fold
        repeated = np.flatnonzero(words[learned].getnnz(axis=0) >= 2)
        model = LogisticRegression(class_weight="balanced", max_iter=300)
        model.fit(words[learned][:, repeated], labels[learned])
        guesses[~learned] = model.predict(words[~learned][:, repeated])
    return round(float(balanced_accuracy_score(labels, guesses)), 3)


def _folds(rows: pl.DataFrame) -> np.ndarray | None:
    """The fold of each row, groups kept together; None if a label has too few groups."""
    for label in ("comply", "refuse"):
        if rows.filter(pl.col("expected") == label)["group"].n_unique() < MIN_GROUPS:
            return None
    # Largest groups first, dealt out in turn. sklearn's GroupKFold breaks ties by the processor's
    # sort, which differs between machines.
    sizes = rows.group_by("group").len().sort("len", "group", descending=[True, False])
    dealt = sizes.select("group", fold=pl.int_range(pl.len()) % FOLDS)
    joined = rows.select("group").join(dealt, on="group", how="left", maintain_order="left")
    return joined["fold"].to_numpy()


def _labels(rows: pl.DataFrame) -> np.ndarray:
    """1 for refuse, 0 for comply. sklearn sorts labels many times, which is slow for strings."""
    return (rows["expected"] == "refuse").cast(pl.Int8).to_numpy()


def _best_guess(seeds: pl.DataFrame, columns: list[str]) -> float:
    """The highest balanced accuracy on these seeds of any rule on `columns`."""
    cells = (
        seeds.group_by(*columns, "expected")
        .agg(pl.len().alias("count"))
        .with_columns(share=pl.col("count") / pl.col("count").sum().over("expected"))
    )
    best = cells.group_by(columns).agg(pl.col("share").max())["share"]
    # fsum, since group_by has no order and the last bit of a plain sum would depend on it
    return round(math.fsum(best) / 2, 3)


def _refusal_forms(triplets: pl.DataFrame | pl.LazyFrame, representation: str) -> int:
    """The number of distinct refusals, schedules and years masked."""
    part = triplets.lazy().filter(
        (pl.col("expected") == "refuse") & (pl.col("representation") == representation)
    )
    chosen = part.select("chosen").unique().collect(engine="streaming")["chosen"]
    return chosen.str.replace_all(r"\d+|Schedule \w+|\([^)]*\)", "#").n_unique()
