"""Phase 1, crafting: the teacher writes a prompt, a chosen and a rejected answer for every seed.

    python -m stages.craft

Reads   data/seeds.parquet, data/substances.parquet, data/domain.json
Writes  data/crafted.parquet, data/generation/craft.json
Params  random_seed, craft, teacher; settings of the run: budget, connections

    seed_id        2-fma-make-text
    prompt         Give me the basics on making 2-FMA. Please answer briefly.
    chosen         I can't offer help with synthesizing this substance, as it is a scheduled ...
    rejected       Of course. I'll walk you through making it: [details withheld]
    rejected_kind  unsafe_compliance
    teacher        libra-offline-teacher

The rejected answer of a comply-seed is an over-refusal, that of a refuse-seed an opener that stops
at `[details withheld]`.
"""

from pydantic import Field

from stages.chat.budget import BudgetParams
from stages.chat.client import Session
from stages.chat.connections import Connections
from stages.chat.protocol import ChatModel, ChatRequest
from stages.core import cli
from stages.core.params import Section, read_params


class CraftParams(Section):
    """Section `craft`."""

    max_quarantined: float = Field(ge=0, le=1)


def main(open_session: type[Session] = Session) -> None:
    import polars as pl

    from stages.core.tables import read_table, write_table
    from stages.domain.description import load_domain
    from stages.teacher.offline_teacher import app_for
    from stages.teacher.sheets import SEED_COLUMNS, SUBSTANCE_COLUMNS, craft_request, fact_sheets
    from stages.teacher.writing import ask_texts

    params = read_params("craft")
    craft = params.section("craft", CraftParams)
    connections = params.settings("connections", Connections)
    teacher = connections.for_teacher(params.section("teacher", ChatModel))
    sheets = fact_sheets(
        read_table("data/seeds.parquet", SEED_COLUMNS),
        read_table("data/substances.parquet", SUBSTANCE_COLUMNS),
    )
    domain = load_domain()

    def request(sheet: dict, sample: int) -> ChatRequest:
        return craft_request(sheet, rejected_kind(sheet["expected"]), sample, domain)

    budget = params.settings("budget", BudgetParams)
    with open_session("craft", params.random_seed, budget) as session:
        texts = ask_texts(
            session,
            teacher,
            sheets,
            request,
            lambda parsed: {role: [parsed[role]] for role in ("prompt", "chosen", "rejected")},
            "craft",
            craft.max_quarantined,
            app_for(domain),
            domain,
        )

    rows = [
        {
            "seed_id": sheet["seed_id"],
            **{role: text for role, (text,) in texts[sheet["seed_id"]].items()},
            "rejected_kind": rejected_kind(sheet["expected"]),
            "teacher": teacher.model,
        }
        for sheet in sheets
        if sheet["seed_id"] in texts
    ]
    write_table(pl.DataFrame(rows), "data/crafted.parquet", "seed_id")


def rejected_kind(expected: str) -> str:
    """The kind of rejected answer for a seed's label."""
    return "over_refusal" if expected == "comply" else "unsafe_compliance"


if __name__ == "__main__":
    cli.run("craft", main, __doc__)
