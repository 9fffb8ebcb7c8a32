"""The fact check: every case of fact_cases.yaml, and hostile texts."""

import random
import sys
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
VERDICTS = ("correct", "wrong", "unverifiable")
ELECTRICITY = read_domain("electricity", Path(__file__).parent.parent / "data/catalog")


def checked(fact: str, answer: str) -> FactCheck:
    return check(FACTS[fact], answer, ELECTRICITY if "domain" in FACTS[fact] else None)


def test_the_suite_is_wide_and_sound():
    assert len(CASES) >= 300 and len(SUITE["cases"]) >= 12
    names = Counter(name for name, _, _, _ in CASES)
    assert [name for name, count in names.items() if count > 1] == []
    assert len({(fact, answer) for _, fact, _, answer in CASES}) == len(CASES)
    assert {fact for _, fact, _, _ in CASES} == set(FACTS)
    verdicts = Counter(verdict for _, _, verdict, _ in CASES)
    assert set(verdicts) == set(VERDICTS) and min(verdicts.values()) >= 60


@pytest.mark.parametrize("category", SUITE["cases"])
def test_suite(category):
    mistakes = []
    for name, fact, verdict, answer in SUITE["cases"][category]:
        result = checked(fact, answer)
        if result.verdict != verdict:
            mistakes.append(f"{name}: {answer!r} is {verdict}, not {result}")
    assert mistakes == []


@pytest.mark.parametrize(
    "frame", ["{}", "Sure. {}", "**{}**", "{}\n\nLet me know if you need more.", "- {}", "\u200b{}"]
)
def test_the_frame_of_an_answer_changes_no_verdict(frame):
    mistakes = []
    for name, fact, verdict, answer in CASES:
        if "\n" in answer or answer.startswith(("-", "|", "{", "*", "...", "84")):
            continue
        result = checked(fact, frame.format(answer))
        if result.verdict != verdict:
            mistakes.append(f"{name}: {frame.format(answer)!r} is {verdict}, not {result}")
    assert mistakes == []


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
    rng = random.Random(2025)
    for _ in range(1200):
        text = rng.choice(("", " ")).join(rng.choice(PIECES) for _ in range(rng.randint(0, 40)))
        for fact in rng.sample(sorted(FACTS), 3):
            result = check(FACTS[fact], text)
            assert isinstance(result, FactCheck) and result.verdict in VERDICTS, text
            assert result.verdict != "correct" or result.evidence


def test_random_characters_never_raise():
    rng = random.Random(7)
    blocks = ((0, 0x24F), (0x2000, 0x2BFF), (0, 0xD7FF))
    for _ in range(60):
        text = "".join(chr(rng.randint(*rng.choice(blocks))) for _ in range(120))
        for fact in FACTS.values():
            check(fact, text)


def calls_in(function, *arguments) -> int:
    """How many functions, Python's and built-in ones, a call runs."""
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        function(*arguments)
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.parametrize("piece", [piece for piece in HOSTILE if piece])
def test_work_is_linear_in_the_text(piece):
    text = (piece * READ)[:READ]
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
        checked(fact, text[: READ // 2]), checked(fact, text)  # caches are filled
        half = calls_in(checked, fact, text[: READ // 2])
        assert calls_in(checked, fact, text) <= 2.1 * half + 100, (fact, piece)


@pytest.mark.parametrize("piece", [piece for piece in HOSTILE if piece])
def test_a_text_is_read_to_its_limit(piece):
    text = piece * (READ // len(piece) + 1)
    assert check(FACTS["melts"], text * 100) == check(FACTS["melts"], text[:READ])


def test_a_value_agrees_in_any_unit():
    rng = random.Random(11)
    for _ in range(200):
        kelvin = round(rng.uniform(100, 1600), 2)
        fact = {**FACTS["melts"], "value": kelvin}
        celsius = kelvin - 273.15
        fahrenheit = celsius * 1.8 + 32
        for value in (
            f"{kelvin} K",
            f"{celsius:.1f} °C",
            f"{fahrenheit:.1f} °F",
            f"{celsius:.1f}°C ({fahrenheit:.1f}°F)",
            f"{kelvin:.4e} K",
        ):
            assert check(fact, f"It melts at {value}.").verdict == "correct", (kelvin, value)
        wrong = [celsius - 30, celsius + 30, *([-celsius] if abs(celsius) >= 2 else [])]
        for value in wrong:
            assert check(fact, f"It melts at {value:.1f} °C.").verdict == "wrong", (kelvin, value)


def test_quantities():
    def read(text):
        return [(q.low, q.high, q.unit, q.bound) for q in quantities(normalized(text), 9)]

    assert read("83–85 °C") == [(83.0, 85.0, "degree_Celsius", None)]
    assert read("above -1.2 x 10^3 K") == [(-1200.0, -1200.0, "kelvin", "low")]
    assert read("84 ± 2 °C, 12 apples, 1 600 kg/m³") == [
        (82.0, 86.0, "degree_Celsius", None),
        (1600.0, 1600.0, "kilogram*(meter**3)**-1", None),
    ]
    assert read("three hundred and fifty-seven kelvin") == [(357.0, 357.0, "kelvin", None)]
    assert convert(84.0, "degree_Celsius", "kelvin") == pytest.approx(357.15)
    assert convert(1.0, "gram", "kelvin") is None
    assert convert(50.0, "milliliter*(meter**3)**-1*ppmv*1e6", "ppmv") == pytest.approx(50.0)


def test_statements():
    text = "Unlike water (0 °C), it melts at 84 °C, not at 95 °C."
    statements = Statements(text)
    zero, right, wrong = (text.index(value) for value in ("0 °C", "84", "95"))
    assert [statements.mentions(place) for place in (zero, right, wrong)] == [True, False, False]
    assert [statements.denies(place, place + 5) for place in (right, wrong)] == [False, True]


def test_misspellings_are_fixed():
    known = frozenset(("boils", "flash", "melting", "celsius"))
    misspelt = {
        "bolis": "boils",
        "flsh": "flash",
        "boilss": "boils",
        "meltin": "melting",
        "celcius": "celsius",
    }
    assert {word: fix_spelling(word, known) for word in misspelt} == misspelt


@pytest.mark.parametrize("word", ["flask", "oils", "coils", "met", "belts"])
def test_other_words_are_no_misspellings(word):
    assert fix_spelling(word, frozenset(("boils", "flash", "melting", "celsius"))) == word


def test_zero_atoms_in_words_are_read():
    answer = "It has zero carbon atoms, two hydrogens and one oxygen."
    assert check(FACTS["ethanol"], answer).verdict == "wrong"


def test_formula_of_a_hydrate_counts_its_water():
    assert atoms("CuSO4·5H2O") == atoms("CuH10O9S")
