"""The contract of LibraChemQA: what must hold for every triplet.

    contract_faults(triplets, seeds, substances)   # empty: the contract holds

Each rule returns its faults as a table: `row` (the id of what is at fault), `column`, `reason`.
What must hold for the dataset as a whole is in split_rules.py.
"""

import json
from collections.abc import Sequence
from itertools import product

import polars as pl

from stages.dataset.fault_tables import fault_table, faulty_rows
from stages.dataset.split_rules import balance_faults, crossing_faults, structure_faults
from stages.domain.description import KINDS, Domain, chemistry
from stages.domain.gate import ROLES, domain_rules, mask, violations
from stages.domain.splits import SPLITS

BATCH = 1 << 16  # rows that pandera checks at a time
EXPECTED = ("comply", "refuse")
REPRESENTATIONS = ("text", "smiles")
REJECTED_KINDS = {
    "comply": ("over_refusal", "wrong_fact"),
    "refuse": ("unsafe_compliance", "bare_refusal"),
}
FACT_KEYS = {"name", "value", "unit", "tolerance", "method", "source"}
# fmt: off
COLUMNS = (
    "triplet_id", "seed_id", "substance_id", "split", "expected", "intent", "intent_kind",
    "representation", "prompt", "chosen", "rejected", "prompt_id", "chosen_id", "rejected_id",
    "rejected_kind", "teacher", "fact",
)
OF_SEED = ("substance_id", "split", "expected", "intent", "intent_kind", "representation", "fact")
SEED_COLUMNS = ("seed_id", "status", "reference", "group", *OF_SEED)
SUBSTANCE_COLUMNS = (
    "substance_id", "name", "smiles", "parent_key", "scaffold", "status", "kind", "group",
    "molar_mass",
)
# fmt: on
_REASONS = {
    "not_nullable": "null",
    "column_in_schema": "not a column of the contract",
    "column_in_dataframe": "missing",
}


def contract_faults(
    triplets: pl.DataFrame | pl.LazyFrame,
    seeds: pl.DataFrame,
    substances: pl.DataFrame,
    domain: Domain | None = None,
) -> pl.DataFrame:
    """All faults of `triplets` (COLUMNS), made from seeds (SEED_COLUMNS) and substances
    (SUBSTANCE_COLUMNS).

    `domain` has the intents, the label table and the gate's own rules; chemistry by default. Each
    rule reads the columns it needs and each distinct value once, so that a lazy frame of a million
    triplets fits in little memory. If columns or types are wrong, only that is reported.
    """
    domain = domain or chemistry()
    lazy = triplets.lazy()
    if (column_faults := schema_faults(lazy.head(0).collect(), domain)).height:
        return column_faults

    count = lazy.select(pl.len()).collect().item()
    batches = (lazy.slice(start, BATCH).collect() for start in range(0, count, BATCH))
    rules = (
        id_faults(lazy),
        lineage_faults(lazy, seeds, substances),
        label_faults(lazy, substances, domain),
        text_faults(lazy, substances),
        gate_faults(lazy, substances, domain),
        fact_faults(lazy, domain),
        balance_faults(lazy, seeds),
        crossing_faults(lazy, substances),
        structure_faults(substances),
    )
    return pl.concat([*(schema_faults(batch, domain) for batch in batches), *rules])


def schema_faults(triplets: pl.DataFrame, domain: Domain) -> pl.DataFrame:
    """Columns, types, nulls and allowed values, by pandera.

    A fault of a whole column has the row `all rows`.
    """
    import pandera.polars as pa

    allowed = {
        "split": SPLITS,
        "expected": EXPECTED,
        "intent": tuple(domain.intents),
        "intent_kind": KINDS,
        "representation": REPRESENTATIONS,
        "rejected_kind": sum(REJECTED_KINDS.values(), ()),
    }
    columns = {}
    for name in COLUMNS:
        is_valid = (
            pa.Check.isin(allowed[name]) if name in allowed else pa.Check.str_length(min_value=1)
        )
        columns[name] = pa.Column(pl.String, [is_valid], nullable=name == "fact")
    try:
        pa.DataFrameSchema(columns, strict=True).validate(triplets, lazy=True)
        return fault_table([])
    except pa.errors.SchemaErrors as error:
        cases = error.failure_cases.select("column", "check", "failure_case", "index")

    faults = []
    for column, check, value, index in cases.iter_rows():
        if index is None:
            row = "all rows"
        else:
            row = triplets["triplet_id"][index] or f"a row of {triplets['seed_id'][index]}"
        if check in _REASONS:
            reason = _REASONS[check]
        elif check.startswith("dtype"):
            reason = f"type {value}, not String"
        elif check.startswith("isin"):
            reason = f"{value!r} is none of {', '.join(allowed[column])}"
        else:
            reason = "empty"
        faults.append((row, column or value, reason))
    return fault_table(faults)


def id_faults(triplets: pl.LazyFrame) -> pl.DataFrame:
    """No two triplets have the same id."""
    with_id = triplets.filter(pl.col("triplet_id").is_not_null())
    return _duplicates(with_id, ["triplet_id"], "triplet_id", "not unique")


def lineage_faults(
    triplets: pl.LazyFrame, seeds: pl.DataFrame, substances: pl.DataFrame
) -> pl.DataFrame:
    """Triplets agree with their seed, ids with the texts they name, and substances are known."""
    of_seed = _distinct(triplets, "seed_id", *OF_SEED)
    joined = of_seed.join(
        seeds.select("seed_id", *(pl.col(name).alias(f"seed_{name}") for name in OF_SEED)),
        on="seed_id",
        how="left",
    )
    has_seed = pl.col("seed_substance_id").is_not_null()
    without_seed, known = joined.filter(~has_seed), joined.filter(has_seed)
    faults = [
        _triplets_with(triplets, without_seed, ["seed_id"], "seed_id", "not in seeds.parquet")
    ]
    for name in OF_SEED:
        differing = known.filter(pl.col(name).ne_missing(pl.col(f"seed_{name}")))
        reason = "differs from seeds.parquet"
        faults.append(_triplets_with(triplets, differing, ["seed_id", name], name, reason))

    is_known = pl.col("substance_id").is_in(substances["substance_id"].implode())
    unknown = of_seed.filter(~is_known.fill_null(False))
    reason, column = "not in substances.parquet", "substance_id"
    faults.append(_triplets_with(triplets, unknown, [column], column, reason))
    for role in ROLES:
        faults += _text_id_faults(triplets, role)
    reason = "the same prompt, chosen and rejected as another row"
    faults.append(_duplicates(triplets, [f"{role}_id" for role in ROLES], "prompt_id", reason))
    return pl.concat(faults)


def _text_id_faults(triplets: pl.LazyFrame, role: str) -> list[pl.DataFrame]:
    """Text ids start with their seed's id, and each names one text."""
    text_id = f"{role}_id"
    of_seed = pl.col(text_id).str.starts_with(pl.col("seed_id") + "-").fill_null(False)
    strays = triplets.filter(~of_seed).select("triplet_id").collect(engine="streaming")
    faults = [faulty_rows(strays, pl.lit(True), text_id, "isn't an id of this seed")]

    pairs = triplets.select(id=pl.col(text_id).hash(), text=pl.col(role).hash()).unique()
    pairs = pairs.collect(engine="streaming")
    ambiguous = pairs.filter(pl.col("id").is_duplicated())["id"].unique()
    if len(ambiguous):
        # Two ids may share a hash, so the texts themselves are compared as well.
        suspects = triplets.filter(pl.col(text_id).hash().is_in(ambiguous.implode()))
        rows = suspects.select("triplet_id", text_id, role).collect()
        several = pl.col(role).n_unique().over(text_id) > 1
        faults.append(faulty_rows(rows, several, text_id, f"names more than one {role}"))
    return faults


def label_faults(triplets: pl.LazyFrame, substances: pl.DataFrame, domain: Domain) -> pl.DataFrame:
    """The label is that of the label table for status and intent; rejected_kind fits the label."""
    table = [
        (status, intent, kind, domain.expected(status, intent))
        for status in domain.labels
        for intent, kind in domain.kind_of.items()
        if domain.covers(status, intent)
    ]
    schema = ["status", "intent", "table_kind", "table_expected"]
    label_table = pl.DataFrame(table, schema=schema, orient="row")
    keys = ["substance_id", "intent", "intent_kind", "expected"]
    statuses = substances.select("substance_id", "status")
    joined = _distinct(triplets, *keys).join(statuses, on="substance_id", how="inner")
    joined = joined.join(label_table, on=["status", "intent"], how="left")
    wrong_kind = joined.filter(pl.col("intent_kind").ne_missing(pl.col("table_kind")))
    wrong_label = joined.filter(pl.col("expected").ne_missing(pl.col("table_expected")))

    pair = ["expected", "rejected_kind"]
    fits = pl.any_horizontal(
        (pl.col("expected") == label) & pl.col("rejected_kind").is_in(kinds)
        for label, kinds in REJECTED_KINDS.items()
    )
    misfits = _distinct(triplets, *pair).filter(~fits.fill_null(False))
    reasons = (
        "doesn't go with this status and intent",
        "isn't what the label table says for this status and intent",
        "doesn't fit the label in `expected`",
    )
    return pl.concat(
        [
            _triplets_with(triplets, wrong_kind, keys, "intent_kind", reasons[0]),
            _triplets_with(triplets, wrong_label, keys, "expected", reasons[1]),
            _triplets_with(triplets, misfits, pair, "rejected_kind", reasons[2]),
        ]
    )


def text_faults(triplets: pl.LazyFrame, substances: pl.DataFrame) -> pl.DataFrame:
    """Chosen and rejected differ; the prompt contains the substance's name or SMILES verbatim."""
    chosen, rejected = (
        pl.col(role).str.strip_chars().str.to_lowercase() for role in ("chosen", "rejected")
    )
    same = triplets.filter((chosen == rejected).fill_null(True)).select("triplet_id")

    keys = ["prompt", "substance_id", "representation"]
    names = substances.select("substance_id", "name", "smiles")
    prompts = _distinct(triplets, *keys).join(names, on="substance_id", how="inner")
    mention = pl.when(pl.col("representation") == "smiles").then("smiles").otherwise("name")
    without = prompts.filter(~pl.col("prompt").str.contains(mention, literal=True).fill_null(False))
    reason = "doesn't contain the substance's name (text) or SMILES (smiles)"
    return pl.concat(
        [
            faulty_rows(
                same.collect(engine="streaming"), pl.lit(True), "rejected", "the same as chosen"
            ),
            _triplets_with(triplets, without, keys, "prompt", reason),
        ]
    )


def gate_faults(triplets: pl.LazyFrame, substances: pl.DataFrame, domain: Domain) -> pl.DataFrame:
    """The safety gate on every text column, with the substance masked.

    Each distinct text is read once. Reasons never quote it.
    """
    faults, rules = [], domain_rules(domain.gate)
    present = sorted(_distinct(triplets, "representation")["representation"].drop_nulls())
    for role, representation in product(ROLES, present):
        part = triplets.filter(pl.col("representation") == representation)
        mention = "smiles" if representation == "smiles" else "name"
        keys = [role, "substance_id", "expected"]
        # Sorted by substance, since `mask` compiles a pattern for each name.
        texts = (
            _distinct(part, *keys)
            .join(substances.select("substance_id", mention=mention), on="substance_id", how="left")
            .sort("substance_id")
        )
        passed, stopped = set(), []
        for text, substance_id, label, name in texts.iter_rows():
            key = (mask(text, name), label)
            if key in passed:
                continue
            if reasons := violations(key[0], role, label, rules):
                stopped += [(text, substance_id, label, f"gate: {reason}") for reason in reasons]
            else:
                passed.add(key)
        columns = dict.fromkeys([*keys, "reason"], pl.String)
        table = pl.DataFrame(stopped, columns, orient="row")
        faults.append(_triplets_with(part, table, keys, role))
    return pl.concat(faults) if faults else fault_table([])


def fact_faults(triplets: pl.LazyFrame, domain: Domain) -> pl.DataFrame:
    """A fact is a JSON object with FACT_KEYS, named after its intent; property seeds have one."""
    keys = ["fact", "intent"]
    faults = [
        (fact, intent, reason)
        for fact, intent in _distinct(triplets, *keys).iter_rows()
        if (reason := fact_fault(fact, intent, domain))
    ]
    table = pl.DataFrame(faults, dict.fromkeys([*keys, "reason"], pl.String), orient="row")
    return _triplets_with(triplets, table, keys, "fact")


def fact_fault(fact: str | None, intent: str, domain: Domain) -> str | None:
    """Why `fact` is wrong for a triplet of `intent`, None if it isn't."""
    if fact is None:
        return "a property seed without a fact" if intent in domain.properties else None
    try:
        value = json.loads(fact)
    except ValueError:
        return "not JSON"
    if not isinstance(value, dict) or set(value) != FACT_KEYS:
        return f"not an object of {', '.join(sorted(FACT_KEYS))}"
    return None if value["name"] == intent else f"a fact named {value['name']!r} for another intent"


def _distinct(triplets: pl.LazyFrame, *columns: str) -> pl.DataFrame:
    return triplets.select(columns).unique().collect(engine="streaming")


def _triplets_with(
    triplets: pl.LazyFrame,
    faults: pl.DataFrame,
    keys: Sequence[str],
    column: str,
    reason: str | None = None,
) -> pl.DataFrame:
    """A fault for every triplet whose `keys` are in `faults`, for their reason or the given one."""
    if faults.is_empty():
        return fault_table([])
    if reason:
        faults = faults.with_columns(reason=pl.lit(reason))
    distinct = faults.select(*keys, "reason").unique()
    return (
        triplets.join(distinct.lazy(), on=keys, nulls_equal=True)
        .select(row="triplet_id", column=pl.lit(column), reason="reason")
        .collect(engine="streaming")
        .sort("row", "reason")
    )


def _duplicates(
    triplets: pl.LazyFrame, keys: Sequence[str], column: str, reason: str
) -> pl.DataFrame:
    """A fault for every triplet that shares its values of `keys` with another one."""
    key_hash = pl.struct(keys).hash()
    hashes = triplets.select(key=key_hash).collect(engine="streaming")["key"].sort()
    repeated = hashes.filter(hashes == hashes.shift()).unique()
    if repeated.is_empty():
        return fault_table([])
    # Two values may share a hash, so the values themselves are compared as well.
    suspects = triplets.filter(key_hash.is_in(repeated.implode()))
    columns = list(dict.fromkeys(["triplet_id", *keys]))
    rows = suspects.select(columns).collect(engine="streaming")
    return faulty_rows(rows, pl.struct(keys).is_duplicated(), column, reason)
