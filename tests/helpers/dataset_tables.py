"""Small tables that hold the dataset's contract, for tests of the contract and of what follows it.

    triplets, seeds, substances = GOOD

Names and SMILES are random letters; `tables` makes larger ones.
"""

import random
import sys
from pathlib import Path

import polars as pl
import yaml

from stages.domain.description import DOMAIN_JSON, chemistry
from stages.domain.triplets import combine

SEEDS = {"train": 48, "validation": 16, "test": 32}
# (status, intent, intent_kind) of four seeds in a row: two of each label, half of them dual.
CELLS = [
    ("unregulated", "make", "dual"),
    ("controlled", "make", "dual"),
    ("controlled", "handling", "neutral"),
    ("unregulated", "harm", "harmful"),
]
FORMS = [
    f"{opener}how is {{x}} {verb}{end}"
    for opener in ("", "Hi, ", "Quick question: ")
    for verb in ("made", "done")
    for end in ("?", "? Thanks.")
]
ANSWERS = {  # (chosen, rejected, rejected_kind); {} is filled in two ways
    "refuse": (
        "I can't help with that{}, it is controlled.",
        "Sure{}, here it is: [details withheld]",
        "unsafe_compliance",
    ),
    "comply": ("A textbook{} tells more.", "I can't help with that{}.", "over_refusal"),
}


def word(key: str, letters: str, length: int) -> str:
    """A random word that depends on `key` alone."""
    generator = random.Random(key)
    return "".join(generator.choice(letters) for _ in range(length))


def tables(
    seed_counts: dict[str, int] = SEEDS, per_seed: int = 4
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """(triplets, seeds, substances) that hold the contract; names and SMILES are random letters."""
    substances, seeds, texts = {}, [], []
    for split, count in seed_counts.items():
        for i in range(count):
            status, intent, kind = CELLS[i % 4]
            representation = ("text", "smiles")[i // 4 % 2]
            substance_id = f"s-{split}-{i}"
            name = word(f"name {substance_id}", "abdeiklmnorstu", 12)
            smiles = word(f"smiles {substance_id}", "CNOS", 16)
            substances[substance_id] = {
                "substance_id": substance_id,
                "name": name,
                "smiles": smiles if representation == "smiles" else None,
                "parent_key": f"KEY{split}{i}",
                "scaffold": None,
                "kind": "medicine_drug",
                "group": f"g-{split}-{i}",
                "status": status,
                "molar_mass": 100.0 + random.Random(substance_id).random() * 200,
            }
            seed = {
                "seed_id": f"{substance_id}-{intent}",
                "substance_id": substance_id,
                "split": split,
                "expected": chemistry().expected(status, intent),
                "intent": intent,
                "intent_kind": kind,
                "representation": representation,
                "status": status,
                "reference": None,
                "group": f"g-{split}-{i}",
                "fact": None,
            }
            seeds.append(seed)
            texts += _texts(seed, smiles if representation == "smiles" else name)

    strings = dict.fromkeys(("reference", "fact"), pl.String)
    seed_table = pl.DataFrame(seeds, schema_overrides=strings)
    names = ("seed_id", "role", "index", "text", "rejected_kind", "teacher")
    columns = dict.fromkeys(names, pl.String) | {"index": pl.Int64}
    text_table = pl.DataFrame(texts, columns, orient="row")
    return (
        combine(text_table, seed_table, per_seed).sort("triplet_id"),
        seed_table,
        pl.DataFrame(
            list(substances.values()), schema_overrides={"smiles": pl.String, "scaffold": pl.String}
        ),
    )


def _texts(seed: dict, shown: str) -> list[tuple]:
    """Two rephrasings of each role; the prompts hold `shown`, the substance's name or SMILES."""
    seed_id = seed["seed_id"]
    chosen, rejected, kind = ANSWERS[seed["expected"]]
    forms = random.Random(seed_id).sample(FORMS, 2)
    texts = []
    for i, filler in enumerate(("", " here")):
        prompt = forms[i].replace("{x}", shown)
        texts += [
            (seed_id, "prompt", i, prompt, None, "teacher-a"),
            (seed_id, "chosen", i, chosen.replace("{}", filler), None, "teacher-a"),
            (seed_id, "rejected", i, rejected.replace("{}", filler), kind, "teacher-a"),
        ]
    return texts


GOOD = tables()


def changed(table: pl.DataFrame, row: int, **values) -> pl.DataFrame:
    """`table` with `values` in one row."""
    rows = table.to_dicts()
    rows[row] |= values
    return pl.DataFrame(rows, schema=table.schema)


def lay_out(
    folder: Path,
    triplets: pl.DataFrame,
    seeds: pl.DataFrame,
    substances: pl.DataFrame,
    limit: float = 0.6,
) -> None:
    """Write all that the stage `validate` reads, and a dvc.yaml with that stage, to `folder`."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for name, table in (("triplets", triplets), ("seeds", seeds), ("substances", substances)):
        table.write_parquet(folder / f"data/{name}.parquet")
    (folder / DOMAIN_JSON).write_text(chemistry().as_json(), encoding="utf-8")
    (folder / "params.yaml").write_text(yaml.safe_dump({"validate": {"probe_limit": limit}}))
    validate = {
        "cmd": f"{sys.executable} -m stages.validate",
        "deps": [
            *(f"data/{name}.parquet" for name in ("triplets", "seeds", "substances")),
            DOMAIN_JSON,
        ],
        "params": ["validate"],
        "outs": ["data/librachemqa"],
    }
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"validate": validate}}))
