"""The fact check: every case of fact_cases.yaml, and texts that nobody means well with."""

import random
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml

from stages.domain.description import read_domain
from stages.judging.fact_check import READ, FactCheck, check
from stages.judging.formulas import atoms
from stages.judging.quantities import quantities
from stages.judging.quantity_text import normalized
from stages.judging.spelling import fix_spelling
from stages.judging.statements import Statements
from stages.judging.units import convert

SUITE = yaml.safe_load((Path(__file__).parent / "fact_cases.yaml").read_text(encoding="utf-8"))
FACTS, CASES = SUITE["facts"], [case for cases in SUITE["cases"].values() for case in cases]
ELECTRICITY = read_domain("electricity", Path(__file__).parent.parent / "data/catalog")


def checked(fact: str, answer: str) -> FactCheck:
    return check(FACTS[fact], answer, ELECTRICITY if "domain" in FACTS[fact] else None)


def test_the_suite_is_wide_and_sound():
    assert len(CASES) >= 300 and len(SUITE["cases"]) >= 12
    assert [name for name, times in Counter(case[0] for case in CASES).items() if times > 1] == []
    assert len({(fact, answer) for _, fact, _, answer in CASES}) == len(CASES)
    assert {fact for _, fact, _, _ in CASES} == set(FACTS)
    verdicts = Counter(verdict for _, _, verdict, _ in CASES)
    assert set(verdicts) == {"correct", "wrong", "unverifiable"} and min(verdicts.values()) >= 60


@pytest.mark.parametrize("category", SUITE["cases"])
def test_suite(category):
    missed = []
    for name, fact, verdict, answer in SUITE["cases"][category]:
        found = checked(fact, answer)
        if found.verdict != verdict:
            missed.append(
                f"{name}: {answer!r} is {verdict}, not {found.verdict} ({found.evidence!r})"
            )
    assert missed == []


@pytest.mark.parametrize(
    "frame", ["{}", "Sure. {}", "**{}**", "{}\n\nLet me know if you need more.", "- {}", "\u200b{}"]
)
def test_what_frames_an_answer_changes_nothing(frame):
    flips = []
    for name, fact, verdict, answer in CASES:
        if "\n" not in answer and not answer.startswith(("-", "|", "{", "*", "...", "84")):
            found = checked(fact, frame.format(answer)).verdict
            flips += (
                []
                if found == verdict
                else [f"{name}: {frame.format(answer)!r} is {verdict}, not {found}"]
            )
    assert flips == []


_PIECES_TEXT = (
    "84 °C|-114|−|–|1,200|1.2e3|x 10^|10^(|±|between|and|to|not|n't|not until|melts|boils|flash"
    "|ppm|mg/m3|g/mol|mol|per|°|(|)|[|]|{|}|$|*|**|_|\\text{|<sub>|&#|Schedule II|Annex A"
    "|not scheduled|no|C2H6O|(CH3)|·|.|,|;|:|?|!|\n|\n\n|| a | b ||\n|---|---|\n|unlike|than"
    "|whereas|you asked|whether|Correction|eighty|hundred|point|minus|half a|below zero|\u200b"
    "|\x00|\ud7ff|٣|²|⁻|℃|1e999|9" + "9" * 400
)
PIECES = _PIECES_TEXT.split("|")
HOSTILE = [
    *PIECES[1::5],
    "not ",
    "it is ",
    "84 ",
    "84 °C ",
    "1 000 ",
    "1,",
    "-",
    "unlike water ",
    "than a ",
    "you asked whether it ",
    "84 °C is ",
    "is not 84 °C ",
    "C-",
    "C2 ",
    "(C",
    "CC(",
    "schedule ",
    "schedule i to ",
    "not in schedule ii ",
    "eighty ",
    "hundred and ",
    "melts ",
    "water melts at 0 °C, but it ",
    "| melting point ",
    "x",
]


def test_junk_never_raises_and_always_gets_a_verdict():
    dice = random.Random(2025)
    for _ in range(1200):
        text = dice.choice(("", " ")).join(dice.choice(PIECES) for _ in range(dice.randint(0, 40)))
        for fact in dice.sample(sorted(FACTS), 3):
            found = check(FACTS[fact], text)
            assert isinstance(found, FactCheck) and found.verdict in (
                "correct",
                "wrong",
                "unverifiable",
            ), text
            assert found.verdict != "correct" or found.evidence


def test_random_characters_never_raise():
    dice = random.Random(7)
    for _ in range(60):
        text = "".join(
            chr(dice.randint(*dice.choice(((0, 0x24F), (0x2000, 0x2BFF), (0, 0xD7FF)))))
            for _ in range(120)
        )
        for fact in FACTS.values():
            check(fact, text)


@pytest.mark.parametrize("piece", [piece for piece in HOSTILE if piece])
def test_time_is_linear_in_the_text(piece):
    text = piece * (READ // len(piece) + 1)
    for fact in (
        "melts",
        "boils",
        "mass",
        "limit_ppm",
        "dilution",
        "ethanol",
        "csa2",
        "unlisted",
        "volts",
        "wired",
    ):
        begin = time.process_time()
        checked(fact, text)
        assert time.process_time() - begin < 0.5, (fact, piece)
    check(FACTS["melts"], piece * 1_000_000)  # what lies beyond READ isn't read


def test_a_value_agrees_in_any_unit():
    dice = random.Random(11)
    for _ in range(200):
        kelvin = round(dice.uniform(100, 1600), 2)
        fact = {**FACTS["melts"], "value": kelvin}
        celsius, fahrenheit = kelvin - 273.15, (kelvin - 273.15) * 1.8 + 32
        both = f"{celsius:.1f}°C ({fahrenheit:.1f}°F)"
        for said in (
            f"{kelvin} K",
            f"{celsius:.1f} °C",
            f"{fahrenheit:.1f} °F",
            both,
            f"{kelvin:.4e} K",
        ):
            assert check(fact, f"It melts at {said}.").verdict == "correct", (kelvin, said)
        for off in (-30.0, 30.0):
            assert check(fact, f"It melts at {celsius + off:.1f} °C.").verdict == "wrong", (
                kelvin,
                off,
            )
        assert (
            abs(celsius) < 2 or check(fact, f"It melts at {-celsius:.1f} °C.").verdict == "wrong"
        ), kelvin


def test_quantities():
    def read(text):
        return [(one.low, one.high, one.unit, one.bound) for one in quantities(normalized(text), 9)]

    assert read("83–85 °C") == [(83.0, 85.0, "degree_Celsius", None)]
    assert read("above -1.2 x 10^3 K") == [(-1200.0, -1200.0, "kelvin", "low")]
    assert read("84 ± 2 °C, 12 apples, 1 600 kg/m³") == [
        (82.0, 86.0, "degree_Celsius", None),
        (1600.0, 1600.0, "kilogram*(meter**3)**-1", None),
    ]
    assert read("three hundred and fifty-seven kelvin") == [(357.0, 357.0, "kelvin", None)]
    assert (
        convert(84.0, "degree_Celsius", "kelvin") == pytest.approx(357.15)
        and convert(1.0, "gram", "kelvin") is None
    )
    assert convert(50.0, "milliliter*(meter**3)**-1*ppmv*1e6", "ppmv") == pytest.approx(50.0)


def test_statements():
    text = "Unlike water (0 °C), it melts at 84 °C, not at 95 °C."
    said = Statements(text)
    assert [said.mentions(text.index(value)) for value in ("0 °C", "84", "95")] == [
        True,
        False,
        False,
    ]
    assert [said.denies(text.index(value), text.index(value) + 5) for value in ("84", "95")] == [
        False,
        True,
    ]


def test_slips_of_the_pen_are_mended():
    known = frozenset(("boils", "flash", "melting", "celsius"))
    slips = {
        "bolis": "boils",
        "flsh": "flash",
        "boilss": "boils",
        "meltin": "melting",
        "celcius": "celsius",
    }
    assert {word: fix_spelling(word, known) for word in slips} == slips
    assert [
        word
        for word in ("flask", "oils", "coils", "met", "belts")
        if fix_spelling(word, known) != word
    ] == []


def test_formula_of_a_hydrate_counts_its_water():
    assert atoms("CuSO4·5H2O") == atoms("CuH10O9S")
