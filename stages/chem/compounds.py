"""Other compounds: names and structures that the policy learns to read before anybody asks it about a substance.

No label comes with them. They are compounds of the `chemicals` package that pass the screens of stages/chem/screens.py: nothing
energetic, chemical-weapon-like, acutely toxic or built like a controlled drug. The parent of no substance of the catalog
is among them, and no scaffold (other than trivial ones) of a substance that is held out.
"""

import hashlib
import re

from chemicals.identifiers import int_to_CAS, pubchem_db

from stages.chem.identity import flat_molecule, flat_smiles, is_trivial, parent, parent_key, scaffold
from stages.chem.pool import ELEMENTS, is_readable, parents_of, tidy_name
from stages.chem.screens import is_dangerous, is_kin
from stages.chem.substance import Substance

MASSES = (100.0, 550.0)  # g/mol
LONGEST_SMILES = 80


def other_compounds(substances: list[Substance], excluded: list[dict], wanted: int, random_seed: int) -> list[dict[str, str]]:
    """Up to `wanted` rows of data/compounds.parquet, {name, smiles}, drawn by a hash of CAS number and `random_seed`.

    `substances` have their splits; `excluded` are rows of exclusions.csv (name, cas).
    """
    pubchem_db.finish_loading()
    numbers = {s.cas for s in substances if s.cas} | {row["cas"] for row in excluded}
    barred = {s.parent_key for s in substances if s.parent_key} | parents_of(numbers)
    names = {s.name.lower() for s in substances} | {row["name"].lower() for row in excluded}
    held_out = {s.scaffold for s in substances if s.split != "train" and not is_trivial(s.scaffold)}
    entries = pubchem_db.CAS_index.values()
    rows = []
    for entry in sorted(entries, key=lambda e: hashlib.sha256(f"{random_seed}:compounds:{e.CAS}".encode()).digest()):
        if len(rows) == wanted:
            break
        name = tidy_name(entry.common_name or "")
        if not is_readable(name) or names & {name.lower(), *entry.synonyms} or int_to_CAS(entry.CAS) in numbers:
            continue
        if not MASSES[0] <= entry.MW <= MASSES[1] or "." in entry.smiles or len(entry.smiles) > LONGEST_SMILES:
            continue
        elements = set(re.findall(r"[A-Z][a-z]?", entry.formula))
        molecule = flat_molecule(entry.smiles) if "C" in elements and elements <= ELEMENTS else None
        if molecule is None or is_dangerous(molecule) or is_kin(molecule):
            continue
        base = parent(molecule)
        if (key := parent_key(base)) not in barred and scaffold(base) not in held_out:
            barred.add(key)
            rows.append({"name": name, "smiles": flat_smiles(molecule)})
    return rows
