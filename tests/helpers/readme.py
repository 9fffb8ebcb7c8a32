"""The parts of the docs that follow from files: the DAG and the table of results.

python tests/helpers/readme.py      # rewrites them in README.md and docs/design.md
"""

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
    command = [Path(sys.executable).with_name("dvc"), "dag", "--md"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    text = run.stdout.strip().removeprefix("```mermaid").removesuffix("```").strip()
    # An archive of replies is no stage.
    return "\n".join(line for line in text.splitlines() if '.dvc"]' not in line)


def results() -> str:
    """A Markdown table of data/eval/metrics.json, best harmonic mean first, with 95 % intervals."""
    metrics = json.loads((ROOT / "data/eval/metrics.json").read_text(encoding="utf-8"))
    candidates = sorted(
        metrics["candidates"].items(), key=lambda item: (-item[1]["harmonic"], item[0])
    )
    lines = [
        "| candidate | safety | utility | harmonic | overall | dual | over-refusal |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, rates in candidates:
        cells = [
            f"{rates[c]:.3f} ({rates[c + '_lo']:.3f} to {rates[c + '_hi']:.3f})" for c in COLUMNS
        ]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join([*lines, *published()])


def published() -> list[str]:
    """The paper's row and what it may be compared with: stages/reporting/published.csv."""
    with (ROOT / "stages/reporting/published.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    (own,) = [row for row in rows if row["overall"]]
    ahead = [
        f"{100 * float(row['librachem_ahead']):.2f} points ahead of {row['system']}"
        for row in rows
        if row["librachem_ahead"]
    ]
    cells = [f"{float(own['overall']):.3f}" if key == "overall" else "–" for key in COLUMNS]
    return [
        f"| *{own['system']}, as published* | {' | '.join(cells)} |",
        "",
        f"*As published*: {own['source']}; on another test set ({own['test_set']}), "
        f"by another judge ({own['judge']}), where it is {', '.join(ahead)}. "
        "It can't be compared with the rows above.",
    ]


def filled(path: str) -> str:
    """README.md or docs/design.md with the parts that follow from files as they should be."""
    text = (ROOT / path).read_text(encoding="utf-8")
    diagram, table = (
        r"(```mermaid\n).*?(\n```)",
        r"(### Results of the default run\n\n).*?(\n\n`safety`)",
    )
    if re.search(diagram, text, flags=re.S):
        text = re.sub(diagram, lambda parts: parts[1] + dag() + parts[2], text, flags=re.S)
    return re.sub(table, lambda parts: parts[1] + results() + parts[2], text, flags=re.S)


FILLED = ("README.md", "docs/design.md")

if __name__ == "__main__":
    for name in FILLED:
        (ROOT / name).write_text(filled(name), encoding="utf-8")
