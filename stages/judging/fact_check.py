"""Is the fact an answer states the fact on file? Values are found with their units, converted, and compared.

    check({"name": "melting_point", "value": 356.9, "unit": "K", "tolerance": 2.0, ...}, "It melts at 84 °C.")
    -> FactCheck("correct", "84 °C")

The domain says which words tell what a value is of, and how units are written. A value agrees when it lies within the larger of the
fact's absolute tolerance and 0.2 % of its size, so targets of zero and below can be right. Values of another property, substance or
pressure are left aside, as are those that are only mentioned (asked, denied, taken back); of those that count, one outside makes the
answer wrong. A right number in a wrong unit is wrong. tests/fact_cases.yaml shows by example what is correct, wrong and unverifiable.
Unit conversion is pint's. Reads two values, writes nothing.
"""

import re
from bisect import bisect_left
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from stages.domain.description import Domain, chemistry
from stages.judging.formulas import formulas
from stages.judging.listings import judge_listing
from stages.judging.quantities import UNITLESS, Quantity, Units, convert, plain, quantities, unit_at
from stages.judging.statements import Statements, mended
from stages.judging.wordings import judge_wording

RELATIVE = 0.002  # share of the target a rounded value may be off
READ = 8_000  # characters of an answer that are searched, and how many values of it: keeps hostile texts cheap
VALUES = 100
NARROW = 2  # tolerances that either end of a range, or of a ±, may lie off


@dataclass(frozen=True)
class FactCheck:
    """`verdict` is correct, wrong, or unverifiable (nothing was said that the fact can settle); `evidence` is the value as written."""

    verdict: str
    evidence: str = ""


_STATE = re.compile(
    r"(?<!the )(?<!this )\b(?:solid|liquid|gas|gaseous|crystalline|powder|crystals)\b"
)  # "a liquid at 20 °C"
_CHANGES = (
    ("melting_point", "solid", "high"), ("melting_point", "liquid", "low"),
    ("boiling_point", "liquid", "high"), ("boiling_point", "gas", "low"),
)  # fmt: skip
_MASS_ALONE = re.compile(  # a molecular weight needs no unit
    r"(?:molecular (?:weight|mass)|formula (?:weight|mass)|\bmw|\bmr|mol wt)\b[\s\w)]{0,12}?(?:is|of|:|=|≈|~|about|\s)+$"
)
_PER_MOLE = ("gram", "kilogram", "milligram")  # "one mole weighs 46.07 g"
_MOLE = re.compile(r"(?<!/)(?<!/ )\bmol(?:es?)?\b")
_ELEMENT = re.compile(
    r"(?:\b(?:carbon|hydrogen|oxygen|nitrogen|sul(?:f|ph)ur|chlorine|bromine|fluorine|iodine)s?\b|\b[chonsf] ?[:=(])"
    r"(?:(?!total|sum|altogether|whole)[^,;\n]){0,40}$"
)
_AIR = (90.0, 110.0)  # kPa, the pressure around us
_SAME_AGAIN = re.compile(
    r" ?(?:[(=/,]|or|which is|that is) ?"
)  # before the same temperature in another unit
_OTHERWISE = re.compile(r"\b(?:and|but)\b|;")
_NORMAL = re.compile(
    r"\b(?:normal|atmospheric|standard|ambient|sea[- ]level)\b(?: \w+)? ?(?:pressure|boiling|level)?"
)
_REDUCED = re.compile(
    r"\bvacuum\b|\b(?:reduced|low|lower|lowered|high|higher|elevated|increased) pressure\b"
)
_BODIES = re.compile(
    r"\b(?:osha|niosh|acgih|mak|dfg|agw|wel|worksafe\w*|eu|uk|german\w*|british|europe\w*|japan\w*|chin(?:a|ese))\b"
)
_DIFFERENCE = re.compile(
    r"\b(?:by|within|every|each|steps of)(?: (?:about|up to|at most|some))? ?$"
)
_DIFFERS = re.compile(
    r" (?:steps?|intervals?|increments?|higher|lower|warmer|cooler|more|less|apart|above|below|too)\b(?! zero)"
)
_APPOSITION = re.compile(r"(?: ?\([^()]{0,40}\))?,? (?:(?:which|that) is |being )?(?:its|the) ")
_OPEN_CUP = re.compile(r"^\s?[,(]?\s?(?:by |in )?(?:the |an )?open[- ]cup|open[- ]cup[^,;]{0,30}$")
_OF_STOCK = re.compile(
    r"\s?(?:of )?(?:(?:the|a|that|this|your|[\d.]+ ?m(?:olar)?) )*(?:stock|concentrate)"
)
_OF_WATER = re.compile(
    r"\s?(?:of )?(?:(?:the|pure|distilled|dei?onised|deionized|more) )*(?:water|solvent|diluent|buffer)\b"
)
# Units of what an answer may say beside the value.
_BESIDE = frozenset(
    ["molar", "percent", "mole", "millimole", "second", "minute", "hour", "day", "pascal", "kilopascal", "hectopascal", "bar", "millibar", "atmosphere", "mmHg", "psi", "meter", "centimeter", "nanometer"]
)
_USUAL = {
    "melting_point": ("kelvin", "degree_Celsius", "degree_Fahrenheit"), "molar_mass": ("gram/mole", "kilogram/mole"),
    "exposure_limit": ("milligram*(meter**3)**-1",), "dilution": ("milliliter", "liter"),
}  # fmt: skip
_USUAL |= dict.fromkeys(("boiling_point", "flash_point"), _USUAL["melting_point"])


@dataclass(frozen=True)
class _Terms:
    """How a domain speaks of numbers: `topic` finds what a value is of (by the name of its group), `units` how units are written."""

    topic: re.Pattern[str]
    spelling: frozenset[str]
    units: Units
    of: dict[str, str]  # quantity -> its unit, where the domain tells
    melts: bool  # whether its things have melting or boiling points, so that "solid" and "liquid" tell of them


@lru_cache(maxsize=4)
def _terms(domain: Domain) -> _Terms:
    numbers = domain.judge.numbers
    patterns = [
        f"(?P<{name}>\\b(?:{'|'.join(number.words)})(?![a-z]))" for name, number in numbers.items()
    ]
    units = Units.of(domain.judge.units)
    return _Terms(
        re.compile("|".join(patterns) or r"(?!)"),
        frozenset(domain.judge.spelling),
        units,
        {
            name: unit_at(plain(number.unit), 0, units)[0] or number.unit
            for name, number in numbers.items()
            if number.unit
        },
        bool(numbers.keys() & {name for name, _, _ in _CHANGES}),
    )


def check(fact: dict[str, Any], answer: str, domain: Domain | None = None) -> FactCheck:
    """Compare `answer` with `fact` {name, value, unit, tolerance, method, source}; value is a number, or text for look-ups.

    The fact is one of `domain`; of chemistry, where none is given.
    """
    domain = domain or chemistry()
    answer = answer[:READ]
    intent = domain.intents.get(fact["name"])
    if fact["name"] == "formula":
        verdict, evidence = formulas(fact["value"], answer)
    elif isinstance(fact["value"], str) and intent and intent.wrong:
        verdict, evidence = judge_wording(
            fact["value"], intent.wrong, domain.judge.texts.get(fact["name"], {}), answer
        )
    elif isinstance(fact["value"], str):
        verdict, evidence = judge_listing(fact["value"], fact.get("method") or "", answer)
    else:
        verdict, evidence = _Measured(fact, answer, _terms(domain)).verdict()
    at = answer.lower().find(evidence.lower()) if evidence else -1
    return FactCheck(verdict, answer[at : at + len(evidence)] if at >= 0 else evidence)


def agrees(found: float, target: float, tolerance: float) -> bool:
    """Whether `found` lies within max(absolute tolerance, relative tolerance) of `target`; both in the target's unit."""
    return abs(found - target) <= _margin(target, tolerance)


def _margin(target: float, tolerance: float) -> float:
    return max(tolerance, RELATIVE * abs(target)) * (1 + 1e-9)


class _Measured:
    """A fact with a number, and what one answer says of it."""

    def __init__(self, fact: dict[str, Any], answer: str, terms: _Terms):
        self.name, self.target, self.tolerance = (
            fact["name"],
            float(fact["value"]),
            float(fact["tolerance"] or 0.0),
        )
        self.source = fact.get("source") or ""
        self.of = terms.of
        self.unit = unit_at(plain(fact["unit"]), 0, terms.units)[0] or fact["unit"]
        self.text = _rows(
            re.sub(r"[a-z]{4,10}", lambda word: mended(word[0], terms.spelling), plain(answer)),
            terms.topic,
        )
        self.said = Statements(self.text)
        self.topics = [
            (found.start(), found.lastgroup) for found in terms.topic.finditer(self.text)
        ]
        if self.name != "dilution":  # its verbs are common ones: take, need, measure
            self.topics = [(start, name) for start, name in self.topics if name != "dilution"]
        self.states = [
            (found.start(), found[0]) for found in _STATE.finditer(self.text) if terms.melts
        ]
        unitless = _MASS_ALONE if self.name == "molar_mass" else None
        self.values = list(
            quantities(self.text, VALUES, unitless, self.name == "dilution", terms.units)
        )

    def verdict(self) -> tuple[str, str]:
        """The verdict on the answer and the words it rests on."""
        found: dict[str, list[Quantity]] = {"right": [], "wrong": [], "denied": [], "strange": []}
        counted = [value for value in self.values if self._counts(value)]
        corrected = self.said.corrected
        if any(value.start >= corrected for value in counted):  # "95 °C. Correction: 84 °C."
            counted = [value for value in counted if value.start >= corrected]
        for value in counted:
            standing = self._standing(value)
            if standing:
                found[standing].append(value)
        right, denied = found["right"], found["denied"]
        if found["wrong"]:
            return "wrong", found["wrong"][0].written
        if right and not any(
            (one.low, one.unit) == (other.low, other.unit) for one in denied for other in right
        ):
            return "correct", right[0].written
        against = denied or found["strange"]
        return ("wrong", against[0].written) if against else ("unverifiable", "")

    def _counts(self, value: Quantity) -> bool:
        """Whether `value` is stated, and of what was asked: no mere mention, other property, or difference ("10 °C higher")."""
        differs = _DIFFERENCE.search(self.text, max(0, value.start - 24), value.start)
        if differs or not value.bound and _DIFFERS.match(self.text, value.end):
            return False
        topic = self._topic(value)
        if (
            self.name,
            topic,
            value.bound,
        ) in _CHANGES:  # "a liquid above 84 °C" tells where it melts, or nothing
            topic = self.name if self._standing(value) == "right" else topic
        return topic in (None, self.name) and not self.said.mentions(value.start)

    def _standing(self, value: Quantity) -> str | None:
        """right, wrong, denied (a right value said not to be so), strange (a wrong unit or pressure), or None: it settles nothing."""
        ends = self._in_unit(value)
        if ends is None:
            return "strange" if self._is_strange(value) else None
        low, high = ends
        margin = _margin(self.target, self.tolerance)
        if low == high:
            fits = abs(low - self.target) <= margin
        else:
            fits = (
                low - margin <= self.target <= high + margin
                and max(high - self.target, self.target - low) <= NARROW * margin
            )
        if not value.bound and self.said.denies(value.start, value.end):
            return "denied" if fits else None
        if self.name == "dilution":
            if _OF_WATER.match(self.text, value.end):
                return None
            if not fits and not _OF_STOCK.match(self.text, value.end) and self._was_asked(low):
                return None
        elif (
            value.bound and not fits and self.name != "exposure_limit"
        ):  # of a limit to exposure a bound is the value
            return "wrong" if (low > self.target) is (value.bound == "low") else None
        if self.name == "boiling_point" and self._is_elsewhere(value):
            return "strange" if fits else None
        if not fits and self._is_aside(value):
            return None
        return "right" if fits else "wrong"

    def _in_unit(self, value: Quantity) -> tuple[float, float] | None:
        """The ends of `value` in the fact's unit, or None where its dimension is another."""
        unit, moles = value.unit, 1.0
        if unit == UNITLESS:
            unit = "gram/mole"
        elif (
            self.name == "molar_mass"
            and unit in _PER_MOLE
            and _MOLE.search(self.text, *self.said.sentence(value.start))
        ):
            unit = f"{unit}/mole"
            clause = self.said.clause(value.start)
            amounts = [
                convert(one.low, one.unit, "mole")
                for one in self.values
                if self.said.clause(one.start) == clause
            ]
            moles = next((amount for amount in amounts if amount), 1.0)  # "10 mol weigh 460.7 g"
        ends = [convert(end / moles, unit, self.unit) for end in (value.low, value.high)]
        if self.name == "exposure_limit" and ends[0] is None:
            listed = re.search(r"([\d.]+) ppm", self.source)
            shares = [convert(end, unit, "ppmv") for end in (value.low, value.high)]
            ends = [
                share * self.target / float(listed[1]) if listed and share is not None else None
                for share in shares
            ]
        return None if ends[0] is None else (ends[0], ends[1])

    def _is_strange(self, value: Quantity) -> bool:
        """Whether a value of another dimension is the right number, or said of what was asked."""
        same = False
        for unit in _USUAL.get(self.name, (self.unit,)):
            ends = [
                convert(self.target + shift * self.tolerance, self.unit, unit) for shift in (-1, 1)
            ]
            same = same or None not in ends and min(ends) <= value.low <= max(ends)
        beside = convert(1.0, value.unit, "ppmv") is not None or value.unit in _BESIDE
        return (
            (same or not beside)
            if self._topic(value, self.topics) == self.name
            else same and not beside
        )

    def _topic(self, value: Quantity, topics: list[tuple[int, str]] | None = None) -> str | None:
        """The property that `value` is said of, or None where none is named.

        The last one named before it in its clause, or else the first after it there, or else the last before it or the first after it in
        its sentence, or else the only one of the sentence before. A solid, liquid or gas at some temperature counts as another property.
        """
        if topics is None:  # "a voltage of 230 V at 50 Hz": hertz are of no voltage
            strange = {
                name for name, unit in self.of.items() if convert(1.0, value.unit, unit) is None
            }
            topics = (
                [topic for topic in self.topics if topic[1] not in strange]
                if strange
                else self.topics
            )
        clause, sentence, at = (
            self.said.clause(value.start),
            self.said.sentence(value.start),
            value.start,
        )
        beside = _APPOSITION.match(self.text, value.end)
        if beside and (
            named := _between(topics, beside.end(), beside.end() + 24)
        ):  # "..., its melting point"
            return named[0][1]
        together = [one for one in self.values if sentence[0] <= one.start <= sentence[1]]
        named = _between(topics, *sentence)
        if (
            len(named) == len(together) > 1 and named[-1][0] < together[0].start
        ):  # "The melting and boiling point are 5 and 80 °C."
            return named[together.index(value)][1]
        for names in (topics, self.states):
            if named := _between(names, clause[0], at):
                return named[-1][1]
        if named := sorted(
            _between(topics, value.end, clause[1]) + _between(self.states, value.end, clause[1])
        ):
            return named[0][1]
        if named := _between(topics, sentence[0], at):
            return named[-1][1]
        if named := sorted(
            _between(topics, value.end, sentence[1]) + _between(self.states, value.end, sentence[1])
        ):
            return named[0][1]
        if sentence[0]:
            before = {
                name
                for _, name in _between(topics, self.said.sentence(sentence[0] - 1)[0], sentence[0])
            }
            return before.pop() if len(before) == 1 else None
        return None

    def _was_asked(self, amount: float) -> bool:
        """Whether the request itself gave this volume, or it is what the stock leaves over of it; an answer may repeat those."""
        volumes = [float(number) for number in re.findall(r"([\d.]+) mL", self.source)]
        return any(
            agrees(amount, volume, 1e-6)
            for total in volumes
            for volume in (total, total - self.target)
        )

    def _is_elsewhere(self, value: Quantity) -> bool:
        """Whether `value` is said of another pressure than that of the air: the condition after it, or else the one before it."""
        begin, end = self.said.sentence(value.start)
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
            (found.end() for found in _OTHERWISE.finditer(self.text, begin, value.start)),
            default=begin,
        )
        for begin, end in ((value.end, after.start() if after else end), (before, value.start)):
            pressures = [
                convert(one.low, one.unit, "kilopascal")
                for one in self.values
                if begin <= one.start < end
            ]
            pressures = [pressure for pressure in pressures if pressure is not None]
            if pressures:
                return not _AIR[0] <= pressures[0] <= _AIR[1]
            if _NORMAL.search(self.text, begin, end):
                return False
            if _REDUCED.search(self.text, begin, end):
                return True
        return False

    def _is_aside(self, value: Quantity) -> bool:
        """Whether another value than the fact's may stand here: another body's limit, an open cup, an element's share of the mass."""
        begin, end = self.said.clause(value.start)
        if self.name == "exposure_limit":
            begin = max(
                [
                    self.said.sentence(value.start)[0],
                    *(one.end for one in self.values if one.end <= value.start),
                ]
            )
            return any(
                body[0] not in self.source.lower()
                for body in _BODIES.finditer(self.text, begin, max(begin, end))
            )
        if self.name == "flash_point":
            return bool(
                _OPEN_CUP.search(self.text[value.end : end])
                or _OPEN_CUP.search(self.text[begin : value.start])
            )
        return self.name == "molar_mass" and bool(
            _ELEMENT.search(self.text, max(0, value.start - 60), value.start)
        )


def _between(names: list[tuple[int, str]], begin: int, end: int) -> list[tuple[int, str]]:
    return names[bisect_left(names, (begin,)) : bisect_left(names, (end,))]


_TABLE = re.compile(
    r"^ ?(?P<head>\|[^\n]+)\|? ?\n ?\|[ :|-]+\n(?P<rows>(?: ?\|[^\n]*(?:\n|$))+)", re.MULTILINE
)


def _rows(text: str, topic: re.Pattern[str]) -> str:
    """`text` with every cell of a table behind its column's name, where columns are properties, and labels in front of their values."""

    def cells(row: str) -> list[str]:
        return [
            cell.strip() for cell in row.strip(" ").removeprefix("|").removesuffix("|").split("|")
        ]

    def spread(table: re.Match[str]) -> str:
        heads = cells(table["head"])
        if not any(topic.search(head) for head in heads):
            return table[0]
        rows = [cells(row) for row in table["rows"].strip("\n").split("\n")]
        return (
            "\n".join(
                f"{head}: {cell}" for row in rows for head, cell in zip(heads, row, strict=False)
            )
            + "\n"
        )

    return re.sub(r":\s*\n+\s*", ": ", _TABLE.sub(spread, text))
