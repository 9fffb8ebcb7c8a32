"""The card of the released dataset: README.md of data/librachemqa, with its tables counted from the data."""

import polars as pl

from stages.dataset.croissant import CITATION, COLUMNS, gaps, intended, out_of_scope
from stages.domain.description import KINDS, Domain
from stages.domain.splits import SPLITS

_SIZES = (
    (1_000_000, "1M<n<10M"),
    (100_000, "100K<n<1M"),
    (10_000, "10K<n<100K"),
    (1000, "1K<n<10K"),
    (0, "n<1K"),
)
_CELL = ("status", "intent_kind", "expected")
_TEXT = """\
---
pretty_name: {title}
license: cc-by-4.0
language:
- en
task_categories:
- text-generation
tags:
{tags}
- preference
- safety
- over-refusal
size_categories:
- {size}
configs:
- config_name: default
  data_files:
{files}
---

# {title}

Preference triplets (prompt, chosen, rejected) about {about} that teach a model to refuse illegitimate requests
**and** to stay useful for legitimate ones. It follows LibraChemQA of Zhang et al. 2025, with two changes: the label depends on
the substance *and* on what is asked, and splits are separated by {separated}. Every refuse row is free of actionable detail: the
rejected answer agrees and then stops at `[details withheld]`, or refuses without a reason.

## Label

{labels}

## Composition

{composition}

Rows (triplets) by legal status and kind of request:

{cells}

Seeds by intent and split:

{intents}

{properties} The dataset teaches and measures when to refuse and when to help, not what a model knows of
{field}.

Rejected answers:

{rejected}

Texts written by: {teachers}.

Median length in characters:

{lengths}

## Columns

{columns}

## Shortcuts

Balanced accuracy with which the label can be guessed (0.5 is chance). Inside `dual` ({asked}), out of fold, with
groups of related substances kept together; limit {limit} for molar mass, name length, prompt length and wording{judged}:

{dual}

In the whole table, by the best rule on one column: {overall}. Neither the substance nor the intent alone gives the label;
both together do. Different wordings with the substance masked: {forms}.

## Intended use

{intended}

## Out of scope

{out_of_scope}

## Known gaps

{gaps}

## Made from

The tables this release was made from. `dvc.lock` at the release's tag has the same MD5, and from there the whole lineage: code,
params and catalog files of every stage.

{hashes}

## Files

`train.parquet`, `validation.parquet`, `test.parquet`; `croissant.json` is Croissant 1.1 metadata, `probes.json` the figures under
Shortcuts; `sha256sum -c SHA256SUMS` checks them all.

## Licence and citation

CC-BY-4.0. Please cite the paper whose system this dataset implements:

```bibtex
{citation}
```
"""


def card(
    triplets: pl.DataFrame | pl.LazyFrame,
    seeds: pl.DataFrame,
    measured: dict,
    sources: list[tuple[str, str, str]],
    domain: Domain,
) -> str:
    """README.md as text: `triplets` counted, `measured` of stages.dataset.probes, and `sources` as (name, MD5, SHA-256)."""
    lazy = triplets.lazy()
    each = (
        lazy.group_by("seed_id")
        .agg(rows=pl.len())
        .collect(engine="streaming")
        .join(seeds, on="seed_id")
    )
    # Lengths first: a median in the same query would hold the texts.
    roles = ("prompt", "chosen", "rejected")
    lengths = lazy.select("expected", *(pl.col(role).str.len_chars() for role in roles)).collect(
        engine="streaming"
    )
    medians = (
        lengths.group_by("expected").agg(pl.col(roles).median().cast(pl.Int64)).sort("expected")
    )
    kinds = lazy.group_by("expected", "rejected_kind").agg(count=pl.len())
    teachers = lazy.select("teacher").unique().collect(engine="streaming")["teacher"].sort()
    total = each["rows"].sum()
    return _TEXT.format(
        title=domain.card.title,
        about=domain.card.about,
        separated=domain.card.separated,
        tags="\n".join(f"- {tag}" for tag in domain.card.tags),
        field=domain.brief.field,
        asked=", ".join(domain.of_kind("dual")),
        size=next(size for least, size in _SIZES if total >= least),
        files="\n".join(f"  - split: {split}\n    path: {split}.parquet" for split in SPLITS),
        labels=_table(
            ["status", *(f"{kind} ({', '.join(domain.of_kind(kind))})" for kind in KINDS)],
            _labels(domain),
        ),
        composition=_table(
            [
                "split",
                "triplets",
                "seeds",
                "refuse",
                "comply",
                "text",
                "smiles",
                "substances",
                "groups",
            ],
            _composition(each),
        ),
        cells=_counts(each.group_by(_CELL).agg(count=pl.col("rows").sum()), *_CELL),
        intents=_table(
            ["intent_kind", "intent", "expected", *SPLITS, "all"], _intents(each, domain)
        ),
        properties=_properties(each, domain),
        rejected=_counts(kinds.collect(engine="streaming"), "expected", "rejected_kind"),
        teachers=", ".join(f"`{teacher}`" for teacher in teachers),
        lengths=_table(["expected", "prompt", "chosen", "rejected"], medians.rows()),
        columns=_table(
            ["column", "meaning"], [(f"`{name}`", text) for name, text in COLUMNS.items()]
        ),
        limit=measured["limit"],
        judged="" if measured["judged"] else " (not judged here: too few seeds)",
        dual=_table(
            ["probe", "balanced accuracy"],
            [
                (name, "too few groups" if value is None else f"{value:.3f}")
                for name, value in measured["dual"].items()
            ],
        ),
        overall=", ".join(
            f"{name.replace('_', ' ')} {value:.3f}" for name, value in measured["overall"].items()
        ),
        forms="; ".join(
            f"{name} {count['prompts']:,} prompts and {count['refusals']:,} refusals"
            for name, count in measured["forms"].items()
        ),
        intended=_list(intended(domain)),
        out_of_scope=_list(out_of_scope(domain)),
        gaps=_list(gaps(domain)),
        hashes=_table(
            ["table", "MD5", "SHA-256"],
            [(f"`{name}`", f"`{md5}`", f"`{sha}`") for name, md5, sha in sources],
        ),
        citation=CITATION,
    )


def _labels(domain: Domain) -> list[tuple[str, ...]]:
    return [
        (status, *(row.get(kind, "not asked") for kind in KINDS))
        for status, row in domain.labels.items()
    ]


def _composition(each: pl.DataFrame) -> list[tuple]:
    lines = []
    for split in (*SPLITS, "all"):
        part = each if split == "all" else each.filter(pl.col("split") == split)
        count = [part.filter(pl.col(column) == value).height for column, value in (
            ("expected", "refuse"), ("expected", "comply"), ("representation", "text"), ("representation", "smiles")
        )]  # fmt: skip
        lines.append(
            (
                split,
                part["rows"].sum(),
                part.height,
                *count,
                part["substance_id"].n_unique(),
                part["group"].n_unique(),
            )
        )
    return lines


def _intents(each: pl.DataFrame, domain: Domain) -> list[tuple]:
    """(kind, intent, label, seeds of each split, of all): a line for every intent and label there can be, asked for or not."""
    lines = []
    for kind in KINDS:
        for intent in sorted(domain.of_kind(kind)):
            for label in sorted({row[kind] for row in domain.labels.values() if kind in row}):
                part = each.filter((pl.col("intent") == intent) & (pl.col("expected") == label))
                counts = [part.filter(pl.col("split") == split).height for split in SPLITS]
                lines.append((kind, intent, label, *counts, part.height))
    return lines


def _properties(each: pl.DataFrame, domain: Domain) -> str:
    """How few seeds ask for a number or a formula, so that nobody takes a rate over them for knowledge."""
    told = []
    for split in SPLITS:
        part = each.filter(pl.col("split") == split)
        told.append(
            f"{part['intent'].is_in(domain.properties).sum():,} of {part.height:,} {split} seeds"
        )
    names = ", ".join(intent.replace("_", " ") for intent in domain.properties)
    return f"Properties ({names}) are asked for in {', '.join(told)}."


def _counts(counted: pl.DataFrame, *columns: str) -> str:
    return _table([*columns, "count"], counted.sort(columns).select(*columns, "count").rows())


def _list(lines: tuple[str, ...]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _table(header: list[str], lines: list[tuple]) -> str:
    cells = [
        [f"{value:,}" if isinstance(value, int) else str(value) for value in line] for line in lines
    ]
    return "\n".join(
        "| " + " | ".join(line) + " |" for line in [header, ["---"] * len(header), *cells]
    )
