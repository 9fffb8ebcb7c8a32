"""Two candidates' answers, compared by the panel: pairs, verdicts, figures.

pairs, prompts = paired_answers(responses, test, ("dpo", "sft"), None, 2025)
rows = compare(session, pairs, panel, domain)
panel_figures, member_figures = figures(rows, list(panel), 2000, 0.95, 2025)
"""

import json
from typing import Any

from stages.chat.client import Session
from stages.chat.protocol import Endpoint
from stages.core.errors import LibraError
from stages.domain.description import Domain

KEYS = ("prompt_id", "seed_id", "substance_id", "intent")


def paired_answers(
    responses, test, names: tuple[str, str], limit: int | None, random_seed: int
) -> tuple:
    """(a row per prompt to comply with that both candidates answered, how many such prompts).

    The rows have KEYS, prompt, first and second, the two answers. Raises LibraError for an unknown
    name, the same name twice, a limit below 1, and candidates without a common prompt.
    """
    import polars as pl

    from stages.tools.measuring.sample import whole_substances

    known = sorted(responses["candidate"].unique().to_list())
    for name in names:
        if name not in known:
            raise LibraError(
                f"data/eval/responses.parquet has no candidate `{name}`; it has {', '.join(known)}"
            )
    if names[0] == names[1]:
        raise LibraError(
            f"{names[0]} against itself is a tie; name two candidates of {', '.join(known)}"
        )
    if limit is not None and limit < 1:
        raise LibraError(f"--limit must be at least 1, not {limit}")

    prompts = test.filter(pl.col("expected") == "comply")
    if limit is not None:
        prompts = whole_substances(prompts, limit, random_seed)
    prompts = prompts.select(*KEYS, "prompt").unique("prompt_id")
    pairs = prompts
    for column, name in zip(("first", "second"), names, strict=True):
        pairs = pairs.join(_answers(responses, name, column), on="prompt_id", how="inner")
    if pairs.is_empty():
        raise LibraError(
            f"{names[0]} and {names[1]} have no answered prompt to comply with in common; run "
            "`dvc repro respond`"
        )
    return pairs.sort("prompt_id"), prompts.height


def _answers(responses, name: str, column: str):
    """(prompt_id, `column`: the answer without its reasoning) of a candidate."""
    import polars as pl

    from stages.judging import channels

    rows = responses.filter(pl.col("candidate") == name, pl.col("error").is_null())
    texts = [channels.split(*row).answer for row in rows.select("answer", "reasoning").iter_rows()]
    schema = {"prompt_id": pl.String, column: pl.String}
    return pl.DataFrame({"prompt_id": rows["prompt_id"], column: texts}, schema=schema)


def compare(
    session: Session, pairs, panel: dict[str, Endpoint], domain: Domain | None = None
) -> list[dict[str, Any]]:
    """The rows of `pairs` with the panel's `verdict` on `first`, by prompt_id.

    `votes` has each member's preference in this order and in the other one; `differ` says whether
    the answers differ, as equal ones are ties. Raises LibraError if a member's endpoint fails.
    """
    from stages.judging.panel import Question, opinions
    from stages.judging.questions import PREFERENCE
    from stages.tools.pairs.preferences import TIE, mirrored, panel_verdict, preference, vote

    rows = list(pairs.iter_rows(named=True))
    different = [row for row in rows if row["first"] != row["second"]]
    orders = [
        (
            Question(PREFERENCE, row["prompt"], row["first"], row["second"]),
            Question(PREFERENCE, row["prompt"], row["second"], row["first"]),
        )
        for row in different
    ]
    questions = [question for both in orders for question in both]
    opinions_of = {
        name: opinions(session, endpoint, questions, f"pairwise: {name}", domain=domain)
        for name, endpoint in panel.items()
    }

    tie = {"votes": dict.fromkeys(panel, (TIE, TIE)), "differ": False, "verdict": TIE}
    compared = [row | tie for row in rows if row["first"] == row["second"]]
    for row, (forward, backward) in zip(different, orders, strict=True):
        first, second = row["first"], row["second"]
        votes = {
            name: (
                preference(opinion[forward], first, second),
                mirrored(preference(opinion[backward], second, first)),
            )
            for name, opinion in opinions_of.items()
        }
        verdict = panel_verdict([vote(both) for both in votes.values()])
        compared.append(row | {"votes": votes, "differ": True, "verdict": verdict})
    return sorted(compared, key=lambda row: row["prompt_id"])


def as_table(rows: list[dict[str, Any]], names: tuple[str, str]):
    """The rows of `compare` with the columns of pairs.parquet."""
    import polars as pl

    records = []
    for row in rows:
        members = json.dumps(row["votes"], sort_keys=True) if row["differ"] else None
        records.append((*names, *(row[key] for key in KEYS), row["verdict"], members))
    columns = ("candidate", "other", *KEYS, "verdict", "members")
    return pl.DataFrame(records, schema=dict.fromkeys(columns, pl.String), orient="row")


def figures(
    rows: list[dict[str, Any]],
    members: list[str],
    replicates: int,
    confidence: float,
    random_seed: int,
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The panel's figures and each member's: wins, ties, losses, abstained, pairs, rate, lo, hi, p.

    `rate` is the win rate of the first candidate, `p` that of the exact sign test, which leaves out
    ties and takes pairs for independent. A member also has `swayed`: the pairs on which the order
    decided.
    """
    import numpy as np

    from stages.judging.cascade import ABSTAIN
    from stages.scoring.rates import tidy
    from stages.scoring.statistics import mcnemar
    from stages.tools.pairs.preferences import LOSS, TIE, WIN, vote, win_rate

    substance = np.array([row["substance_id"] for row in rows])

    def summary(verdicts: list[str]) -> dict[str, Any]:
        wins, ties, losses, abstained = map(verdicts.count, (WIN, TIE, LOSS, ABSTAIN))
        interval = win_rate(np.array(verdicts), substance, replicates, confidence, random_seed)
        rate, lo, hi = map(tidy, interval)
        return {
            "wins": wins,
            "ties": ties,
            "losses": losses,
            "abstained": abstained,
            "pairs": len(rows),
            "rate": rate,
            "lo": lo,
            "hi": hi,
            # Of wins and losses, McNemar's exact test is the sign test.
            "p": float(f"{mcnemar(wins, losses):.4g}"),
        }

    by_member = {}
    for name in members:
        votes = [row["votes"][name] for row in rows]
        swayed = sum(None not in both and both[0] != both[1] for both in votes)
        by_member[name] = summary([vote(both) or ABSTAIN for both in votes]) | {"swayed": swayed}
    return summary([row["verdict"] for row in rows]), by_member


def figures_table(
    panel: dict[str, Any], members: dict[str, dict[str, Any]], name: str, confidence: float
) -> str:
    """A line for the panel and one for each member; `name` is the first candidate's."""
    counts = ("wins", "ties", "losses", "abstained", "pairs", "swayed")
    title = f"win rate of {name} ({confidence:.0%})"
    header = "".join(f"{key:>11}" for key in counts)
    lines = [f"{'':<16}{header}  {title:<26}  sign test p"]
    for label, row in [("panel", panel), *((f"  {name}", row) for name, row in members.items())]:
        cells = "".join(f"{row[key]:>11,}" if key in row else f"{'-':>11}" for key in counts)
        rate = "-"
        if row["rate"] is not None:
            rate = f"{row['rate']:.3f} ({row['lo']:.3f} to {row['hi']:.3f})"
        lines.append(f"{label:<16}{cells}  {rate:<26}  {row['p']:.2g}")
    lines.append(
        "win rate: ties as half, clustered by substance; sign test: exact, pairs independent; "
        "swayed: the order decided, a tie"
    )
    return "\n".join(lines)
