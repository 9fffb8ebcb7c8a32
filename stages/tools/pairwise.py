"""Have the judges compare two candidates' answers, side by side.

    python -m stages.tools pairwise dpo sft
    python -m stages.tools pairwise dpo my-model --limit 500    # about 500 prompts

Reads data/eval/responses.parquet, data/librachemqa/test.parquet, data/domain.json and params
random_seed, judge, connections, budget, score. On each test prompt to comply with that both
candidates answered, every member of `judge.panel` says which answer serves it better, once in each
order. A member that changes its mind with the order votes for a tie, one with an unusable reply
abstains. More than half of all members make a win or a loss; if half or fewer vote, the panel
abstains. Equal answers are a tie, and nobody is asked about them.

Writes to .cache/pairwise/A-B/ (with --limit N to limit-N in it), or to the folder of --out:
metrics.json with the printed figures, and pairs.parquet with a row per prompt:

    candidate     dpo                  win, tie and loss are this one's
    other         sft
    prompt_id     s-substance-a-disposal-text-p0
    seed_id       s-substance-a-disposal-text
    substance_id  substance-a
    intent        disposal
    verdict       win                  (tie, loss, abstain)
    members       {"rules": ["win", "win"], "words": ["win", "loss"]}

`members` has what each said with the candidate's answer first, then second: null for an unusable
reply, and null altogether for equal answers. Before it asks, it prints what it will ask for and the
price. Replies of endpoints come from the reply store if it has them; the caps of `budget` hold for
each comparison by itself. No output of the pipeline changes.
"""

import argparse
import os
from pathlib import Path

from stages.chat.budget import BudgetParams
from stages.chat.connections import Connections
from stages.core import cli
from stages.core.errors import LibraError
from stages.core.params import read_params
from stages.domain.description import load_domain_or_default
from stages.judge import JudgeParams
from stages.score import ScoreParams
from stages.tools.estimate import Rehearsal, show
from stages.tools.measuring.judging_session import MeasuringSession, sends_requests
from stages.tools.pairs.comparison import (
    as_table,
    compare,
    figures,
    figures_table,
    paired_answers,
)

RESPONSES = ("candidate", "prompt_id", "answer", "reasoning", "error")
TEST = ("seed_id", "prompt_id", "prompt", "substance_id", "expected", "intent", "intent_kind")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m stages.tools pairwise",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("candidate", help="its name in data/eval/responses.parquet")
    parser.add_argument("other", help="the candidate to compare it with")
    parser.add_argument(
        "--limit", type=int, help="about so many prompts, of whole substances (default: all)"
    )
    parser.add_argument(
        "--out", type=Path, help="folder to write to (default: .cache/pairwise/CANDIDATE-OTHER)"
    )
    options = parser.parse_args(arguments)
    cli.guarded("pairwise", lambda: measure(options))


def measure(options: argparse.Namespace) -> None:
    """Pair, ask, count and print.

    Raises LibraError as the stages do, and if the panel abstains on more pairs than
    judge.max_abstained allows.
    """
    from stages.core.tables import read_table, write_json, write_table
    from stages.tools.measuring.sample import folder_of

    names = (options.candidate, options.other)
    # Spending is counted under this name, so the caps are this comparison's own. The space keeps
    # these replies out of a release (Store.rows).
    os.environ["DVC_EXP_NAME"] = f"pairwise {' '.join(names)}"
    judge, score_params = read_params("judge"), read_params("score").section("score", ScoreParams)
    random_seed, caps = judge.random_seed, judge.settings("budget", BudgetParams)
    judge_params, domain = judge.section("judge", JudgeParams), load_domain_or_default()
    panel = judge.settings("connections", Connections).for_judges(judge_params.panel)

    responses = read_table("data/eval/responses.parquet", RESPONSES)
    test = read_table("data/librachemqa/test.parquet", TEST)
    pairs, prompts = paired_answers(responses, test, names, options.limit, random_seed)
    equal = int((pairs["first"] == pairs["second"]).sum())
    substances = pairs["substance_id"].n_unique()
    print(
        f"pairwise: {names[0]} against {names[1]} on {pairs.height:,} of {prompts:,} test prompts "
        f"to comply with, which both answered ({substances:,} substances; equal answers, hence "
        f"ties: {equal:,})"
    )
    if sends_requests(panel):
        Rehearsal.estimates = {}
        compare(Rehearsal("judge", random_seed), pairs, panel, domain)
        show(Rehearsal.estimates, caps)
    else:
        print("nothing is sent: the panel answers inside the process")
    with MeasuringSession("judge", random_seed, caps) as session:
        rows = compare(session, pairs, panel, domain)

    confidence = score_params.confidence
    panel_figures, member_figures = figures(
        rows, list(panel), score_params.bootstrap, confidence, random_seed
    )
    folder = options.out or folder_of(options.limit, Path(".cache/pairwise") / "-".join(names))
    write_table(as_table(rows, names), folder / "pairs.parquet", "prompt_id")
    about = {
        "candidate": names[0],
        "other": names[1],
        "limit": options.limit,
        "prompts": prompts,
        "substances": substances,
        "equal": equal,
    }
    metrics = {
        "about": about,
        "panel": panel_figures,
        "members": member_figures,
        "generation": {kind: tally.report() for kind, tally in session.tallies.items()},
    }
    write_json(metrics, folder / "metrics.json")
    print(figures_table(panel_figures, member_figures, names[0], confidence))
    print(f"pairwise: {folder} holds pairs.parquet and metrics.json")

    abstained = panel_figures["abstained"]
    if abstained > judge_params.max_abstained * pairs.height:
        session.give_up()  # the next run asks again for what was unusable
        raise LibraError(
            f"the panel abstained on {abstained:,} of {pairs.height:,} pairs (judge.max_abstained "
            f"is {judge_params.max_abstained:.1%}), so the table says little; fix the endpoint or "
            "raise judge.max_abstained"
        )
