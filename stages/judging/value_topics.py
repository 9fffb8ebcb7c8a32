"""Which property a value in a text belongs to: the melting point, the boiling point, or none named.

    topics = Topics(text, terms, quantities, statements)
    topics.of(value)        # "melting_point" for the 84 °C of "It melts at 84 °C."

The domain says which words name a property (`judge.numbers` in domain.yaml).
"""

import re
from bisect import bisect_left
from dataclasses import dataclass
from functools import lru_cache

from stages.domain.description import Domain
from stages.judging.quantities import Quantity
from stages.judging.quantity_text import normalized
from stages.judging.statements import Statements
from stages.judging.units import Units, convert, unit_at

CHANGES = (  # (property, state, bound): "a liquid above 84 °C" says where it melts, or nothing
    ("melting_point", "solid", "high"),
    ("melting_point", "liquid", "low"),
    ("boiling_point", "liquid", "high"),
    ("boiling_point", "gas", "low"),
)
_STATE = re.compile(  # "a liquid at 20 °C"
    r"(?<!the )(?<!this )\b(?:solid|liquid|gas|gaseous|crystalline|powder|crystals)\b"
)
_APPOSITION = re.compile(r"(?: ?\([^()]{0,40}\))?,? (?:(?:which|that) is |being )?(?:its|the) ")
_TABLE = re.compile(
    r"^ ?(?P<head>\|[^\n]+)\|? ?\n ?\|[ :|-]+\n(?P<rows>(?: ?\|[^\n]*(?:\n|$))+)", re.MULTILINE
)
Places = list[tuple[int, str]]  # sorted (place, name)


@dataclass(frozen=True)
class Terms:
    """How a domain speaks of numbers.

    `topic` matches the words for a property, in a group by its name; `spelling` are words to fix
    misspellings of; `units` says how units are written; `unit_of` is {property: its unit}; and
    `melts` whether its things have melting or boiling points, which "solid" and "liquid" speak of.
    """

    topic: re.Pattern[str]
    spelling: frozenset[str]
    units: Units
    unit_of: dict[str, str]
    melts: bool


@lru_cache(maxsize=4)
def terms_of(domain: Domain) -> Terms:
    """The terms of `domain`. Raises LibraError for a unit that pint doesn't know."""
    numbers = domain.judge.numbers
    patterns = [
        f"(?P<{name}>\\b(?:{'|'.join(number.words)})(?![a-z]))" for name, number in numbers.items()
    ]
    units = Units.of(domain.judge.units)
    unit_of = {
        name: unit_at(normalized(number.unit), 0, units)[0] or number.unit
        for name, number in numbers.items()
        if number.unit
    }
    return Terms(
        re.compile("|".join(patterns) or r"(?!)"),
        frozenset(domain.judge.spelling),
        units,
        unit_of,
        bool(numbers.keys() & {name for name, _, _ in CHANGES}),
    )


class Topics:
    """The words of a normalized text that name a property or a state."""

    def __init__(
        self,
        text: str,
        terms: Terms,
        values: list[Quantity],
        statements: Statements,
        dilution: bool = False,
    ):
        self.text, self.unit_of = text, terms.unit_of
        self.values, self.statements = values, statements
        self.named = [
            (match.start(), match.lastgroup)
            for match in terms.topic.finditer(text)
            if dilution or match.lastgroup != "dilution"  # its verbs are common: take, need
        ]
        self.states = [(m.start(), m[0]) for m in _STATE.finditer(text) if terms.melts]

    def of(self, value: Quantity, any_unit: bool = False) -> str | None:
        """The property that `value` belongs to, or None if none is named.

        In this order: the last one named before it in its clause, the first after it there, the
        last before it in its sentence, the first after it there, and the only one of the previous
        sentence. A solid, liquid or gas at some temperature counts as another property. Properties
        whose unit the value can't have don't count, unless with `any_unit`.
        """
        named = self.named
        if not any_unit:  # "a voltage of 230 V at 50 Hz": hertz are not the unit of a voltage
            others = {
                name
                for name, unit in self.unit_of.items()
                if convert(1.0, value.unit, unit) is None
            }
            named = [place for place in named if place[1] not in others]
        clause = self.statements.clause(value.start)
        sentence = self.statements.sentence(value.start)

        apposition = _APPOSITION.match(self.text, value.end)
        if apposition:  # "84 °C, its melting point"
            behind = _between(named, apposition.end(), apposition.end() + 24)
            if behind:
                return behind[0][1]

        # "The melting and boiling point are 5 and 80 °C."
        together = [v for v in self.values if sentence[0] <= v.start <= sentence[1]]
        here = _between(named, *sentence)
        if len(here) == len(together) > 1 and here[-1][0] < together[0].start:
            return here[together.index(value)][1]

        for places in (named, self.states):
            if before := _between(places, clause[0], value.start):
                return before[-1][1]
        if after := self._after(named, value.end, clause[1]):
            return after[0][1]
        if before := _between(named, sentence[0], value.start):
            return before[-1][1]
        if after := self._after(named, value.end, sentence[1]):
            return after[0][1]
        if sentence[0]:
            previous = self.statements.sentence(sentence[0] - 1)[0]
            names = {name for _, name in _between(named, previous, sentence[0])}
            return names.pop() if len(names) == 1 else None
        return None

    def _after(self, named: Places, begin: int, end: int) -> Places:
        return sorted(_between(named, begin, end) + _between(self.states, begin, end))


def label_cells(text: str, topic: re.Pattern[str]) -> str:
    """`text` with each table cell after its column's name, and each label on its value's line.

    Only tables whose columns are properties are spread out.
    """
    return re.sub(r":\s*\n+\s*", ": ", _TABLE.sub(lambda table: _spread_out(table, topic), text))


def _spread_out(table: re.Match[str], topic: re.Pattern[str]) -> str:
    heads = _cells(table["head"])
    if not any(topic.search(head) for head in heads):
        return table[0]
    lines = [
        f"{head}: {cell}"
        for row in table["rows"].strip("\n").split("\n")
        for head, cell in zip(heads, _cells(row), strict=False)
    ]
    return "\n".join(lines) + "\n"


def _cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip(" ").removeprefix("|").removesuffix("|").split("|")]


def _between(places: Places, begin: int, end: int) -> Places:
    return places[bisect_left(places, (begin,)) : bisect_left(places, (end,))]
