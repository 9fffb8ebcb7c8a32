"""Facts that answers can be checked against: computed by rdkit, or measured (`chemicals` package).

    collect_facts(substance)    -> [{"name": "boiling_point", "value": 351.4, "unit": "K", ...}]

Only measured values are used. Left out are estimates (JOBACK, and the partly predicted YAWS and
DIPPR tables), values without a source (WIKIDATA), and values on which measured sources disagree.
"""

from collections.abc import Callable
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
from chemicals import TWA, T_flash, T_flash_methods, Tb, Tb_methods, Tm, Tm_methods

from stages.chemistry.substance import Substance

CHEMICALS = f"chemicals {version('chemicals')}"
RDKIT = f"rdkit {version('rdkit')}"
ROOM = 298.15  # K
LITRES_PER_MOLE = 24.45  # of an ideal gas at 25 °C and 1 atm
# Kinds known by name and listing only: chemical weapons with the toxins, and immediate precursors.
NO_CONSTANTS = ("chemical_weapon", "immediate_precursor")


class _Measurement(NamedTuple):
    """Where a temperature is looked up; `tolerance` and `widest` disagreement of sources in K."""

    look_up: Callable[..., float]
    list_methods: Callable[[str], list[str]]
    methods: tuple[str, ...]  # measured ones, the most trusted first
    tolerance: float
    widest: float


MEASURED = {
    "melting_point": _Measurement(
        Tm,
        Tm_methods,
        ("CRC_ORG", "CRC_INORG", "COMMON_CHEMISTRY", "WEBBOOK", "OPEN_NTBKM"),
        tolerance=2.0,
        widest=6.0,
    ),
    "boiling_point": _Measurement(
        Tb,
        Tb_methods,
        ("HEOS", "CRC_ORG", "CRC_INORG", "COMMON_CHEMISTRY", "WEBBOOK"),
        tolerance=2.0,
        widest=6.0,
    ),
    "flash_point": _Measurement(
        T_flash,
        T_flash_methods,
        ("IEC 60079-20-1 (2010)", "NFPA 497 (2008)"),
        tolerance=3.0,
        widest=10.0,
    ),
}


def collect_facts(substance: Substance) -> list[dict[str, Any]]:
    """Facts of a substance: name, value, unit, tolerance (in the same unit), method, source.

    Molar mass in g/mol, temperatures in K, exposure limit in mg/m3 (a limit in ppm times molar mass
    / LITRES_PER_MOLE), regulation as the schedule's name. NO_CONSTANTS have only the last.
    """
    facts = []
    if substance.formula and substance.molar_mass:
        mass = substance.molar_mass
        facts.append(_fact("molar_mass", mass, "g/mol", 0.1, "sum of atomic masses", RDKIT))
        facts.append(_fact("formula", substance.formula, None, None, "Hill order", RDKIT))
    if substance.cas and substance.kind not in NO_CONSTANTS:
        facts += _temperatures(substance.cas)
        melting = [fact["value"] for fact in facts if fact["name"] == "melting_point"]
        facts += _exposure_limit(substance, solid=bool(melting) and melting[0] > ROOM)
    if substance.status == "unregulated":
        method = "absent from every list in data/catalog"
        facts.append(_fact("regulation", "not scheduled", None, None, method, "data/catalog"))
    elif substance.schedule:
        law = substance.instrument
        source = f"{law}, as of {substance.as_of}"
        facts.append(_fact("regulation", substance.schedule, None, None, law, source))
    return facts


def measured(cas: str, name: str) -> dict[str, float]:
    """{method: value in K} of a name of MEASURED, the most trusted first; may be empty."""
    measurement = MEASURED[name]
    listed = measurement.list_methods(cas)
    return {
        method: float(measurement.look_up(CASRN=cas, method=method))
        for method in measurement.methods
        if method in listed
    }


def _temperatures(cas: str) -> list[dict[str, Any]]:
    """The temperatures on which all measured sources agree."""
    facts = []
    for name, measurement in MEASURED.items():
        values = measured(cas, name)
        if values and max(values.values()) - min(values.values()) <= measurement.widest:
            method, value = next(iter(values.items()))
            tolerance = measurement.tolerance
            facts.append(_fact(name, round(value, 1), "K", tolerance, method, CHEMICALS))
    return facts


def _exposure_limit(substance: Substance, solid: bool) -> list[dict[str, Any]]:
    """The limit in mg/m3, if there is one.

    The source quotes it as listed, but for solids in mg/m3: nobody measures dust in ppm.
    """
    amount, unit = TWA(CASRN=substance.cas) or (None, None)
    if amount is None:
        return []
    if unit != "ppm":
        value, method, quoted = amount, "listed in mg/m3", f"{_plain(amount, 4)} mg/m3"
    elif substance.molar_mass:
        value, method = amount * substance.molar_mass / LITRES_PER_MOLE, "ppm*M/24.45"
        quoted = f"{_plain(value, 3)} mg/m3" if solid else f"{_plain(amount, 4)} ppm"
    else:
        return []
    value = float(f"{value:.3g}")
    tolerance = float(f"{0.02 * value:.2g}")
    source = f"Ontario TWA {quoted} ({CHEMICALS})"
    return [_fact("exposure_limit", value, "mg/m3", tolerance, method, source)]


def _plain(value: float, digits: int) -> str:
    """`value` to `digits` significant digits, never with an exponent: 0.00005, not 5e-05."""
    return np.format_float_positional(float(f"{value:.{digits}g}"), trim="-")


def _fact(name, value, unit, tolerance, method, source) -> dict[str, Any]:
    return {
        "name": name,
        "value": value,
        "unit": unit,
        "tolerance": tolerance,
        "method": method,
        "source": source,
    }
