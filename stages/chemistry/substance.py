"""A chemical substance: what `Thing` has, and identifiers, structure and properties.

    Substance("ethanol", "unregulated", "everyday", cas="64-17-5")

Its fields are columns of data/substances.parquet, but `soluble`.
"""

import math
from dataclasses import KW_ONLY, dataclass
from typing import Any

from stages.domain.splits import is_trivial
from stages.domain.thing import Thing

# Kinds known by name and listing alone, without structure.
NAME_ONLY = ("immediate_precursor", "chemical_weapon", "pesticide_industrial", "pop")
DRUG_LIKE = ("medicine", "drug_like")
WEAPON_INTENTS = ("regulation", "detection", "first_aid", "disposal")
# Everyday substances are few, and only theirs is a making that fits in a word.
EVERYDAY_COST = -0.6


@dataclass
class Substance(Thing):
    """A row of data/substances.parquet. Molar mass in g/mol; structures without stereo marks."""

    _: KW_ONLY
    cas: str | None = None
    smiles: str | None = None
    inchikey: str | None = None
    scaffold: str | None = None  # Murcko, as SMILES
    everyday: bool = False
    reaction_class: str | None = None
    pharmacology: str | None = None
    formula: str | None = None
    molar_mass: float | None = None
    soluble: bool = False  # in water, so that a dilution can be asked about

    @property
    def is_name_only(self) -> bool:
        return self.kind in NAME_ONLY

    @property
    def is_drug_like(self) -> bool:
        return self.kind in DRUG_LIKE

    @property
    def pairing_cost(self) -> float:
        return EVERYDAY_COST if self.everyday else 0.0

    def identifier(self, representation: str) -> str | None:
        return self.smiles if representation == "smiles" else self.name

    def fact_for(self, intent: str, lot: str) -> dict | None:
        return _dilution(lot) if intent == "dilution" else self.fact(intent)

    def has_answer(self, intent: str, is_property: bool) -> bool:
        if self.kind == "chemical_weapon":
            return intent in WEAPON_INTENTS
        if intent == "pharmacology":
            return self.pharmacology is not None
        if intent == "dilution":
            return self.soluble
        return super().has_answer(intent, is_property)

    def ties(self) -> list[tuple[str, str]]:
        ties = super().ties()
        if self.scaffold and not is_trivial(self.scaffold):
            ties.append(("scaffold", self.scaffold))
        return ties

    def size(self, representation: str) -> list[float]:
        mass = math.nan if self.molar_mass is None else self.molar_mass
        length = len(self.smiles or "") if representation == "smiles" else 0
        return [mass / 40, *super().size(representation), length / 6]

    def row(self) -> dict[str, Any]:
        return super().row() | {
            "cas": self.cas,
            "smiles": self.smiles,
            "inchikey": self.inchikey,
            "scaffold": self.scaffold,
            "everyday": self.everyday,
            "reaction_class": self.reaction_class,
            "pharmacology": self.pharmacology,
            "formula": self.formula,
            "molar_mass": self.molar_mass,
        }


def _dilution(lot: str) -> dict:
    """How many mL of stock make 100 to 1000 mL of a weaker solution: C1 V1 = C2 V2."""
    number = int(lot[:8], 16)
    stock = (1.0, 2.0, 4.0, 5.0)[number % 4]
    volume = (100, 250, 500, 1000)[number // 4 % 4]
    target = (0.05, 0.1, 0.2, 0.5)[number // 16 % 4]
    value = round(target * volume / stock, 2)
    return {
        "name": "dilution",
        "value": value,
        "unit": "mL",
        "tolerance": round(0.01 * value, 3),
        "method": "C1V1=C2V2",
        "source": f"stock {stock} M, {volume} mL of {target} M",
    }
