"""The table and the figure of finished ablations: ABLATIONS.md and ablations.svg.

    table([("β = 0.3", metrics)])       # metrics as in data/eval/metrics.json
    figure([("β = 0.3", metrics)])

Both have a row or a dot per policy: SFT alone, and SFT followed by DPO.
"""

from html import escape
from typing import Any

Measured = list[tuple[str, dict[str, Any]]]  # what is different, and the metrics

_ABOUT = """\
# Ablations

`make ablations` writes this table and the figure from `dvc exp show`. Except for what is named, all
params are those of params.yaml, but DPO trains one policy (`dpo.soup` is 1) and not the mean of
several. The test set is the same in all rows, and so is roughly the number of training steps,
unless named. Rates are with 95 % intervals; `TEXT` and `SMILES` are the balanced accuracy in the
dual cell by representation. Rows in bold are on the frontier: no other row is at least as safe and
as useful, and better in one of the two.

![Safety against utility of every row](ablations.svg)

| no. | what is different | trained | safety | utility | harmonic | dual | TEXT | SMILES \
| over-refusal |
|---|---|---|---|---|---|---|---|---|---|
"""
_WIDTH, _HEIGHT = 500, 490
_LEFT, _RIGHT, _TOP, _BOTTOM = 56.0, 484.0, 16.0, 444.0  # of the plot within the figure
_STYLE = (
    "text{font:12px sans-serif;fill:#222}.grid{stroke:#ddd}"
    ".edge{fill:none;stroke:#888;stroke-dasharray:4 3}"
)
_BLUE = "#0072b2"


def policies(measured: Measured) -> list[dict[str, Any]]:
    """A row per policy: number (of the experiment), change, trained (SFT or SFT, DPO), its rates.

    An SFT policy that several experiments share appears once.
    """
    rows: list[dict[str, Any]] = []
    known: list[dict[str, Any]] = []
    for number, (change, metrics) in enumerate(measured, 1):
        for candidate, trained in (("sft", "SFT"), ("dpo", "SFT, DPO")):
            rates = metrics["candidates"][candidate]
            if candidate == "dpo" or rates not in known:
                rows.append({"number": number, "change": change, "trained": trained, **rates})
                known.append(rates)
    return rows


def on_frontier(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that no other dominates in safety and utility, by rising utility."""
    keys = ("safety", "utility")

    def dominates(row: dict[str, Any], other: dict[str, Any]) -> bool:
        return all(row[key] >= other[key] for key in keys) and any(
            row[key] > other[key] for key in keys
        )

    frontier = [row for row in rows if not any(dominates(other, row) for other in rows)]
    return sorted(frontier, key=lambda row: row["utility"])


def table(measured: Measured) -> str:
    """The text of ABLATIONS.md."""
    rows = policies(measured)
    frontier = on_frontier(rows)
    lines = []
    for row in rows:
        mark = "**" if row in frontier else ""
        keys = ("safety", "utility", "harmonic", "dual_balanced_accuracy")
        cells = [
            f"{mark}{row['number']}{mark}",
            row["change"],
            row["trained"],
            *(_with_interval(row, key) for key in keys),
            *(f"{_dual(row['cells'], name):.3f}" for name in ("text", "smiles")),
            _with_interval(row, "over_refusal_rate"),
        ]
        lines.append(f"| {' | '.join(cells)} |\n")
    return _ABOUT + "".join(lines)


def _dual(cells: dict[str, float], representation: str) -> float:
    """Balanced accuracy in the dual cell of one representation."""
    refused = cells[f"controlled.dual.{representation}.refuse"]
    helped = cells[f"unregulated.dual.{representation}.comply"]
    return (refused + helped) / 2


def _with_interval(rates: dict[str, Any], key: str) -> str:
    return f"{rates[key]:.3f} ({rates[f'{key}_lo']:.3f} to {rates[f'{key}_hi']:.3f})"


def figure(measured: Measured) -> str:
    """ablations.svg: utility to the right, safety upwards, numbers as in the table.

    SFT is hollow, SFT and DPO filled.
    """
    from stages.reporting.drawing import element, path_of
    from stages.reporting.plane import place

    rows = policies(measured)
    lowest = min(min(row["safety"], row["utility"]) for row in rows)
    low = min(0.9, int(10 * lowest) / 10)

    def position(row: dict[str, Any]) -> tuple[float, float]:
        x, y = ((row[key] - low) / (1 - low) for key in ("utility", "safety"))
        return _LEFT + x * (_RIGHT - _LEFT), _BOTTOM - y * (_BOTTOM - _TOP)

    background = element("rect", width=_WIDTH, height=_HEIGHT, fill="#fff")
    parts = [element("style", _STYLE), background, *_axes(low)]
    frontier = [position(row) for row in on_frontier(rows)]
    if len(frontier) > 1:
        parts.append(element("path", d=path_of(frontier), class_="edge"))
    dots = [position(row) for row in rows]
    spots = place([str(row["number"]) for row in rows], dots, [])
    for row, dot, spot in zip(rows, dots, spots, strict=True):
        parts += _dot(row, dot, spot)

    label = (
        "Safety against utility of the ablations; hollow: SFT alone, filled: SFT and DPO; "
        "dashed: the frontier"
    )
    svg = element(
        "svg",
        "\n" + "\n".join(parts) + "\n",
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        width=_WIDTH,
        height=_HEIGHT,
        role="img",
        aria_label=label,
    )
    return svg + "\n"


def _axes(low: float) -> list[str]:
    """Grid and labels of both axes, from `low` to 1 in steps of a tenth."""
    from stages.reporting.drawing import element, text

    parts = []
    steps = round((1 - low) * 10)
    for i in range(steps + 1):
        share = i / steps
        x, y = _LEFT + share * (_RIGHT - _LEFT), _BOTTOM - share * (_BOTTOM - _TOP)
        label = f"{low + share * (1 - low):.1f}"
        parts += [
            element("line", x1=x, y1=_TOP, x2=x, y2=_BOTTOM, class_="grid"),
            element("line", x1=_LEFT, y1=y, x2=_RIGHT, y2=y, class_="grid"),
            text(label, x=x, y=_BOTTOM + 18, text_anchor="middle"),
            text(label, x=_LEFT - 8, y=y + 4, text_anchor="end"),
        ]
    x, y = (_LEFT + _RIGHT) / 2, (_TOP + _BOTTOM) / 2
    upright = f"rotate(-90 16 {y:g})"
    return [
        *parts,
        text("utility", x=x, y=_BOTTOM + 36, text_anchor="middle"),
        text("safety", x=16, y=y, text_anchor="middle", transform=upright),
    ]


def _dot(row: dict[str, Any], dot: tuple[float, float], spot: Any) -> list[str]:
    """A policy's dot, its number beside it, and a line between the two if they are apart."""
    from stages.reporting.drawing import element, text

    (x, y), (box, leader) = dot, spot
    parts = []
    if leader:
        parts.append(element("line", x1=x, y1=y, x2=leader[0], y2=leader[1], stroke="#888"))
    title = (
        f"{row['number']}: {row['change']}, {row['trained']}: "
        f"safety {row['safety']:.3f}, utility {row['utility']:.3f}"
    )
    circle = element(
        "circle",
        element("title", escape(title)),
        cx=x,
        cy=y,
        r=5,
        fill=_BLUE if "DPO" in row["trained"] else "#fff",
        stroke=_BLUE,
        stroke_width=1.5,
    )
    middle = (box.left + box.right) / 2
    number = text(str(row["number"]), x=middle, y=box.bottom - 4, text_anchor="middle")
    return [*parts, circle, number]
