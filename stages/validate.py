"""The gate before a release: check every triplet against the contract, then write the dataset and its card.

    python -m stages.validate

Reads data/triplets.parquet, data/seeds.parquet, data/substances.parquet, data/domain.json and params validate. Writes
data/librachemqa/:
train.parquet, validation.parquet, test.parquet (the triplets' rows and columns), README.md (the card), croissant.json (metadata),
SHA256SUMS and probes.json:

    {"dual": {"molar_mass": 0.52, "name_length": 0.54, "prompt_length": 0.51, ...}, "dual_seeds": 1594, ...}

Everything is checked before anything is written, and the folder is swapped in whole, so a failure never changes the previous
release. Under `dvc repro` DVC removes a stage's outputs before it runs; after a failure `dvc checkout data/librachemqa` brings
the previous release back from the cache.
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

RELEASE = Path("data/librachemqa")
SOURCES = [
    Path("data/triplets.parquet"),
    Path("data/seeds.parquet"),
    Path("data/substances.parquet"),
]
MEND = (
    f"Nothing was written. Mend the stage or the catalog that made these rows. If DVC removed {RELEASE} before this run, "
    f"`dvc checkout {RELEASE}` restores it."
)


class ValidateParams(Section):
    probe_limit: float = Field(ge=0.5, le=1.0)


def main() -> None:
    import polars as pl

    from stages.core.progress import counter
    from stages.core.tables import write_json, write_text
    from stages.dataset import contract
    from stages.dataset.card import card
    from stages.dataset.checksums import NAME, digest, sums
    from stages.dataset.croissant import croissant
    from stages.dataset.publish import publish, write_split

    limit = read_params("validate").section("validate", ValidateParams).probe_limit
    tables = triplets, seeds, _, domain = inputs()
    with counter("validate: contract, probes, files", 3) as bar:
        measured = checked(*tables, limit, bar.update)
        sources = [(path.name, digest(path, "md5"), digest(path)) for path in SOURCES]
        text = card(triplets, seeds, measured, sources, domain)
        teachers = sorted(
            triplets.select("teacher").unique().collect(engine="streaming")["teacher"]
        )

        def write(folder: Path) -> None:
            for split in contract.SPLITS:
                write_split(
                    triplets.filter(pl.col("split") == split).select(contract.COLUMNS),
                    folder / f"{split}.parquet",
                )
            write_json(measured, folder / "probes.json")
            write_json(croissant(folder, sources, teachers, domain), folder / "croissant.json")
            write_text(text, folder / "README.md")
            write_text(sums(folder), folder / NAME)

        publish(write, RELEASE)
        bar.update()
    rows = {
        split: pl.scan_parquet(RELEASE / f"{split}.parquet").select(pl.len()).collect().item()
        for split in contract.SPLITS
    }
    sizes = ", ".join(f"{split} {count:,}" for split, count in rows.items())
    print(
        f"validate: {sum(rows.values()):,} triplets hold the contract ({sizes}); {RELEASE} is written"
    )
    print(
        "validate: label probes inside dual:",
        ", ".join(f"{name} {value}" for name, value in measured["dual"].items()),
    )
    print(
        "validate: label probes overall:",
        ", ".join(f"{name} {value}" for name, value in measured["overall"].items()),
    )


def inputs() -> tuple["pl.LazyFrame", "pl.DataFrame", "pl.DataFrame", "Domain"]:
    """(triplets, seeds, substances, domain) of SOURCES. Raises LibraError for a file that is missing or lacks a column."""
    from stages.core.tables import read_table, scan_table
    from stages.dataset import contract
    from stages.domain.description import kept_domain

    triplets = scan_table(SOURCES[0], ("triplet_id", "seed_id"))
    seeds, substances = (
        read_table(SOURCES[1], contract.SEED_COLUMNS),
        read_table(SOURCES[2], contract.SUBSTANCE_COLUMNS),
    )
    return triplets, seeds, substances, kept_domain()


def checked(
    triplets: "pl.LazyFrame", seeds: "pl.DataFrame", substances: "pl.DataFrame", domain: "Domain", limit: float,
    done: Callable[[], object] = lambda: None,
) -> dict:  # fmt: skip
    """What the probes measured in `inputs` that hold the contract. Raises LibraError that lists what doesn't.

    `limit` is the balanced accuracy that a probe may reach; `done` is called after the contract and after the probes.
    """
    from stages.dataset import contract, probes
    from stages.dataset.breaches import stop_on

    stop_on(contract.faults(triplets, seeds, substances, domain), str(SOURCES[0]), MEND)
    done()
    measured = probes.measure(triplets, seeds, substances)
    stop_on(probes.faults(measured, triplets, substances, limit), str(SOURCES[0]), MEND)
    done()
    return measured | {"limit": limit, "judged": measured["dual_seeds"] >= probes.FEWEST_DUAL_SEEDS}


if __name__ == "__main__":
    cli.run("validate", main, __doc__)
