"""What figures and tables share: percentages, axis ticks, candidates' colours, SVG elements.

element("circle", cx=1.25, cy=2, r=4, class_="dot")
-> <circle cx="1.25" cy="2" r="4" class="dot"/>
"""

import math
from html import escape
from pathlib import Path

DASH = "–"
# The pipeline's own candidates; any other is one of respond.candidates.
ABOUT = {
    "dpo": "trained: fine-tuned, then preferences",
    "sft": "trained: fine-tuned only",
    "teacher": "upper bound: sees the fact sheet",
    "ngram_guard": "baseline: character n-grams decide",
    "always_refuse": "baseline: refuses everything",
    "always_comply": "baseline: helps with everything",
}
_COLOURS = {"dpo": "blue", "sft": "orange"} | dict.fromkeys(
    ("teacher", "ngram_guard", "always_refuse", "always_comply"), "grey"
)
_ENDPOINT_COLOURS = ("green", "purple", "vermilion", "sky")


def about(name: str) -> str:
    """A few words on candidate `name`."""
    return ABOUT.get(name, "further candidate")


def colours(names: list[str]) -> dict[str, str]:
    """The colour class of each candidate (`blue`, ... of charts.css).

    The pipeline's own have fixed colours; the others take turns, sorted by name.
    """
    others = sorted(name for name in names if name not in _COLOURS)
    turns = {name: _ENDPOINT_COLOURS[i % len(_ENDPOINT_COLOURS)] for i, name in enumerate(others)}
    return {name: _COLOURS.get(name) or turns[name] for name in names}


def percent(rate: float | None, digits: int = 1) -> str:
    """0.5 -> "50.0"; a dash for None."""
    return DASH if rate is None else f"{100 * rate:.{digits}f}"


def element(tag: str, content: str | None = None, **attributes: str | float | None) -> str:
    """An SVG element; `content` must be escaped already.

    Attributes of None are left out; `class_` is class, and `_` in a name is `-`.
    """
    written = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{_attribute(value)}"'
        for name, value in attributes.items()
        if value is not None
    )
    return f"<{tag}{written}/>" if content is None else f"<{tag}{written}>{content}</{tag}>"


def text(content: str, **attributes: str | float | None) -> str:
    """An SVG text; `content` is escaped here."""
    return element("text", escape(content), **attributes)


def figure(
    parts: list[str],
    width: float,
    height: float,
    label: str,
    kind: str = "",
    standalone: bool = False,
) -> str:
    """An SVG of `parts`, for a page with charts.css, or a file that includes it (`standalone`)."""
    head: dict[str, str | float] = {
        "viewBox": f"0 0 {_number(width)} {_number(height)}",
        "class_": f"chart {kind}".strip(),
        "role": "img",
    }
    body = [part for part in parts if part]
    if standalone:
        head = {"xmlns": "http://www.w3.org/2000/svg", "width": width, "height": height} | head
        style = (Path(__file__).parent / "charts.css").read_text(encoding="utf-8")
        # A file has its own background: a light page can be read on a system in dark mode.
        body = [
            element("style", f"\n{style}"),
            element("rect", width=width, height=height, class_="ground"),
            *body,
        ]
    return element("svg", "\n" + "\n".join(body) + "\n", **head, aria_label=label) + "\n"


def path_of(points: list[tuple[float, float]]) -> str:
    """The `d` of an open line through `points`."""
    return "M" + " L".join(f"{_number(x)} {_number(y)}" for x, y in points)


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers that cover low..high, in about `about` steps of 1, 2 or 5 times 10^n."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / about))
    step = next(power * m for m in (1, 2, 5, 10) if span / (power * m) <= about + 0.5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, max(last, first + 1) + 1)]


def _attribute(value: str | float) -> str:
    return escape(_number(value) if isinstance(value, (int, float)) else value)


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
