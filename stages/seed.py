"""Phase 1, data mining: choose the things to ask about and plan the requests to be made.

Reads   data/catalog, checked: chemistry's tables, with facts computed by rdkit and looked up in
        the `chemicals` package, or the folder of another domain
Writes  data/substances.parquet, one row per thing asked about; data/seeds.parquet, one row per
        request to be made; data/domain.json, the domain's intents, label table and words
Params  random_seed; seed.domain, seed.{train,validation,test}.{seeds,substances,dual_share},
        seed.train.{refuse_share,representations}, seed.drug_like_share

    seed_id                   substance_id   split  expected  intent   representation  status
    chloroquine-prepare-text  s-chloroquine  test   comply    prepare  text            unregulated
"""

from typing import Literal

from pydantic import Field

from stages.core import cli
from stages.core.errors import LibraError
from stages.core.params import Section, read_params

# Columns of data/substances.parquet; a domain leaves those it has no use for empty.
SUBSTANCE_COLUMNS = (
    "substance_id", "name", "cas", "status", "kind", "smiles", "inchikey", "parent_key", "scaffold",
    "family", "everyday", "reaction_class", "pharmacology", "formula", "molar_mass", "reference",
    "instrument", "schedule", "as_of", "hazard_class", "group", "split", "facts",
)  # fmt: skip


class SplitParams(Section):
    """A split's number of seeds, its share of the catalog, and its share of `dual` seeds."""

    seeds: int = Field(ge=8)
    substances: float = Field(gt=0.0, lt=1.0)
    dual_share: float = Field(ge=0.1, le=1.0)


class TrainedSplitParams(SplitParams):
    """What comparisons vary in train alone; validation and test stay balanced."""

    refuse_share: float = Field(default=0.5, ge=0.2, le=0.8)
    representations: Literal["both", "text", "smiles"] = "both"


class SeedParams(Section):
    """What is asked about, and how the seeds are spread over splits and the label table."""

    domain: str
    train: TrainedSplitParams
    validation: SplitParams
    test: SplitParams
    drug_like_share: float = Field(ge=0.0, le=1.0)


def main() -> None:
    import polars as pl

    from stages.core.tables import write_table, write_text
    from stages.domain.description import CHEMISTRY, DOMAIN_JSON, read_domain
    from stages.domain.planner import plan_split
    from stages.domain.splits import SPLITS, assign_splits, set_groups
    from stages.domain.things import read_things

    params = read_params("seed")
    seed, random_seed = params.section("seed", SeedParams), params.random_seed
    splits: dict[str, SplitParams] = {split: getattr(seed, split) for split in SPLITS}
    if uneven := [f"seed.{name}.seeds" for name, split in splits.items() if split.seeds % 2]:
        problem = f"{', '.join(uneven)} must be even: half of the seeds are to be refused"
        raise LibraError(f"params.yaml: {problem}")

    domain = read_domain(seed.domain)
    counts = {}
    for name, split in splits.items():
        counts[name] = min(split.seeds, domain.most_seeds.get(name, split.seeds))
        if counts[name] < split.seeds:
            limit = f"all that the catalog of {seed.domain} has, instead of {split.seeds}"
            print(f"seed: {name} gets {counts[name]} seeds, {limit}")
    if seed.domain == CHEMISTRY:
        from stages.chemistry.mining import mine  # loads rdkit and chemicals: seconds

        things = mine(sum(counts.values()))
    else:
        things = read_things(domain)
    set_groups(things)
    shares = {name: split.substances for name, split in splits.items()}
    assign_splits(things, shares, random_seed)

    seeds = []
    for name, split in splits.items():
        varied = {"refuse_share", "representations"} if name == "train" else set()
        seeds += plan_split(
            name,
            counts[name],
            things,
            split.dual_share,
            seed.drug_like_share,
            random_seed,
            **split.model_dump(include=varied),
            domain=domain,
        )
    ids = {row["substance_id"] for row in seeds}
    substances = pl.DataFrame(
        [thing.row() for thing in things if thing.substance_id in ids],
        schema=dict.fromkeys(SUBSTANCE_COLUMNS, pl.String)
        | {"everyday": pl.Boolean, "molar_mass": pl.Float64},
    ).with_columns(pl.col("everyday").fill_null(False))
    write_table(substances, "data/substances.parquet", sort_by="substance_id")
    planned = pl.DataFrame(seeds, infer_schema_length=None)
    write_table(planned, "data/seeds.parquet", sort_by="seed_id")
    write_text(domain.as_json(), DOMAIN_JSON)
    print(f"{len(seeds)} seeds about {len(ids)} {domain.card.about}")


if __name__ == "__main__":
    cli.run("seed", main, __doc__)
