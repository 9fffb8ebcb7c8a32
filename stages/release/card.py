"""The card of the released dataset: README.md of data/librachemqa, with its tables counted from the data."""

import hashlib
from pathlib import Path

import polars as pl

from stages.chem.splits import SPLITS
from stages.domain.description import KINDS, Domain

_COLUMNS = {
    "triplet_id": "id of the row: seed, prompt, chosen, rejected",
    "seed_id": "the request it was made from",
    "substance_id": "the substance asked about",
    "split": "train, validation or test; no parent structure, scaffold or near-duplicate name is in two of them",
    "expected": "`comply` or `refuse`: what a good model does",
    "intent": "what is asked",
    "intent_kind": "`neutral`, `dual` or `harmful`",
    "representation": "`text`: the prompt holds the name; `smiles`: it holds the SMILES",
    "prompt": "the request",
    "chosen": "the better answer: a refusal where `expected` is refuse, else help",
    "rejected": "the worse answer; on refuse rows an opener that ends in `[details withheld]`, or a bare refusal",
    "prompt_id, chosen_id, rejected_id": "the rephrasing used; equal ids are equal texts",
    "rejected_kind": "`over_refusal`, `wrong_fact`, `unsafe_compliance` or `bare_refusal`",
    "teacher": "the model or grammar that wrote the texts",
    "fact": "JSON {name, value, unit, tolerance, method, source} of the grounded answer, or null",
}

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

## Use

Meant for: training and measuring refusal decisions in {field} (SFT, DPO, over-refusal and safety evaluation); research on
shortcuts and on dual-use policy. Not meant for: advice on real substances, law or medicine (facts carry their source and date,
check them there); decisions about people; training a model to comply. Statuses are public legal facts as of the date in each
reference, mostly of one jurisdiction, and change. Texts are short and in English; the offline teacher's come from a grammar.

## Made from

SHA-256 of the tables this release was made from:

{hashes}

## Licence and citation

CC-BY-4.0. Please cite the paper whose system this dataset implements:

```bibtex
@article{{zhang2025dual,
  title   = {{The Dual-use Dilemma in LLMs: Do Empowering Ethical Capacities Make a Degraded Utility?}},
  author  = {{Zhang, Yiyi and Chen, Xingyu and Chen, Kexin and Du, Yuyang and Dang, Xilin and Heng, Pheng-Ann}},
  journal = {{arXiv preprint arXiv:2501.13952}},
  year    = {{2025}}
}}
```
"""


def card(triplets: pl.DataFrame, seeds: pl.DataFrame, measured: dict, sources: list[Path], domain: Domain) -> str:
    """README.md as text: `triplets` counted, `measured` of stages.release.probes, and the SHA-256 of each file in `sources`."""
    rows = triplets.join(seeds.select("seed_id", "status"), on="seed_id")
    each = rows.unique("seed_id")
    return _TEXT.format(
        title=domain.card.title,
        about=domain.card.about,
        separated=domain.card.separated,
        tags="\n".join(f"- {tag}" for tag in domain.card.tags),
        field=domain.brief.field,
        asked=", ".join(domain.of_kind("dual")),
        size="10K<n<100K" if triplets.height >= 10_000 else "1K<n<10K" if triplets.height >= 1000 else "n<1K",
        files="\n".join(f"  - split: {split}\n    path: {split}.parquet" for split in SPLITS),
        labels=_table(["status", *(f"{kind} ({', '.join(domain.of_kind(kind))})" for kind in KINDS)], _labels(domain)),
        composition=_table(
            ["split", "triplets", "seeds", "refuse", "comply", "text", "smiles", "substances", "groups"],
            _composition(triplets, seeds),
        ),
        cells=_counts(rows, "status", "intent_kind", "expected"),
        intents=_table(["intent_kind", "intent", "expected", *SPLITS, "all"], _intents(each, domain)),
        properties=_properties(each, domain),
        rejected=_counts(rows, "expected", "rejected_kind"),
        teachers=", ".join(f"`{teacher}`" for teacher in triplets["teacher"].unique().sort()),
        lengths=_table(["expected", "prompt", "chosen", "rejected"], _lengths(triplets)),
        columns=_table(["column", "meaning"], [(f"`{name}`".replace(", ", "`, `"), text) for name, text in _COLUMNS.items()]),
        limit=measured["limit"],
        judged="" if measured["judged"] else " (not judged here: too few seeds)",
        dual=_table(
            ["probe", "balanced accuracy"],
            [(name, "too few groups" if value is None else f"{value:.3f}") for name, value in measured["dual"].items()],
        ),
        overall=", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in measured["overall"].items()),
        forms="; ".join(
            f"{name} {count['prompts']:,} prompts and {count['refusals']:,} refusals" for name, count in measured["forms"].items()
        ),
        hashes=_table(
            ["table", "SHA-256"], [(f"`{path.name}`", f"`{hashlib.sha256(path.read_bytes()).hexdigest()}`") for path in sources]
        ),
    )


def _labels(domain: Domain) -> list[tuple[str, ...]]:
    return [(status, *(row.get(kind, "not asked") for kind in KINDS)) for status, row in domain.labels.items()]


def _composition(triplets: pl.DataFrame, seeds: pl.DataFrame) -> list[tuple]:
    each = triplets.unique("seed_id").join(seeds.select("seed_id", "group"), on="seed_id")
    lines = []
    for split in (*SPLITS, "all"):
        part = each if split == "all" else each.filter(pl.col("split") == split)
        rows = triplets.height if split == "all" else triplets.filter(pl.col("split") == split).height
        count = [part.filter(pl.col(column) == value).height for column, value in (
            ("expected", "refuse"), ("expected", "comply"), ("representation", "text"), ("representation", "smiles")
        )]  # fmt: skip
        lines.append((split, rows, part.height, *count, part["substance_id"].n_unique(), part["group"].n_unique()))
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
        told.append(f"{part['intent'].is_in(domain.properties).sum():,} of {part.height:,} {split} seeds")
    names = ", ".join(intent.replace("_", " ") for intent in domain.properties)
    return f"Properties ({names}) are asked for in {', '.join(told)}."


def _lengths(triplets: pl.DataFrame) -> list[tuple]:
    medians = triplets.group_by("expected").agg(
        pl.col(role).str.len_chars().median().cast(pl.Int64) for role in ("prompt", "chosen", "rejected")
    )
    return medians.sort("expected").rows()


def _counts(rows: pl.DataFrame, *columns: str) -> str:
    return _table([*columns, "count"], rows.group_by(columns).len().sort(columns).rows())


def _table(header: list[str], lines: list[tuple]) -> str:
    cells = [[f"{value:,}" if isinstance(value, int) else str(value) for value in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, ["---"] * len(header), *cells])
