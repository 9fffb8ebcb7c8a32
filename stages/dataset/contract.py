"""The contract of LibraChemQA: what must hold of every triplet, and of all of them together.

Each function returns a table of faults with the columns `row` (the id of what is at fault), `column` and `reason`; an empty
table means that the rule holds. `faults` calls them all.
"""

import json
from collections import Counter
from collections.abc import Sequence
from itertools import combinations, product

import polars as pl

from stages.dataset.breaches import fault_table, faulty_rows
from stages.domain.description import KINDS, Domain, chemistry
from stages.domain.gate import ROLES, mask, more_rules, violations
from stages.domain.splits import SPLITS, is_trivial, near_duplicates, sister_names

BATCH = 1 << 16  # rows that pandera is given at a time
EXPECTED = ("comply", "refuse")
REPRESENTATIONS = ("text", "smiles")
REJECTED_KINDS = {
    "comply": ("over_refusal", "wrong_fact"),
    "refuse": ("unsafe_compliance", "bare_refusal"),
}
FACT_KEYS = {"name", "value", "unit", "tolerance", "method", "source"}
# fmt: off
COLUMNS = (
    "triplet_id", "seed_id", "substance_id", "split", "expected", "intent", "intent_kind", "representation", "prompt", "chosen",
    "rejected", "prompt_id", "chosen_id", "rejected_id", "rejected_kind", "teacher", "fact",
)
# fmt: on
OF_SEED = ("substance_id", "split", "expected", "intent", "intent_kind", "representation", "fact")
SEED_COLUMNS = ("seed_id", "status", "reference", "group", *OF_SEED)
SUBSTANCE_COLUMNS = (
    "substance_id",
    "name",
    "smiles",
    "parent_key",
    "scaffold",
    "status",
    "kind",
    "group",
    "molar_mass",
)


def faults(
    triplets: pl.DataFrame | pl.LazyFrame,
    seeds: pl.DataFrame,
    substances: pl.DataFrame,
    domain: Domain | None = None,
) -> pl.DataFrame:
    """Every fault of `triplets` (COLUMNS), given the seeds (SEED_COLUMNS) and substances (SUBSTANCE_COLUMNS) they were made from.

    `domain` has the intents, the label table and the gate's further rules (chemistry's where none is given). Each rule reads the
    columns it needs, and each different value once, so that a lazy frame of a million triplets fits in little memory. Where columns
    or types are wrong the other rules aren't tried: they would only repeat it.
    """
    domain = domain or chemistry()
    lazy = triplets.lazy()
    if (broken := of_schema(lazy.head(0).collect(), domain)).height:
        return broken
    rules = (
        of_ids(lazy),
        of_lineage(lazy, seeds, substances),
        of_labels(lazy, substances, domain),
        of_texts(lazy, substances),
        of_gate(lazy, substances, domain),
    )
    count = lazy.select(pl.len()).collect().item()
    batches = (lazy.slice(start, BATCH).collect() for start in range(0, count, BATCH))
    return pl.concat(
        [
            *(of_schema(batch, domain) for batch in batches),
            *rules,
            of_facts(lazy, domain),
            of_balance(lazy, seeds),
            of_splits(lazy, substances),
            of_structures(substances),
        ]
    )


def _each(triplets: pl.LazyFrame, *columns: str) -> pl.DataFrame:
    """The different values of `columns`."""
    return triplets.select(columns).unique().collect(engine="streaming")


def _rows(
    triplets: pl.LazyFrame,
    bad: pl.DataFrame,
    on: Sequence[str],
    column: str,
    reason: str | None = None,
) -> pl.DataFrame:
    """A fault for every triplet with values of `on` that `bad` has; the reason is that of `bad` where none is given."""
    if bad.is_empty():
        return fault_table([])
    bad = (
        (bad.with_columns(reason=pl.lit(reason)) if reason else bad).select(*on, "reason").unique()
    )
    found = triplets.join(bad.lazy(), on=on, nulls_equal=True).select(
        row="triplet_id", column=pl.lit(column), reason="reason"
    )
    return found.collect(engine="streaming").sort("row", "reason")


def _twice(triplets: pl.LazyFrame, on: Sequence[str], column: str, reason: str) -> pl.DataFrame:
    """A fault for every triplet that has the values of `on` in common with another one."""
    seen = triplets.select(key=pl.struct(on).hash()).collect(engine="streaming")["key"].sort()
    again = seen.filter(seen == seen.shift()).unique()
    if again.is_empty():
        return fault_table([])
    columns = list(dict.fromkeys(["triplet_id", *on]))
    alike = (
        triplets.filter(pl.struct(on).hash().is_in(again.implode()))
        .select(columns)
        .collect(engine="streaming")
    )
    return faulty_rows(
        alike, pl.struct(on).is_duplicated(), column, reason
    )  # again: two values may have one hash


def of_ids(triplets: pl.LazyFrame) -> pl.DataFrame:
    """No two triplets have the same id."""
    return _twice(
        triplets.filter(pl.col("triplet_id").is_not_null()),
        ["triplet_id"],
        "triplet_id",
        "not unique",
    )


def of_schema(triplets: pl.DataFrame, domain: Domain) -> pl.DataFrame:
    """Columns, types, nulls, allowed values: the pandera schema. A fault of a whole column has the row `all rows`."""
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
            [pa.Check.isin(allowed[name])]
            if name in allowed
            else [pa.Check.str_length(min_value=1)],
            nullable=name == "fact",
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
    for column, check, value, index in cases.select(
        "column", "check", "failure_case", "index"
    ).iter_rows():
        row = (
            "all rows"
            if index is None
            else triplets["triplet_id"][index] or f"a row of {triplets['seed_id'][index]}"
        )
        reasons = {
            "not_nullable": "null",
            "column_in_schema": "not a column of the contract",
            "column_in_dataframe": "missing",
        }
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


def of_lineage(
    triplets: pl.LazyFrame, seeds: pl.DataFrame, substances: pl.DataFrame
) -> pl.DataFrame:
    """Triplets agree with their seed, ids with each other and with the texts they name, and all seeds' substances are known."""
    each = _each(triplets, "seed_id", *OF_SEED)
    joined = each.join(
        seeds.select("seed_id", *(pl.col(name).alias(f"seed_{name}") for name in OF_SEED)),
        on="seed_id",
        how="left",
    )
    unknown = pl.col("seed_substance_id").is_null()
    found = [
        _rows(triplets, joined.filter(unknown), ["seed_id"], "seed_id", "not in seeds.parquet")
    ]
    known = joined.filter(~unknown)
    for name in OF_SEED:
        other = known.filter(pl.col(name).ne_missing(pl.col(f"seed_{name}")))
        found.append(_rows(triplets, other, ["seed_id", name], name, "differs from seeds.parquet"))
    strangers = each.filter(
        ~pl.col("substance_id").is_in(substances["substance_id"].implode()).fill_null(False)
    )
    found.append(
        _rows(triplets, strangers, ["substance_id"], "substance_id", "not in substances.parquet")
    )
    for role in ROLES:
        name = f"{role}_id"
        strange = triplets.filter(
            ~pl.col(name).str.starts_with(pl.col("seed_id") + "-").fill_null(False)
        ).select("triplet_id")
        found.append(
            faulty_rows(
                strange.collect(engine="streaming"), pl.lit(True), name, "isn't an id of this seed"
            )
        )
        pairs = (
            triplets.select(id=pl.col(name).hash(), text=pl.col(role).hash())
            .unique()
            .collect(engine="streaming")
        )
        several = pairs.filter(pl.col("id").is_duplicated())["id"].unique()
        if len(several):
            rows = (
                triplets.filter(pl.col(name).hash().is_in(several.implode()))
                .select("triplet_id", name, role)
                .collect()
            )
            found.append(
                faulty_rows(
                    rows,
                    pl.col(role).n_unique().over(name) > 1,
                    name,
                    f"names more than one {role}",
                )
            )
    same = "the same prompt, chosen and rejected as another row"
    return pl.concat(
        [*found, _twice(triplets, [f"{role}_id" for role in ROLES], "prompt_id", same)]
    )


def of_labels(triplets: pl.LazyFrame, substances: pl.DataFrame, domain: Domain) -> pl.DataFrame:
    """The label follows from status and intent as the label table says; rejected_kind fits the label."""
    table = [
        (status, intent, kind, domain.expected(status, intent))
        for status in domain.labels
        for intent, kind in domain.kind_of.items()
        if domain.asked(status, intent)
    ]
    law = pl.DataFrame(table, schema=["status", "intent", "law_kind", "law_expected"], orient="row")
    on = ["substance_id", "intent", "intent_kind", "expected"]
    joined = _each(triplets, *on).join(
        substances.select("substance_id", "status"), on="substance_id", how="inner"
    )
    joined = joined.join(law, on=["status", "intent"], how="left")
    odd = joined.filter(pl.col("intent_kind").ne_missing(pl.col("law_kind")))
    wrong = joined.filter(pl.col("expected").ne_missing(pl.col("law_expected")))
    fits = pl.any_horizontal(
        (pl.col("expected") == label) & pl.col("rejected_kind").is_in(kinds)
        for label, kinds in REJECTED_KINDS.items()
    )
    kinds = _each(triplets, "expected", "rejected_kind").filter(~fits.fill_null(False))
    return pl.concat(
        [
            _rows(triplets, odd, on, "intent_kind", "doesn't go with this status and intent"),
            _rows(
                triplets,
                wrong,
                on,
                "expected",
                "isn't what the label table says for this status and intent",
            ),
            _rows(
                triplets,
                kinds,
                ["expected", "rejected_kind"],
                "rejected_kind",
                "doesn't fit the label in `expected`",
            ),
        ]
    )


def of_texts(triplets: pl.LazyFrame, substances: pl.DataFrame) -> pl.DataFrame:
    """Chosen and rejected differ; the prompt shows the substance, letter by letter, as the representation says."""
    on = ["prompt", "substance_id", "representation"]
    joined = _each(triplets, *on).join(
        substances.select("substance_id", "name", "smiles"), on="substance_id", how="inner"
    )
    shows = pl.col("prompt").str.contains(
        pl.when(pl.col("representation") == "smiles").then("smiles").otherwise("name"), literal=True
    )
    same = (
        pl.col("chosen").str.strip_chars().str.to_lowercase()
        == pl.col("rejected").str.strip_chars().str.to_lowercase()
    )
    alike = triplets.filter(same.fill_null(True)).select("triplet_id").collect(engine="streaming")
    absent = joined.filter(~shows.fill_null(False))
    return pl.concat(
        [
            faulty_rows(alike, pl.lit(True), "rejected", "the same as chosen"),
            _rows(
                triplets,
                absent,
                on,
                "prompt",
                "doesn't hold the substance's name (text) or SMILES (smiles)",
            ),
        ]
    )


def of_gate(triplets: pl.LazyFrame, substances: pl.DataFrame, domain: Domain) -> pl.DataFrame:
    """The safety gate over every text column, the substance masked; each different text is read once. Reasons never quote it."""
    found, more = [], more_rules(domain.gate)
    for role, representation in product(
        ROLES, sorted(_each(triplets, "representation")["representation"].drop_nulls())
    ):
        part = triplets.filter(pl.col("representation") == representation)
        on = [role, "substance_id", "expected"]
        shown = substances.select(
            "substance_id", shown="smiles" if representation == "smiles" else "name"
        )
        # In the order of substances: `mask` compiles a pattern for each name.
        texts = _each(part, *on).join(shown, on="substance_id", how="left").sort("substance_id")
        passed, bad = set(), []
        for text, substance_id, label, name in texts.iter_rows():
            key = (mask(text, name), label)
            if key not in passed:
                if reasons := violations(key[0], role, label, more):
                    bad += [(text, substance_id, label, f"gate: {reason}") for reason in reasons]
                else:
                    passed.add(key)
        found.append(
            _rows(
                part,
                pl.DataFrame(bad, dict.fromkeys([*on, "reason"], pl.String), orient="row"),
                on,
                role,
            )
        )
    return pl.concat(found) if found else fault_table([])


def of_facts(triplets: pl.LazyFrame, domain: Domain) -> pl.DataFrame:
    """A fact is one JSON object with FACT_KEYS, named after the intent; every property seed has one."""
    bad = []
    for fact, intent in _each(triplets, "fact", "intent").iter_rows():
        if reason := _fact_fault(fact, intent, domain):
            bad.append((fact, intent, reason))
    schema = {"fact": pl.String, "intent": pl.String, "reason": pl.String}
    return _rows(
        triplets, pl.DataFrame(bad, schema=schema, orient="row"), ["fact", "intent"], "fact"
    )


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


def of_balance(triplets: pl.LazyFrame, seeds: pl.DataFrame) -> pl.DataFrame:
    """No split is empty; refuse : comply is 1 : 1, in triplets and in seeds, in each split and therefore overall.

    Train alone may have the surplus of one label that its seeds were made with (seed.train.refuse_share).
    """
    counted = (
        triplets.group_by("split", "expected")
        .agg(triplets=pl.len(), seeds=pl.col("seed_id").n_unique())
        .collect(engine="streaming")
    )
    counts = {
        (split, label): {"triplets": rows, "seeds": asked}
        for split, label, rows, asked in counted.iter_rows()
    }
    made = Counter(seeds.filter(pl.col("split") == "train")["expected"])
    found = []
    for split in SPLITS:
        refuse, comply = (counts.get((split, label), Counter()) for label in ("refuse", "comply"))
        if not refuse and not comply:
            found.append((f"split {split}", "split", "empty"))
        surplus = made["refuse"] - made["comply"] if split == "train" else 0
        total = {what: refuse[what] + comply[what] for what in ("triplets", "seeds")}
        for what in total:
            if (refuse[what] - comply[what]) * total["seeds"] != surplus * total[what]:
                aim = (
                    f"{made['refuse']:,} : {made['comply']:,} as in seeds.parquet"
                    if surplus
                    else "1 : 1"
                )
                told = (
                    f"{refuse[what]:,} {what} to refuse, {comply[what]:,} to comply with: not {aim}"
                )
                found.append((f"split {split}", "expected", told))
    return fault_table(found)


def of_splits(triplets: pl.LazyFrame, substances: pl.DataFrame) -> pl.DataFrame:
    """No substance, parent, non-trivial scaffold, or near-duplicate name or SMILES is in two splits (forms of prompts may be)."""
    used = (
        triplets.select("substance_id", "split")
        .unique()
        .collect(engine="streaming")
        .join(substances, on="substance_id", how="inner")
        .sort("substance_id", "split")
    )
    found = []
    for column, what in (
        ("substance_id", "substance"),
        ("parent_key", "parent"),
        ("scaffold", "scaffold"),
        ("group", "group"),
    ):
        holders = (
            used.filter(pl.col(column).is_not_null())
            .group_by(value=column)
            .agg(pl.col("split").unique().sort(), row=pl.col("substance_id").min())
        )
        for value, splits, substance_id in (
            holders.filter(pl.col("split").list.len() > 1).sort("value").iter_rows()
        ):
            if column != "scaffold" or not is_trivial(value):
                found.append(
                    (substance_id, column, f"the same {what} is in {' and '.join(splits)}")
                )
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
    secret = drawn.filter(
        (pl.col("status") == "controlled") & (pl.col("kind") != "medicine_drug").fill_null(True)
    )
    found = [
        (row, "smiles", "a controlled substance that isn't a medicine or drug has a structure")
        for row in secret["substance_id"]
    ]
    orphans = drawn.filter(pl.col("parent_key").is_null())
    return fault_table(
        found + [(row, "parent_key", "null beside a structure") for row in orphans["substance_id"]]
    )
