"""The safety-utility plane: refusing everything and complying with everything are two corners.

A good model is at the top right.

draw_plane(inputs.plane)                     # SVG for a page that has charts.css
draw_plane(inputs.plane, standalone=True)    # an SVG file that includes charts.css
"""

import math
from html import escape
from typing import Any, NamedTuple

import polars as pl

from stages.reporting.drawing import about, colours, element, figure, path_of, percent, text

WIDTH, HEIGHT = 500, 478
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 454, 14, 430
_PAD = 12  # inside the frame, so that marks at 0 and 100 % aren't cut
_LINE, _LETTER = 15.0, 7.7  # height of a label and mean width of a letter
_LEVELS = (0.2, 0.4, 0.6, 0.8, 0.9)  # harmonic means with a contour line

Point = tuple[float, float]


class Box(NamedTuple):
    """left, top, right, bottom in SVG units."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: "Box") -> float:
        """Area that both cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0.0, width) * max(0.0, height)


class Spot(NamedTuple):
    """The place of a name, and the end of its leader line if it isn't next to its dot."""

    box: Box
    leader: Point | None


def draw_plane(plane: pl.DataFrame, low: float = 0.0, standalone: bool = False) -> str:
    """SVG of the candidates of plane.csv with both rates at least `low` (0 = all).

    x is utility, y is safety, both from `low` to 1.
    """
    rows = [
        row
        for row in plane.sort("candidate").iter_rows(named=True)
        if row["safety"] is not None
        and row["utility"] is not None
        and min(row["safety"], row["utility"]) >= low
    ]
    colour = colours(plane["candidate"].to_list())

    def x(utility: float) -> float:
        return _LEFT + _PAD + (max(utility, low) - low) / (1 - low) * (_RIGHT - _LEFT - 2 * _PAD)

    def y(safety: float) -> float:
        return _BOTTOM - _PAD - (max(safety, low) - low) / (1 - low) * (_BOTTOM - _TOP - 2 * _PAD)

    parts = [*_frame(x, y, low), *_contours(x, y, low), *_axis_titles()]
    dots = [(x(row["utility"]), y(row["safety"])) for row in rows]
    bars = [
        Box(x(row["utility_lo"]), cy - 1, x(row["utility_hi"]), cy + 1)
        for row, (_, cy) in zip(rows, dots, strict=True)
    ]
    bars += [
        Box(cx - 1, y(row["safety_hi"]), cx + 1, y(row["safety_lo"]))
        for row, (cx, _) in zip(rows, dots, strict=True)
    ]
    spots = place([row["candidate"] for row in rows], dots, bars)
    for row, dot, spot in zip(rows, dots, spots, strict=True):
        parts.append(_candidate(row, dot, spot, colour[row["candidate"]], x, y))

    title = "Safety against utility of every candidate"
    if low:
        title += f", close-up from {percent(low, 0)} %"
    return figure(parts, WIDTH, HEIGHT, title, "plane", standalone)


def _frame(x, y, low: float) -> list[str]:
    """The frame, grid lines and their labels; x and y give the place of a rate."""
    width, height = _RIGHT - _LEFT, _BOTTOM - _TOP
    parts = [element("rect", x=_LEFT, y=_TOP, width=width, height=height, class_="frame")]
    step = 0.25 if low == 0 else 0.1 if low < 0.8 else 0.05
    for i in range(math.floor((1 - low) / step + 1e-9) + 1):
        rate = 1 - i * step
        label = percent(rate, 0)
        parts += [
            element("line", x1=x(rate), x2=x(rate), y1=_TOP, y2=_BOTTOM, class_="grid"),
            element("line", x1=_LEFT, x2=_RIGHT, y1=y(rate), y2=y(rate), class_="grid"),
            text(label, x=x(rate), y=_BOTTOM + 16, class_="tick", text_anchor="middle"),
            text(label, x=_LEFT - 7, y=y(rate) + 4, class_="tick", text_anchor="end"),
        ]
    return parts


def _contours(x, y, low: float) -> list[str]:
    """Lines of equal harmonic mean H, with labels.

    With u for utility and s for safety, (2u - H)(2s - H) = H * H, so the two factors are
    H * exp(t) and H * exp(-t).
    """
    parts = []
    for level in _LEVELS:
        end = level / (2 - level)  # one rate when the other is 1
        if end < low:
            continue
        steepest = math.log((2 - level) / level)
        factors = [math.exp(steepest * i / 24) for i in range(-24, 25)]
        line = [(x(level * (1 + by) / 2), y(level * (1 + 1 / by) / 2)) for by in factors]
        parts.append(element("path", d=path_of(line), class_="iso"))
        parts.append(text(f"H {percent(level, 0)}", x=_RIGHT + 6, y=y(end) + 4, class_="iso-label"))
    return parts


def _axis_titles() -> list[str]:
    across, down = (_LEFT + _RIGHT) / 2, (_TOP + _BOTTOM) / 2
    middle = {"class_": "axis", "text_anchor": "middle"}
    utility = "utility, % of legitimate requests answered correctly"
    safety = "safety, % of illegitimate requests refused"
    turned = f"rotate(-90 14 {down:g})"
    return [
        text(utility, x=across, y=HEIGHT - 12, **middle),
        text(safety, x=14, y=down, transform=turned, **middle),
    ]


def _candidate(row: dict[str, Any], dot: Point, spot: Spot, colour: str, x, y) -> str:
    """One candidate: its intervals as bars, its mark, and its name at `spot`."""
    (cx, cy), (box, leader), name = dot, spot, row["candidate"]
    rates = f"safety {_interval(row, 'safety')}, utility {_interval(row, 'utility')}"
    across = {"x1": x(row["utility_lo"]), "x2": x(row["utility_hi"])}
    upright = {"y1": y(row["safety_lo"]), "y2": y(row["safety_hi"])}
    middle = (box.left + box.right) / 2
    parts = [
        element("title", escape(f"{name} ({about(name)}): {rates}")),
        element("line", **across, y1=cy, y2=cy, class_="bar"),
        element("line", x1=cx, x2=cx, **upright, class_="bar"),
    ]
    if leader:
        parts.append(element("line", x1=cx, y1=cy, x2=leader[0], y2=leader[1], class_="leader"))
    parts += [
        _mark(colour, cx, cy),
        text(name, x=middle, y=box.bottom - 4, class_="name", text_anchor="middle"),
    ]
    return element("g", "".join(parts), class_=f"candidate {colour}")


def place(names: list[str], dots: list[Point], bars: list[Box]) -> list[Spot]:
    """A spot for each name near its dot.

    Names are placed one after the other, the most crowded dots first, each where it covers least.
    Then each moves to a better spot if there is one, now that all are placed.
    """
    crowd = [sum(math.dist(a, b) < 70 for b in dots) for a in dots]
    order = sorted(range(len(names)), key=lambda i: (-crowd[i], names[i]))
    spots: dict[int, Spot] = {}
    for _ in range(4):
        for i in order:
            others = [spot for j, spot in spots.items() if j != i]
            candidates = _spots(names[i], dots[i])
            spots[i] = min(candidates, key=lambda spot: _cost(spot, dots[i], dots, bars, others))
    return [spots[i] for i in range(len(names))]


def _spots(name: str, dot: Point) -> list[Spot]:
    """Boxes for `name` around `dot`, near ones first; only those inside the frame, if any are."""
    width = _LETTER * len(name) + 4
    spots = []
    for distance in (10, 16, 24, 36, 52, 70, 90, 112, 136, 164):
        for turn in range(16):
            right, up = math.cos(math.pi * turn / 8), math.sin(math.pi * turn / 8)
            ax, ay = dot[0] + distance * right, dot[1] - distance * up
            # The anchor slides round the rim of the box.
            left, top = ax - width / 2 * (1 - right), ay - _LINE / 2 * (1 + up)
            box = Box(left, top, left + width, top + _LINE)
            spots.append(Spot(box, (ax, ay) if distance > 16 else None))
    inside = [
        spot
        for spot in spots
        if spot.box.left > _LEFT
        and spot.box.right < _RIGHT
        and spot.box.top > _TOP
        and spot.box.bottom < _BOTTOM
    ]
    return inside or spots


def _cost(spot: Spot, dot: Point, dots: list[Point], bars: list[Box], others: list[Spot]) -> float:
    """How bad a spot is: its distance, what it covers, whose dot it seems to name, its leader."""
    box, leader = spot
    nearest = (min(max(dot[0], box.left), box.right), min(max(dot[1], box.top), box.bottom))
    cost = math.dist(dot, leader or nearest)
    cost += abs(dot[1] - (box.top + box.bottom) / 2) / 4  # next to the dot reads best
    cost += 8 if leader else 0

    overlaps = [box.overlap(other.box) for other in others]
    cost += sum(20 * area + 300 * (area > 0) for area in overlaps)
    cost += sum(3 * box.overlap(bar) for bar in bars)
    for other in dots:
        cost += 10 * box.overlap(_around(other, 6))
        if other != dot:
            cost += 0.5 * box.overlap(_around(other, 14))

    for i in range(1, 9) if leader else ():
        at = (dot[0] + (leader[0] - dot[0]) * i / 8, dot[1] + (leader[1] - dot[1]) * i / 8)
        step = _around(at, 2)
        cost += sum(20 * step.overlap(other.box) for other in others)
        cost += sum(10 * step.overlap(_around(other, 6)) for other in dots if other != dot)
    return cost


def _around(point: Point, radius: float) -> Box:
    x, y = point
    return Box(x - radius, y - radius, x + radius, y + radius)


def _mark(colour: str, cx: float, cy: float) -> str:
    """A dot for a trained policy, a hollow square for a baseline, a diamond for any other.

    So they differ in shape, not only in colour.
    """
    if colour in ("blue", "orange"):
        return element("circle", cx=cx, cy=cy, r=5.5, class_="mark")
    if colour == "grey":
        return element("rect", x=cx - 4.5, y=cy - 4.5, width=9, height=9, class_="mark hollow")
    corners = [(cx, cy - 6.5), (cx + 6.5, cy), (cx, cy + 6.5), (cx - 6.5, cy)]
    return element("path", d=path_of(corners) + "Z", class_="mark")


def _interval(row: dict[str, Any], rate: str) -> str:
    return f"{percent(row[rate])} % ({percent(row[rate + '_lo'])} to {percent(row[rate + '_hi'])})"
