"""Units as people write them, spelt out, abbreviated or misspelt; pint converts between them.

    unit_at("84 degrees celsius", 2)               # ("degree_Celsius", 18)
    convert(84.0, "degree_Celsius", "kelvin")      # 357.15

units.csv has the words for each unit; a domain may add more (`judge.units` in domain.yaml).
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from stages.core.checked_csv import read_rows
from stages.core.errors import LibraError
from stages.judging.quantity_text import MINUS
from stages.judging.spelling import fix_spelling

_WORDS = Path(__file__).with_name("units.csv")
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
    r"(?P<power>(?:cubic|cu|square)\s)?(?P<word>[a-zµμ]+|%)"
    r"(?:(?: ?\^ ?)?\(?(?P<exponent>[-−+]?[0-9])\)?(?![.,]?\d))?(?![a-zµμ\d])"
)
_OVER = re.compile(r" ?/ ?|\sper\s(?:an? )?|(?P<times> ?[·⋅•*] ?| |\.)")


@dataclass(frozen=True)
class Units:
    """{word: pint's name}, and the words that are long enough for their misspellings to count."""

    words: dict[str, str]
    long: frozenset[str]

    @classmethod
    def of(cls, more: dict[str, list[str]]) -> "Units":
        """The usual units and `more` {pint's name: words}.

        Raises LibraError for a name that pint doesn't know.
        """
        words = {
            word: row["unit"]
            for row in read_rows(_WORDS, ("unit", "words"))
            for word in row["words"].split()
        }
        for name, spellings in more.items():
            if not _is_unit(name):
                raise LibraError(
                    f"domain.yaml: judge.units.{name} is not a unit that pint knows; "
                    "use one of https://pint.readthedocs.io"
                )
            words |= dict.fromkeys(spellings, name)
        return cls(words, frozenset({word for word in words if len(word) >= 6} | {"degrees"}))

    def named(self, word: str) -> str | None:
        """Pint's name for `word`, which may be misspelt; "degree" for that word, else None."""
        if word in ("deg", "degs", "degree", "degrees"):
            return "degree"
        if word in self.words or len(word) < 6:
            return self.words.get(word)
        right = fix_spelling(word, self.long)
        return "degree" if right == "degrees" else self.words.get(right)


USUAL = Units.of({})


def unit_at(text: str, at: int, units: Units = USUAL) -> tuple[str | None, int]:
    """(pint's name, end) of the unit at `at` of a normalized text; (None, at) if there is none.

    One blank or hyphen may precede it.
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
        if not factor or factor in _TEMPERATURES or (over["times"] and "**-" not in factor):
            break
        unit.append(factor if over["times"] else f"({factor})**-1")
        end = stop
    if len(unit) == 2 and numerator in _VOLUMES and unit[1].strip("()-*123") in _VOLUMES:
        return f"{'*'.join(unit)}*ppmv*1e6", end  # a share of the air, not a bare number
    return "*".join(unit), end


def _factor(text: str, at: int, units: Units) -> tuple[str | None, int]:
    """(pint's name with its exponent, end) of the factor of a unit at `at`, or (None, at)."""
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


def convert(value: float, unit: str, target: str) -> float | None:
    """`value` from `unit` to the unit `target`, both by pint's names; None for other dimensions."""
    line = _conversion(unit, target)
    return None if line is None else line[0] * value + line[1]


@lru_cache(maxsize=1 << 12)
def _conversion(unit: str, target: str) -> tuple[float, float] | None:
    """(slope, offset) of the conversion, or None."""
    import pint

    registry = _registry()
    try:
        zero, one = (_times(registry, value, unit).to(target).magnitude for value in (0.0, 1.0))
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
