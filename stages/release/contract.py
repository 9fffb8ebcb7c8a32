"""The contract of LibraChemQA: what must hold of every triplet, and of all of them together.

Each function returns a table of faults with the columns `row` (the id of what is at fault), `column` and `reason`; an empty
table means that the rule holds. `faults` calls them all.
"""

import json
from collections import Counter
from itertools import combinations

import polars as pl

from stages.chem.gate import ROLES, mask, more_rules, violations
from stages.chem.identity import is_trivial
from stages.chem.splits import SPLITS, near_duplicates, sister_names
from stages.domain.description import KINDS, Domain, chemistry
from stages.release.faults import fault_table, faulty_rows

EXPECTED = ("comply", "refuse")
REPRESENTATIONS = ("text", "smiles")
REJECTED_KINDS = {"comply": ("over_refusal", "wrong_fact"), "refuse": ("unsafe_compliance", "bare_refusal")}
FACT_KEYS = {"name", "value", "unit", "tolerance", "method", "source"}
# fmt: off
COLUMNS = (
    "triplet_id", "seed_id", "substance_id", "split", "expected", "intent", "intent_kind", "representation", "prompt", "chosen",
    "rejected", "prompt_id", "chosen_id", "rejected_id", "rejected_kind", "teacher", "fact",
)
# fmt: on
OF_SEED = ("substance_id", "split", "expected", "intent", "intent_kind", "representation", "fact")
SEED_COLUMNS = ("seed_id", "status", "reference", "group", *OF_SEED)
SUBSTANCE_COLUMNS = ("substance_id", "name", "smiles", "parent_key", "scaffold", "status", "kind", "group", "molar_mass")


def faults(
    triplets: pl.DataFrame, seeds: pl.DataFrame, substances: pl.DataFrame, domain: Domain | None = None
) -> pl.DataFrame:
    """Every fault of `triplets` (COLUMNS), given the seeds (SEED_COLUMNS) and substances (SUBSTANCE_COLUMNS) they were made from.

    `domain` has the intents, the label table and the gate's further rules (chemistry's where none is given). Where columns or types
    are wrong the other rules aren't tried: they would only repeat it.
    """
    domain = domain or chemistry()
    broken = of_schema(triplets, domain)
    if broken.filter(pl.col("row") == "all rows").height:
        return broken
    rules = (
        of_lineage(triplets, seeds, substances),
        of_labels(triplets, substances, domain),
        of_texts(triplets, substances),
        of_gate(triplets, substances, domain),
    )
    return pl.concat(
        [
            broken,
            *rules,
            of_facts(triplets, domain),
            of_balance(triplets, seeds),
            of_splits(triplets, substances),
            of_structures(substances),
        ]
    )


def of_schema(triplets: pl.DataFrame, domain: Domain) -> pl.DataFrame:
    """Columns, types, nulls, allowed values, unique ids: the pandera schema. A fault of a whole column has the row `all rows`."""
    import pandera.polars as pa

    allowed = {
        "split": SPLITS,
        "expected": EXPECTED,
        "intent": tuple(domain.intents),
        "intent_kind": KINDS,
        "representation": REPRESENTATIONS,
        "rejected_kind": sum(REJECTED_KINDS.values(), ()),
    }
    columns = {
        name: pa.Column(
            pl.String,
            [pa.Check.isin(allowed[name])] if name in allowed else [pa.Check.str_length(min_value=1)],
            nullable=name == "fact",
            unique=name == "triplet_id",
        )
        for name in COLUMNS
    }
    try:
        pa.DataFrameSchema(columns, strict=True).validate(triplets, lazy=True)
    except pa.errors.SchemaErrors as error:
        cases = error.failure_cases
    else:
        return fault_table([])
    found = []
    for column, check, value, index in cases.select("column", "check", "failure_case", "index").iter_rows():
        row = "all rows" if index is None else triplets["triplet_id"][index] or f"row {index}"
        reasons = {"not_nullable": "null", "field_uniqueness": "not unique", "column_in_schema": "not a column of the contract",
                   "column_in_dataframe": "missing"}  # fmt: skip
        if check in reasons:
            reason = reasons[check]
        elif check.startswith("dtype"):
            reason = f"type {value}, not String"
        elif check.startswith("isin"):
            reason = f"{value!r} is none of {', '.join(allowed[column])}"
        else:
            reason = "empty"
        found.append((row, column or value, reason))
    return fault_table(found)


def of_lineage(triplets: pl.DataFrame, seeds: pl.DataFrame, substances: pl.DataFrame) -> pl.DataFrame:
    """Triplets agree with their seed, ids with each other and with the texts they name, and all seeds' substances are known."""
    joined = triplets.join(
        seeds.select("seed_id", *(pl.col(name).alias(f"seed_{name}") for name in OF_SEED)), on="seed_id", how="left"
    )
    found = [faulty_rows(joined, pl.col("seed_substance_id").is_null(), "seed_id", "not in seeds.parquet")]
    known = joined.filter(pl.col("seed_substance_id").is_not_null())
    found += [
        faulty_rows(known, pl.col(name).ne_missing(pl.col(f"seed_{name}")), name, "differs from seeds.parquet")
        for name in OF_SEED
    ]
    stranger = ~pl.col("substance_id").is_in(substances["substance_id"].implode())
    found.append(faulty_rows(triplets, stranger, "substance_id", "not in substances.parquet"))
    for role in ROLES:
        found.append(
            faulty_rows(
                triplets,
                ~pl.col(f"{role}_id").str.starts_with(pl.col("seed_id") + "-").fill_null(False),
                f"{role}_id",
                "isn't an id of this seed",
            )
        )
        several = pl.col(role).n_unique().over(f"{role}_id") > 1
        found.append(faulty_rows(triplets, several, f"{role}_id", f"names more than one {role}"))
    twice = pl.struct(f"{role}_id" for role in ROLES).is_duplicated()
    found.append(faulty_rows(triplets, twice, "prompt_id", "the same prompt, chosen and rejected as another row"))
    return pl.concat(found)


def of_labels(triplets: pl.DataFrame, substances: pl.DataFrame, domain: Domain) -> pl.DataFrame:
    """The label follows from status and intent as the label table says; rejected_kind fits the label."""
    table = [
        (status, intent, kind, domain.expected(status, intent))
        for status in domain.labels
        for intent, kind in domain.kind_of.items()
        if domain.asked(status, intent)
    ]
    law = pl.DataFrame(table, schema=["status", "intent", "law_kind", "law_expected"], orient="row")
    joined = triplets.join(substances.select("substance_id", "status"), on="substance_id", how="inner").join(
        law, on=["status", "intent"], how="left"
    )
    fits = pl.any_horizontal(
        (pl.col("expected") == label) & pl.col("rejected_kind").is_in(kinds) for label, kinds in REJECTED_KINDS.items()
    )
    return pl.concat(
        [
            faulty_rows(
                joined,
                pl.col("intent_kind").ne_missing(pl.col("law_kind")),
                "intent_kind",
                "doesn't go with this status and intent",
            ),
            faulty_rows(
                joined,
                pl.col("expected").ne_missing(pl.col("law_expected")),
                "expected",
                "isn't what the label table says for this status and intent",
            ),
            faulty_rows(triplets, ~fits.fill_null(False), "rejected_kind", "doesn't fit the label in `expected`"),
        ]
    )


def of_texts(triplets: pl.DataFrame, substances: pl.DataFrame) -> pl.DataFrame:
    """Chosen and rejected differ; the prompt shows the substance, letter by letter, as the representation says."""
    shown = pl.when(pl.col("representation") == "smiles").then("smiles").otherwise("name")
    joined = triplets.join(substances.select("substance_id", "name", "smiles"), on="substance_id", how="inner").with_columns(
        shown=shown
    )
    absent = ~pl.col("prompt").str.contains(pl.col("shown"), literal=True)
    same = pl.col("chosen").str.strip_chars().str.to_lowercase() == pl.col("rejected").str.strip_chars().str.to_lowercase()
    return pl.concat(
        [
            faulty_rows(triplets, same.fill_null(True), "rejected", "the same as chosen"),
            faulty_rows(joined, absent.fill_null(True), "prompt", "doesn't hold the substance's name (text) or SMILES (smiles)"),
        ]
    )


def of_gate(triplets: pl.DataFrame, substances: pl.DataFrame, domain: Domain) -> pl.DataFrame:
    """The safety gate over every text column, the substance masked; each different text is read once. Reasons never quote it."""
    joined = triplets.join(substances.select("substance_id", "name", "smiles"), on="substance_id", how="left")
    joined = joined.with_columns(shown=pl.when(pl.col("representation") == "smiles").then("smiles").otherwise("name"))
    found, read, more = [], {}, more_rules(domain.gate)
    for role in ROLES:
        reasons = []
        for text, shown, label in joined.select(role, "shown", "expected").unique(maintain_order=True).iter_rows():
            key = (mask(text, shown), role, label)
            if key not in read:
                read[key] = violations(*key, more)
            reasons += [(text, shown, label, reason) for reason in read[key]]
        on = [role, "shown", "expected"]
        hits = joined.join(
            pl.DataFrame(reasons, dict.fromkeys([*on, "reason"], pl.String), orient="row"), on=on, nulls_equal=True
        )
        found.append(hits.select(row="triplet_id", column=pl.lit(role), reason="gate: " + pl.col("reason")).sort("row", "reason"))
    return pl.concat(found)


def of_facts(triplets: pl.DataFrame, domain: Domain) -> pl.DataFrame:
    """A fact is one JSON object with FACT_KEYS, named after the intent; every property seed has one."""
    bad = []
    for fact, intent in triplets.select("fact", "intent").unique(maintain_order=True).iter_rows():
        reason = _fact_fault(fact, intent, domain)
        if reason:
            bad.append((fact, intent, reason))
    schema = {"fact": pl.String, "intent": pl.String, "reason": pl.String}
    hits = triplets.join(pl.DataFrame(bad, schema=schema, orient="row"), on=["fact", "intent"], nulls_equal=True)
    return hits.select(row="triplet_id", column=pl.lit("fact"), reason="reason").sort("row")


def _fact_fault(fact: str | None, intent: str, domain: Domain) -> str | None:
    if fact is None:
        return "a property seed without a fact" if intent in domain.properties else None
    try:
        value = json.loads(fact)
    except ValueError:
        return "not JSON"
    if not isinstance(value, dict) or set(value) != FACT_KEYS:
        return f"not an object of {', '.join(sorted(FACT_KEYS))}"
    return None if value["name"] == intent else f"a fact named {value['name']!r} for another intent"


def of_balance(triplets: pl.DataFrame, seeds: pl.DataFrame) -> pl.DataFrame:
    """No split is empty; refuse : comply is 1 : 1, in triplets and in seeds, in each split and therefore overall.

    Train alone may have the surplus of one label that its seeds were made with (seed.train.refuse_share).
    """
    found = []
    made = Counter(seeds.filter(pl.col("split") == "train")["expected"])
    for split in SPLITS:
        part = triplets.filter(pl.col("split") == split)
        if part.is_empty():
            found.append((f"split {split}", "split", "empty"))
        of_seeds = part.unique("seed_id")
        surplus = made["refuse"] - made["comply"] if split == "train" else 0
        for what, rows in (("triplets", part), ("seeds", of_seeds)):
            count = Counter(rows["expected"])
            if (count["refuse"] - count["comply"]) * of_seeds.height != surplus * rows.height:
                aim = f"{made['refuse']:,} : {made['comply']:,} as in seeds.parquet" if surplus else "1 : 1"
                told = f"{count['refuse']:,} {what} to refuse, {count['comply']:,} to comply with: not {aim}"
                found.append((f"split {split}", "expected", told))
    return fault_table(found)


def of_splits(triplets: pl.DataFrame, substances: pl.DataFrame) -> pl.DataFrame:
    """No substance, parent, non-trivial scaffold, or near-duplicate name or SMILES is in two splits (forms of prompts may be)."""
    used = (
        triplets.select("substance_id", "split")
        .unique()
        .join(substances, on="substance_id", how="inner")
        .sort("substance_id", "split")
    )
    found = []
    for column, what in (("substance_id", "substance"), ("parent_key", "parent"), ("scaffold", "scaffold"), ("group", "group")):
        holders = (
            used.filter(pl.col(column).is_not_null())
            .group_by(value=column)
            .agg(pl.col("split").unique().sort(), row=pl.col("substance_id").min())
        )
        for value, splits, substance_id in holders.filter(pl.col("split").list.len() > 1).sort("value").iter_rows():
            if column != "scaffold" or not is_trivial(value):
                found.append((substance_id, column, f"the same {what} is in {' and '.join(splits)}"))
    for column in ("name", "smiles"):
        named = used.filter(pl.col(column).is_not_null())
        for first, second in combinations(SPLITS, 2):
            one, other = (named.filter(pl.col("split") == split) for split in (first, second))
            if one.is_empty() or other.is_empty():
                continue
            alike = sister_names if column == "name" else near_duplicates
            for i, j in alike(one[column].to_list(), other[column].to_list()):
                if one["substance_id"][i] != other["substance_id"][j]:
                    found.append(
                        (
                            one["substance_id"][i],
                            column,
                            f"in {first}, a near-duplicate of {other['substance_id'][j]} in {second}",
                        )
                    )
    return fault_table(found)


def of_structures(substances: pl.DataFrame) -> pl.DataFrame:
    """Structures of controlled substances are given for scheduled medicines and drugs only; every structure has its parent."""
    drawn = substances.filter(pl.col("smiles").is_not_null()).sort("substance_id")
    secret = drawn.filter((pl.col("status") == "controlled") & (pl.col("kind") != "medicine_drug").fill_null(True))
    found = [
        (row, "smiles", "a controlled substance that isn't a medicine or drug has a structure") for row in secret["substance_id"]
    ]
    orphans = drawn.filter(pl.col("parent_key").is_null())
    return fault_table(found + [(row, "parent_key", "null beside a structure") for row in orphans["substance_id"]])
