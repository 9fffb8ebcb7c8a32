"""Structural screens of the pool: no unsafe substances, and none built like a controlled drug.

    is_unsafe(Chem.MolFromSmiles("CN=[N+]=[N-]"))    -> True, an azide

The patterns are in screens.txt. A lawful substance that matches is left out: better one too many.
"""

from pathlib import Path

from chemicals import Carcinogen
from rdkit import Chem

from stages.core.patterns import read_patterns

MOST_HALOGENS = 4  # Cl, Br and I atoms; more are mostly persistent pollutants or flame retardants

_SCREENS = {
    section: [Chem.MolFromSmarts(smarts) for smarts, _ in lines]
    for section, lines in read_patterns(
        Path(__file__).with_name("screens.txt"), Chem.MolFromSmarts
    ).items()
}


def is_unsafe(molecule: Chem.Mol) -> bool:
    """Energetic, acutely toxic, strongly alkylating or persistent by its structure."""
    halogens = sum(atom.GetSymbol() in ("Cl", "Br", "I") for atom in molecule.GetAtoms())
    return halogens > MOST_HALOGENS or _matches("unsafe", molecule)


def is_related(molecule: Chem.Mol) -> bool:
    """Built like a family of controlled drugs or of what they are derived from."""
    return _matches("related", molecule)


def is_carcinogen(cas: str) -> bool:
    """Whether IARC (groups 1, 2A, 2B) or the US National Toxicology Program lists it."""
    listings = Carcinogen(CASRN=cas).values()
    return any(listing != "Unlisted" and "(3)" not in str(listing) for listing in listings)


def _matches(section: str, molecule: Chem.Mol) -> bool:
    return any(molecule.HasSubstructMatch(pattern) for pattern in _SCREENS[section])
