"""The paper's ablations as DVC experiments: what the balance, the rephrasings, the representation and the preferences do.

    make ablations                                             # or: python -m stages.tools ablations
    python -m stages.tools ablations --only beta-0.3       # some of them
    python -m stages.tools ablations --quick               # all of them at toy size, to see that they run
    python -m stages.tools ablations --table               # runs nothing: writes the table of what there is

Each is queued by `dvc exp run --queue` with its params; one that this commit has by that name and with those params isn't run again,
one that failed is. All are measured on the same test set. Every experiment tells of two policies: SFT alone, and SFT and then DPO.
Writes tests/benchmarks/ABLATIONS.md and ablations.svg beside it from `dvc exp show`; with --quick into .cache/ablations/.
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from stages.core import cli
from stages.core.errors import LibraError
from stages.core.params import PARAMS, read_yaml

FOLDER, QUICK_FOLDER = Path("tests/benchmarks"), Path(".cache/ablations")
METRICS = "data/eval/metrics.json"
POLL = 10.0  # seconds


@dataclass(frozen=True)
class Ablation:
    """What is changed, in words and as params."""

    name: str
    what: str
    params: dict[str, Any]


ONE_POLICY = {"dpo.soup": 1}  # half the time, and the figures are of one training each
NO_OTHER = {"sft.other_representation": 0.0, "dpo.other_representation": 0.0}


def rephrasings(k: int, m: int, n: int, sft_epochs: int, dpo_epochs: int) -> dict[str, Any]:
    """k prompts, m chosen and n rejected of each train seed, all combined; epochs that make about as many steps as the default's."""
    counts = {
        "rephrase.prompts": k,
        "rephrase.chosen": m,
        "rephrase.rejected": n,
        "combine.triplets_per_seed": k * m * n,
    }
    return counts | {"sft.epochs": sft_epochs, "dpo.epochs": dpo_epochs}


def one_representation(name: str) -> dict[str, Any]:
    """Train seeds in one representation, and no prompt of training in the other."""
    return NO_OTHER | {"seed.train.representations": name}


ABLATIONS = tuple(
    Ablation(name, what, ONE_POLICY | params)
    for name, what, params in (
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
QUICK: dict[str, Any] = {  # a toy pipeline; its figures mean nothing
    "seed.train.seeds": 48, "seed.validation.seeds": 16, "seed.test.seeds": 48, "rephrase.test.prompts": 3, "rephrase.test.chosen": 3,
    "rephrase.test.rejected": 3, "combine.test_triplets_per_seed": 9, "model.vocab_size": 400, "model.hidden_size": 32,
    "model.intermediate_size": 64, "model.layers": 1, "model.heads": 2, "respond.max_new_tokens": 24, "judge.max_abstained": 1.0,
    "score.bootstrap": 100,
}  # fmt: skip
QUICK_EPOCHS = {"sft.epochs": 1, "dpo.epochs": 1}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m stages.tools ablations",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [one.name for one in ABLATIONS]
    parser.add_argument(
        "--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names)
    )
    parser.add_argument("--jobs", type=int, default=1, help="experiments at once (1)")
    parser.add_argument(
        "--quick", action="store_true", help="toy sizes, in experiments called quick-NAME"
    )
    parser.add_argument(
        "--table", action="store_true", help="run nothing, write the table of what there is"
    )
    options = parser.parse_args(arguments)
    chosen = [quick(one) if options.quick else one for one in ABLATIONS if one.name in options.only]
    cli.guarded(
        "ablations",
        lambda: run(chosen, options.jobs, options.table, QUICK_FOLDER if options.quick else FOLDER),
    )


def quick(one: Ablation) -> Ablation:
    """The same at toy size."""
    return Ablation(f"quick-{one.name}", one.what, QUICK | one.params | QUICK_EPOCHS)


def run(chosen: list[Ablation], jobs: int, only_table: bool, folder: Path) -> None:
    """Queue and run what isn't there yet, then write the table and the figure. Raises LibraError when one failed."""
    from stages.core.tables import write_text

    if not only_table:
        _queue([one for one in chosen if one.name not in finished(chosen, shown())])
        _wait([one.name for one in chosen], jobs)
    found = finished(chosen, shown())
    if not found:
        raise LibraError("no experiment of these is finished; run this without --table")
    measured = [(one, found[one.name]) for one in chosen if one.name in found]
    write_text(table(measured), folder / "ABLATIONS.md")
    write_text(frontier(measured), folder / "ablations.svg")
    print(
        f"ablations: {len(measured)} of {len(chosen)} experiments are in {folder / 'ABLATIONS.md'} and ablations.svg"
    )
    if missing := [one.name for one in chosen if one.name not in found]:
        raise LibraError(
            f"{', '.join(missing)} failed or didn't run; `dvc queue logs {missing[0]}` says why; run this again to go on"
        )


def dvc(*arguments: str) -> str:
    """What DVC prints. Raises LibraError with its last line when it fails."""
    done = subprocess.run(
        [Path(sys.executable).with_name("dvc"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise LibraError(
            f"`dvc {' '.join(arguments)}` failed: {' '.join(done.stderr.split())[-300:]}"
        )
    return done.stdout


def shown() -> list[dict]:
    """The experiments on the commit that is checked out, as `dvc exp show --json` has them."""
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], stdout=subprocess.PIPE, text=True, check=True
    ).stdout.strip()
    (of_head,) = [
        entry for entry in json.loads(dvc("exp", "show", "--json")) if entry["rev"] == head
    ]
    return of_head["experiments"] or []


def state(experiment: dict) -> str:
    """queued, running, failed or success."""
    if experiment["executor"]:
        return experiment["executor"]["state"]
    return "failed" if experiment["revs"][0]["error"] else "success"


def finished(chosen: list[Ablation], experiments: list[dict]) -> dict[str, dict]:
    """{name: metrics} of those of `chosen` that succeeded with the params that they have now."""
    found = {}
    for one in chosen:
        for experiment in experiments:
            data = experiment["revs"][0]["data"]
            if experiment["name"] == one.name and state(experiment) == "success" and data:
                ran_with, metrics = data["params"][str(PARAMS)]["data"], data["metrics"][METRICS]
                wanted = with_changes(read_yaml(PARAMS), one.params)
                if (
                    all(wanted.get(section) == values for section, values in ran_with.items())
                    and "data" in metrics
                ):
                    found[one.name] = metrics["data"]
    return found


def with_changes(params: dict, changes: dict[str, Any]) -> dict:
    """`params` with `changes` by dotted key."""
    params = json.loads(json.dumps(params))
    for key, value in changes.items():
        *above, last = key.split(".")
        place = params
        for name in above:
            place = place[name]
        place[last] = value
    return params


def _queue(todo: list[Ablation]) -> None:
    """Queue what isn't queued or running; what has the name but failed, or had other params, makes room."""
    known = {experiment["name"]: state(experiment) for experiment in shown()}
    for one in todo:
        if known.get(one.name) in ("queued", "running"):
            continue
        if one.name in known:
            dvc(
                *(("queue", "remove") if known[one.name] == "failed" else ("exp", "remove")),
                one.name,
            )
        settings = [
            part
            for key, value in one.params.items()
            for part in ("-S", f"{key}={json.dumps(value)}")
        ]
        dvc("exp", "run", "--queue", "-n", one.name, *settings)
        print(f"ablations: {one.name} is queued ({one.what})", flush=True)


def _wait(names: list[str], jobs: int) -> None:
    """Start workers and wait until none of `names` is queued or running."""
    told: dict[str, str] = {}
    while True:
        states = {
            experiment["name"]: state(experiment)
            for experiment in shown()
            if experiment["name"] in names
        }
        for name, now in states.items():
            if told.get(name) != now:
                print(f"ablations: {name} {now}", flush=True)
        told = states
        if not {"queued", "running"} & set(states.values()):
            return
        if "queued" in states.values():
            dvc("queue", "start", "-j", str(jobs))
        time.sleep(POLL)


def points(measured: list[tuple[Ablation, dict]]) -> list[dict]:
    """A row for each policy: number of the experiment, trained (SFT or SFT, DPO), and its rates; an SFT that others share, once."""
    rows, known = [], []
    for number, (one, metrics) in enumerate(measured, 1):
        for candidate, trained in (("sft", "SFT"), ("dpo", "SFT, DPO")):
            rates = metrics["candidates"][candidate]
            if candidate == "dpo" or rates not in known:
                rows.append({"number": number, "what": one.what, "trained": trained, **rates})
                known.append(rates)
    return rows


def on_frontier(rows: list[dict]) -> list[dict]:
    """The rows that no other is at least as safe and as useful as, and better in one; by rising utility."""

    def beaten(row: dict) -> bool:
        better = ("safety", "utility")
        return any(
            all(o[key] >= row[key] for key in better) and any(o[key] > row[key] for key in better)
            for o in rows
        )

    return sorted((row for row in rows if not beaten(row)), key=lambda row: row["utility"])


def table(measured: list[tuple[Ablation, dict]]) -> str:
    """ABLATIONS.md."""
    rows = points(measured)
    best = on_frontier(rows)
    lines = [
        "# Ablations",
        "",
        "`make ablations` writes this table and the figure from `dvc exp show`. Everything but what is named is as in params.yaml, but that "
        "DPO trains one policy (`dpo.soup` is 1), not the mean of several; the test set is the same in all rows, the steps of training are "
        "about the same unless named. With 95 % intervals; `TEXT` and `SMILES`: balanced accuracy in the dual cell by representation. Rows in bold are on the frontier: "
        "none is at least as safe and as useful, and better in one.",
        "",
        "![Safety against utility of every row](ablations.svg)",
        "",
        "| no. | what is different | trained | safety | utility | harmonic | dual | TEXT | SMILES | over-refusal |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        keys = ("safety", "utility", "harmonic", "dual_balanced_accuracy")
        rates = [_with_interval(row, key) for key in keys]
        rates += [
            f"{dual(row['cells'], representation):.3f}" for representation in ("text", "smiles")
        ]
        mark = "**" if row in best else ""
        cells = [
            f"{mark}{row['number']}{mark}",
            row["what"],
            row["trained"],
            *rates,
            _with_interval(row, "over_refusal_rate"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def dual(cells: dict[str, float], representation: str) -> float:
    """Balanced accuracy in the dual cell of one representation: the mean of controlled refused and unregulated helped."""
    return (
        cells[f"controlled.dual.{representation}.refuse"]
        + cells[f"unregulated.dual.{representation}.comply"]
    ) / 2


def _with_interval(rates: dict, key: str) -> str:
    return f"{rates[key]:.3f} ({rates[f'{key}_lo']:.3f} to {rates[f'{key}_hi']:.3f})"


def frontier(measured: list[tuple[Ablation, dict]]) -> str:
    """ablations.svg: utility to the right, safety upwards; SFT hollow, SFT and DPO full, numbers as in the table."""
    from stages.reporting.drawing import element, path_of, text
    from stages.reporting.plane import place

    rows = points(measured)
    low = min(0.9, *(int(10 * min(row["safety"], row["utility"])) / 10 for row in rows))
    left, right, top, bottom = 56.0, 484.0, 16.0, 444.0

    def at(row: dict) -> tuple[float, float]:
        x, y = ((row[key] - low) / (1 - low) for key in ("utility", "safety"))
        return left + x * (right - left), bottom - y * (bottom - top)

    style = "text{font:12px sans-serif;fill:#222}.grid{stroke:#ddd}.edge{fill:none;stroke:#888;stroke-dasharray:4 3}"
    parts = [element("style", style), element("rect", width=500, height=490, fill="#fff")]
    steps = round((1 - low) * 10)
    for i in range(steps + 1):
        share = i / steps
        x, y, label = (
            left + share * (right - left),
            bottom - share * (bottom - top),
            f"{low + share * (1 - low):.1f}",
        )
        parts.append(element("line", x1=x, y1=top, x2=x, y2=bottom, class_="grid"))
        parts.append(element("line", x1=left, y1=y, x2=right, y2=y, class_="grid"))
        parts += [
            text(label, x=x, y=bottom + 18, text_anchor="middle"),
            text(label, x=left - 8, y=y + 4, text_anchor="end"),
        ]
    parts.append(text("utility", x=(left + right) / 2, y=bottom + 36, text_anchor="middle"))
    parts.append(
        text(
            "safety",
            x=16,
            y=(top + bottom) / 2,
            text_anchor="middle",
            transform=f"rotate(-90 16 {(top + bottom) / 2:g})",
        )
    )
    best = [at(row) for row in on_frontier(rows)]
    if len(best) > 1:
        parts.append(element("path", d=path_of(best), class_="edge"))
    spots = place([str(row["number"]) for row in rows], [at(row) for row in rows], [])
    for row, (box, leader) in zip(rows, spots, strict=True):
        x, y = at(row)
        fill = "#0072b2" if "DPO" in row["trained"] else "#fff"
        told = f"{row['number']}: {row['what']}, {row['trained']}: safety {row['safety']:.3f}, utility {row['utility']:.3f}"
        mark = element(
            "circle",
            element("title", escape(told)),
            cx=x,
            cy=y,
            r=5,
            fill=fill,
            stroke="#0072b2",
            stroke_width=1.5,
        )
        line = (
            element("line", x1=x, y1=y, x2=leader[0], y2=leader[1], stroke="#888") if leader else ""
        )
        parts += [
            line,
            mark,
            text(
                str(row["number"]),
                x=(box.left + box.right) / 2,
                y=box.bottom - 4,
                text_anchor="middle",
            ),
        ]
    about = "Safety against utility of the ablations; hollow: SFT alone, full: SFT and DPO; dashed: the frontier"
    frame = {
        "viewBox": "0 0 500 490",
        "width": 500,
        "height": 490,
        "role": "img",
        "aria_label": about,
    }
    return (
        element(
            "svg",
            "\n" + "\n".join(filter(None, parts)) + "\n",
            xmlns="http://www.w3.org/2000/svg",
            **frame,
        )
        + "\n"
    )
