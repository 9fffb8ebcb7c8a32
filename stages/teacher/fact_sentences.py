"""Sentences that state a fact of a fact sheet with its unit, and facts with a wrong value.

    >>> fact_parts(chemistry(), {"name": "melting_point", "value": 442.0, "unit": "K", ...})
    [("Its melting point is 442.0 K (168.9 °C).", ...), ("", " It is a measured value.", ...)]

A sentence is one choice of each tuple, joined. Every number is the fact's, perhaps converted, or
one of its source.
"""

import re
from typing import Any

from stages.domain.description import Domain
from stages.teacher.phrasing import dilution_numbers, joined, pick

ZERO_CELSIUS = 273.15  # K

Parts = list[tuple[str, ...]]


def fact_parts(domain: Domain, fact: dict[str, Any]) -> Parts:
    """The choices for a sentence that states `fact`. Raises KeyError for a fact without wording."""
    return _regulation(domain, fact) if fact["name"] == "regulation" else _FACTS[fact["name"]](fact)


def stated(fact: dict[str, Any]) -> dict[str, Any]:
    """`fact` for sentences of the domain: a number has the decimals that its tolerance needs."""
    value = fact.get("value")
    if isinstance(value, float):
        value = _number(value, fact["tolerance"])
    return {**fact, "value": value}


def _decimals(tolerance: float | None, least: int) -> int:
    """Decimals that keep the rounding error below a fifth of the tolerance."""
    for decimals in range(least, 6):
        if tolerance is None or 0.5 * 10**-decimals <= tolerance / 5:
            return decimals
    return 6


def _number(value: float, tolerance: float | None, least: int = 0) -> str:
    return f"{value:.{_decimals(tolerance, least)}f}"


def _molar_mass(fact: dict[str, Any]) -> Parts:
    mass, kilo = _number(fact["value"], fact["tolerance"], 2), f"{fact['value'] / 1000:.5f}"
    return [
        (
            f"Its molar mass is {mass} g/mol.",
            f"The molar mass is {mass} g/mol ({kilo} kg/mol).",
            f"One mole has a mass of {mass} g.",
            f"It has a molar mass of {mass} g/mol.",
            f"Its mass per mole is {mass} g, that is {kilo} kg/mol.",
            f"The molecular weight is {mass} g/mol.",
        ),
        (
            "",
            "",
            " The value sums standard atomic weights.",
            " It follows from the formula and atomic weights.",
        ),
    ]


def _formula(fact: dict[str, Any]) -> Parts:
    formula = fact["value"]
    return [
        (
            f"Its molecular formula is {formula}.",
            f"The formula is {formula}.",
            f"It has the formula {formula}.",
            f"The chemical formula is {formula}.",
            f"Its composition is {formula}.",
        ),
        (
            "",
            "",
            " Atoms are counted per molecule.",
            " The count is per formula unit, in Hill order.",
        ),
    ]


def _temperature(noun: str, verb: str):
    def parts(fact: dict[str, Any]) -> Parts:
        kelvin = _number(fact["value"], fact["tolerance"], 1)
        celsius = _number(fact["value"] - ZERO_CELSIUS, fact["tolerance"], 1)
        return [
            (
                f"Its {noun} is {kelvin} K ({celsius} °C).",
                f"The {noun} is {celsius} °C, or {kelvin} K.",
                f"It {verb} when it reaches {kelvin} K, which is {celsius} °C.",
                f"The listed {noun} is {kelvin} K, equal to {celsius} °C.",
                f"It {verb} near {celsius} °C ({kelvin} K).",
            ),
            ("", "", " It is a measured value.", " It comes from reference data."),
        ]

    return parts


def _exposure_limit(fact: dict[str, Any]) -> Parts:
    limit = _number(fact["value"], fact["tolerance"])
    ppm = re.search(r"([\d.]+) ppm", fact["source"])
    also = f" ({ppm[1]} ppm)" if ppm else ""
    kind = " It is a time-weighted average." if "TWA" in fact["source"] else ""
    return [
        (
            f"The workplace limit is {limit} mg/m3{also}.",
            f"Its exposure limit is {limit} mg/m3{also}.",
            f"The listed airborne limit is {limit} mg/m3{also}.",
            f"Air at work may hold up to {limit} mg/m3{also}.",
        ),
        ("", kind, kind, " Local limits may differ."),
    ]


def _dilution(fact: dict[str, Any]) -> Parts:
    numbers, volume = dilution_numbers(fact["source"]), _number(fact["value"], fact["tolerance"], 1)
    total, liters = numbers["volume"], f"{fact['value'] / 1000:.4f}"
    return [
        (
            f"It needs {volume} mL of stock, brought to {total} mL.",
            f"The answer is {volume} mL of stock ({liters} L) in {total} mL.",
            f"By the dilution rule it is {volume} mL of stock in {total} mL.",
            f"That is {volume} mL of stock, filled up to {total} mL.",
            f"{volume} mL of stock made up to {total} mL does it.",
        ),
        (
            "",
            "",
            " C1V1 = C2V2 gives the volume.",
            " Check: amounts before and after are equal.",
        ),
    ]


def _regulation(domain: Domain, fact: dict[str, Any]) -> Parts:
    value, law = fact["value"], fact["method"]
    as_of = re.search(r"as of (\d{4}(?:-\d{2})?)", fact["source"] or "")
    when = f" (as of {as_of[1]})" if as_of else ""
    if value == "not scheduled":
        return [
            (
                "It is not scheduled",
                "The drug and weapons lists leave it out: it is not scheduled",
                "It is not scheduled under drug or weapons law",
                "Its legal status is: not scheduled",
                "As far as the lists go, it is not scheduled",
            ),
            joined(
                (
                    "ordinary chemical safety rules apply.",
                    "local rules may add to that.",
                    "no list on file names it.",
                    "general trade rules hold.",
                )
            ),
        ]

    law = domain.laws.get(law, law)
    return [
        (
            f"It is listed in {value} of {law}{when}.",
            f"{law[0].upper()}{law[1:]} places it in {value}{when}.",
            f"Its legal status is {value} under {law}{when}.",
            f"It belongs to {value} of {law}{when}.",
            f"It is in {value} of {law}{when}.",
        ),
        ("", "", " Licences decide who may hold it.", " National rules may add to that."),
    ]


_FACTS = {
    "molar_mass": _molar_mass,
    "formula": _formula,
    "melting_point": _temperature("melting point", "melts"),
    "boiling_point": _temperature("boiling point", "boils"),
    "flash_point": _temperature("flash point", "flashes"),
    "exposure_limit": _exposure_limit,
    "dilution": _dilution,
}


def wrong_fact(domain: Domain, fact: dict[str, Any], key: tuple) -> dict[str, Any]:
    """`fact` with a value far from the truth; `key` picks it.

    A number is off by at least 20 tolerances and by 30 %, a temperature by 60 K or more.
    """
    value, name = fact["value"], fact["name"]
    if texts := domain.intents[name].wrong:
        return {**fact, "value": pick([text for text in texts if text != value], *key)}
    if name == "formula":
        return {**fact, "value": _other_formula(value, key)}
    if name == "regulation":
        if value == "not scheduled":
            schedules = ("Schedule I", "Schedule II", "Schedule III", "Schedule IV")
            law = "US CSA 21 CFR 1308"
        else:
            schedules, law = ("not scheduled",), fact["method"]
        return {**fact, "value": pick(schedules, *key), "method": law, "source": ""}
    if fact["unit"] == "K":
        shifts = (-121.5, -94.0, -63.0, 63.0, 78.5, 94.0, 121.5)
        wrong = [value + shift for shift in shifts if value + shift > 30]
        return {**fact, "value": pick(wrong, *key)}

    # A wrong answer must not be a number of the request, nor what one of them leaves.
    of_request: list[float] = []
    if name == "dilution":
        of_request = [float(number) for number in dilution_numbers(fact["source"]).values()]
    avoided = [*of_request, *(number - value for number in of_request), value]
    least = max(20 * (fact["tolerance"] or 0), 0.3 * value)
    wrong = [
        value * factor
        for factor in (0.35, 0.55, 1.7, 2.2, 3.1, 30.0)
        if abs(value * factor - value) >= least
        and all(abs(value * factor - number) > 0.02 * value for number in avoided)
    ]
    # Without its source, an exposure limit isn't given in ppm, rightly, next to the wrong value.
    source = fact["source"] if name == "dilution" else ""
    return {**fact, "value": pick(wrong, *key), "source": source}


def _other_formula(formula: str, key: tuple) -> str:
    """Another molecule's formula: the first count grows, and the next one changes too."""
    atoms = re.findall(r"([A-Z][a-z]?)(\d*)", formula)
    more = pick((2, 3, 4), *key)
    growth = [more, more + 1, *[0] * len(atoms)]
    counts = [
        (symbol, int(count or 1) + added)
        for (symbol, count), added in zip(atoms, growth, strict=False)
    ]
    return "".join(symbol + (str(count) if count > 1 else "") for symbol, count in counts)
