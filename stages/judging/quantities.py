"""Numbers with units as people and models write them: found in a text, converted by pint.

    list(quantities(plain("It melts at 83–85 °C.")))
    -> [Quantity(start=12, end=20, low=83.0, high=85.0, unit="degree_Celsius", bound=None, written="83-85 °c")]
    convert(84.0, "degree_Celsius", "K")    # 357.15

Knows minus signs of all kinds, exponents, thousands separators, decimal commas, numbers in words, ranges, ±, bounds, units spelt out or
misspelt, and a unit that stands before its number as in a table's head. Reads a text, writes nothing.
"""

import html
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from stages.core.errors import LibraError
from stages.judging.statements import mended

UNITLESS = "dimensionless"  # pint's name for no unit
MINUS = "−"  # the sign of a number in a text that `plain` has read; "-" then is a dash or a range


@dataclass(frozen=True)
class Quantity:
    """What stands at start:end of the text: low to high (equal but for ranges and ±) in `unit`, a name that pint reads.

    `bound` is "low" for "above 80 °C", "high" for "below 80 °C", else None.
    """

    start: int
    end: int
    low: float
    high: float
    unit: str
    bound: str | None
    written: str


_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_LOOKS = str.maketrans(
    {"º": "°", "˚": "°", "−": "-", "–": "-", "‐": "-", "‑": "-", "⁃": "-", "—": " ‒ ", "’": "'", "‘": "'", "ʼ": "'"}
)  # fmt: skip
_HIDDEN = re.compile("[\u00ad\u200b-\u200f\u2060-\u2064\ufe0e\ufe0f\ufeff]")
_STYLES = r"\\(?:text|mathrm|mathbf|textbf|rm|ce|si|unit|boxed)"
_MARKUP = [(re.compile(pattern), written) for pattern, written in (
    (r"(?i)<sup>\s*([^<]{1,9}?)\s*</sup>", r"^\1"), (r"(?i)</?[a-z]{1,6} ?/?>", ""),
    (r"\^?\{?\\circ(?![a-z])\}?|\\degree\b", "°"), (r"(?<=\d)~(?=[\\a-zA-Z])", " "),
    (_STYLES + r" ?\{([^{}]{0,80})\}", r"\1"), (_STYLES + r"\b", " "),
    (r"\\times\b", "×"), (r"\\cdot\b", "·"), (r"\\pm\b", "±"), (r"\\(?:approx|sim)\b", "~"), (r"\\[,;:! ]", " "),
    (r"[{}$`\\\"“”]", ""), (r"(?<=10) ?\*\* ?(?=[-+(]?\d)", "^"),
    (r"\*\*+|(?<!\d)\*(?=\S)|(?<=\S)\*(?! ?\d)", ""), ("_", " "),
)]  # fmt: skip
_ZEROS = {"hundred": 2, "thousand": 3, "million": 6}
_WORDS = [(re.compile(pattern), written) for pattern, written in (
    (r"\b([mb])\. ?p\.", r"\1p"), (r"\b(approx|ca|c(?=\. ?[\d~])|deg|temp|wt|max|min|vs|cu|lit|est)\.(?=\s)", r"\1"),
    (r"\bmol\.(?= (?:wt|mass|weight))", "mol"), (r"\b(i|e)\.(e|g)\.", r"\1\2"),
    (r"\bcan(?:not|'t)\b", "can not"), (r"\bwon't\b", "will not"), (r"n't\b", " not"),
    (r"\bdegrees? (?:on the|in) (celsius|centigrade|fahrenheit|kelvin)(?: scale)?", r"degrees \1"),
    (r"\bdegrees? (below zero) (celsius|centigrade|fahrenheit)\b", r"degrees \2 \1"),
    (r"(?<![\d.,])(\d[\d.,]*) (hundred|thousand|million)\b", lambda found: f"{found[1]}e{_ZEROS[found[2]]}"),
    (r" of (?:the )?[a-z]+ (?=per\b)", " "), (r"\b(?:unified )?atomic mass units?\b", "amu"),
    (r"\bparts per million\b", "ppm"), (r"\bparts per billion\b", "ppb"), (r"\bmm (?:of )?(?:hg|mercury)\b", "mmhg"),
)]  # fmt: skip

_DIGITS = {word: number for number, word in enumerate(
    ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"])}  # fmt: skip
_TENS = {
    word: 10 * number
    for number, word in enumerate(
        ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"], 2
    )
}
_COUNT = rf"(?:{'|'.join([*_DIGITS, *_TENS, *_ZEROS])})"
_SPELT = re.compile(
    rf"\b(?:half (?:an? )?|{_COUNT}(?:(?:[\s-]|\sand\s){_COUNT}){{0,9}}(?:\spoint(?:\s{_COUNT}){{1,6}})?\b)(?= ?[a-z°µμ%])"
)

_PLAIN = r"(?:\d{1,3}(?P<mark>[ ,.'])\d{3}(?:(?P=mark)\d{3})*(?:[.,]\d+)?|\d+[.,]\d+|\d+|\.\d+)(?![.,']?\d)"
_EXPONENT = (  # x 10^-4, also with the superscript lost: x 10-4, x 103
    rf"(?: ?[x×·*] ?10 ?(?:\^ ?\(? ?[-+{MINUS}]? ?\d{{1,3}}\)?|[-{MINUS}]\d{{1,2}}(?!\d)|[1-9](?![\d.,]))"
    rf"|e[-+{MINUS}]?\d{{1,3}})?"
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
    rf"(?P<not>\bnot (?:[\w-]+ ){{0,4}}?)?(?:(?P<low>\b(?:above|over|beyond|until|at least|minimum(?: of)?|exceed(?:s|ing)?"
    rf"|(?:more|greater|higher|larger) than)\b|>=?|≥|⩾)|(?P<high>\b(?:below|under|at most|maximum(?: of)?|up to"
    rf"|(?:less|lower|smaller) than)\b|<=?|≤|⩽)) ?(?:{_APPROX} ?)?$"
)
_NO_MORE = re.compile(rf"\bno (?P<word>more|greater|higher|less|lower) than (?:{_APPROX} ?)?$")
_OR_MORE = re.compile(
    r" ?(?:or|and) (?:(?P<low>higher|above|more|over)|(?P<high>lower|below|less|under))\b"
)

# What people write for a unit, and pint's name for it.
_UNIT_WORDS = {
    "gram": "g gm gram grams gramme grammes", "kilogram": "kg kilogram kilograms kilo kilos", "milligram": "mg milligram milligrams",
    "microgram": "µg μg ug mcg microgram micrograms", "nanogram": "ng nanogram nanograms", "pound": "lb lbs pound pounds",
    "mole": "mol mols mole moles", "millimole": "mmol millimole millimoles", "kilomole": "kmol kilomole kilomoles",
    "liter": "l liter liters litre litres", "milliliter": "ml mls milliliter milliliters millilitre millilitres",
    "microliter": "µl μl ul microliter microliters microlitre microlitres", "centiliter": "cl centiliter centilitre centiliters",
    "deciliter": "dl deciliter decilitre", "centimeter**3": "cc ccm", "gallon": "gal gallon gallons",
    "meter": "m meter meters metre metres", "decimeter": "dm decimeter decimetre",
    "centimeter": "cm centimeter centimeters centimetre centimetres", "millimeter": "mm millimeter",
    "nanometer": "nm nanometer nanometers", "foot": "ft foot feet", "gram/mole": "da dalton daltons amu u",
    "kilogram/mole": "kda kilodalton kilodaltons", "ppmv": "ppm ppmv", "ppbv": "ppb ppbv", "percent": "% percent", "molar": "molar",
    "pascal": "pa pascal pascals", "kilopascal": "kpa kilopascal kilopascals", "hectopascal": "hpa", "megapascal": "mpa", "bar": "bar bars",
    "millibar": "mbar millibar", "atmosphere": "atm atmosphere atmospheres", "mmHg": "mmhg torr", "psi": "psi",
    "second": "s sec second seconds", "minute": "min minute minutes", "hour": "h hr hour hours", "day": "day days",
    "kilojoule": "kj", "joule": "j", "calorie": "cal",
    "kilocalorie": "kcal", "degree_Celsius": "c celsius centigrade", "degree_Fahrenheit": "f fahrenheit",
    "kelvin": "k kelvin kelvins", "degree_Rankine": "r rankine",
}  # fmt: skip
_TEMPERATURES = ("degree_Celsius", "degree_Fahrenheit", "kelvin", "degree_Rankine")
_VOLUMES = (
    "liter",
    "milliliter",
    "microliter",
    "centimeter**3",
    "centimeter",
    "meter",
    "decimeter",
)
_DEGREE = re.compile(r"° ?\(?|o(?=[cf]\b)|([a-z]{3,8})s? ?\(?")
_WORD = re.compile(
    r"(?P<power>(?:cubic|cu|square)\s)?(?P<word>[a-zµμ]+|%)(?:(?: ?\^ ?)?\(?(?P<exponent>[-−+]?[0-9])\)?(?![.,]?\d))?(?![a-zµμ\d])"
)
_OVER = re.compile(r" ?/ ?|\sper\s(?:an? )?|(?P<times> ?[·⋅•*] ?| |\.)")
_BEFORE = re.compile(
    r"[(/\[] ?(?:in )?(?P<unit>[a-zµμ°%][^()\[\]]{0,24}?)[)\]]? ?(?:is|of|was|:|=|\||\s)* ?$"
)


@dataclass(frozen=True)
class Units:
    """How units are written: {word: pint's name}, and which of the words are long enough for their misspellings to be mended."""

    words: dict[str, str]
    long: frozenset[str]

    @classmethod
    def of(cls, more: dict[str, list[str]]) -> "Units":
        """The usual units and `more` {pint's name: words}. Raises LibraError for a name that pint doesn't know."""
        words = {word: name for name, words in _UNIT_WORDS.items() for word in words.split()}
        for name, spellings in more.items():
            if not _is_unit(name):
                raise LibraError(
                    f"domain.yaml: judge.units.{name} is no unit that pint knows (https://pint.readthedocs.io)"
                )
            words |= dict.fromkeys(spellings, name)
        return cls(words, frozenset({word for word in words if len(word) >= 6} | {"degrees"}))

    def named(self, word: str) -> str | None:
        """The unit that `word` is written for, misspelt perhaps, "degree" for the word itself; None where it is no unit."""
        if word in ("deg", "degs", "degree", "degrees"):
            return "degree"
        if word in self.words or len(word) < 6:
            return self.words.get(word)
        right = mended(word, self.long)
        return "degree" if right == "degrees" else self.words.get(right)


USUAL = Units.of({})


def plain(text: str) -> str:
    """`text` in lower case, with one kind of sign, superscript, degree and quotation mark, numbers in digits, no markup."""
    text = _HIDDEN.sub("", html.unescape(text))
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+", lambda found: "^" + found[0].translate(_SUPERSCRIPTS), text)
    text = unicodedata.normalize("NFKC", text.translate(_LOOKS)).translate(_LOOKS)
    for pattern, written in _MARKUP:
        text = pattern.sub(written, text)
    text = text.lower()
    for pattern, written in _WORDS:
        text = pattern.sub(written, text)
    text = re.sub(r"[^\S\n]+", " ", _SPELT.sub(_spelt, text))
    text = re.sub(r"\b(?:minus|negative) (?=[\d.])", MINUS, text)
    # A dash is a sign where no number, unit or word stands before it; after a space it may be a bullet or stand for a colon.
    text = re.sub(r"(?:(?<![^\s(\[~≈<>≤≥=:|/±,'-])(?<!\d )|(?<=\d -))-(?=\.?\d)", MINUS, text)
    text = re.sub(
        r"((?:[:=(~≈]|\b(?:is|at|of|about|to|near|around|from|between|was)) ?)- ?(?=\.?\d)",
        rf"\1{MINUS}",
        text,
    )
    return text.replace(" ‒ ", " - ")


def _spelt(found: re.Match[str]) -> str:
    """A number in words as digits: `three hundred and fifty-seven`, `forty-six point zero seven`, `half a`."""
    words = re.findall(r"[a-z]+", found[0])
    if words[0] == "half":
        return "0.5 "
    if len(words) == 1 and words[0] == "one":  # seldom a number: "the right one"
        return found[0]
    whole, part, point = 0, 0, ""
    for i, word in enumerate(words):
        if word == "point":
            point = "." + "".join(
                str(_DIGITS.get(digit, _TENS.get(digit, ""))) for digit in words[i + 1 :]
            )
            break
        if word in ("thousand", "million"):
            whole, part = whole + (part or 1) * 10 ** _ZEROS[word], 0
        elif word == "hundred":
            part = (part or 1) * 100
        else:
            part += _DIGITS.get(word, _TENS.get(word, 0))
    return f"{whole + part}{point}"


def quantities(
    text: str,
    most: int,
    unitless: re.Pattern[str] | None = None,
    dilution: bool = False,
    units: Units = USUAL,
) -> Iterator[Quantity]:
    """The first `most` quantities of a text that `plain` has read, ranges and ± as one.

    A number without a unit counts only after `unitless` (as UNITLESS). Of a dilution "10 mL to 250 mL" are two volumes.
    """
    at, found = 0, 0
    while found < most and (number := _NUMBER.search(text, at)):
        at = number.end()
        quantity = _quantity(text, number, unitless, dilution, units)
        if quantity:
            found, at = found + 1, quantity.end
            yield quantity


def _quantity(
    text: str, number: re.Match[str], unitless: re.Pattern[str] | None, dilution: bool, units: Units
) -> Quantity | None:
    low = high = _value(number)
    start, end = number.span()
    spread, end = _spread(text, end)
    unit, end = unit_at(text, end, units)
    if unit and _BELOW_ZERO.match(text, end) and low > 0:
        low, high, end = -low, -high, _BELOW_ZERO.match(text, end).end()
    if unit and not spread:
        spread, end = _spread(text, end)
        end = unit_at(text, end, units)[1] if spread else end
    to = _TO.match(text, end)
    between = re.search(r"\bbetween\b", text[max(0, start - 30) : start])
    if to and (to["word"] != "and" or between) and not (dilution and unit and not between):
        other = _NUMBER.match(text, to.end())
        same, stop = unit_at(text, other.end(), units) if other else (None, end)
        if other and same and unit in (None, same):
            low, high, unit, end = low, _value(other), same, stop
            low, high = min(low, high), max(low, high)
    if not unit:
        before = text[max(0, start - 48) : start]
        head = _BEFORE.search(before)
        unit, stop = unit_at(head["unit"].rstrip(), 0, units) if head else (None, 0)
        unit = unit if head and stop == len(head["unit"].rstrip()) else None
        if (
            not unit
            and unitless
            and unitless.search(before)
            and not re.match(r"[-/%\w]", text[end : end + 1])
        ):
            unit = UNITLESS
        if unit is None:
            return None
    bound = _bound(text, start, end) if low == high else None
    return Quantity(
        start,
        end,
        low - spread,
        high + spread,
        unit,
        bound,
        text[start:end].strip().replace(MINUS, "-"),
    )


def _value(number: re.Match[str]) -> float:
    """`1,234.5`, `1.234,5`, `46,07`, `1'600`: a mark before three digits groups them, unless a point or a leading zero says no."""
    written, mark = number["plain"], number["mark"]
    if (
        mark
        and not (mark == "." and written.count(".") == 1 and "," not in written)
        and not (mark in ",." and written[0] == "0")
    ):
        written = written.replace(mark, "")
    exponent = (
        re.sub(r"^e|^ ?[x×·*] ?10 ?\^?|[\s()]", "", number["exponent"]).replace(MINUS, "-") or "0"
    )
    return float(f"{number['sign'].replace(MINUS, '-')}{written.replace(',', '.')}e{exponent}")


def _spread(text: str, at: int) -> tuple[float, int]:
    mark = _SPREAD.match(text, at)
    number = _NUMBER.match(text, mark.end()) if mark else None
    return (abs(_value(number)), number.end()) if number else (0.0, at)


def _bound(text: str, start: int, end: int) -> str | None:
    before = text[max(0, start - 60) : start]
    if no := _NO_MORE.search(before):
        return "low" if no["word"] in ("less", "lower") else "high"
    if found := _BOUND.search(before):
        low = bool(found["low"])
        return "low" if low is not bool(found["not"] and "until" not in found[0]) else "high"
    more = _OR_MORE.match(text, end)
    return ("low" if more["low"] else "high") if more else None


def unit_at(text: str, at: int, units: Units = USUAL) -> tuple[str | None, int]:
    """The unit that stands at `at` of a text that `plain` has read, after a space or hyphen at most, as pint names it, and its end.

    (None, at) where none stands there.
    """
    begin = at + (text[at : at + 1] in (" ", "-"))
    degree = _DEGREE.match(text, begin)
    if degree and (degree[1] is None or units.named(degree[1]) == "degree"):
        word = _WORD.match(text, degree.end())
        name = units.named(word["word"]) if word and not word["exponent"] else None
        return (name, word.end()) if name in _TEMPERATURES else (None, at)
    numerator, end = _factor(text, begin, units)
    if not numerator or numerator == "degree_Rankine":
        return None, at
    if numerator in _TEMPERATURES:
        return numerator, end
    unit = [numerator]
    for _ in range(3):
        over = _OVER.match(text, end)
        factor, stop = _factor(text, over.end(), units) if over else (None, end)
        if not factor or factor in _TEMPERATURES or over["times"] and "**-" not in factor:
            break
        unit.append(factor if over["times"] else f"({factor})**-1")
        end = stop
    if len(unit) == 2 and numerator in _VOLUMES and unit[1].strip("()-*123") in _VOLUMES:
        return f"{'*'.join(unit)}*ppmv*1e6", end  # a share of the air, not a bare number
    return "*".join(unit), end


def _factor(text: str, at: int, units: Units) -> tuple[str | None, int]:
    word = _WORD.match(text, at)
    if not word:
        return None, at
    name = units.named(word["word"])
    name = None if name == "degree" else name
    if not name and word["word"] == "gmol" and word["exponent"] == "-1":
        return "gram/mole", word.end()
    if not name:
        return None, at
    exponent = (word["exponent"] or "").replace(MINUS, "-")
    if word["power"]:
        exponent = "2" if word["power"].startswith("sq") else "3"
    return f"{name}**{exponent}" if exponent else name, word.end()


def convert(value: float, unit: str, wanted: str) -> float | None:
    """`value` from `unit` to `wanted`, both as pint names them; None where the dimensions differ."""
    line = _conversion(unit, wanted)
    return None if line is None else line[0] * value + line[1]


@lru_cache(maxsize=1 << 12)
def _conversion(unit: str, wanted: str) -> tuple[float, float] | None:
    """(slope, offset) of the conversion, or None."""
    import pint

    registry = _registry()
    try:
        zero, one = (_times(registry, value, unit).to(wanted).magnitude for value in (0.0, 1.0))
    except (pint.DimensionalityError, pint.OffsetUnitCalculusError):
        return None
    return one - zero, zero


def _times(registry, value: float, unit: str):
    return registry.Quantity(value, unit) if unit in _TEMPERATURES else value * registry(unit)


def _is_unit(name: str) -> bool:
    import pint

    try:
        return bool(_registry().Unit(name))
    except (pint.PintError, ValueError):
        return False


@lru_cache(maxsize=1)
def _registry():
    import pint

    registry = pint.UnitRegistry(autoconvert_offset_to_baseunit=True)
    registry.define("ppmv = [volume_share]")
    registry.define("ppbv = 0.001 * ppmv")
    return registry
