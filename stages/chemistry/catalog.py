"""data/catalog/*.csv, read and checked: facts written by hand, each row's identity confirmed before it is used.

Checked: columns, empty cells, CAS check digits, SMILES against InChIKey, duplicate names, CAS numbers and structures,
listings of unknown names, controlled substances without a listing, structures where only a name may stand. Every fault is
a LibraError that names file, row and column.
"""

import csv
import re
from pathlib import Path
from typing import NoReturn

from chemicals.identifiers import pubchem_db

from stages.chemistry import identity
from stages.core.errors import LibraError
from stages.domain.substance import Substance

CONTROLLED_KINDS = ("medicine_drug", "chemical_weapon", "pesticide_industrial", "pop")
COLUMNS = {
    "controlled": ("name", "cas", "smiles", "inchikey", "kind", "family", "source_1", "source_2"),
    "listings": ("name", "instrument", "schedule", "as_of", "citation"),
    "precursors": ("name", "cas", "instrument", "schedule", "as_of", "citation"),
    "medicines": ("name", "cas", "smiles", "inchikey", "pharmacology", "source_1", "source_2"),
    "everyday": ("name", "cas", "reaction_class", "uses"),
    "exclusions": ("name", "cas", "reason"),
}
MAY_BE_EMPTY = {
    "controlled": {"cas", "smiles", "inchikey", "source_2"},
    "precursors": {"cas"},
    "medicines": {"cas"},
}
# Which listing a regulation answer names, where a substance has several.
INSTRUMENT_ORDER = (
    "US CSA",
    "CWC",
    "Stockholm",
    "UN 1961",
    "UN 1971",
    "UN 1988",
    "EU",
    "Rotterdam",
    "DE",
)
# What a family of controlled medicines and drugs does, in a textbook's words; families not named here aren't asked about.
PHARMACOLOGY = {
    "synthetic-cannabinoid": "synthetic cannabinoid receptor agonist",
    "anabolic-steroid": "anabolic androgenic steroid",
    "phenethylamine": "stimulant or hallucinogenic phenethylamine",
    "fentanyl-type": "synthetic opioid agonist",
    "morphinan": "opioid of the morphinan type",
    "benzodiazepine": "sedative benzodiazepine",
    "cathinone": "central nervous system stimulant",
    "sedative-hypnotic": "sedative hypnotic",
    "phenylpiperidine": "synthetic opioid agonist",
    "opioid-other": "opioid agonist",
    "barbiturate": "sedative barbiturate",
    "diphenylpropylamine": "synthetic opioid agonist",
    "arylcyclohexylamine": "dissociative NMDA antagonist",
    "nitazene": "synthetic opioid agonist",
    "tryptamine": "serotonergic hallucinogen",
    "stimulant-other": "central nervous system stimulant",
    "cannabinoid": "cannabinoid receptor agonist",
    "anticonvulsant": "anticonvulsant",
    "aminorex-type": "central nervous system stimulant",
    "neurosteroid": "sedative neurosteroid",
}


def read_catalog(folder: Path = Path("data/catalog")) -> tuple[list[Substance], list[dict]]:
    """Every substance of the catalog, and the rows of exclusions.csv.

    Raises LibraError naming file, row and column for the first fault found.
    """
    rows = {table: _read_rows(folder, table) for table in COLUMNS}
    known = {row["name"] for row in rows["controlled"]}
    for row in rows["listings"]:
        if row["name"] not in known:
            _fault("listings", row, "name", "no such name in controlled.csv")
    listings = _first_listing(rows["listings"])
    seen: dict[tuple[str, str], str] = {}
    substances = []
    for row in rows["controlled"]:
        if row["kind"] not in CONTROLLED_KINDS:
            _fault(
                "controlled",
                row,
                "kind",
                f"`{row['kind']}` is unknown; known: {', '.join(CONTROLLED_KINDS)}",
            )
        if row["smiles"] and row["kind"] != "medicine_drug":
            _fault(
                "controlled",
                row,
                "smiles",
                f"a {row['kind']} is kept as name and listing only; clear smiles and inchikey",
            )
        if row["name"] not in listings:
            _fault("controlled", row, "name", "no row of listings.csv says where it is listed")
        substance = Substance(
            row["name"], row["cas"] or None, "controlled", row["kind"], family=row["family"]
        )
        substance.pharmacology = (
            PHARMACOLOGY.get(row["family"]) if row["kind"] == "medicine_drug" else None
        )
        _set_listing(substance, listings[row["name"]])
        substances.append(_checked("controlled", row, substance, seen))
    for row in _first_listing(rows["precursors"]).values():
        substance = Substance(
            row["name"], row["cas"] or None, "precursor", "precursor", family="precursor"
        )
        _set_listing(substance, row)
        substances.append(_checked("precursors", row, substance, seen))
    for row in rows["medicines"]:
        substance = Substance(
            row["name"], row["cas"] or None, "unregulated", "medicine", family=row["pharmacology"]
        )
        substance.pharmacology = row["pharmacology"]
        substances.append(_checked("medicines", row, substance, seen))
    for row in rows["everyday"]:
        substance = Substance(row["name"], row["cas"], "unregulated", "everyday", everyday=True)
        substance.reaction_class = row["reaction_class"]
        substances.append(_checked("everyday", row, substance, seen))
        _set_everyday_structure(substance, row)
        if other := seen.get(("smiles", substance.parent_key)):
            _fault("everyday", row, "cas", f"the same parent structure as {other}")
    return substances, rows["exclusions"]


def set_structure(substance: Substance, molecule: identity.Chem.Mol) -> None:
    """Fill every field that follows from the structure."""
    parent = identity.parent(molecule)
    substance.smiles = identity.flat_smiles(molecule)
    substance.inchikey = identity.inchikey(molecule)
    substance.parent_key = identity.parent_key(parent)
    substance.scaffold = identity.scaffold(parent)
    substance.formula = identity.formula(molecule)
    substance.molar_mass = identity.molar_mass(molecule)


def _read_rows(folder: Path, table: str) -> list[dict]:
    """The rows of `table`.csv as dicts; `_row` holds the line's number."""
    path = folder / f"{table}.csv"
    try:
        with path.open(encoding="utf-8", newline="") as handle:
            reader = csv.DictReader(handle)
            header = tuple(reader.fieldnames or ())
            rows = [row | {"_row": reader.line_num} for row in reader]
    except FileNotFoundError:
        raise LibraError(
            f"{path} is not here; it belongs to the project (git checkout {path})"
        ) from None
    except UnicodeDecodeError as error:
        raise LibraError(
            f"{path} isn't UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from None
    missing = [column for column in COLUMNS[table] if column not in header]
    if missing:
        raise LibraError(
            f"{path}: column {', '.join(missing)} is missing; it has {', '.join(header)}"
        )
    for row in rows:
        for column in COLUMNS[table]:
            cell = row[column]
            if cell is None or None in row:
                _fault(
                    table,
                    row,
                    column,
                    f"the row doesn't have {len(header)} cells; quote cells that hold a comma",
                )
            if cell != cell.strip():
                _fault(table, row, column, f"blanks around `{cell.strip()}`")
            if not cell and column not in MAY_BE_EMPTY.get(table, ()):
                _fault(table, row, column, "the cell is empty")
        cas = row.get("cas")
        if cas and not identity.cas_is_right(cas):
            digit = identity.cas_check_digit(cas)
            hint = (
                "it must look like 50-78-2"
                if digit is None
                else f"its check digit should be {digit}"
            )
            _fault(table, row, "cas", f"{cas} is not a CAS number: {hint}")
        if "as_of" in COLUMNS[table] and not re.fullmatch(r"\d{4}(-\d\d)?", row["as_of"]):
            _fault(table, row, "as_of", f"`{row['as_of']}` must look like 2026-03")
    return rows


# A flat structure can't tell a salt or stereoisomer from its kin: two rows with one parent would be asked the same, and if
# one of them is controlled, answered differently.
def _checked(table: str, row: dict, substance: Substance, seen: dict) -> Substance:
    """`substance` with its structure, after the checks of one row; `seen` remembers what other rows have taken."""
    if row.get("smiles"):
        molecule = identity.flat_molecule(row["smiles"])
        if molecule is None:
            _fault(table, row, "smiles", f"rdkit can't read `{row['smiles']}`")
        right = identity.inchikey(identity.Chem.MolFromSmiles(row["smiles"]))
        if row["inchikey"] != right:
            _fault(
                table,
                row,
                "inchikey",
                f"the SMILES gives {right}, the cell says {row['inchikey'] or 'nothing'}",
            )
        set_structure(substance, molecule)
    here = f"{table}.csv row {row['_row']} ({row['name']})"
    for column, value in (
        ("name", substance.slug),
        ("cas", substance.cas),
        ("smiles", substance.parent_key),
    ):
        if value and seen.setdefault((column, value), here) != here:
            what = "parent structure" if column == "smiles" else column
            _fault(table, row, column, f"the same {what} as {seen[column, value]}")
    return substance


def _set_everyday_structure(substance: Substance, row: dict) -> None:
    """The structure that `chemicals` has for the CAS number, which must also know the name."""
    entry = pubchem_db.search_CAS(substance.cas, autoload=True)
    if not entry:
        _fault("everyday", row, "cas", f"{substance.cas} isn't known to the chemicals package")
    if substance.name.lower() not in {
        name.lower() for name in (entry.common_name, *entry.synonyms)
    }:
        _fault("everyday", row, "cas", f"{substance.cas} is {entry.common_name}")
    set_structure(substance, identity.flat_molecule(entry.smiles))


def _first_listing(rows: list[dict]) -> dict[str, dict]:
    """Name -> the row to be named, by INSTRUMENT_ORDER, then by text."""

    def rank(row: dict) -> tuple:
        starts = [
            i for i, start in enumerate(INSTRUMENT_ORDER) if row["instrument"].startswith(start)
        ]
        return starts[0] if starts else len(INSTRUMENT_ORDER), row["instrument"], row["schedule"]

    first: dict[str, dict] = {}
    for row in sorted(rows, key=rank):
        first.setdefault(row["name"], row)
    return dict(sorted(first.items()))


def _set_listing(substance: Substance, row: dict) -> None:
    schedule = row["schedule"] if " " in row["schedule"] else f"Schedule {row['schedule']}"
    substance.instrument, substance.schedule, substance.as_of = (
        row["instrument"],
        schedule,
        row["as_of"],
    )
    substance.reference = f"{row['instrument']}, {schedule}, as of {row['as_of']}"


def _fault(table: str, row: dict, column: str, what: str) -> NoReturn:
    raise LibraError(
        f"data/catalog/{table}.csv, row {row['_row']} ({row['name']}), column {column}: {what}"
    )
