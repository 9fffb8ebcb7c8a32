"""The hazard class of a substance, for which advice on handling, first aid and disposal is written.

hazard_class(substance, molecule)    -> "flammable liquid"
"""

from pathlib import Path

from chemicals.identifiers import pubchem_db
from rdkit import Chem
from rdkit.Chem import Crippen, Descriptors

from stages.chemistry.identity import flat_molecule, flat_smiles
from stages.chemistry.properties import ROOM, measured
from stages.chemistry.substance import Substance
from stages.core.patterns import read_patterns

HAZARD_CLASSES = (
    "inert gas",
    "flammable gas",
    "flammable liquid",
    "combustible liquid",
    "corrosive acid",
    "corrosive base",
    "oxidiser",
    "toxic solid",
    "toxic agent",
    "medicinal solid",
    "organic solid",
    "organic liquid",
    "inorganic solid",
)
_BY_KIND = {
    "chemical_weapon": "toxic agent",
    "pesticide_industrial": "toxic solid",
    "pop": "toxic solid",
    "medicine": "medicinal solid",
    "medicine_drug": "medicinal solid",
}
_PATTERNS = {
    section: [(Chem.MolFromSmarts(smarts), meaning) for smarts, meaning in lines]
    for section, lines in read_patterns(
        Path(__file__).with_name("hazards.txt"), Chem.MolFromSmarts
    ).items()
}
_STRONG_BASES = {
    flat_smiles(Chem.MolFromSmiles(base))
    for base in ("[Na+].[OH-]", "[K+].[OH-]", "[Ca+2].[OH-].[OH-]")
}
_HYDROGEN_HALIDES = {"F", "Cl", "Br", "I"}  # as SMILES
_NITROGEN = Chem.MolFromSmarts("[#7]")


def chemical_family(molecule: Chem.Mol) -> str:
    """A textbook family by the main functional group, e.g. `ester`; `inorganic salt` by default."""
    matches = (name for pattern, name in _PATTERNS["family"] if molecule.HasSubstructMatch(pattern))
    return next(matches, "inorganic salt")


def complete(substance: Substance) -> None:
    """Fill what follows from structure and facts: family (unless set), hazard class, solubility.

    Precursors are kept by name; the structure that `chemicals` has for their CAS number is used
    for the hazard class only.
    """
    molecule = Chem.MolFromSmiles(substance.smiles) if substance.smiles else None
    if substance.family is None:
        substance.family = chemical_family(molecule) if molecule else "unknown"
    substance.soluble = (
        molecule is not None
        and substance.kind in ("everyday", "industrial")
        and is_soluble(molecule)
    )
    if substance.kind == "precursor" and substance.cas:
        entry = pubchem_db.search_CAS(substance.cas, autoload=True)
        molecule = flat_molecule(entry.smiles) if entry else None
    substance.advice_class = hazard_class(substance, molecule)


def hazard_class(substance: Substance, molecule: Chem.Mol | None) -> str:
    """One of HAZARD_CLASSES, by kind, functional groups, and measured temperatures in K."""
    if substance.kind in _BY_KIND:
        return _BY_KIND[substance.kind]
    if molecule is None:
        return "organic solid"
    if _has("oxidiser", molecule):
        return "oxidiser"

    smiles, organic = flat_smiles(molecule), _has("organic", molecule)
    family, mass = chemical_family(molecule), Descriptors.MolWt(molecule)
    if smiles in _STRONG_BASES:
        return "corrosive base"
    # A sulfonic acid with nitrogen is usually a buffer.
    sulfonic = family == "sulfonic acid" and not molecule.HasSubstructMatch(_NITROGEN)
    if smiles in _HYDROGEN_HALIDES:
        return "corrosive acid"
    if _has("strong_acid", molecule) and (sulfonic or not organic):
        return "corrosive acid"

    melting, boiling, flash = (
        _measured(substance, name) for name in ("melting_point", "boiling_point", "flash_point")
    )
    if boiling is not None and boiling < ROOM:
        return "flammable gas" if organic else "inert gas"
    boils_low = boiling is not None and boiling < 520
    liquid = boils_low if melting is None else melting < ROOM
    if family in ("carboxylic acid", "acid chloride", "anhydride") and liquid and mass < 150:
        return "corrosive acid"
    if flash is not None and liquid:
        return "flammable liquid" if flash < 333 else "combustible liquid"
    if liquid and organic:
        if family == "amine" and mass < 150:
            return "corrosive base"
        return "flammable liquid" if boiling is not None and boiling < 410 else "organic liquid"
    return "organic solid" if organic else "inorganic solid"


def is_soluble(molecule: Chem.Mol) -> bool:
    """Whether a dilution in water makes sense: Crippen logP below 0.5 and under 250 g/mol."""
    return Crippen.MolLogP(molecule) < 0.5 and Descriptors.MolWt(molecule) < 250


def _has(section: str, molecule: Chem.Mol) -> bool:
    return any(molecule.HasSubstructMatch(pattern) for pattern, _ in _PATTERNS[section])


def _measured(substance: Substance, name: str) -> float | None:
    """A measured value in K, also if sources disagree: enough to tell a liquid from a solid."""
    values = measured(substance.cas, name).values() if substance.cas else ()
    return next(iter(values), None)
