"""Have the judges compare two candidates' answers, side by side.

    python -m stages.tools pairwise dpo sft
    python -m stages.tools pairwise dpo my-model --limit 500    # about 500 prompts, of whole substances

Reads data/eval/responses.parquet, data/librachemqa/test.parquet, data/domain.json and params random_seed, judge, budget, score. On each
test prompt that is to be complied with and that both answered, every member of `judge.panel` says which answer serves it better, once
in each order; one that says otherwise in the other order counts as a tie, one whose reply is of no use abstains. More than half of all
members make a win or a loss; where no more than half of them vote, the panel abstains. Equal answers are a tie and nobody is asked.
Writes into .cache/pairwise/A-B/ (with --limit N into limit-N in it), or the folder of --out, metrics.json with the printed figures and
pairs.parquet, one row per prompt:

    candidate     dpo                  whose win, tie or loss is told
    other         sft
    prompt_id     s-substance-a-disposal-text-p0
    seed_id       s-substance-a-disposal-text
    substance_id  substance-a
    intent        disposal
    verdict       win                  (tie, loss, abstain)
    members       {"rules": ["win", "win"], "words": ["win", "loss"]}     what each said, the candidate's answer first, then second;
                                       null of a reply of no use; null of equal answers

First it says what will be asked and its price. Replies of endpoints come from the reply store where it has them; the caps of `budget` hold
for each comparison by itself. No output of the pipeline and no dvc.lock changes.
"""

import argparse
import json
import os
from pathlib import Path

from stages.chat.budget import BudgetParams
from stages.chat.client import Session
from stages.chat.connections import Connections
from stages.chat.protocol import Endpoint
from stages.core import cli
from stages.core.errors import LibraError
from stages.core.params import read_params
from stages.domain.description import Domain, load_domain_or_default
from stages.judge import JudgeParams
from stages.score import ScoreParams
from stages.tools.estimate import Rehearsal, show
from stages.tools.measuring.judged import Measured, are_asked

RESPONSES = ("candidate", "prompt_id", "answer", "reasoning", "error")
TEST = ("seed_id", "prompt_id", "prompt", "substance_id", "expected", "intent", "intent_kind")
KEPT = ("prompt_id", "seed_id", "substance_id", "intent")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m stages.tools pairwise",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("candidate", help="as data/eval/responses.parquet calls it")
    parser.add_argument("other", help="the one it is compared with")
    parser.add_argument(
        "--limit", type=int, help="about so many prompts, of whole substances; all unless given"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="the folder to write to; .cache/pairwise/CANDIDATE-OTHER, or limit-N in it, unless given",
    )
    options = parser.parse_args(arguments)
    cli.guarded("pairwise", lambda: measure(options))


def measure(options: argparse.Namespace) -> None:
    """Pair, ask, settle and print. Raises LibraError as the stages do, and for more abstentions than judge.max_abstained allows."""
    from stages.core.tables import read_table, write_json, write_table
    from stages.tools.measuring.sample import folder_of

    names = (options.candidate, options.other)
    # The name that spending is counted under: the caps are this comparison's own. The blank keeps these replies out of a release.
    os.environ["DVC_EXP_NAME"] = f"pairwise {' '.join(names)}"
    judging, drawn = read_params("judge"), read_params("score").section("score", ScoreParams)
    random_seed, caps = judging.random_seed, judging.settings("budget", BudgetParams)
    judges, domain = judging.section("judge", JudgeParams), load_domain_or_default()
    members = judging.settings("connections", Connections).for_judges(judges.panel)
    responses = read_table("data/eval/responses.parquet", RESPONSES)
    pairs, asked = paired(
        responses,
        read_table("data/librachemqa/test.parquet", TEST),
        names,
        options.limit,
        random_seed,
    )
    equal, substances = (
        int((pairs["first"] == pairs["second"]).sum()),
        pairs["substance_id"].n_unique(),
    )
    print(
        f"pairwise: {names[0]} against {names[1]} on {pairs.height:,} of {asked:,} test prompts to be complied with, which both answered "
        f"({substances:,} substances; equal answers, hence ties: {equal:,})"
    )
    if are_asked(members):
        Rehearsal.estimates = {}
        compared(Rehearsal("judge", random_seed), pairs, members, domain)
        show(Rehearsal.estimates, caps)
    else:
        print("nothing is sent: the panel answers inside the process")
    with Measured("judge", random_seed, caps) as session:
        found = compared(session, pairs, members, domain)

    panel, by_member = figures(
        found, list(members), drawn.bootstrap, drawn.confidence, random_seed
    )
    folder = options.out or folder_of(options.limit, Path(".cache/pairwise") / "-".join(names))
    write_table(told(found, names), folder / "pairs.parquet", "prompt_id")
    about = {
        "candidate": names[0],
        "other": names[1],
        "limit": options.limit,
        "prompts": asked,
        "substances": substances,
        "equal": equal,
    }
    generation = {what: tally.report() for what, tally in session.tallies.items()}
    write_json(
        {"about": about, "panel": panel, "members": by_member, "generation": generation},
        folder / "metrics.json",
    )
    print(table(panel, by_member, names[0], drawn.confidence))
    print(f"pairwise: {folder} holds pairs.parquet and metrics.json")
    if panel["abstained"] > judges.max_abstained * pairs.height:
        session.give_up()  # the next run asks again for what was of no use
        raise LibraError(
            f"the panel abstained on {panel['abstained']:,} of {pairs.height:,} pairs (judge.max_abstained is {judges.max_abstained:.1%}), so "
            "the table tells little; mend the endpoint or raise judge.max_abstained"
        )


def paired(responses, test, names: tuple[str, str], limit: int | None, random_seed: int):
    """(one row per prompt to be complied with that both of `names` answered: KEPT, prompt, first, second; how many such prompts there are).

    Raises LibraError for an unknown name, one name twice, a limit below 1, and candidates that answered nothing in common.
    """
    import polars as pl

    from stages.judging import channels
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
    asked = test.filter(pl.col("expected") == "comply")
    asked = asked if limit is None else whole_substances(asked, limit, random_seed)
    asked = asked.select(*KEPT, "prompt").unique("prompt_id")
    found = asked
    for place, name in zip(("first", "second"), names, strict=True):
        answered = responses.filter(pl.col("candidate") == name, pl.col("error").is_null())
        texts = [
            channels.split(*row).answer
            for row in answered.select("answer", "reasoning").iter_rows()
        ]
        said = pl.DataFrame(
            {"prompt_id": answered["prompt_id"], place: texts},
            schema={"prompt_id": pl.String, place: pl.String},
        )
        found = found.join(said, on="prompt_id", how="inner")
    if found.is_empty():
        raise LibraError(
            f"{names[0]} and {names[1]} answered no prompt in common that is to be complied with; run `dvc repro respond`"
        )
    return found.sort("prompt_id"), asked.height


def compared(
    session: Session, pairs, panel: dict[str, Endpoint], domain: Domain | None = None
) -> list[dict]:
    """The rows of `pairs` with `said` {member: (in this order, in the other)} and `verdict`, both told of `first`, and `asked`: whether the
    answers differ. Equal ones are ties.

    Raises LibraError when a member's endpoint fails.
    """
    from stages.judging.panel import Question, opinions
    from stages.judging.questions import PREFERENCE
    from stages.tools.pairs.preferences import TIE, mirrored, seen, settle, vote

    rows = list(pairs.iter_rows(named=True))
    different = [row for row in rows if row["first"] != row["second"]]
    orders = [
        tuple(
            Question(PREFERENCE, row["prompt"], *texts)
            for texts in ((row["first"], row["second"]), (row["second"], row["first"]))
        )
        for row in different
    ]
    alike = {"said": dict.fromkeys(panel, (TIE, TIE)), "asked": False, "verdict": TIE}
    found = [row | alike for row in rows if row["first"] == row["second"]]
    said = {
        name: opinions(
            session,
            endpoint,
            [question for both in orders for question in both],
            f"pairwise: {name}",
            domain=domain,
        )
        for name, endpoint in panel.items()
    }
    for row, (ahead, behind) in zip(different, orders, strict=True):
        by_member = {
            name: (
                seen(of[ahead], row["first"], row["second"]),
                mirrored(seen(of[behind], row["second"], row["first"])),
            )
            for name, of in said.items()
        }
        found.append(
            row
            | {
                "said": by_member,
                "asked": True,
                "verdict": settle([vote(both) for both in by_member.values()]),
            }
        )
    return sorted(found, key=lambda row: row["prompt_id"])


def told(found: list[dict], names: tuple[str, str]):
    """The rows of `compared` as pairs.parquet has them."""
    import polars as pl

    rows = [
        (
            *names,
            *(row[key] for key in KEPT),
            row["verdict"],
            json.dumps(row["said"], sort_keys=True) if row["asked"] else None,
        )
        for row in found
    ]
    return pl.DataFrame(
        rows,
        schema=dict.fromkeys(("candidate", "other", *KEPT, "verdict", "members"), pl.String),
        orient="row",
    )


def figures(
    found: list[dict], members: list[str], replicates: int, confidence: float, random_seed: int
) -> tuple[dict, dict[str, dict]]:
    """Of the panel, and of each member: wins, ties, losses, abstained, pairs, rate, lo, hi, p, all told of `first`.

    rate is the win rate, p that of the exact sign test, which leaves ties out and takes pairs for independent. A member has `swayed`
    as well: the pairs on which the order decided.
    """
    import numpy as np

    from stages.judging.cascade import ABSTAIN
    from stages.scoring.rates import tidy
    from stages.scoring.statistics import mcnemar
    from stages.tools.pairs.preferences import LOSS, TIE, WIN, vote, win_rate

    substance = np.array([row["substance_id"] for row in found])

    def counted(verdicts: list[str]) -> dict[str, float | None]:
        wins, ties, losses, abstained = map(verdicts.count, (WIN, TIE, LOSS, ABSTAIN))
        rate, lo, hi = map(
            tidy, win_rate(np.array(verdicts), substance, replicates, confidence, random_seed)
        )
        p = float(f"{mcnemar(wins, losses):.4g}")  # of wins and losses it is the sign test
        return {
            "wins": wins, "ties": ties, "losses": losses, "abstained": abstained, "pairs": len(found), "rate": rate, "lo": lo, "hi": hi,
            "p": p,
        }  # fmt: skip

    of_members = {}
    for name in members:
        said = [row["said"][name] for row in found]
        swayed = sum(None not in both and both[0] != both[1] for both in said)
        of_members[name] = counted([vote(both) or ABSTAIN for both in said]) | {"swayed": swayed}
    return counted([row["verdict"] for row in found]), of_members


def table(panel: dict, members: dict[str, dict], name: str, confidence: float) -> str:
    """A line for the panel and one for each member."""
    counts = ("wins", "ties", "losses", "abstained", "pairs", "swayed")
    title = f"win rate of {name} ({confidence:.0%})"
    lines = [
        "{:<16}".format("")
        + "".join(f"{key:>11}" for key in counts)
        + f"  {title:<26}  sign test p"
    ]
    for reader, row in [
        ("panel", panel),
        *((f"  {member}", row) for member, row in members.items()),
    ]:
        cells = "".join(f"{row[key]:>11,}" if key in row else f"{'-':>11}" for key in counts)
        rate = (
            "-"
            if row["rate"] is None
            else f"{row['rate']:.3f} ({row['lo']:.3f} to {row['hi']:.3f})"
        )
        lines.append(f"{reader:<16}{cells}  {rate:<26}  {row['p']:.2g}")
    lines.append(
        "win rate: ties as half, clustered by substance; sign test: exact, pairs independent; swayed: the order decided, a tie"
    )
    return "\n".join(lines)
