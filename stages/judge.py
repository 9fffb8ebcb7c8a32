"""Judge every answer and every chain of thought: its form, and whether it was right to write it.

    python -m stages.judge

Reads data/eval/responses.parquet, data/librachemqa/test.parquet, data/domain.json (for another
domain than chemistry also data/librachemqa/train.parquet: the words of the offline judge). Params:
random_seed, judge; settings of the run: budget, connections. Writes data/generation/judge.json and
data/eval/verdicts.parquet, one row per response and channel:

    candidate    dpo
    seed_id      s-substance-a-melting_point-text
    prompt_id    s-substance-a-melting_point-text-p0
    channel      answer            (or reasoning: in a field of its own or in <think> tags)
    form         comply            (full_refusal, partial_refusal, premise_rejection, ...)
    outcome      correct           (wrong, unverifiable, over_refusal, safe_refusal, safe_redirect,
                                   safe_noncompliance, leak, abstain)
    decided_by   fact              (form, leak_sign, panel, content_filter, endpoint_error, channel)
    evidence     84 °C             the words it is based on; if a panel abstains, its votes
    paper        comply            the paper's hybrid judge on the answer (refuse; null for
                                   reasoning or without a usable reply)
    panel        {"rules": {"form": "comply", ...}, "words": null}    each judge's reply, if asked
    sampled      true              in the random sample that people label and the panel reads
    audit        comply            the panel's verdict on a sampled text that the rules decided
                                   (refuse, abstain; else null)
    text_sha256  9f86d081...       of the text, as data/labels/verdicts.csv names it

Rules decide first (stages/judging/cascade.py). A panel of judges reads what they leave open or
disagree on; without a majority it abstains. Of the texts that the rules decided the panel reads the
share `audit_share`, which changes no verdict. People label the sample and the texts on which the
panel abstained: `python -m stages.tools review`.
"""

import json

from pydantic import Field, model_validator

from stages.chat import client
from stages.chat.budget import BudgetParams
from stages.chat.client import Session
from stages.chat.connections import Connections
from stages.chat.protocol import ChatModel
from stages.core import cli
from stages.core.errors import LibraError
from stages.core.params import Section, read_params
from stages.judging.verdicts import RESPONSES, TEST, judge_all


class JudgeParams(Section):
    """Section `judge`."""

    panel: dict[str, ChatModel]
    audit_share: float = Field(ge=0, le=1)
    max_abstained: float = Field(ge=0, le=1)

    @model_validator(mode="after")
    def differ(self) -> "JudgeParams":
        """Raises ValueError unless the members are different models, and at least two."""
        if len(self.panel) < 2:
            raise ValueError(f"panel needs at least two members, it has {len(self.panel)}")
        if "paper" in self.panel:
            raise ValueError(
                "no member of panel can be called paper: the paper's judge has that name"
            )
        names: dict[tuple[str, str], str] = {}
        for name, member in self.panel.items():
            base_url, model = member.base_url.rstrip("/"), member.model
            other = names.setdefault((base_url, model), name)
            if other != name:
                raise ValueError(
                    f"panel.{other} and panel.{name} are the same model, `{model}` at {base_url}; "
                    "use different models"
                )
        return self


def main(open_session: type[Session] = Session) -> None:
    from stages.core.tables import read_table, write_table
    from stages.domain.description import load_domain
    from stages.judging.memo import Memo, code_version
    from stages.judging.words import models

    params = read_params("judge")
    section = params.section("judge", JudgeParams)
    panel = params.settings("connections", Connections).for_judges(section.panel)
    responses = read_table("data/eval/responses.parquet", RESPONSES)
    test = read_table("data/librachemqa/test.parquet", TEST)
    domain = load_domain()
    version = code_version(domain.as_json(), json.dumps(models(domain)))
    budget = params.settings("budget", BudgetParams)
    with (
        open_session("judge", params.random_seed, budget) as session,
        Memo(client.store_path().with_name("verdicts.sqlite"), version) as memo,
    ):
        verdicts = judge_all(session, responses, test, panel, section.audit_share, memo, domain)
        try:
            check_abstained(verdicts, section.max_abstained)
        except LibraError:
            session.give_up()
            raise
    write_table(verdicts, "data/eval/verdicts.parquet", ["candidate", "prompt_id", "channel"])
    for outcome, count in sorted(verdicts["outcome"].value_counts().iter_rows()):
        print(f"judge: {outcome:20}{count:>9,}")


def check_abstained(verdicts, limit: float) -> None:
    """Raises LibraError when more than the share `limit` of the verdicts are `abstain`."""
    abstained = verdicts.filter(verdicts["outcome"] == "abstain").sort("candidate", "prompt_id")
    share = abstained.height / verdicts.height
    if share > limit:
        first = abstained.row(0, named=True)
        raise LibraError(
            f"{abstained.height:,} of {verdicts.height:,} verdicts abstain ({share:.1%}; "
            f"judge.max_abstained is {limit:.1%}), first {first['candidate']} on "
            f"{first['prompt_id']} ({first['evidence']}); fix the endpoint, or, if the members of "
            "judge.panel disagree, add one or raise judge.max_abstained"
        )


if __name__ == "__main__":
    cli.run("judge", main, __doc__)
