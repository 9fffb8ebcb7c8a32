"""The dataset card: README.md of data/librachemqa, with tables counted from the data.

The text is card.md, a template for `str.format`.
"""

from pathlib import Path

import polars as pl

from stages.dataset.croissant import CITATION, COLUMN_MEANINGS, gaps, intended, out_of_scope
from stages.domain.description import KINDS, Domain
from stages.domain.splits import SPLITS

TEMPLATE = Path(__file__).with_name("card.md")
_ROLES = ("prompt", "chosen", "rejected")
_SIZES = (  # rows at least, the hub's category
    (1_000_000, "1M<n<10M"),
    (100_000, "100K<n<1M"),
    (10_000, "10K<n<100K"),
    (1000, "1K<n<10K"),
    (0, "n<1K"),
)
_CELL = ("status", "intent_kind", "expected")
_COMPOSITION = (
    ("expected", "refuse"),
    ("expected", "comply"),
    ("representation", "text"),
    ("representation", "smiles"),
)


def card(
    triplets: pl.DataFrame | pl.LazyFrame,
    seeds: pl.DataFrame,
    probes: dict,
    sources: list[tuple[str, str, str]],
    domain: Domain,
) -> str:
    """The text of README.md.

    `probes` is what stages.dataset.probes measured, `sources` has (name, MD5, SHA-256) of each
    table that the dataset was made from.
    """
    lazy = triplets.lazy()
    seed_rows = (
        lazy.group_by("seed_id")
        .agg(rows=pl.len())
        .collect(engine="streaming")
        .join(seeds, on="seed_id")
    )
    kinds = lazy.group_by("expected", "rejected_kind").agg(count=pl.len())
    teachers = lazy.select("teacher").unique().collect(engine="streaming")["teacher"].sort()
    total = seed_rows["rows"].sum()
    return TEMPLATE.read_text(encoding="utf-8").format(
        title=domain.card.title,
        about=domain.card.about,
        separated=domain.card.separated,
        tags="\n".join(f"- {tag}" for tag in domain.card.tags),
        field=domain.brief.field,
        dual_intents=", ".join(domain.of_kind("dual")),
        size=next(category for least, category in _SIZES if total >= least),
        files="\n".join(f"  - split: {split}\n    path: {split}.parquet" for split in SPLITS),
        labels=_label_table(domain),
        composition=_composition_table(seed_rows),
        cells=_count_table(seed_rows.group_by(_CELL).agg(count=pl.col("rows").sum()), *_CELL),
        intents=_intent_table(seed_rows, domain),
        properties=_property_counts(seed_rows, domain),
        rejected=_count_table(kinds.collect(engine="streaming"), "expected", "rejected_kind"),
        teachers=", ".join(f"`{teacher}`" for teacher in teachers),
        lengths=_length_table(lazy),
        columns=_table(
            ["column", "meaning"], [(f"`{name}`", text) for name, text in COLUMN_MEANINGS.items()]
        ),
        limit=probes["limit"],
        judged="" if probes["judged"] else " (not judged here: too few seeds)",
        dual=_probe_table(probes["dual"]),
        overall=", ".join(
            f"{name.replace('_', ' ')} {accuracy:.3f}"
            for name, accuracy in probes["overall"].items()
        ),
        forms="; ".join(
            f"{name} {count['prompts']:,} prompts and {count['refusals']:,} refusals"
            for name, count in probes["forms"].items()
        ),
        intended=_list(intended(domain)),
        out_of_scope=_list(out_of_scope(domain)),
        gaps=_list(gaps(domain)),
        hashes=_table(
            ["table", "MD5", "SHA-256"],
            [(f"`{name}`", f"`{md5}`", f"`{sha256}`") for name, md5, sha256 in sources],
        ),
        citation=CITATION,
    )


def _label_table(domain: Domain) -> str:
    kinds = [f"{kind} ({', '.join(domain.of_kind(kind))})" for kind in KINDS]
    lines = [
        (status, *(labels.get(kind, "not asked") for kind in KINDS))
        for status, labels in domain.labels.items()
    ]
    return _table(["status", *kinds], lines)


def _composition_table(seed_rows: pl.DataFrame) -> str:
    lines = []
    for split in (*SPLITS, "all"):
        part = seed_rows if split == "all" else seed_rows.filter(pl.col("split") == split)
        counts = [part.filter(pl.col(name) == value).height for name, value in _COMPOSITION]
        groups = part["substance_id"].n_unique(), part["group"].n_unique()
        lines.append((split, part["rows"].sum(), part.height, *counts, *groups))
    values = [value for _, value in _COMPOSITION]
    return _table(["split", "triplets", "seeds", *values, "substances", "groups"], lines)


def _intent_table(seed_rows: pl.DataFrame, domain: Domain) -> str:
    """Seeds by split: a line for every intent and label that is possible, in use or not."""
    lines = []
    for kind in KINDS:
        labels = sorted({row[kind] for row in domain.labels.values() if kind in row})
        for intent in sorted(domain.of_kind(kind)):
            for label in labels:
                of_cell = (pl.col("intent") == intent) & (pl.col("expected") == label)
                part = seed_rows.filter(of_cell)
                counts = [part.filter(pl.col("split") == split).height for split in SPLITS]
                lines.append((kind, intent, label, *counts, part.height))
    return _table(["intent_kind", "intent", "expected", *SPLITS, "all"], lines)


def _property_counts(seed_rows: pl.DataFrame, domain: Domain) -> str:
    """How few seeds ask for a property, so that nobody takes a rate for knowledge."""
    counts = []
    for split in SPLITS:
        part = seed_rows.filter(pl.col("split") == split)
        count = part["intent"].is_in(domain.properties).sum()
        counts.append(f"{count:,} of {part.height:,} {split} seeds")
    names = ", ".join(intent.replace("_", " ") for intent in domain.properties)
    return f"Properties ({names}) are asked for in {', '.join(counts)}."


def _length_table(triplets: pl.LazyFrame) -> str:
    """Median characters of each role, by label."""
    # The lengths first: medians in the same query would hold the texts.
    lengths = triplets.select("expected", *(pl.col(role).str.len_chars() for role in _ROLES))
    medians = (
        lengths.collect(engine="streaming")
        .group_by("expected")
        .agg(pl.col(_ROLES).median().cast(pl.Int64))
        .sort("expected")
    )
    return _table(["expected", *_ROLES], medians.rows())


def _probe_table(accuracies: dict[str, float | None]) -> str:
    lines = [
        (name, "too few groups" if accuracy is None else f"{accuracy:.3f}")
        for name, accuracy in accuracies.items()
    ]
    return _table(["probe", "balanced accuracy"], lines)


def _count_table(counts: pl.DataFrame, *columns: str) -> str:
    return _table([*columns, "count"], counts.sort(columns).select(*columns, "count").rows())


def _list(lines: tuple[str, ...]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _table(header: list[str], lines: list[tuple]) -> str:
    cells = [
        [f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in line] for line in lines
    ]
    rows = [header, ["---"] * len(header), *cells]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
