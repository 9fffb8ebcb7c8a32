"""Is the fact an answer states the fact on file? Values are found with their units, converted, and compared.

    check({"name": "melting_point", "value": 356.9, "unit": "K", "tolerance": 2.0, ...}, "It melts at 84 °C.")
    -> FactCheck("correct", "84 °C")

A value agrees when it lies within the larger of the fact's absolute tolerance and 0.2 % of its size, so targets of zero and
below can be right. Values given for another property ("... and boils at 200 °C") are left aside; of those that count, one
outside makes the answer wrong. Unit conversion is pint's.
"""

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any

RELATIVE = 0.002  # share of the target a rounded value may be off
READ = 8_000  # characters of an answer that are searched, and how many values of it: keeps hostile texts cheap
VALUES = 100


@dataclass(frozen=True)
class FactCheck:
    """`verdict` is correct, wrong, or unverifiable (no value of the asked kind was found); `evidence` is the value as written."""

    verdict: str
    evidence: str = ""


_NUMBER = (
    r"(?<![\w.,/])[-+]?(?:\d{1,3}(?:[,\u2009\u202f]\d{3})+(?:\.\d+)?|\d+[.,]\d+|\d+|\.\d+)"
    r"(?:\s?[x×·*]\s?10\s?\^?\s?[-+]?\d+|e[-+]?\d+)?"
)
# What people write for a unit, longest first, and pint's name for it.
_UNITS = {
    r"grams?(?: per |/)mole?s?": "gram/mole", r"g\s?/\s?mol(?:e|es)?": "gram/mole", r"g\s?[·*.]?\s?mol\s?\^?-1": "gram/mole",
    r"kg\s?/\s?mol(?:e|es)?": "kilogram/mole", r"mg\s?/\s?mol(?:e|es)?": "milligram/mole", r"daltons?|da|amu|u": "gram/mole",
    r"(?:milligrams?|mg)(?: per |\s?/\s?)(?:cubic met(?:er|re)s?|m\s?\^?3|cu\.? ?m)": "milligram/meter**3",
    r"mg\s?[·*.]?\s?m\s?\^?-3": "milligram/meter**3",
    r"(?:micrograms?|[µμu]g)(?: per |\s?/\s?)(?:cubic met(?:er|re)s?|m\s?\^?3)": "microgram/meter**3",
    r"(?:grams?|g)(?: per |\s?/\s?)(?:cubic met(?:er|re)s?|m\s?\^?3)": "gram/meter**3",
    r"mg(?: per |\s?/\s?)(?:lit(?:er|re)s?|l)": "milligram/liter", r"ppm|parts per million": "ppm_volume",
    r"kelvins?|k": "kelvin",
    r"(?:degrees? |deg\.? |° ?|º ?)?(?:celsius|centigrade)|° ?c|º ?c|deg\.? ?c|degrees? c|c": "degree_Celsius",
    r"(?:degrees? |deg\.? |° ?|º ?)?fahrenheit|° ?f|º ?f|deg\.? ?f|degrees? f|f": "degree_Fahrenheit",
    r"millilit(?:er|re)s?|ml|cc|cm\s?\^?3": "milliliter",
    r"microlit(?:er|re)s?|[µμu]l": "microliter", r"centilit(?:er|re)s?|cl": "centiliter",
    r"lit(?:er|re)s?|l": "liter", r"kilograms?|kg": "kilogram", r"milligrams?|mg": "milligram", r"grams?|g": "gram",
    r"moles?|mol": "mole",
    r"molar|m": "molar", r"%|per ?cent": "percent", r"minutes?|min": "minute", r"hours?|h": "hour", r"bar|atm": "bar",
}  # fmt: skip
_UNIT = "|".join(f"(?P<u{i}>{pattern})" for i, pattern in enumerate(_UNITS))
_VALUE = re.compile(rf"(?P<number>{_NUMBER})\s?(?:{_UNIT})(?![\w°])")
_RANGE = re.compile(rf"({_NUMBER})\s?(?:-|–|to|and)\s?(?=({_NUMBER})\s?((?:{'|'.join(_UNITS)})(?![\w°])))")
_PLUS_MINUS = re.compile(rf"\s?(?:±|\+/-|plus or minus)\s?{_NUMBER}")
# The words that say what a value is of; a value belongs to the last one before it, or else to the asked property.
_PROPERTY = {
    "molar_mass": r"molar mass|molecular (?:weight|mass)|formula (?:weight|mass)|weighs",
    "melting_point": r"melt\w*|fusion|freez\w*|becomes liquid",
    "boiling_point": r"boil\w*",
    "flash_point": r"flash\w*|ignit\w*",
    "exposure_limit": r"exposure|limit\w*|twa|airborne|threshold|ceiling",
    "dilution": r"dilut\w*|take|stock|aliquot|pipett\w*|measure|volume|need\w*|make up|made up",
    "other": r"density|vapou?r pressure|solubility|autoignit\w*|decompos\w*|half-life|viscosity|critical"
    r"|stored? (?:at|below|under|between)|room temperature",
}
_TOPIC = re.compile("|".join(f"(?P<{name}>\\b(?:{pattern}))" for name, pattern in _PROPERTY.items()))
_PER_MOLE = ("gram", "kilogram", "milligram")  # "one mole weighs 46.07 g"
_MOLE = re.compile(r"\bmoles?\b")
_BESIDE = ("molar", "percent", "mole", "minute", "hour", "bar")  # units of what an answer may say beside the value
_ENDS = (". ", "; ", "! ", "? ", "\n")
_MINUS = str.maketrans({"−": "-", "–": "-", "‐": "-", "‑": "-", "’": "'"})


def check(fact: dict[str, Any], answer: str) -> FactCheck:
    """Compare `answer` with `fact` {name, value, unit, tolerance, method, source}; value is a number, or text for look-ups."""
    name, value, answer = fact["name"], fact["value"], answer[:READ]
    if isinstance(value, str):
        found = _formula(value, answer) if name == "formula" else _listing(value, answer)
    else:
        found = _quantity(fact, answer)
    at = answer.lower().find(found.evidence.lower()) if found.evidence else -1
    return FactCheck(found.verdict, answer[at : at + len(found.evidence)]) if at >= 0 else found


def agrees(found: float, target: float, tolerance: float) -> bool:
    """Whether `found` lies within max(absolute tolerance, relative tolerance) of `target`; both in the target's unit."""
    return abs(found - target) <= max(tolerance, RELATIVE * abs(target)) * (1 + 1e-9)


def _quantity(fact: dict[str, Any], answer: str) -> FactCheck:
    text = _PLUS_MINUS.sub("", _normal(answer))
    text = _RANGE.sub(r"\1 \3 to ", text)
    target, tolerance = float(fact["value"]), float(fact["tolerance"] or 0.0)
    asked = _asked_numbers(fact)
    right, wrong, strange = [], [], []
    for match in islice(_VALUE.finditer(text), VALUES):
        written = match[0].strip()
        if _topic_of(text, match.start()) not in (None, fact["name"]):
            continue
        unit = _unit_of(match)
        if fact["name"] == "molar_mass" and unit in _PER_MOLE and _MOLE.search(_sentence(text, match.start(), match.end())):
            unit = f"{unit}/mole"
        found = _convert(_number(match["number"]), unit, fact)
        if found is None:
            if unit not in _BESIDE:
                strange.append(written)
        elif agrees(found, target, tolerance):
            right.append(written)
        elif not any(agrees(found, number, 1e-6) for number in asked):
            wrong.append(written)
    if wrong:
        return FactCheck("wrong", wrong[0])
    if right:
        return FactCheck("correct", right[0])
    return FactCheck("wrong", strange[0]) if strange else FactCheck("unverifiable")


def _normal(text: str) -> str:
    """Lower case, plain signs, superscript three as 3, no emphasis marks; a hyphen between digits is a range, else a minus."""
    text = text.replace("⁻¹", "^-1").replace("⁻³", "^-3").replace("³", "3")
    text = unicodedata.normalize("NFKC", text).translate(_MINUS).lower()
    text = re.sub(r"[*_`$\\]+", lambda mark: "*" if mark[0] == "*" else "", text)
    text = re.sub(r"\bminus\s+(?=\d)", "-", text)
    return re.sub(r"(?<=\d)-(?=\d)", " to ", text)


def _number(written: str) -> float:
    """`1,234.5`, `46,07`, `1.2e3` and `1.2 x 10^3` as numbers: a comma before exactly three digits groups, else it is decimal."""
    written = re.sub(r"\s?[x×·*]\s?10\s?\^?\s?", "e", written)
    if re.match(r"[-+]?\d{1,3}[,\u2009\u202f]\d{3}(?!\d)", written):
        written = re.sub(r"[,\u2009\u202f](?=\d{3}(?!\d))", "", written)
    return float(written.replace(",", ".").replace(" ", ""))


def _unit_of(match: re.Match[str]) -> str:
    names = list(_UNITS.values())
    return next(names[i] for i in range(len(names)) if match[f"u{i}"] is not None)


def _topic_of(text: str, position: int) -> str | None:
    """The property last named before `position` in the same sentence, or None."""
    topics = [match.lastgroup for match in _TOPIC.finditer(_sentence(text, position, position))]
    return topics[-1] if topics else None


def _sentence(text: str, start: int, end: int) -> str:
    """`text` from the beginning of the sentence around `start` up to `end`, or to the sentence's end where end > start."""
    begin = max(text.rfind(mark, 0, start) for mark in _ENDS) + 1
    stop = min((at for mark in _ENDS if (at := text.find(mark, end)) >= 0), default=len(text)) if end > start else end
    return text[begin:stop]


def _asked_numbers(fact: dict[str, Any]) -> list[float]:
    """Numbers that the request itself gave (a dilution's final volume) and what they leave over; an answer may repeat them."""
    if fact["name"] != "dilution":
        return []
    volumes = [float(number) for number in re.findall(r"([\d.]+) mL", fact.get("source") or "")]
    return volumes + [volume - float(fact["value"]) for volume in volumes]


def _convert(value: float, unit: str, fact: dict[str, Any]) -> float | None:
    """`value` in the fact's unit; None when the dimensions differ. ppm needs the listing the fact was converted from."""
    if unit == "ppm_volume":
        listed = re.search(r"([\d.]+) ppm", fact.get("source") or "")
        return value * float(fact["value"]) / float(listed[1]) if listed and fact["name"] == "exposure_limit" else None
    line = _conversion(unit, fact["unit"])
    return None if line is None else line[0] * value + line[1]


@lru_cache(maxsize=None)
def _conversion(unit: str, wanted: str) -> tuple[float, float] | None:
    """(slope, offset) from `unit` to `wanted` (both as pint reads them), or None when the dimensions differ."""
    import pint

    known = re.fullmatch(_UNIT, _normal(wanted))
    registry = _registry()
    try:
        target = registry.Unit(_unit_of(known) if known else wanted)
        zero, one = (registry.Quantity(value, unit).to(target).magnitude for value in (0.0, 1.0))
    except pint.DimensionalityError:
        return None
    return one - zero, zero


@lru_cache(maxsize=1)
def _registry():
    import pint

    return pint.UnitRegistry(autoconvert_offset_to_baseunit=True)


# Formulas: compared by the number of each atom, so C2H6O and C2H5OH agree.
_ELEMENTS = frozenset(
    "H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr Rb Sr Y Zr Nb Mo Tc Ru Rh "
    "Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Th U D".split()
)
_FORMULA = re.compile(r"(?<![\w(])(?:\d*\(?[A-Z][A-Za-z0-9()]*)(?:[·.•*]\d*[A-Z][A-Za-z0-9()]*)*(?:\^\d*[+-]|[+-]\d*)?")
_AFTER_FORMULA = re.compile(r"formula\s*(?:\w+\s+)?(?:is|:|=|reads)\s*$", re.IGNORECASE)


def _formula(target: str, answer: str) -> FactCheck:
    wanted = atoms(target)
    text = re.sub(r"[_{}$]", "", unicodedata.normalize("NFKC", answer).replace("*", ""))
    right, wrong = [], []
    for match in _FORMULA.finditer(text):
        written = match[0].rstrip(".")
        found = atoms(written)
        if found is None:
            continue
        if found == wanted:
            right.append(written)
        elif re.search(r"[A-Za-z]\d", written) or _AFTER_FORMULA.search(text[: match.start()]):
            wrong.append(written)
    if wrong:
        return FactCheck("wrong", wrong[0])
    return FactCheck("correct", right[0]) if right else FactCheck("unverifiable")


@lru_cache(maxsize=1 << 16)
def atoms(formula: str) -> tuple[tuple[str, int], ...] | None:
    """The atoms of `formula` as sorted (element, count), charge left aside; None when it can't be read as a formula."""
    formula = re.sub(r"^([A-Z][a-z]?)\d[+-]$", r"\1", formula)  # Ca2+ has two charges, NH4+ four hydrogens
    formula = re.sub(r"(?:\^\d*[+-]|[+-]\d*)$", "", formula)
    total: dict[str, int] = {}
    for part in re.split(r"[·.•*]", formula):
        lead = re.match(r"\d*", part)[0]
        counts = _atoms_of_part(part[len(lead) :])
        if not counts:
            return None
        for element, count in counts.items():
            total[element] = total.get(element, 0) + count * int(lead or 1)
    return tuple(sorted(total.items()))


def _atoms_of_part(part: str) -> dict[str, int] | None:
    stack: list[dict[str, int]] = [{}]
    for token in re.finditer(r"([A-Z][a-z]?)(\d*)|(\()|(\))(\d*)|(.)", part):
        element, count, opened, closed, times, other = token.groups()
        if other or element and element not in _ELEMENTS or closed and len(stack) == 1:
            return None
        if opened:
            stack.append({})
        elif closed:
            inner = stack.pop()
            for name, number in inner.items():
                stack[-1][name] = stack[-1].get(name, 0) + number * int(times or 1)
        else:
            stack[-1][element] = stack[-1].get(element, 0) + int(count or 1)
    return stack[0] if len(stack) == 1 else None


# Listings: "Schedule II", "List I", "Annex A", "Anlage III", "Table 2"; or "not scheduled".
_NUMERALS = {"i": "1", "ii": "2", "iii": "3", "iv": "4", "v": "5", "vi": "6"}
_NUMERALS |= {"one": "1", "two": "2", "three": "3", "four": "4", "five": "5"}
_NUMERAL = r"(iii|ii|iv|vi|i|v|\d|one|two|three|four|five|[abc])"
_LISTED = re.compile(
    rf"\b(schedule|list|annex|anlage|table)s?[\s-]*(?:no\.? ?)?{_NUMERAL}\b(?:\s?(?:-|to|through|and|or)\s?{_NUMERAL}\b)?"
)
_DENIED = re.compile(
    r"(?:\b(?:not|never|nor|neither|none|no|any of|unlike)\b(?: (?!as\b|because\b|since\b|so\b|but\b"
    r"|without\b)[\w-]+){0,6}? (?:the |us |csa |federal )*)$|^(?:rather than|instead of) "
)
_UNLISTED = re.compile(
    r"\b(?:not|never|nor|no longer)\b(?: [\w-]+){0,4}? (?:scheduled?|controlled|listed|regulated|restricted"
    r"|under (?:any )?(?:schedules?|control)|(?:any|a|the) (?:\w+ )?(?:schedules?|lists?))\b"
    r"|\bno (?:[\w-]+ ){0,2}(?:schedules?|listing|control|controls)\b|\bunscheduled\b|\buncontrolled\b|\bnon-?(?:scheduled"
    r"|controlled)\b"
    r"|\b(?:free of|outside|without|none of the) (?:\w+ )?(?:schedul\w+|controls?|lists?)\b"
)
_CONTROLLED = re.compile(r"\bis (?:an? )?(?!not\b)(?:\w+ly )?(?:controlled|scheduled|illegal|banned)\b")
_CLAUSE = re.compile(r"[.;!?:]\s|,?\s+but\s+|,\s*(?=not\b|nor\b|rather\b)|\s+(?=rather than\b|instead of\b)")


def _listing(target: str, answer: str) -> FactCheck:
    said, denied, all_denied = _listings(answer)
    wanted, _, unlisted = _listings(target)
    if unlisted:
        controlled = _CONTROLLED.search(answer.lower())
        if said or controlled:
            return FactCheck("wrong", said[0][1] if said else controlled[0])
        return FactCheck("correct", all_denied) if all_denied else FactCheck("unverifiable")
    if not wanted:
        words = " ".join(answer.lower().split())
        return FactCheck("correct", target) if " ".join(target.lower().split()) in words else FactCheck("unverifiable")
    label = wanted[0][0]
    right = [written for found, written in said if found == label]
    wrong = [written for found, written in said if found != label and (found[0] == label[0] or not right)]
    against = wrong or [written for found, written in denied if found == label] or ([all_denied] if all_denied else [])
    if against:
        return FactCheck("wrong", against[0])
    return FactCheck("correct", right[0]) if right else FactCheck("unverifiable")


Labels = list[tuple[tuple[str, str], str]]


def _listings(text: str) -> tuple[Labels, Labels, str]:
    """What `text` says of listings: (those it names, those it denies, its words where it denies any listing at all)."""
    text = unicodedata.normalize("NFKC", text).translate(_MINUS).lower()
    text = re.sub(r"n't\b", " not", re.sub(r"[*_`]+", "", text))
    said: Labels = []
    denied: Labels = []
    all_denied = ""
    for clause in _CLAUSE.split(" ".join(text.split()) + " "):
        clause = re.sub(r"^(?:no|yes)[,.]? (?=it|this|the)", "", clause)
        labels = list(_LISTED.finditer(clause))
        denying = [match for match in labels if _DENIED.search(clause[max(0, match.start() - 100) : match.start()])]
        for match in labels:
            first, last = (_NUMERALS.get(part, part) if part else None for part in (match[2], match[3]))
            if match in denying:
                denied.append(((match[1], first), match[0]))
                if last:
                    all_denied = all_denied or match[0]
            else:
                said.append(((match[1], first), match[0]))
        if not denying and (flat := _UNLISTED.search(clause)):
            all_denied = all_denied or flat[0]
    return said, denied, all_denied
