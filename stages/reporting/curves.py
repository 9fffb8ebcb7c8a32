"""Training curves as small line charts: train as a line, validation as dots on a dashed line.

draw_curve(curve, "loss", "loss")                     # SVG of `loss` and `eval_loss` over `step`
draw_curve(curve, "loss", "loss", standalone=True)    # an SVG file, with its title
"""

import polars as pl

from stages.reporting.drawing import element, figure, path_of, text, ticks

WIDTH, HEIGHT = 450, 232
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 440, 10, 198
_HEAD = 26  # height of a file's title line
_MAX_POINTS = 300  # of a line; more are indistinguishable


def draw_curve(curve: pl.DataFrame, column: str, title: str, standalone: bool = False) -> str:
    """SVG of `column` and `eval_`+`column` of a training.csv over `step`.

    Without any value: "" in a page, an empty figure as a file.
    """
    lines = {
        name: _points(curve, key)
        for name, key in (("train", column), ("validation", f"eval_{column}"))
    }
    points = [point for line in lines.values() for point in line]
    if not points:
        label = f"{title}: nothing recorded"
        return figure([], WIDTH, HEIGHT, label, standalone=True) if standalone else ""

    marks = ticks(min(y for _, y in points), max(y for _, y in points))
    last = max(x for x, _ in points) or 1.0
    exact = (d for d in range(4) if all(abs(mark - round(mark, d)) < 1e-9 for mark in marks))
    digits = next(exact, 4)

    def at(point: tuple[float, float]) -> tuple[float, float]:
        step, value = point
        height = (value - marks[0]) / (marks[-1] - marks[0])
        return _LEFT + step / last * (_RIGHT - _LEFT), _BOTTOM - height * (_BOTTOM - _TOP)

    parts = []
    for mark in marks:
        _, y = at((0, mark))
        parts.append(element("line", x1=_LEFT, x2=_RIGHT, y1=y, y2=y, class_="grid"))
        label = f"{mark:.{digits}f}"
        parts.append(text(label, x=_LEFT - 7, y=y + 4, class_="tick", text_anchor="end"))
    for mark in [m for m in ticks(0, last, 5) if m <= last and m == round(m)]:
        x, _ = at((mark, marks[0]))
        parts.append(text(f"{mark:,.0f}", x=x, y=_BOTTOM + 17, class_="tick", text_anchor="middle"))
    parts.append(text("step", x=_RIGHT, y=HEIGHT - 4, class_="axis", text_anchor="end"))

    for name, line in lines.items():
        placed = [at(point) for point in line]
        if len(placed) > 1:
            parts.append(element("path", d=path_of(placed), class_=f"line {name}"))
        if name == "validation":
            parts += [
                element("circle", cx=x, cy=y, r=3.5, class_="dot validation") for x, y in placed
            ]

    ends = ", ".join(
        f"{name} {line[0][1]:.3g} to {line[-1][1]:.3g}" for name, line in lines.items() if line
    )
    label = f"{title}: {ends}"
    if not standalone:
        return figure(parts, WIDTH, HEIGHT, label)
    head = [
        text(title, x=_LEFT, y=18, class_="title"),
        text("– train", x=_RIGHT - 90, y=18, class_="train", text_anchor="end"),
        text("● validation", x=_RIGHT, y=18, class_="validation", text_anchor="end"),
    ]
    body = element("g", "\n".join(parts), transform=f"translate(0 {_HEAD})")
    return figure([*head, body], WIDTH, HEIGHT + _HEAD, label, standalone=True)


def _points(curve: pl.DataFrame, column: str) -> list[tuple[float, float]]:
    """(step, value) of the finite values: every n-th, and always the last."""
    values = curve.select("step", value=column).drop_nulls()
    points = values.filter(pl.col("value").is_finite()).sort("step").rows()
    every = -(-len(points) // _MAX_POINTS) or 1
    return [point for i, point in enumerate(points) if i % every == 0 or i == len(points) - 1]
