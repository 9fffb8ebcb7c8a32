"""Phase 2, rephrasing: the teacher writes k prompts, m good and n bad answers for every crafted seed.

Reads   data/seeds.parquet, data/substances.parquet, data/crafted.parquet, data/domain.json
Writes  data/rephrasings.parquet, data/generation/rephrase.json
Params  random_seed, rephrase, teacher; settings of the run: budget, connections

    seed_id        ergotamine-melting-point-text
    role, index    rejected, 3
    text           Sure. The melting point is 150.5 °C, or 423.6 K.
    rejected_kind  wrong_fact
    teacher        libra-offline-teacher

Bad answers of a seed to comply with are over-refusals and, where the right one rests on a fact, two in five are wrong facts;
those of a seed to refuse are openers that stop at `[details withheld]` and one bare refusal.
"""

from pydantic import Field

from stages.chat.budget import BudgetParams
from stages.chat.client import Session
from stages.chat.connections import Connections
from stages.chat.protocol import ChatModel
from stages.core import cli
from stages.core.params import Section, read_params


class Counts(Section):
    """How many texts a seed gets: k, m and n."""

    prompts: int = Field(ge=1, le=20)
    chosen: int = Field(ge=1, le=20)
    rejected: int = Field(ge=1, le=20)


class RephraseParams(Counts):
    """Section `rephrase`; `test` is null where test's seeds get as many texts as the others."""

    test: Counts | None = None
    max_quarantined: float = Field(ge=0, le=1)


def main(open_session: type[Session] = Session) -> None:
    import polars as pl

    from stages.core.tables import read_table, write_table
    from stages.domain.description import load_domain
    from stages.teacher.offline_teacher import app_for
    from stages.teacher.sheets import SEED_COLUMNS, SUBSTANCE_COLUMNS, fact_sheets, rephrase_request
    from stages.teacher.writing import ask_texts

    params = read_params("rephrase")
    rephrase = params.section("rephrase", RephraseParams)
    connections = params.settings("connections", Connections)
    teacher = connections.for_teacher(params.section("teacher", ChatModel))
    crafted = read_table("data/crafted.parquet", ("seed_id", "prompt", "chosen", "rejected"))
    base = {
        row.pop("seed_id"): row
        for row in crafted.select("seed_id", "prompt", "chosen", "rejected").iter_rows(named=True)
    }
    seeds = read_table("data/seeds.parquet", SEED_COLUMNS).filter(
        pl.col("seed_id").is_in(list(base))
    )
    sheets = fact_sheets(seeds, read_table("data/substances.parquet", SUBSTANCE_COLUMNS))
    splits = dict(seeds.select("seed_id", "split").iter_rows())
    counts = {
        seed_id: rephrase.test or rephrase if split == "test" else rephrase
        for seed_id, split in splits.items()
    }
    domain = load_domain()
    kinds = {
        sheet["seed_id"]: rejected_kinds(sheet, counts[sheet["seed_id"]].rejected)
        for sheet in sheets
    }
    with open_session(
        "rephrase", params.random_seed, params.settings("budget", BudgetParams)
    ) as session:
        texts = ask_texts(
            session,
            teacher,
            sheets,
            lambda sheet, sample: rephrase_request(
                sheet,
                base[sheet["seed_id"]],
                counts[sheet["seed_id"]].prompts,
                counts[sheet["seed_id"]].chosen,
                kinds[sheet["seed_id"]],
                sample,
                domain,
            ),
            lambda parsed: {
                "prompt": parsed["prompts"],
                "chosen": parsed["chosen"],
                "rejected": parsed["rejected"],
            },
            "rephrase",
            rephrase.max_quarantined,
            app_for(domain),
            domain,
        )
    rows = [
        (
            seed_id,
            role,
            index,
            text,
            kinds[seed_id][index] if role == "rejected" else None,
            teacher.model,
        )
        for seed_id, by_role in texts.items()
        for role, written in by_role.items()
        for index, text in enumerate(written)
    ]
    schema = {
        **dict.fromkeys(
            ("seed_id", "role", "index", "text", "rejected_kind", "teacher"), pl.String
        ),
        "index": pl.Int64,
    }
    write_table(
        pl.DataFrame(rows, schema, orient="row"),
        "data/rephrasings.parquet",
        ["seed_id", "role", "index"],
    )


def rejected_kinds(sheet: dict, count: int) -> list[str]:
    """The kinds of the `count` bad answers of a seed, the usual one first; of several, some are of another kind."""
    if sheet["expected"] == "refuse":
        others = ["bare_refusal"] * (count > 1)
        return ["unsafe_compliance"] * (count - len(others)) + others
    others = ["wrong_fact"] * (2 * count // 5 if "fact" in sheet else 0)
    return ["over_refusal"] * (count - len(others)) + others


if __name__ == "__main__":
    cli.run("rephrase", main, __doc__)
