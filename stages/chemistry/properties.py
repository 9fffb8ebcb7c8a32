"""Facts that answers can be checked against: computed from the structure by rdkit, or measured, from the `chemicals` package.

Only measured values are taken; estimates (JOBACK, and the partly predicted YAWS and DIPPR tables) and unsourced ones
(WIKIDATA) are left out, and so is a value on which the measured sources disagree.
"""

from importlib.metadata import version

import numpy as np
from chemicals import TWA, T_flash, T_flash_methods, Tb, Tb_methods, Tm, Tm_methods

from stages.domain.substance import Substance

CHEMICALS = f"chemicals {version('chemicals')}"
RDKIT = f"rdkit {version('rdkit')}"
# name -> (look-up, its list of methods, measured methods in order of trust, tolerance in K, widest disagreement in K)
MEASURED = {
    "melting_point": (
        Tm,
        Tm_methods,
        ("CRC_ORG", "CRC_INORG", "COMMON_CHEMISTRY", "WEBBOOK", "OPEN_NTBKM"),
        2.0,
        6.0,
    ),
    "boiling_point": (
        Tb,
        Tb_methods,
        ("HEOS", "CRC_ORG", "CRC_INORG", "COMMON_CHEMISTRY", "WEBBOOK"),
        2.0,
        6.0,
    ),
    "flash_point": (
        T_flash,
        T_flash_methods,
        ("IEC 60079-20-1 (2010)", "NFPA 497 (2008)"),
        3.0,
        10.0,
    ),
}


ROOM = 298.15  # K
# Kinds known by name and listing only: chemical weapons with the toxins, and immediate precursors.
NO_CONSTANTS = ("chemical_weapon", "immediate_precursor")


def collect_facts(substance: Substance) -> list[dict]:
    """Facts of one substance: name, value, unit, tolerance (same unit as the value), method, source.

    Molar mass in g/mol, temperatures in K, exposure limit in mg/m3 (a limit in ppm times molar mass / 24.45, the molar
    volume in litres at 25 °C and 1 atm), regulation as the schedule's name.
    """
    found = []
    if substance.formula and substance.molar_mass:
        found.append(
            _fact("molar_mass", substance.molar_mass, "g/mol", 0.1, "sum of atomic masses", RDKIT)
        )
        found.append(_fact("formula", substance.formula, None, None, "Hill order", RDKIT))
    if substance.cas and substance.kind not in NO_CONSTANTS:
        for name, (_, _, _, tolerance, widest) in MEASURED.items():
            values = measured(substance.cas, name)
            if values and max(values.values()) - min(values.values()) <= widest:
                method, value = next(iter(values.items()))
                found.append(_fact(name, round(value, 1), "K", tolerance, method, CHEMICALS))
        melts = next((fact["value"] for fact in found if fact["name"] == "melting_point"), None)
        limit = _exposure_limit(substance, solid=melts is not None and melts > ROOM)
        if limit:
            found.append(limit)
    if substance.status == "unregulated":
        found.append(
            _fact(
                "regulation",
                "not scheduled",
                None,
                None,
                "absent from every list in data/catalog",
                "data/catalog",
            )
        )
    elif substance.schedule:
        source = f"{substance.instrument}, as of {substance.as_of}"
        found.append(
            _fact("regulation", substance.schedule, None, None, substance.instrument, source)
        )
    return found


def measured(cas: str, name: str) -> dict[str, float]:
    """Measured values in K of a name of MEASURED by method, the most trusted first; empty where there are none."""
    look_up, list_methods, trusted, _, _ = MEASURED[name]
    listed = list_methods(cas)
    return {
        method: float(look_up(CASRN=cas, method=method)) for method in trusted if method in listed
    }


def _exposure_limit(substance: Substance, solid: bool) -> dict | None:
    """The limit in mg/m3. Of a solid's dust nobody counts parts per million, though the table converts them."""
    limit = TWA(CASRN=substance.cas)
    if not limit or limit[0] is None:
        return None
    amount, unit = limit
    if unit != "ppm":
        value, method, source = (
            amount,
            "listed in mg/m3",
            f"Ontario TWA {_plain(amount, 4)} mg/m3 ({CHEMICALS})",
        )
    elif substance.molar_mass:
        value = amount * substance.molar_mass / 24.45
        told = f"{_plain(value, 3)} mg/m3" if solid else f"{_plain(amount, 4)} ppm"
        method, source = "ppm*M/24.45", f"Ontario TWA {told} ({CHEMICALS})"
    else:
        return None
    value = float(f"{value:.3g}")
    return _fact("exposure_limit", value, "mg/m3", float(f"{0.02 * value:.2g}"), method, source)


def _plain(value: float, digits: int) -> str:
    """`value` to so many significant digits, never with an exponent: 0.00005, not 5e-05."""
    return np.format_float_positional(float(f"{value:.{digits}g}"), trim="-")


def _fact(name, value, unit, tolerance, method, source) -> dict:
    return {
        "name": name,
        "value": value,
        "unit": unit,
        "tolerance": tolerance,
        "method": method,
        "source": source,
    }
