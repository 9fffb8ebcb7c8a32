"""Lawful industrial and drug-like substances, picked by code: well known, and safe to ask about.

    familiar_substances(controlled, catalog, exclusions, 1264)

Candidates are the organic substances of the CRC Handbook that are also in the TSCA, EINECS and DSL
inventories (TSCA leaves out medicines, drugs and pesticides), and whose handbook name is a synonym
of the structure that the `chemicals` package has for the CAS number: two sources for each identity.
The more inventories and synonyms a substance has, the more familiar it is.
"""

import gzip
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import chemicals
from chemicals import miscdata
from chemicals.identifiers import CAS_to_int, ChemicalMetadata, int_to_CAS, pubchem_db
from rdkit import Chem
from rdkit.Chem import QED, DataStructs, rdFingerprintGenerator

from stages.chemistry.catalog import set_structure
from stages.chemistry.hazards import chemical_family
from stages.chemistry.identity import flat_molecule, parent, parent_key
from stages.chemistry.screens import is_carcinogen, is_related, is_unsafe
from stages.chemistry.substance import Substance
from stages.domain.splits import is_trivial

# Inventories of the chemicals package: a candidate is in all of the first, and the more familiar
# the more of the second it is in.
INVENTORIES = (
    "TSCA Inventory 2016-01.csv.gz",
    "EINECS 2015-03.csv.gz",
    "Canada Feb 11 2015 - DSL.csv.gz",
)
FAMILIAR = (
    "HPV 2015 March 3.csv",
    "SPIN Inventory 2015-03.csv.gz",
    "EPA Chemical Data Reporting - 2012.csv.gz",
)
ELEMENTS = {"H", "C", "N", "O", "F", "Si", "P", "S", "Cl", "Br", "I"}
LONGEST_NAME = 40
STRATUM = 40.0  # g/mol
TOO_SIMILAR = 0.55  # Tanimoto, Morgan radius 2, to any controlled medicine or drug
# Inverted index names, dyes, codes, and names of what the structural screens may miss.
_UNSUITABLE_NAME = re.compile(
    r", |c\.i\.| (red|blue|green|yellow|orange|violet)\b|\d{4,}|\b[a-z]{1,3}$|hydrate$"
    r"|cyanid|nitroso|dioxin"
)
_CHAIN = Chem.MolFromSmarts("[CH2;!R]" * 8)  # fats and waxes, like nothing else in the data
_FINGERPRINTS = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)


def familiar_substances(
    controlled: Sequence[Substance],
    catalog: Sequence[Substance],
    exclusions: Sequence[Mapping[str, str]],
    count: int,
) -> list[Substance]:
    """Up to `count` unregulated substances, the most familiar first.

    They are spread over molar mass as `controlled` is. Left out are substances of `catalog` and of
    `exclusions` (rows with name and cas) with their salts and stereoisomers, what shares a scaffold
    with a controlled substance or is built like one, and what is unsafe to ask about. Fewer are
    returned if a stratum of masses runs out of candidates.
    """
    pubchem_db.finish_loading()
    taken = {s.cas for s in catalog if s.cas} | {row["cas"] for row in exclusions}
    taken |= _parents_of(taken) | {s.slug for s in catalog}
    taken |= {s.parent_key for s in catalog if s.parent_key}
    taken_names = {row["name"].lower() for row in exclusions} | {s.name.lower() for s in catalog}

    with_structure = [s for s in controlled if s.smiles]
    scaffolds = {s.scaffold for s in with_structure if not is_trivial(s.scaffold)}
    fingerprints = [
        _FINGERPRINTS.GetFingerprint(Chem.MolFromSmiles(s.smiles)) for s in with_structure
    ]
    room = _quota([s.molar_mass for s in with_structure], count)

    pool = []
    for name, entry in _by_familiarity():
        stratum, cas = int(entry.MW // STRATUM), int_to_CAS(entry.CAS)
        if not room.get(stratum) or cas in taken or taken_names & {name.lower(), *entry.synonyms}:
            continue
        molecule = flat_molecule(entry.smiles)
        if molecule is None or "." in entry.smiles or not _is_safe(molecule, cas):
            continue
        substance = Substance(name, "unregulated", "industrial", cas=cas)
        substance.family = chemical_family(molecule)
        set_structure(substance, molecule)
        own = {substance.slug, substance.parent_key}
        if own & taken or substance.scaffold in scaffolds or molecule.HasSubstructMatch(_CHAIN):
            continue
        similarities = DataStructs.BulkTanimotoSimilarity(
            _FINGERPRINTS.GetFingerprint(molecule), fingerprints
        )
        if max(similarities, default=0.0) >= TOO_SIMILAR:
            continue
        if _is_drug_like(molecule, substance):
            substance.kind = "drug_like"
        taken |= own
        room[stratum] -= 1
        pool.append(substance)
    return pool


def tidy_name(name: str) -> str:
    """Lower case except for atoms: N,n-dimethyl-1h-indole -> N,N-dimethyl-1H-indole."""
    name = re.sub(r"(?<![a-z])n(?=[,'-])", "N", name.lower())
    return re.sub(r"(?<=\d)h(?=[-,)])", "H", name)


def _parents_of(cas_numbers: set[str]) -> set[str]:
    """Parent keys of CAS numbers that `chemicals` knows, shared by salts and stereoisomers."""
    entries = [pubchem_db.search_CAS(cas) for cas in sorted(cas_numbers)]
    molecules = [flat_molecule(entry.smiles) for entry in entries if entry]
    return {parent_key(parent(molecule)) for molecule in molecules if molecule is not None}


def _is_safe(molecule: Chem.Mol, cas: str) -> bool:
    return not (is_unsafe(molecule) or is_related(molecule) or is_carcinogen(cas))


def _is_drug_like(molecule: Chem.Mol, substance: Substance) -> bool:
    """150 to 550 g/mol, a ring, nitrogen, and a QED (Bickerton et al. 2012) of at least 0.5."""
    nitrogen = any(atom.GetSymbol() == "N" for atom in molecule.GetAtoms())
    return (
        150 <= substance.molar_mass <= 550
        and bool(substance.scaffold)
        and nitrogen
        and QED.qed(molecule) >= 0.5
    )


def _by_familiarity() -> list[tuple[str, ChemicalMetadata]]:
    """Handbook name and identifiers of every candidate, best known first; ties by CAS number."""
    folder = Path(chemicals.__file__).parent / "Law"
    listed = set.intersection(*(_cas_numbers(folder / name) for name in INVENTORIES))
    familiar = [_cas_numbers(folder / name) for name in FAMILIAR]
    scored = []
    for cas, name in miscdata.CRC_organic_data["Name"].items():
        number, name = CAS_to_int(cas), tidy_name(name)
        entry = pubchem_db.CAS_index.get(number) if number in listed else None
        if entry is None or not _is_readable(name):
            continue
        if name.lower() not in {entry.common_name.lower(), *entry.synonyms}:
            continue
        if set(re.findall(r"[A-Z][a-z]?", entry.formula)) <= ELEMENTS:
            score = math.log1p(len(entry.synonyms)) + sum(number in numbers for numbers in familiar)
            scored.append((-score, number, name, entry))
    return [(name, entry) for _, _, name, entry in sorted(scored, key=lambda item: item[:2])]


def _is_readable(name: str) -> bool:
    letters = sum(letter.isalpha() for letter in name)
    return (
        name.isascii()
        and 4 <= len(name) <= LONGEST_NAME
        and letters >= 0.6 * len(name)
        and not _UNSUITABLE_NAME.search(name)
    )


def _cas_numbers(path: Path) -> set[int]:
    """The CAS numbers of an inventory of `chemicals`, as whole numbers without hyphens."""
    content = path.read_bytes()
    text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8")
    cells = (line.split("\t")[0] for line in text.splitlines())
    return {int(cell) for cell in cells if cell.isdigit()}


def _quota(masses: Sequence[float], count: int) -> dict[int, int]:
    """How many to take per 40 g/mol: in proportion to `masses`, and at least count / 50."""
    strata = [int(mass // STRATUM) for mass in masses]
    return {
        stratum: max(round(count * strata.count(stratum) / len(strata)), count // 50)
        for stratum in sorted(set(strata))
    }
