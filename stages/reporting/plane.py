"""The safety-utility plane: refusing everything and helping with everything are corners, a good model is at the top right.

draw_plane(inputs.plane)                     # SVG to stand in a page that has charts.css
draw_plane(inputs.plane, standalone=True)    # SVG file that carries charts.css itself
"""

import math
from html import escape
from typing import NamedTuple

import polars as pl

from stages.reporting.drawing import about, colours, element, figure, path_of, percent, text

WIDTH, HEIGHT = 500, 478
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 454, 14, 430
_PAD = 12  # room inside the frame, so that marks on 0 and 100 % are whole
_LINE, _LETTER = 15.0, 7.7  # height of a label and mean width of its letters
_LEVELS = (0.2, 0.4, 0.6, 0.8, 0.9)


class Box(NamedTuple):
    """left, top, right, bottom in SVG units."""

    left: float
    top: float
    right: float
    bottom: float

    def shared(self, other: "Box") -> float:
        """Area that both cover."""
        wide = min(self.right, other.right) - max(self.left, other.left)
        high = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0.0, wide) * max(0.0, high)


class Spot(NamedTuple):
    """Where a name stands, and the end of the leader line to it where it isn't beside its dot."""

    box: Box
    leader: tuple[float, float] | None


def draw_plane(plane: pl.DataFrame, low: float = 0.0, standalone: bool = False) -> str:
    """SVG of the candidates of plane.csv whose rates are at least `low` (0 = all), x = utility, y = safety, both low..1."""
    points = [
        row for row in plane.sort("candidate").iter_rows(named=True)
        if row["safety"] is not None and row["utility"] is not None and min(row["safety"], row["utility"]) >= low
    ]  # fmt: skip
    colour = colours(plane["candidate"].to_list())

    def x(utility: float) -> float:
        return _LEFT + _PAD + (max(utility, low) - low) / (1 - low) * (_RIGHT - _LEFT - 2 * _PAD)

    def y(safety: float) -> float:
        return _BOTTOM - _PAD - (max(safety, low) - low) / (1 - low) * (_BOTTOM - _TOP - 2 * _PAD)

    parts = [
        element(
            "rect", x=_LEFT, y=_TOP, width=_RIGHT - _LEFT, height=_BOTTOM - _TOP, class_="frame"
        )
    ]
    step = 0.25 if low == 0 else 0.1 if low < 0.8 else 0.05
    for i in range(math.floor((1 - low) / step + 1e-9) + 1):
        at = 1 - i * step
        parts.append(element("line", x1=x(at), x2=x(at), y1=_TOP, y2=_BOTTOM, class_="grid"))
        parts.append(element("line", x1=_LEFT, x2=_RIGHT, y1=y(at), y2=y(at), class_="grid"))
        parts.append(
            text(percent(at, 0), x=x(at), y=_BOTTOM + 16, class_="tick", text_anchor="middle")
        )
        parts.append(
            text(percent(at, 0), x=_LEFT - 7, y=y(at) + 4, class_="tick", text_anchor="end")
        )
    for level in _LEVELS:
        end = level / (2 - level)  # the other rate where one is 1
        if end < low:
            continue
        steepest = math.log(
            (2 - level) / level
        )  # (2u - H)(2s - H) = H * H, so both factors are H * exp(+-t)
        bends = [math.exp(steepest * i / 24) for i in range(-24, 25)]
        line = [(x(level * (1 + bend) / 2), y(level * (1 + 1 / bend) / 2)) for bend in bends]
        parts.append(element("path", d=path_of(line), class_="iso"))
        parts.append(text(f"H {percent(level, 0)}", x=_RIGHT + 6, y=y(end) + 4, class_="iso-label"))
    across, down = (_LEFT + _RIGHT) / 2, (_TOP + _BOTTOM) / 2
    middle = {"class_": "axis", "text_anchor": "middle"}
    parts.append(
        text(
            "utility, % of legitimate requests answered correctly",
            x=across,
            y=HEIGHT - 12,
            **middle,
        )
    )
    parts.append(
        text(
            "safety, % of illegitimate requests refused",
            x=14,
            y=down,
            transform=f"rotate(-90 14 {down:g})",
            **middle,
        )
    )

    dots = [(x(row["utility"]), y(row["safety"])) for row in points]
    bars = [
        Box(x(row["utility_lo"]), cy - 1, x(row["utility_hi"]), cy + 1)
        for row, (_, cy) in zip(points, dots, strict=True)
    ]
    bars += [
        Box(cx - 1, y(row["safety_hi"]), cx + 1, y(row["safety_lo"]))
        for row, (cx, _) in zip(points, dots, strict=True)
    ]
    spots = place([row["candidate"] for row in points], dots, bars)
    for row, (cx, cy), (box, leader) in zip(points, dots, spots, strict=True):
        name = row["candidate"]
        said = f"{name} ({about(name)}): safety {_told(row, 'safety')}, utility {_told(row, 'utility')}"
        inside = [
            element("title", escape(said)),
            element(
                "line", x1=x(row["utility_lo"]), x2=x(row["utility_hi"]), y1=cy, y2=cy, class_="bar"
            ),
            element(
                "line", x1=cx, x2=cx, y1=y(row["safety_lo"]), y2=y(row["safety_hi"]), class_="bar"
            ),
            element("line", x1=cx, y1=cy, x2=leader[0], y2=leader[1], class_="leader")
            if leader
            else "",
            _mark(colour[name], cx, cy),
            text(
                name,
                x=(box.left + box.right) / 2,
                y=box.bottom - 4,
                class_="name",
                text_anchor="middle",
            ),
        ]
        parts.append(element("g", "".join(inside), class_=f"candidate {colour[name]}"))
    title = "Safety against utility of every candidate" + (
        f", close-up from {percent(low, 0)} %" if low else ""
    )
    return figure(parts, WIDTH, HEIGHT, title, "plane", standalone)


def place(names: list[str], dots: list[tuple[float, float]], bars: list[Box]) -> list[Spot]:
    """A spot for each name near its dot.

    Names are placed one after the other, the most crowded dots first, each on the spot that covers least of what is already
    there; then each in turn may move to a better spot, now that all others stand.
    """
    crowd = [sum(math.dist(a, b) < 70 for b in dots) for a in dots]
    order = sorted(range(len(names)), key=lambda i: (-crowd[i], names[i]))
    spots: dict[int, Spot] = {}
    for _ in range(4):
        for i in order:
            others = [spot for j, spot in spots.items() if j != i]
            spots[i] = min(
                _spots(names[i], dots[i]), key=lambda spot: _cost(spot, dots[i], dots, bars, others)
            )
    return [spots[i] for i in range(len(names))]


def _spots(name: str, dot: tuple[float, float]) -> list[Spot]:
    """Boxes for `name` all round `dot`, near ones first; those inside the frame, if there are any."""
    width = _LETTER * len(name) + 4
    found = []
    for distance in (10, 16, 24, 36, 52, 70, 90, 112, 136, 164):
        for turn in range(16):
            right, up = math.cos(math.pi * turn / 8), math.sin(math.pi * turn / 8)
            ax, ay = dot[0] + distance * right, dot[1] - distance * up
            left, top = (
                ax - width / 2 * (1 - right),
                ay - _LINE / 2 * (1 + up),
            )  # the anchor slides round the box's rim
            found.append(
                Spot(Box(left, top, left + width, top + _LINE), (ax, ay) if distance > 16 else None)
            )
    inside = [
        s
        for s in found
        if s.box.left > _LEFT
        and s.box.right < _RIGHT
        and s.box.top > _TOP
        and s.box.bottom < _BOTTOM
    ]
    return inside or found


def _cost(
    spot: Spot, dot: tuple[float, float], dots: list, bars: list[Box], others: list[Spot]
) -> float:
    """How badly a name stands: what it covers, whose dot it seems to belong to, what its leader crosses, how far it is."""
    box, leader = spot
    ax, ay = leader or (
        min(max(dot[0], box.left), box.right),
        min(max(dot[1], box.top), box.bottom),
    )
    cost = (
        math.dist(dot, (ax, ay))
        + abs(dot[1] - (box.top + box.bottom) / 2) / 4
        + (8 if leader else 0)
    )  # beside reads best
    cost += sum(20 * box.shared(other.box) + 300 * (box.shared(other.box) > 0) for other in others)
    cost += sum(3 * box.shared(bar) for bar in bars)
    for x, y in dots:
        cost += 10 * box.shared(Box(x - 6, y - 6, x + 6, y + 6))
        if (x, y) != dot:
            cost += 0.5 * box.shared(Box(x - 14, y - 14, x + 14, y + 14))
    for i in range(1, 9) if leader else ():
        at = Box(
            *(
                dot[k % 2] + (leader[k % 2] - dot[k % 2]) * i / 8 + (2 if k > 1 else -2)
                for k in range(4)
            )
        )
        cost += sum(20 * at.shared(other.box) for other in others)
        cost += sum(
            10 * at.shared(Box(x - 6, y - 6, x + 6, y + 6)) for x, y in dots if (x, y) != dot
        )
    return cost


def _mark(colour: str, cx: float, cy: float) -> str:
    """A dot for a trained policy, a hollow square for a baseline, a diamond for an endpoint: told apart without colour."""
    if colour in ("blue", "orange"):
        return element("circle", cx=cx, cy=cy, r=5.5, class_="mark")
    if colour == "grey":
        return element("rect", x=cx - 4.5, y=cy - 4.5, width=9, height=9, class_="mark hollow")
    return element(
        "path",
        d=path_of([(cx, cy - 6.5), (cx + 6.5, cy), (cx, cy + 6.5), (cx - 6.5, cy)]) + "Z",
        class_="mark",
    )


def _told(row: dict, rate: str) -> str:
    return f"{percent(row[rate])} % ({percent(row[rate + '_lo'])} to {percent(row[rate + '_hi'])})"
