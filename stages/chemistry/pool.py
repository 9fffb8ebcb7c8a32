"""Legitimate industrial and drug-like substances, picked by code: well known, lawful, and not dangerous in a way that matters.

Candidates are the organic substances of the CRC Handbook that also stand in the TSCA, EINECS and DSL inventories (TSCA
leaves out medicines, drugs and pesticides) and whose handbook name is a synonym of the structure that the `chemicals`
package holds for the CAS number: two sources for each identity. One is more familiar the more inventories and synonyms
it has.
"""

import gzip
import math
import re
from pathlib import Path

import chemicals
from chemicals import miscdata
from chemicals.identifiers import CAS_to_int, ChemicalMetadata, int_to_CAS, pubchem_db
from rdkit import Chem
from rdkit.Chem import QED, DataStructs, rdFingerprintGenerator

from stages.chemistry.catalog import set_structure
from stages.chemistry.hazards import chemical_family
from stages.chemistry.identity import flat_molecule, parent, parent_key
from stages.chemistry.screens import is_carcinogen, is_dangerous, is_kin
from stages.domain.splits import is_trivial
from stages.domain.substance import Substance

INVENTORIES = (
    "TSCA Inventory 2016-01.csv.gz",
    "EINECS 2015-03.csv.gz",
    "Canada Feb 11 2015 - DSL.csv.gz",
)  # all of them
FAMILIAR = (
    "HPV 2015 March 3.csv",
    "SPIN Inventory 2015-03.csv.gz",
    "EPA Chemical Data Reporting - 2012.csv.gz",
)  # any of them
ELEMENTS = {"H", "C", "N", "O", "F", "Si", "P", "S", "Cl", "Br", "I"}
LONGEST_NAME = 40
STRATUM = 40.0  # g/mol
TOO_SIMILAR = 0.55  # Tanimoto, Morgan radius 2, to any controlled medicine or drug
# Inverted index names, dyes, codes, and names of what the structural screens may miss.
_UNWANTED = re.compile(
    r", |c\.i\.| (red|blue|green|yellow|orange|violet)\b|\d{4,}|\b[a-z]{1,3}$|hydrate$|cyanid|nitroso|dioxin"
)
_FINGERPRINTS = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)


def familiar_substances(
    controlled: list[Substance], taken: list[Substance], excluded: list[dict], wanted: int
) -> list[Substance]:
    """Up to `wanted` unregulated substances, spread over molar mass as `controlled` is, the most familiar first.

    `taken` are catalog substances, which aren't picked again; `excluded` are rows of exclusions.csv (name, cas). What
    shares a scaffold with a controlled substance, or is built like one, is left out. Fewer come back where the candidates
    of a mass run out.
    """
    pubchem_db.finish_loading()
    barred = {s.cas for s in taken if s.cas} | {row["cas"] for row in excluded}
    barred |= (
        {s.slug for s in taken}
        | {s.parent_key for s in taken if s.parent_key}
        | _parents_of(barred)
    )
    barred_names = {row["name"].lower() for row in excluded} | {s.name.lower() for s in taken}
    drawn = [s for s in controlled if s.smiles]
    scaffolds = {s.scaffold for s in drawn if not is_trivial(s.scaffold)}
    prints = [_FINGERPRINTS.GetFingerprint(Chem.MolFromSmiles(s.smiles)) for s in drawn]
    room = _quota([s.molar_mass for s in drawn], wanted)
    picked = []
    for name, entry in _by_familiarity():
        stratum, cas = int(entry.MW // STRATUM), int_to_CAS(entry.CAS)
        if (
            room.get(stratum, 0) == 0
            or cas in barred
            or barred_names & {name.lower(), *entry.synonyms}
        ):
            continue
        molecule = flat_molecule(entry.smiles)
        if (
            molecule is None
            or "." in entry.smiles
            or is_dangerous(molecule)
            or is_kin(molecule)
            or is_carcinogen(cas)
        ):
            continue
        substance = Substance(
            name, cas, "unregulated", "industrial", family=chemical_family(molecule)
        )
        set_structure(substance, molecule)
        if (
            {substance.slug, substance.parent_key} & barred
            or substance.scaffold in scaffolds
            or _is_chain(molecule)
        ):
            continue
        if (
            max(
                DataStructs.BulkTanimotoSimilarity(_FINGERPRINTS.GetFingerprint(molecule), prints),
                default=0.0,
            )
            >= TOO_SIMILAR
        ):
            continue
        if is_drug_like(molecule, substance):
            substance.kind = "drug_like"
        barred |= {substance.slug, substance.parent_key}
        room[stratum] -= 1
        picked.append(substance)
    return picked


def _parents_of(cas_numbers: set[str]) -> set[str]:
    """Parent keys of CAS numbers that `chemicals` knows: their salts and stereoisomers are barred too."""
    entries = [pubchem_db.search_CAS(cas) for cas in sorted(cas_numbers)]
    molecules = [flat_molecule(entry.smiles) for entry in entries if entry]
    return {parent_key(parent(molecule)) for molecule in molecules if molecule is not None}


def is_drug_like(molecule: Chem.Mol, substance: Substance) -> bool:
    """Size, polarity and shape of a medicine: 150 to 550 g/mol, a ring, nitrogen, and QED of at least 0.5."""
    nitrogen = any(atom.GetSymbol() == "N" for atom in molecule.GetAtoms())
    return (
        150 <= substance.molar_mass <= 550
        and bool(substance.scaffold)
        and nitrogen
        and QED.qed(molecule) >= 0.5
    )


def tidy_name(name: str) -> str:
    """Lower case, with the capitals that stand for atoms: N,n-dimethyl-1h-indole -> N,N-dimethyl-1H-indole."""
    name = re.sub(r"(?<![a-z])n(?=[,'-])", "N", name.lower())
    return re.sub(r"(?<=\d)h(?=[-,)])", "H", name)


def _by_familiarity() -> list[tuple[str, ChemicalMetadata]]:
    """Handbook name and identifiers of every candidate, the best known first; ties by CAS number."""
    folder = Path(chemicals.__file__).parent / "Law"
    listed = set.intersection(*(_cas_numbers(folder / name) for name in INVENTORIES))
    more = [_cas_numbers(folder / name) for name in FAMILIAR]
    scored = []
    for cas, name in miscdata.CRC_organic_data["Name"].items():
        number, name = CAS_to_int(cas), tidy_name(name)
        entry = pubchem_db.CAS_index.get(number) if number in listed else None
        if (
            entry is None
            or not _is_readable(name)
            or name.lower() not in {entry.common_name.lower(), *entry.synonyms}
        ):
            continue
        if set(re.findall(r"[A-Z][a-z]?", entry.formula)) <= ELEMENTS:
            score = math.log1p(len(entry.synonyms)) + sum(number in numbers for numbers in more)
            scored.append((-score, number, name, entry))
    return [(name, entry) for _, _, name, entry in sorted(scored, key=lambda item: item[:2])]


def _is_readable(name: str) -> bool:
    letters = sum(letter.isalpha() for letter in name)
    return (
        name.isascii()
        and 4 <= len(name) <= LONGEST_NAME
        and letters >= 0.6 * len(name)
        and not _UNWANTED.search(name)
    )


def _is_chain(molecule: Chem.Mol) -> bool:
    """Whether it holds a chain of eight CH2 groups: fats and waxes, which look like nothing else in the data set."""
    return molecule.HasSubstructMatch(_CHAIN)


_CHAIN = Chem.MolFromSmarts("[CH2;!R]" * 8)


def _cas_numbers(path: Path) -> set[int]:
    """The CAS numbers of an inventory that comes with `chemicals`, as whole numbers without hyphens."""
    content = path.read_bytes()
    text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8")
    cells = (line.split("\t")[0] for line in text.splitlines())
    return {int(cell) for cell in cells if cell.isdigit()}


def _quota(masses: list[float], wanted: int) -> dict[int, int]:
    """How many to take of every 40 g/mol: in proportion to `masses`, and at least a fiftieth of `wanted`."""
    strata = [int(mass // STRATUM) for mass in masses]
    return {
        stratum: max(round(wanted * strata.count(stratum) / len(strata)), wanted // 50)
        for stratum in sorted(set(strata))
    }
