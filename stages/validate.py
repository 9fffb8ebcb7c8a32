"""The gate before a release: check every triplet against the contract, then write the dataset and its card.

    python -m stages.validate

Reads data/triplets.parquet, data/seeds.parquet, data/substances.parquet, data/domain.json and params validate. Writes
data/librachemqa/:
train.parquet, validation.parquet, test.parquet (the triplets' rows and columns), README.md (the card) and probes.json:

    {"dual": {"molar_mass": 0.52, "name_length": 0.54, "prompt_length": 0.51, ...}, "dual_seeds": 1594, ...}

Everything is checked before anything is written, and the folder is swapped in whole, so a failure never changes the previous
release. Under `dvc repro` DVC removes a stage's outputs before it runs; after a failure `dvc checkout data/librachemqa` brings
the previous release back from the cache.
"""

from pathlib import Path

from pydantic import Field

from stages.common import cli
from stages.common.params import Section, read_params

RELEASE = Path("data/librachemqa")
SOURCES = [Path("data/triplets.parquet"), Path("data/seeds.parquet"), Path("data/substances.parquet")]
MEND = (
    f"Nothing was written. Mend the stage or the catalog that made these rows. If DVC removed {RELEASE} before this run, "
    f"`dvc checkout {RELEASE}` restores it."
)


class ValidateParams(Section):
    probe_limit: float = Field(ge=0.5, le=1.0)


def main() -> None:
    import polars as pl

    from stages.common.progress import counter
    from stages.common.tables import read_table, write_json, write_table, write_text
    from stages.domain.description import kept_domain
    from stages.release import contract, probes
    from stages.release.card import card
    from stages.release.faults import stop_on
    from stages.release.publish import publish

    domain = kept_domain()
    limit = read_params("validate").section("validate", ValidateParams).probe_limit
    columns = (("triplet_id",), contract.SEED_COLUMNS, contract.SUBSTANCE_COLUMNS)
    triplets, seeds, substances = (read_table(path, names) for path, names in zip(SOURCES, columns, strict=True))

    bar = counter(f"validate: contract of {triplets.height:,} triplets, probes, files", 3)
    stop_on(contract.faults(triplets, seeds, substances, domain), str(SOURCES[0]), MEND)
    bar.update()
    measured = probes.measure(triplets, seeds, substances)
    stop_on(probes.faults(measured, triplets, substances, limit), str(SOURCES[0]), MEND)
    measured |= {"limit": limit, "judged": measured["dual_seeds"] >= probes.FEWEST_DUAL_SEEDS}
    bar.update()
    text = card(triplets, seeds, measured, SOURCES, domain)

    def write(folder: Path) -> None:
        for split in contract.SPLITS:
            part = triplets.filter(pl.col("split") == split).select(contract.COLUMNS)
            write_table(part, folder / f"{split}.parquet", "triplet_id")
        write_json(measured, folder / "probes.json")
        write_text(text, folder / "README.md")

    publish(write, RELEASE)
    bar.update()
    bar.close()
    sizes = ", ".join(f"{split} {triplets.filter(pl.col('split') == split).height:,}" for split in contract.SPLITS)
    print(f"validate: {triplets.height:,} triplets hold the contract ({sizes}); {RELEASE} is written")
    print("validate: label probes inside dual:", ", ".join(f"{name} {value}" for name, value in measured["dual"].items()))
    print("validate: label probes overall:", ", ".join(f"{name} {value}" for name, value in measured["overall"].items()))


if __name__ == "__main__":
    cli.run("validate", main, __doc__)
