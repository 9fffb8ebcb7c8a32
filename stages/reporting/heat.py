"""The cell table as a heat map: a row per cell, a column per candidate, deeper for more errors.

draw_cells(rows_of(inputs.cells, CELL), ["teacher", "dpo"])    # an SVG file, in percent correct
"""

from typing import Any

from stages.reporting.drawing import DASH, element, figure, percent, text

_LEFT, _TOP = 258, 58  # space for the names of rows and columns
_WIDE, _HIGH = 66, 25
_DEEPEST = 0.8  # opacity, as on the page: dark text stays readable on it


def draw_cells(rows: list[dict[str, Any]], names: list[str]) -> str:
    """SVG of `rows` (page.rows_of of cells.csv) for the candidates `names`, in that order."""
    width, height = _LEFT + _WIDE * len(names) + 14, _TOP + _HIGH * len(rows) + 14
    parts = [text("% handled correctly", x=14, y=_TOP - 10, class_="axis")]
    for column, name in enumerate(names):
        middle = _LEFT + _WIDE * (column + 0.5)
        first, _, rest = name.partition("_")  # `always_comply` on two lines
        lines = [f"{first}_", rest] if rest else ["", first]
        parts += [
            text(line, x=middle, y=_TOP - 26 + 16 * i, class_="tick", text_anchor="middle")
            for i, line in enumerate(lines)
            if line
        ]

    for index, row in enumerate(rows):
        y = _TOP + _HIGH * index
        cell = (row["intent_kind"], row["status"], row["representation"], row["expected"])
        parts.append(text(" · ".join(cell), x=14, y=y + 17, class_="tick"))
        for column, name in enumerate(names):
            own = row["by"].get(name)
            rate = own["rate"] if own else None
            x = _LEFT + _WIDE * column
            depth = 0.0 if rate is None else _DEEPEST * (1 - rate)
            box = {"x": x, "y": y, "width": _WIDE, "height": _HIGH}
            parts.append(element("rect", **box, class_="cell", fill_opacity=depth))
            label = DASH if rate is None else percent(rate)
            parts.append(text(label, x=x + _WIDE / 2, y=y + 17, class_="rate"))

    label = "Share of answers handled correctly, per cell and candidate"
    return figure(parts, width, height, label, standalone=True)
