"""A measured value that an answer states, compared with the one on file.

    judge_measured({"name": "melting_point", "value": 356.9, "unit": "K", "tolerance": 2.0, ...},
                   "It melts at 84 °C.", domain)
    -> ("correct", "84 °c")

A value agrees if it lies within the larger of the fact's absolute tolerance and 0.2 % of the
target, so targets of zero and below can be right. Values of another property, substance or pressure
are ignored, as are those that are only mentioned (asked, denied, corrected); of the others, one
that disagrees makes the answer wrong. A right number in a wrong unit is wrong.
"""

import re
from typing import Any

from stages.domain.description import Domain
from stages.judging.quantities import UNITLESS, Quantity, quantities
from stages.judging.quantity_text import normalized
from stages.judging.spelling import fix_spelling
from stages.judging.statements import Statements
from stages.judging.units import convert, unit_at
from stages.judging.value_topics import CHANGES, Terms, Topics, label_cells, terms_of

RELATIVE = 0.002  # share of the target by which a rounded value may be off
VALUES = 100  # values of an answer that are read
NARROW = 2  # tolerances by which either end of a range, or of a ±, may be off

_MASS_ALONE = re.compile(  # a molecular weight needs no unit
    r"(?:molecular (?:weight|mass)|formula (?:weight|mass)|\bmw|\bmr|mol wt)\b"
    r"[\s\w)]{0,12}?(?:is|of|:|=|≈|~|about|\s)+$"
)
_PER_MOLE = ("gram", "kilogram", "milligram")  # "one mole weighs 46.07 g"
_MOLE = re.compile(r"(?<!/)(?<!/ )\bmol(?:es?)?\b")
_ELEMENT = re.compile(
    r"(?:\b(?:carbon|hydrogen|oxygen|nitrogen|sul(?:f|ph)ur|chlorine|bromine|fluorine|iodine)s?\b"
    r"|\b[chonsf] ?[:=(])(?:(?!total|sum|altogether|whole)[^,;\n]){0,40}$"
)
_AIR = (90.0, 110.0)  # kPa, around the pressure of the atmosphere
# Before the same temperature in another unit.
_SAME_AGAIN = re.compile(r" ?(?:[(=/,]|or|which is|that is) ?")
_OTHERWISE = re.compile(r"\b(?:and|but)\b|;")
_NORMAL = re.compile(
    r"\b(?:normal|atmospheric|standard|ambient|sea[- ]level)\b"
    r"(?: \w+)? ?(?:pressure|boiling|level)?"
)
_REDUCED = re.compile(
    r"\bvacuum\b"
    r"|\b(?:reduced|low|lower|lowered|high|higher|elevated|increased) pressure\b"
)
_BODIES = re.compile(  # that set limits of exposure
    r"\b(?:osha|niosh|acgih|mak|dfg|agw|wel|worksafe\w*|eu|uk|german\w*|british|europe\w*|japan\w*"
    r"|chin(?:a|ese))\b"
)
_DIFFERENCE = re.compile(
    r"\b(?:by|within|every|each|steps of)(?: (?:about|up to|at most|some))? ?$"
)
_DIFFERS = re.compile(
    r" (?:steps?|intervals?|increments?|higher|lower|warmer|cooler|more|less|apart|above|below|too)"
    r"\b(?! zero)"
)
_OPEN_CUP = re.compile(r"^\s?[,(]?\s?(?:by |in )?(?:the |an )?open[- ]cup|open[- ]cup[^,;]{0,30}$")
_OF_STOCK = re.compile(
    r"\s?(?:of )?(?:(?:the|a|that|this|your|[\d.]+ ?m(?:olar)?) )*(?:stock|concentrate)"
)
_OF_WATER = re.compile(
    r"\s?(?:of )?(?:(?:the|pure|distilled|dei?onised|deionized|more) )*"
    r"(?:water|solvent|diluent|buffer)\b"
)
_BESIDE_TEXT = """
    molar percent mole millimole second minute hour day pascal kilopascal hectopascal bar millibar
    atmosphere mmHg psi meter centimeter nanometer
"""
_BESIDE = frozenset(_BESIDE_TEXT.split())  # units of what an answer may say along with the value
_TEMPERATURES = ("kelvin", "degree_Celsius", "degree_Fahrenheit")
_USUAL = {
    "melting_point": _TEMPERATURES,
    "boiling_point": _TEMPERATURES,
    "flash_point": _TEMPERATURES,
    "molar_mass": ("gram/mole", "kilogram/mole"),
    "exposure_limit": ("milligram*(meter**3)**-1",),
    "dilution": ("milliliter", "liter"),
}


def judge_measured(fact: dict[str, Any], answer: str, domain: Domain) -> tuple[str, str]:
    """(verdict, the value it rests on): whether `answer` states the value of `fact`."""
    return _Measured(fact, answer, terms_of(domain)).verdict()


def agrees(value: float, target: float, tolerance: float) -> bool:
    """Whether `value` lies within the larger of both tolerances of `target`, all in one unit."""
    return abs(value - target) <= _margin(target, tolerance)


def _margin(target: float, tolerance: float) -> float:
    return max(tolerance, RELATIVE * abs(target)) * (1 + 1e-9)


class _Measured:
    """A fact with a number, and what one answer says about it."""

    def __init__(self, fact: dict[str, Any], answer: str, terms: Terms):
        self.name, self.target = fact["name"], float(fact["value"])
        self.tolerance = float(fact["tolerance"] or 0.0)
        self.source = fact.get("source") or ""
        self.unit = unit_at(normalized(fact["unit"]), 0, terms.units)[0] or fact["unit"]
        dilution = self.name == "dilution"

        text = re.sub(
            r"[a-z]{4,10}",
            lambda word: fix_spelling(word[0], terms.spelling),
            normalized(answer),
        )
        self.text = label_cells(text, terms.topic)
        self.statements = Statements(self.text)
        unitless = _MASS_ALONE if self.name == "molar_mass" else None
        self.values = list(quantities(self.text, VALUES, unitless, dilution, terms.units))
        self.topics = Topics(self.text, terms, self.values, self.statements, dilution)

    def verdict(self) -> tuple[str, str]:
        """The verdict on the answer and the words it rests on."""
        values = [value for value in self.values if self._counts(value)]
        correction = self.statements.last_correction
        if any(value.start >= correction for value in values):  # "95 °C. Correction: 84 °C."
            values = [value for value in values if value.start >= correction]
        by_standing: dict[str, list[Quantity]] = {
            "right": [],
            "wrong": [],
            "denied": [],
            "strange": [],
        }
        for value in values:
            standing = self._standing(value)
            if standing:
                by_standing[standing].append(value)

        right, wrong, denied, strange = by_standing.values()
        if wrong:
            return "wrong", wrong[0].written
        denied_values = {(value.low, value.unit) for value in denied}
        if right and not any((value.low, value.unit) in denied_values for value in right):
            return "correct", right[0].written
        against = denied or strange
        return ("wrong", against[0].written) if against else ("unverifiable", "")

    def _counts(self, value: Quantity) -> bool:
        """Whether `value` is stated, and of what was asked.

        It isn't if it is only mentioned, of another property, or a difference ("10 °C higher").
        """
        differs = _DIFFERENCE.search(self.text, max(0, value.start - 24), value.start)
        if differs or (not value.bound and _DIFFERS.match(self.text, value.end)):
            return False
        topic = self.topics.of(value)
        if (self.name, topic, value.bound) in CHANGES:
            topic = self.name if self._standing(value) == "right" else topic
        return topic in (None, self.name) and not self.statements.mentions(value.start)

    def _standing(self, value: Quantity) -> str | None:
        """What `value` says for or against the fact; None: it settles nothing.

        right, wrong, denied (a right value that the text denies), or strange (the right number in a
        wrong unit, or at another pressure).
        """
        ends = self._in_unit(value)
        if ends is None:
            return "strange" if self._is_strange(value) else None
        low, high = ends
        fits = self._fits(low, high)
        if not value.bound and self.statements.denies(value.start, value.end):
            return "denied" if fits else None
        if self.name == "dilution":
            if _OF_WATER.match(self.text, value.end):
                return None
            if not fits and not _OF_STOCK.match(self.text, value.end) and self._was_asked(low):
                return None
        elif value.bound and not fits and self.name != "exposure_limit":
            # A bound is wrong only on the wrong side; of a limit of exposure it is the value.
            return "wrong" if (low > self.target) is (value.bound == "low") else None
        if self.name == "boiling_point" and self._is_elsewhere(value):
            return "strange" if fits else None
        if not fits and self._is_aside(value):
            return None
        return "right" if fits else "wrong"

    def _fits(self, low: float, high: float) -> bool:
        """Whether a value or a range, in the fact's unit, agrees with the target."""
        margin = _margin(self.target, self.tolerance)
        if low == high:
            return abs(low - self.target) <= margin
        furthest = max(high - self.target, self.target - low)
        return low - margin <= self.target <= high + margin and furthest <= NARROW * margin

    def _in_unit(self, value: Quantity) -> tuple[float, float] | None:
        """The ends of `value` in the fact's unit, or None if its dimension is another."""
        unit, moles = value.unit, 1.0
        if unit == UNITLESS:
            unit = "gram/mole"
        elif (
            self.name == "molar_mass"
            and unit in _PER_MOLE
            and _MOLE.search(self.text, *self.statements.sentence(value.start))
        ):
            unit = f"{unit}/mole"
            moles = self._moles(value)
        ends = [convert(end / moles, unit, self.unit) for end in (value.low, value.high)]
        if self.name == "exposure_limit" and ends[0] is None:
            listed = re.search(r"([\d.]+) ppm", self.source)
            shares = [convert(end, unit, "ppmv") for end in (value.low, value.high)]
            ends = [
                share * self.target / float(listed[1]) if listed and share is not None else None
                for share in shares
            ]
        return None if ends[0] is None else (ends[0], ends[1])

    def _moles(self, value: Quantity) -> float:
        """The amount of substance in the clause of a mass: "10 mol weigh 460.7 g"."""
        clause = self.statements.clause(value.start)
        amounts = [
            convert(other.low, other.unit, "mole")
            for other in self.values
            if self.statements.clause(other.start) == clause
        ]
        return next((amount for amount in amounts if amount), 1.0)

    def _is_strange(self, value: Quantity) -> bool:
        """Whether a value of another dimension is the right number, or is of what was asked."""
        same = False
        for unit in _USUAL.get(self.name, (self.unit,)):
            ends = [
                convert(self.target + sign * self.tolerance, self.unit, unit) for sign in (-1, 1)
            ]
            same = same or (None not in ends and min(ends) <= value.low <= max(ends))
        beside = convert(1.0, value.unit, "ppmv") is not None or value.unit in _BESIDE
        if self.topics.of(value, any_unit=True) == self.name:
            return same or not beside
        return same and not beside

    def _was_asked(self, amount: float) -> bool:
        """Whether the request gave this volume, or it is what the stock leaves of it.

        An answer may repeat those.
        """
        volumes = [float(number) for number in re.findall(r"([\d.]+) mL", self.source)]
        return any(
            agrees(amount, volume, 1e-6)
            for total in volumes
            for volume in (total, total - self.target)
        )

    def _is_elsewhere(self, value: Quantity) -> bool:
        """Whether `value` holds at another pressure than the atmosphere's.

        The condition behind it decides, or else the one before it.
        """
        begin, end = self.statements.sentence(value.start)
        for other in self.values:
            if convert(1.0, other.unit, "kelvin") is None:
                continue
            if other.end <= value.start:
                begin = max(begin, other.end)
            elif other.start >= value.end and not _SAME_AGAIN.fullmatch(
                self.text, value.end, other.start
            ):
                end = min(end, other.start)
        after = _OTHERWISE.search(self.text, value.end, end)
        before = max(
            (match.end() for match in _OTHERWISE.finditer(self.text, begin, value.start)),
            default=begin,
        )
        spans = ((value.end, after.start() if after else end), (before, value.start))
        for start, stop in spans:
            pressures = [
                convert(other.low, other.unit, "kilopascal")
                for other in self.values
                if start <= other.start < stop
            ]
            pressures = [pressure for pressure in pressures if pressure is not None]
            if pressures:
                return not _AIR[0] <= pressures[0] <= _AIR[1]
            if _NORMAL.search(self.text, start, stop):
                return False
            if _REDUCED.search(self.text, start, stop):
                return True
        return False

    def _is_aside(self, value: Quantity) -> bool:
        """Whether another value than the fact's is in place here.

        That is: another body's limit, an open cup, or an element's share of the mass.
        """
        begin, end = self.statements.clause(value.start)
        if self.name == "exposure_limit":
            previous = [other.end for other in self.values if other.end <= value.start]
            begin = max([self.statements.sentence(value.start)[0], *previous])
            return any(
                body[0] not in self.source.lower()
                for body in _BODIES.finditer(self.text, begin, max(begin, end))
            )
        if self.name == "flash_point":
            around = (self.text[value.end : end], self.text[begin : value.start])
            return any(map(_OPEN_CUP.search, around))
        return self.name == "molar_mass" and bool(
            _ELEMENT.search(self.text, max(0, value.start - 60), value.start)
        )
