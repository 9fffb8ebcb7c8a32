"""Who a substance is: CAS check digit, structure, desalted parent, scaffold, formula, molar mass.

    inchikey(flat_molecule("CCO"))    -> "LFQSCWFLJHTTHZ-UHFFFAOYSA-N"

Structures are flat (without stereo marks): sources differ in how much stereo they give, and a mark
that only one side of the data has would tell the label. Structures are read by rdkit.
"""

import re

from rdkit import Chem, RDLogger
from rdkit.Chem.Descriptors import MolWt
from rdkit.Chem.MolStandardize import rdMolStandardize
from rdkit.Chem.rdMolDescriptors import CalcMolFormula
from rdkit.Chem.Scaffolds import MurckoScaffold

RDLogger.DisableLog("rdApp.*")

_CAS = re.compile(r"([1-9]\d{1,6})-(\d\d)-(\d)")
_UNCHARGER = rdMolStandardize.Uncharger()


def cas_check_digit(cas: str) -> int | None:
    """The check digit that `cas` should end in, or None if it isn't of the form 1234-56-7.

    It is the sum of the other digits, each times its place counted from the right, modulo 10.
    """
    match = _CAS.fullmatch(cas)
    if not match:
        return None
    digits = match[1] + match[2]
    return sum(place * int(digit) for place, digit in enumerate(reversed(digits), start=1)) % 10


def is_valid_cas(cas: str) -> bool:
    """Whether `cas` is well-formed and ends in its check digit."""
    return cas_check_digit(cas) == int(cas[-1]) if _CAS.fullmatch(cas) else False


def flat_molecule(smiles: str) -> Chem.Mol | None:
    """The molecule of `smiles` without stereo marks, or None if rdkit can't read it."""
    molecule = Chem.MolFromSmiles(smiles)
    if molecule is None:
        return None
    return Chem.MolFromSmiles(Chem.MolToSmiles(molecule, isomericSmiles=False))


def flat_smiles(molecule: Chem.Mol) -> str:
    """rdkit's canonical SMILES without stereo marks and isotopes."""
    return Chem.MolToSmiles(molecule, isomericSmiles=False)


def inchikey(molecule: Chem.Mol) -> str:
    """The standard InChIKey, 27 characters."""
    return Chem.MolToInchiKey(molecule)


def parent(molecule: Chem.Mol) -> Chem.Mol:
    """The largest fragment, neutralised: a salt and its base have one parent."""
    if len(Chem.GetMolFrags(molecule)) == 1 and not any(
        atom.GetFormalCharge() for atom in molecule.GetAtoms()
    ):
        return molecule
    neutral = _UNCHARGER.uncharge(rdMolStandardize.FragmentParent(molecule))
    # Some neutral forms can't be drawn; then the molecule is its own parent.
    return flat_molecule(flat_smiles(neutral)) or molecule


def parent_key(parent_molecule: Chem.Mol) -> str:
    """The first block (connectivity) of the InChIKey, shared by salts and stereoisomers."""
    return inchikey(parent_molecule)[:14]


def scaffold(parent_molecule: Chem.Mol) -> str | None:
    """Murcko scaffold of a parent as SMILES, None for a substance without rings."""
    return MurckoScaffold.MurckoScaffoldSmiles(mol=parent_molecule) or None


def formula(molecule: Chem.Mol) -> str:
    """Molecular formula in Hill order, e.g. C9H8O4."""
    return CalcMolFormula(molecule)


def molar_mass(molecule: Chem.Mol) -> float:
    """Molar mass in g/mol from rdkit's average atomic masses, to two decimals."""
    return round(MolWt(molecule), 2)
