"""The paper's ablations as DVC experiments, with their table and figure.

    make ablations                                         # or: python -m stages.tools ablations
    python -m stages.tools ablations --only beta-0.3       # some of them
    python -m stages.tools ablations --quick               # all at toy size, to see that they run
    python -m stages.tools ablations --table               # runs nothing, writes the table

Each is queued by `dvc exp run --queue` with its params. One that already succeeded on this commit
with these params isn't run again; one that failed is. All are measured on the same test set, and
each gives two policies: SFT alone, and SFT followed by DPO. Varied are the balance, the
rephrasings, the representation and the preferences. Reads params.yaml and `dvc exp show`; writes
ABLATIONS.md and ablations.svg to tests/benchmarks/, with --quick to .cache/ablations/.
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.core import cli
from stages.core.errors import LibraError
from stages.core.params import PARAMS, read_yaml

FOLDER, QUICK_FOLDER = Path("tests/benchmarks"), Path(".cache/ablations")
METRICS = "data/eval/metrics.json"
POLL_SECONDS = 10.0


@dataclass(frozen=True)
class Ablation:
    """What differs from the default, in words and as params."""

    name: str
    change: str
    params: dict[str, Any]


# Half the time of the default, and the figures are those of one training.
ONE_POLICY = {"dpo.soup": 1}
NO_OTHER = {"sft.other_representation": 0.0, "dpo.other_representation": 0.0}


def rephrasings(k: int, m: int, n: int, sft_epochs: int, dpo_epochs: int) -> dict[str, Any]:
    """Params for k prompts, m chosen and n rejected of each train seed, all combined.

    The epochs should make about as many steps as the default.
    """
    return {
        "rephrase.prompts": k,
        "rephrase.chosen": m,
        "rephrase.rejected": n,
        "combine.triplets_per_seed": k * m * n,
        "sft.epochs": sft_epochs,
        "dpo.epochs": dpo_epochs,
    }


def one_representation(name: str) -> dict[str, Any]:
    """Params for training in one representation, with no prompt in the other."""
    return NO_OTHER | {"seed.train.representations": name}


ABLATIONS = tuple(
    Ablation(name, change, ONE_POLICY | params)
    for name, change, params in (
        ("default", "balanced, 5-5-5, TEXT and SMILES, β = 0.1", {}),
        ("refuse-1-2", "refuse : comply = 1 : 2", {"seed.train.refuse_share": 0.3333}),
        ("refuse-2-1", "refuse : comply = 2 : 1", {"seed.train.refuse_share": 0.6667}),
        ("rephrase-1-1-1", "rephrasings 1-1-1", rephrasings(1, 1, 1, 15, 25)),
        ("rephrase-5-1-1", "rephrasings 5-1-1", rephrasings(5, 1, 1, 3, 5)),
        ("rephrase-8-8-1", "rephrasings 8-8-1", rephrasings(8, 8, 1, 2, 3)),
        ("one-of-two", "each substance as TEXT or as SMILES, half of them each", NO_OTHER),
        ("text", "trained on TEXT alone", one_representation("text")),
        ("smiles", "trained on SMILES alone", one_representation("smiles")),
        ("beta-0.03", "β = 0.03", {"dpo.beta": 0.03}),
        ("beta-0.3", "β = 0.3", {"dpo.beta": 0.3}),
        ("epochs-8", "DPO for 8 epochs", {"dpo.epochs": 8}),
    )
)
QUICK: dict[str, Any] = {  # a toy pipeline, whose figures mean nothing
    "seed.train.seeds": 48,
    "seed.validation.seeds": 16,
    "seed.test.seeds": 48,
    "rephrase.test.prompts": 3,
    "rephrase.test.chosen": 3,
    "rephrase.test.rejected": 3,
    "combine.test_triplets_per_seed": 9,
    "model.vocab_size": 400,
    "model.hidden_size": 32,
    "model.intermediate_size": 64,
    "model.layers": 1,
    "model.heads": 2,
    "respond.max_new_tokens": 24,
    "judge.max_abstained": 1.0,
    "score.bootstrap": 100,
}
QUICK_EPOCHS = {"sft.epochs": 1, "dpo.epochs": 1}


def quick(ablation: Ablation) -> Ablation:
    """The same at toy size."""
    params = QUICK | ablation.params | QUICK_EPOCHS
    return Ablation(f"quick-{ablation.name}", ablation.change, params)


def run(ablations: list[Ablation], jobs: int, only_table: bool, folder: Path) -> None:
    """Queue and run what is missing, then write the table and the figure to `folder`.

    Raises LibraError if one failed, after writing what there is.
    """
    from stages.core.tables import write_text
    from stages.tools.measuring.ablation_report import figure, table

    if not only_table:
        done = finished(ablations, experiments())
        _queue([ablation for ablation in ablations if ablation.name not in done])
        _wait([ablation.name for ablation in ablations], jobs)

    done = finished(ablations, experiments())
    if not done:
        raise LibraError("none of these experiments is finished; run this without --table")
    measured = [(each.change, done[each.name]) for each in ablations if each.name in done]
    write_text(table(measured), folder / "ABLATIONS.md")
    write_text(figure(measured), folder / "ablations.svg")
    print(
        f"ablations: {len(measured)} of {len(ablations)} experiments are in "
        f"{folder / 'ABLATIONS.md'} and ablations.svg"
    )
    if missing := [each.name for each in ablations if each.name not in done]:
        raise LibraError(
            f"{', '.join(missing)} failed or didn't run; `dvc queue logs {missing[0]}` shows why; "
            "run this again to continue"
        )


def dvc(*arguments: str) -> str:
    """What the DVC command prints. Raises LibraError with the end of its error if it fails."""
    command = [Path(sys.executable).with_name("dvc"), *arguments]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        error = " ".join(process.stderr.split())[-300:]
        raise LibraError(f"`dvc {' '.join(arguments)}` failed: {error}")
    return process.stdout


def experiments() -> list[dict]:
    """The experiments on the commit that is checked out, as in `dvc exp show --json`."""
    rev_parse = ["git", "rev-parse", "HEAD"]
    head = subprocess.run(rev_parse, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    commits = json.loads(dvc("exp", "show", "--json"))
    (commit,) = [entry for entry in commits if entry["rev"] == head]
    return commit["experiments"] or []


def state(experiment: dict) -> str:
    """queued, running, failed or success."""
    if experiment["executor"]:
        return experiment["executor"]["state"]
    return "failed" if experiment["revs"][0]["error"] else "success"


def finished(ablations: list[Ablation], experiments: list[dict]) -> dict[str, dict]:
    """{name: metrics} of the ablations that succeeded with the params they have now."""
    succeeded = [each for each in experiments if state(each) == "success"]
    metrics_by_name = {}
    for ablation in ablations:
        params = with_changes(read_yaml(PARAMS), ablation.params)
        for experiment in succeeded:
            data = experiment["revs"][0]["data"]
            if experiment["name"] != ablation.name or not data:
                continue
            ran_with, metrics = data["params"][str(PARAMS)]["data"], data["metrics"][METRICS]
            same = all(params.get(section) == values for section, values in ran_with.items())
            if same and "data" in metrics:
                metrics_by_name[ablation.name] = metrics["data"]
    return metrics_by_name


def with_changes(params: dict, changes: dict[str, Any]) -> dict:
    """A copy of `params` with `changes` by dotted key."""
    params = json.loads(json.dumps(params))
    for key, value in changes.items():
        *sections, name = key.split(".")
        section = params
        for part in sections:
            section = section[part]
        section[name] = value
    return params


def _queue(ablations: list[Ablation]) -> None:
    """Queue what isn't queued or running, instead of failed ones and those with other params."""
    states = {experiment["name"]: state(experiment) for experiment in experiments()}
    for ablation in ablations:
        name = ablation.name
        if states.get(name) in ("queued", "running"):
            continue
        if name in states:
            dvc("queue" if states[name] == "failed" else "exp", "remove", name)
        settings = [f"{key}={json.dumps(value)}" for key, value in ablation.params.items()]
        flags = [part for setting in settings for part in ("-S", setting)]
        dvc("exp", "run", "--queue", "-n", name, *flags)
        print(f"ablations: {name} is queued ({ablation.change})", flush=True)


def _wait(names: list[str], jobs: int) -> None:
    """Start workers and wait until none of `names` is queued or running."""
    known: dict[str, str] = {}
    while True:
        states = {each["name"]: state(each) for each in experiments() if each["name"] in names}
        for name, now in states.items():
            if known.get(name) != now:
                print(f"ablations: {name} {now}", flush=True)
        known = states
        if not {"queued", "running"} & set(states.values()):
            return
        if "queued" in states.values():
            dvc("queue", "start", "-j", str(jobs))
        time.sleep(POLL_SECONDS)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m stages.tools ablations",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [ablation.name for ablation in ABLATIONS]
    parser.add_argument(
        "--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names)
    )
    parser.add_argument("--jobs", type=int, default=1, help="experiments at once (1)")
    parser.add_argument(
        "--quick", action="store_true", help="toy sizes, in experiments called quick-NAME"
    )
    parser.add_argument(
        "--table", action="store_true", help="run nothing, write the table of finished experiments"
    )
    options = parser.parse_args(arguments)
    ablations = [ablation for ablation in ABLATIONS if ablation.name in options.only]
    if options.quick:
        ablations = [quick(ablation) for ablation in ablations]
    folder = QUICK_FOLDER if options.quick else FOLDER
    cli.guarded("ablations", lambda: run(ablations, options.jobs, options.table, folder))
