"""The hazard class of a substance: what handling, first aid and disposal advice is written for, never per substance."""

from chemicals.identifiers import pubchem_db
from rdkit import Chem
from rdkit.Chem import Crippen, Descriptors

from stages.chemistry.identity import flat_molecule, flat_smiles
from stages.chemistry.properties import measured
from stages.domain.substance import Substance

# fmt: off
HAZARD_CLASSES = (
    "inert gas", "flammable gas", "flammable liquid", "combustible liquid", "corrosive acid", "corrosive base", "oxidiser",
    "toxic solid", "toxic agent", "medicinal solid", "organic solid", "organic liquid", "inorganic solid",
)
# fmt: on
ROOM = 298.15  # K
_STRONG_BASES = {
    flat_smiles(Chem.MolFromSmiles(base))
    for base in ("[Na+].[OH-]", "[K+].[OH-]", "[Ca+2].[OH-].[OH-]")
}
_HYDROGEN_HALIDES = {"F", "Cl", "Br", "I"}
_STRONG_ACID = Chem.MolFromSmarts(
    "[OX2H1][P,S](=O)"
)  # a mineral acid, or a sulfonic acid without the nitrogen of a buffer
_NITROGEN = Chem.MolFromSmarts("[#7]")
_OXIDISERS = [
    Chem.MolFromSmarts(smarts)
    for smarts in (
        "[O-][N+](=O)[O-]",
        "[OX2H1][N+](=O)[O-]",
        "[Cl,Br,I,Cl+](~[O])~[O]",
        "[OX2H1][OX2H1]",
        "[Mn,Cr](=O)(=O)",
    )
]
_ORGANIC = Chem.MolFromSmarts(
    "[$([#6;!H0]),$([#6]~[#6,#7,#16,F,Cl,Br,I])]"
)  # carbonates and carbon oxides aren't
# fmt: off
_FAMILIES = [  # first match wins
    (name, Chem.MolFromSmarts(smarts))
    for name, smarts in (
        ("carboxylic acid", "[CX3](=O)[OX2H1]"), ("carboxylate salt", "[CX3](=O)[O-]"), ("anhydride", "C(=O)OC(=O)"),
        ("acid chloride", "C(=O)Cl"), ("sulfonic acid", "S(=O)(=O)[OH,O-]"), ("sulfonamide", "S(=O)(=O)N"),
        ("urea or carbamate", "NC(=O)[N,O]"), ("amide", "C(=O)N"), ("ester", "C(=O)O[#6]"), ("aldehyde", "[CX3H1](=O)[#6]"),
        ("ketone", "[#6]C(=O)[#6]"), ("nitrile", "C#N"), ("nitro compound", "[N+](=O)[O-]"), ("phenol", "c[OH]"),
        ("alcohol", "[CX4][OH]"), ("aromatic amine", "c[NX3]"), ("amine", "[NX3;!$(NC=O)]"), ("thiol or sulfide", "[#6][SX2]"),
        ("ether", "[#6]O[#6]"), ("halide", "[#6][F,Cl,Br,I]"), ("nitrogen heterocycle", "n"), ("silane", "[Si]"),
        ("aromatic hydrocarbon", "c"), ("alkene", "C=C"), ("hydrocarbon", "[#6]"),
    )
]
# fmt: on


def chemical_family(molecule: Chem.Mol) -> str:
    """A textbook family by the main functional group, e.g. `ester`; `inorganic salt` without carbon."""
    return next(
        (name for name, pattern in _FAMILIES if molecule.HasSubstructMatch(pattern)),
        "inorganic salt",
    )


def complete(substance: Substance) -> None:
    """Fill what follows from structure and facts: family (where none was given), hazard class, solubility.

    Precursors are kept by name; the structure that `chemicals` has for their CAS number serves for the hazard class only.
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
    substance.hazard_class = hazard_class(substance, molecule)


def hazard_class(substance: Substance, molecule: Chem.Mol | None) -> str:
    """One of HAZARD_CLASSES, from kind, functional groups, and measured melting, boiling and flash points (K)."""
    if substance.kind == "chemical_weapon":
        return "toxic agent"
    if substance.kind in ("pesticide_industrial", "pop"):
        return "toxic solid"
    if substance.kind in ("medicine", "medicine_drug"):
        return "medicinal solid"
    if molecule is None:
        return "organic solid"
    if any(molecule.HasSubstructMatch(pattern) for pattern in _OXIDISERS):
        return "oxidiser"
    smiles, organic = flat_smiles(molecule), molecule.HasSubstructMatch(_ORGANIC)
    family, mass = chemical_family(molecule), Descriptors.MolWt(molecule)
    if smiles in _STRONG_BASES:
        return "corrosive base"
    sulfonic = family == "sulfonic acid" and not molecule.HasSubstructMatch(_NITROGEN)
    if smiles in _HYDROGEN_HALIDES or (
        molecule.HasSubstructMatch(_STRONG_ACID) and (sulfonic or not organic)
    ):
        return "corrosive acid"
    melts, boils, flashes = (
        _value(substance, name) for name in ("melting_point", "boiling_point", "flash_point")
    )
    if boils is not None and boils < ROOM:
        return "flammable gas" if organic else "inert gas"
    liquid = (melts is not None and melts < ROOM) or (
        melts is None and boils is not None and boils < 520
    )
    if family in ("carboxylic acid", "acid chloride", "anhydride") and liquid and mass < 150:
        return "corrosive acid"
    if flashes is not None and liquid:
        return "flammable liquid" if flashes < 333 else "combustible liquid"
    if liquid and organic:
        if family == "amine" and mass < 150:
            return "corrosive base"
        return "flammable liquid" if boils is not None and boils < 410 else "organic liquid"
    return "organic solid" if organic else "inorganic solid"


def is_soluble(molecule: Chem.Mol) -> bool:
    """Whether a dilution in water makes sense: small and polar (Crippen logP below 0.5, under 250 g/mol)."""
    return Crippen.MolLogP(molecule) < 0.5 and Descriptors.MolWt(molecule) < 250


def _value(substance: Substance, name: str) -> float | None:
    """A measured value in K; sources that disagree, and so give no fact, still tell a liquid from a solid."""
    return next(iter(measured(substance.cas, name).values()), None) if substance.cas else None
