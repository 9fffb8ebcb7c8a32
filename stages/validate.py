"""The gate before a release: check every triplet, then write the dataset and its card.

    python -m stages.validate

Reads data/triplets.parquet, data/seeds.parquet, data/substances.parquet, data/domain.json and the
params `validate`. Writes data/librachemqa/: train.parquet, validation.parquet and test.parquet
(the triplets' rows and columns), README.md (the card), croissant.json, SHA256SUMS and probes.json:

    {"dual": {"molar_mass": 0.52, "name_length": 0.54, ...}, "dual_seeds": 1594, ...}

Everything is checked before anything is written, and the folder is replaced as a whole. But DVC
removes a stage's outputs before it runs: after a failed `dvc repro`, `dvc checkout
data/librachemqa` restores the previous dataset from the cache.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from stages.core import cli
from stages.core.params import Section, read_params

if TYPE_CHECKING:
    import polars as pl

    from stages.domain.description import Domain

    Tables = tuple[pl.LazyFrame, pl.DataFrame, pl.DataFrame, Domain]

RELEASE = Path("data/librachemqa")
SOURCES = [
    Path("data/triplets.parquet"),
    Path("data/seeds.parquet"),
    Path("data/substances.parquet"),
]
FIX = (
    "Nothing was written. Fix the stage or catalog behind these rows. "
    f"If DVC removed {RELEASE} before this run, `dvc checkout {RELEASE}` restores it."
)


class ValidateParams(Section):
    probe_limit: float = Field(ge=0.5, le=1.0)  # highest accuracy of a label probe


def main() -> None:
    import polars as pl

    from stages.core.cache import file_digest
    from stages.core.progress import counter
    from stages.core.tables import write_json, write_text
    from stages.dataset.card import card
    from stages.dataset.checksums import NAME, sums
    from stages.dataset.contract import COLUMNS
    from stages.dataset.croissant import croissant
    from stages.dataset.publish import publish, write_split
    from stages.domain.splits import SPLITS

    limit = read_params("validate").section("validate", ValidateParams).probe_limit
    tables = triplets, seeds, _, domain = inputs()
    with counter("validate: contract, probes, files", 3) as bar:
        probes = checked(tables, limit, bar.update)
        sources = [(path.name, file_digest(path, "md5"), file_digest(path)) for path in SOURCES]
        teachers = triplets.select("teacher").unique().collect(engine="streaming")["teacher"]

        def write(folder: Path) -> None:
            for split in SPLITS:
                rows = triplets.filter(pl.col("split") == split).select(COLUMNS)
                write_split(rows, folder / f"{split}.parquet")
            write_json(probes, folder / "probes.json")
            metadata = croissant(folder, sources, sorted(teachers), domain)
            write_json(metadata, folder / "croissant.json")
            write_text(card(triplets, seeds, probes, sources, domain), folder / "README.md")
            write_text(sums(folder), folder / NAME)

        publish(write, RELEASE)
        bar.update()
    files = [RELEASE / f"{split}.parquet" for split in SPLITS]
    sizes = [pl.scan_parquet(file).select(pl.len()).collect().item() for file in files]
    listing = ", ".join(f"{split} {rows:,}" for split, rows in zip(SPLITS, sizes, strict=True))
    print(f"validate: {sum(sizes):,} valid triplets ({listing}) written to {RELEASE}")
    for scope in ("dual", "overall"):
        accuracies = ", ".join(f"{name} {accuracy}" for name, accuracy in probes[scope].items())
        print(f"validate: balanced accuracy of the label probes ({scope}): {accuracies}")


def inputs() -> "Tables":
    """(triplets, seeds, substances, domain). Raises LibraError for a missing file or column."""
    from stages.core.tables import read_table, scan_table
    from stages.dataset.contract import SEED_COLUMNS, SUBSTANCE_COLUMNS
    from stages.domain.description import load_domain

    triplets = scan_table(SOURCES[0], ("triplet_id", "seed_id"))
    seeds = read_table(SOURCES[1], SEED_COLUMNS)
    return triplets, seeds, read_table(SOURCES[2], SUBSTANCE_COLUMNS), load_domain()


def checked(tables: "Tables", limit: float, advance: Callable[[], object] = lambda: None) -> dict:
    """The probes of `inputs()` that pass the contract; `limit` is their highest accuracy.

    Calls `advance` after the contract and after the probes. Raises LibraError with the faults.
    """
    from stages.dataset.contract import contract_faults
    from stages.dataset.fault_tables import raise_faults
    from stages.dataset.probes import MIN_DUAL_SEEDS, measure, probe_faults

    triplets, seeds, substances, domain = tables
    raise_faults(contract_faults(triplets, seeds, substances, domain), str(SOURCES[0]), FIX)
    advance()
    probes = measure(triplets, seeds, substances)
    raise_faults(probe_faults(probes, triplets, substances, limit), str(SOURCES[0]), FIX)
    advance()
    return probes | {"limit": limit, "judged": probes["dual_seeds"] >= MIN_DUAL_SEEDS}


if __name__ == "__main__":
    cli.run("validate", main, __doc__)
