"""Numbers with units as people and models write them, found in a text.

    list(quantities(normalized("It melts at 83–85 °C.")))
    -> [Quantity(start=12, end=20, low=83.0, high=85.0, unit="degree_Celsius", bound=None,
                 written="83-85 °c")]

Reads minus signs of all kinds, exponents, thousands separators, decimal commas, ranges, ±, bounds,
and a unit before its number, as in the head of a table.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from stages.judging.quantity_text import MINUS
from stages.judging.units import USUAL, Units, unit_at

UNITLESS = "dimensionless"  # pint's name for no unit


@dataclass(frozen=True)
class Quantity:
    """The quantity at start:end of a text: low to high (equal but for ranges and ±) in `unit`.

    `unit` is pint's name; `bound` is "low" for "above 80 °C", "high" for "below 80 °C", else None.
    """

    start: int
    end: int
    low: float
    high: float
    unit: str
    bound: str | None
    written: str


_PLAIN = (
    r"(?:\d{1,3}(?P<mark>[ ,.'])\d{3}(?:(?P=mark)\d{3})*(?:[.,]\d+)?|\d+[.,]\d+|\d+|\.\d+)"
    r"(?![.,']?\d)"
)
_EXPONENT = (  # x 10^-4, also with the superscript lost: x 10-4, x 103
    rf"(?: ?[x×·*] ?10 ?(?:\^ ?\(? ?[-+{MINUS}]? ?\d{{1,3}}\)?|[-{MINUS}]\d{{1,2}}(?!\d)"
    rf"|[1-9](?![\d.,]))|e[-+{MINUS}]?\d{{1,3}})?"
)
_NUMBER = re.compile(
    rf"(?<![\w.,^])(?<!\d/)(?P<sign>[+{MINUS}]?)(?P<plain>{_PLAIN})(?P<exponent>{_EXPONENT})"
)
_SPREAD = re.compile(r" ?(?:±|\+/-|\+-|plus or minus|give or take) ?(?=\d)")
_TO = re.compile(rf" ?(?P<word>-|~|to|through|up to|\.\.+|and) ?(?=[+{MINUS}]?\.?\d)")
_BELOW_ZERO = re.compile(r" ?(?:below|under) (?:zero|0)\b")
_APPROX = (
    r"(?:about|roughly|approximately|approx|around|circa|ca|some|nearly|almost|the|a|~|≈|well)"
)
_BOUND = re.compile(
    r"(?P<not>\bnot (?:[\w-]+ ){0,4}?)?"
    r"(?:(?P<low>\b(?:above|over|beyond|until|at least|minimum(?: of)?|exceed(?:s|ing)?"
    r"|(?:more|greater|higher|larger) than)\b|>=?|≥|⩾)"
    r"|(?P<high>\b(?:below|under|at most|maximum(?: of)?|up to"
    rf"|(?:less|lower|smaller) than)\b|<=?|≤|⩽)) ?(?:{_APPROX} ?)?$"
)
_NO_MORE = re.compile(rf"\bno (?P<word>more|greater|higher|less|lower) than (?:{_APPROX} ?)?$")
_OR_MORE = re.compile(
    r" ?(?:or|and) (?:(?P<low>higher|above|more|over)|(?P<high>lower|below|less|under))\b"
)
_UNIT_BEFORE = re.compile(
    r"[(/\[] ?(?:in )?(?P<unit>[a-zµμ°%][^()\[\]]{0,24}?)[)\]]? ?(?:is|of|was|:|=|\||\s)* ?$"
)


def quantities(
    text: str,
    most: int,
    unitless: re.Pattern[str] | None = None,
    dilution: bool = False,
    units: Units = USUAL,
) -> Iterator[Quantity]:
    """The first `most` quantities of a normalized text; a range or ± is one.

    A number without a unit counts only after a match of `unitless` (as UNITLESS). In a dilution
    "10 mL to 250 mL" are two volumes.
    """
    at, count = 0, 0
    while count < most and (number := _NUMBER.search(text, at)):
        at = number.end()
        quantity = _quantity(text, number, unitless, dilution, units)
        if quantity:
            count, at = count + 1, quantity.end
            yield quantity


def _quantity(
    text: str, number: re.Match[str], unitless: re.Pattern[str] | None, dilution: bool, units: Units
) -> Quantity | None:
    low = high = _value(number)
    start, end = number.span()

    # A ± before or behind the unit.
    spread, end = _spread(text, end)
    unit, end = unit_at(text, end, units)
    if unit and low > 0 and (below := _BELOW_ZERO.match(text, end)):
        low, high, end = -low, -high, below.end()
    if unit and not spread:
        spread, end = _spread(text, end)
        end = unit_at(text, end, units)[1] if spread else end

    # A range: the other end must have the same unit.
    to = _TO.match(text, end)
    between = re.search(r"\bbetween\b", text[max(0, start - 30) : start])
    if to and (to["word"] != "and" or between) and not (dilution and unit and not between):
        other = _NUMBER.match(text, to.end())
        same, stop = unit_at(text, other.end(), units) if other else (None, end)
        if other and same and unit in (None, same):
            unit, end = same, stop
            low, high = min(low, _value(other)), max(low, _value(other))

    if not unit:
        unit = _unit_before(text, start, end, unitless, units)
    if unit is None:
        return None
    bound = _bound(text, start, end) if low == high else None
    written = text[start:end].strip().replace(MINUS, "-")
    return Quantity(start, end, low - spread, high + spread, unit, bound, written)


def _unit_before(
    text: str, start: int, end: int, unitless: re.Pattern[str] | None, units: Units
) -> str | None:
    """The unit of a number that has none behind it."""
    before = text[max(0, start - 48) : start]
    head = _UNIT_BEFORE.search(before)
    if head:
        written = head["unit"].rstrip()
        unit, stop = unit_at(written, 0, units)
        if unit and stop == len(written):
            return unit
    bare = not re.match(r"[-/%\w]", text[end : end + 1])
    return UNITLESS if unitless and unitless.search(before) and bare else None


def _value(number: re.Match[str]) -> float:
    """`1,234.5`, `1.234,5`, `46,07`, `1'600`.

    A mark before three digits groups them, unless a point or a leading zero rules it out.
    """
    written, mark = number["plain"], number["mark"]
    decimal_point = mark == "." and written.count(".") == 1 and "," not in written
    if mark and not decimal_point and not (mark in ",." and written[0] == "0"):
        written = written.replace(mark, "")
    exponent = re.sub(r"^e|^ ?[x×·*] ?10 ?\^?|[\s()]", "", number["exponent"])
    sign = number["sign"].replace(MINUS, "-")
    return float(f"{sign}{written.replace(',', '.')}e{exponent.replace(MINUS, '-') or '0'}")


def _spread(text: str, at: int) -> tuple[float, int]:
    """(the number after a ± at `at`, its end), or (0, at)."""
    mark = _SPREAD.match(text, at)
    number = _NUMBER.match(text, mark.end()) if mark else None
    return (abs(_value(number)), number.end()) if number else (0.0, at)


def _bound(text: str, start: int, end: int) -> str | None:
    before = text[max(0, start - 60) : start]
    if no := _NO_MORE.search(before):
        return "low" if no["word"] in ("less", "lower") else "high"
    if bound := _BOUND.search(before):
        negated = bool(bound["not"]) and "until" not in bound[0]  # "not until 80 °C" is a low bound
        return "low" if bool(bound["low"]) is not negated else "high"
    more = _OR_MORE.match(text, end)
    return ("low" if more["low"] else "high") if more else None
