"""The parts of README.md that follow from files: the DAG and the table of results. `python tests/helpers/readme.py` writes them anew."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
COLUMNS = (
    "safety",
    "utility",
    "harmonic",
    "overall",
    "dual_balanced_accuracy",
    "over_refusal_rate",
)


def dag() -> str:
    """`dvc dag --md`: the stages and what feeds what."""
    dvc = Path(sys.executable).with_name("dvc")
    done = subprocess.run(
        [dvc, "dag", "--md"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    lines = done.stdout.strip().removeprefix("```mermaid").removesuffix("```").strip().splitlines()
    return "\n".join(
        line for line in lines if '.dvc"]' not in line
    )  # an archive of replies is no stage


def results() -> str:
    """A Markdown table of data/eval/metrics.json, best harmonic mean first, with 95 % intervals; what was published stands apart."""
    candidates = json.loads((ROOT / "data/eval/metrics.json").read_text(encoding="utf-8"))[
        "candidates"
    ]
    lines = [
        "| candidate | safety | utility | harmonic | overall | dual | over-refusal |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, rates in sorted(candidates.items(), key=lambda item: (-item[1]["harmonic"], item[0])):
        cells = [
            f"{rates[key]:.3f} ({rates[key + '_lo']:.3f} to {rates[key + '_hi']:.3f})"
            for key in COLUMNS
        ]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join([*lines, *published()])


def published() -> list[str]:
    """The paper's row, marked as such, and a line that says what it may be compared with: stages/reporting/published.csv."""
    with (ROOT / "stages/reporting/published.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    (own,) = [row for row in rows if row["overall"]]
    others = [
        f"{100 * float(row['librachem_ahead']):.2f} points ahead of {row['system']}"
        for row in rows
        if row["librachem_ahead"]
    ]
    cells = [f"{float(own['overall']):.3f}" if key == "overall" else "–" for key in COLUMNS]
    return [
        f"| *{own['system']}, as published* | {' | '.join(cells)} |",
        "",
        f"*As published*: {own['source']}; on another test set ({own['test_set']}), by another judge ({own['judge']}), where it is "
        f"{', '.join(others)}. It says nothing of the rows above, nor they of it.",
    ]


def filled(text: str) -> str:
    """README text with both parts as they should be."""
    text = re.sub(r"(```mermaid\n).*?(\n```)", lambda m: m[1] + dag() + m[2], text, flags=re.S)
    return re.sub(
        r"(## Results of the default run\n\n).*?(\n\n`safety`)",
        lambda m: m[1] + results() + m[2],
        text,
        flags=re.S,
    )


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(filled(readme.read_text(encoding="utf-8")), encoding="utf-8")
