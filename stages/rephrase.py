"""Phase 2, rephrasing: the teacher writes k prompts, m chosen and n rejected answers per seed.

    python -m stages.rephrase

Reads   data/seeds.parquet, data/substances.parquet, data/crafted.parquet, data/domain.json
Writes  data/rephrasings.parquet, data/generation/rephrase.json
Params  random_seed, rephrase, teacher; settings of the run: budget, connections

    seed_id        ergotamine-melting-point-text
    role, index    rejected, 3
    text           Sure. The melting point is 150.5 °C, or 423.6 K.
    rejected_kind  wrong_fact
    teacher        libra-offline-teacher

Rejected answers of a comply-seed are over-refusals, and two in five wrong facts if there is a fact;
of a refuse-seed, openers that stop at `[details withheld]` and one bare refusal.
"""

from pydantic import Field

from stages.chat.budget import BudgetParams
from stages.chat.client import Session
from stages.chat.connections import Connections
from stages.chat.protocol import ChatModel, ChatRequest
from stages.core import cli
from stages.core.params import Section, read_params

COLUMNS = ("seed_id", "role", "index", "text", "rejected_kind", "teacher")
CRAFTED = ("seed_id", "prompt", "chosen", "rejected")
KEYS = {"prompt": "prompts", "chosen": "chosen", "rejected": "rejected"}  # of a reply, by role


class Counts(Section):
    """How many texts a seed gets: k, m and n."""

    prompts: int = Field(ge=1, le=20)
    chosen: int = Field(ge=1, le=20)
    rejected: int = Field(ge=1, le=20)


class RephraseParams(Counts):
    """Section `rephrase`; with `test: null` test seeds get as many texts as the others."""

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
    crafted = read_table("data/crafted.parquet", CRAFTED)
    base = {row.pop("seed_id"): row for row in crafted.select(CRAFTED).iter_rows(named=True)}
    seeds = read_table("data/seeds.parquet", SEED_COLUMNS)
    seeds = seeds.filter(pl.col("seed_id").is_in(list(base)))
    sheets = fact_sheets(seeds, read_table("data/substances.parquet", SUBSTANCE_COLUMNS))
    domain = load_domain()

    of_test = rephrase.test or rephrase
    counts = {
        seed_id: of_test if split == "test" else rephrase
        for seed_id, split in seeds.select("seed_id", "split").iter_rows()
    }
    kinds = {
        sheet["seed_id"]: rejected_kinds(sheet, counts[sheet["seed_id"]].rejected)
        for sheet in sheets
    }

    def request(sheet: dict, sample: int) -> ChatRequest:
        seed_id = sheet["seed_id"]
        prompts, chosen = counts[seed_id].prompts, counts[seed_id].chosen
        crafted_texts, rejected = base[seed_id], kinds[seed_id]
        return rephrase_request(sheet, crafted_texts, prompts, chosen, rejected, sample, domain)

    budget = params.settings("budget", BudgetParams)
    with open_session("rephrase", params.random_seed, budget) as session:
        texts = ask_texts(
            session,
            teacher,
            sheets,
            request,
            lambda parsed: {role: parsed[key] for role, key in KEYS.items()},
            "rephrase",
            rephrase.max_quarantined,
            app_for(domain),
            domain,
        )

    rows = [
        (seed_id, role, i, text, kinds[seed_id][i] if role == "rejected" else None, teacher.model)
        for seed_id, by_role in texts.items()
        for role, role_texts in by_role.items()
        for i, text in enumerate(role_texts)
    ]
    table = pl.DataFrame(
        rows, dict.fromkeys(COLUMNS, pl.String) | {"index": pl.Int64}, orient="row"
    )
    write_table(table, "data/rephrasings.parquet", ["seed_id", "role", "index"])


def rejected_kinds(sheet: dict, count: int) -> list[str]:
    """The kinds of a seed's `count` rejected answers, the usual kind first."""
    if sheet["expected"] == "refuse":
        others = ["bare_refusal"] * (count > 1)
        return ["unsafe_compliance"] * (count - len(others)) + others
    others = ["wrong_fact"] * (2 * count // 5 if "fact" in sheet else 0)
    return ["over_refusal"] * (count - len(others)) + others


if __name__ == "__main__":
    cli.run("rephrase", main, __doc__)
