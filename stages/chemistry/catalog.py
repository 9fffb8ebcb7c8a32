"""data/catalog/*.csv, read and checked: substances with their identifiers and listings.

    substances, exclusions = read_catalog()

Checked: columns, empty cells, CAS check digits, SMILES against InChIKey, duplicate names, CAS
numbers and structures, listings of unknown names, controlled substances without a listing, and
structures where only a name belongs. Every fault is a LibraError naming file, line and column.
"""

import re
from pathlib import Path

from chemicals.identifiers import pubchem_db

from stages.chemistry import identity
from stages.chemistry.substance import Substance
from stages.core.checked_csv import Row, read_rows, row_error
from stages.core.errors import LibraError

# Structures are kept of scheduled medicines and drugs only. An `immediate_precursor` is one of the
# US CSA (21 CFR 1308.12(g)), of Table I of the UN 1988 Convention, or a named intermediate of the
# UN 1961 Convention.
CONTROLLED_KINDS = (
    "medicine_drug",
    "immediate_precursor",
    "chemical_weapon",
    "pesticide_industrial",
    "pop",
)
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
HELD_BACK = "held back"  # the one reason in exclusions.csv: why a substance is left out is not said
# Which listing a regulation answer cites for a substance that has several.
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
# Textbook pharmacology by family of controlled medicines and drugs; other families get no such
# question.
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


def read_catalog(folder: Path = Path("data/catalog")) -> tuple[list[Substance], list[Row]]:
    """Every substance of the catalog, and the rows of exclusions.csv.

    Raises LibraError naming file, line and column of the first fault.
    """
    rows = {table: _read_table(folder, table) for table in COLUMNS}
    catalog = _Catalog(folder)
    catalog.add_controlled(rows["controlled"], rows["listings"])
    catalog.add_precursors(rows["precursors"])
    catalog.add_medicines(rows["medicines"])
    catalog.add_everyday(rows["everyday"])
    return catalog.substances, rows["exclusions"]


def set_structure(substance: Substance, molecule: identity.Chem.Mol) -> None:
    """Fill every field that follows from the structure."""
    parent = identity.parent(molecule)
    substance.smiles = identity.flat_smiles(molecule)
    substance.inchikey = identity.inchikey(molecule)
    substance.parent_key = identity.parent_key(parent)
    substance.scaffold = identity.scaffold(parent)
    substance.formula = identity.formula(molecule)
    substance.molar_mass = identity.molar_mass(molecule)


class _Catalog:
    """The substances read so far, and the names, CAS numbers and parents they occupy."""

    def __init__(self, folder: Path):
        self.substances: list[Substance] = []
        self._folder = folder
        self._owners: dict[tuple[str, str], str] = {}  # (column, value) -> the row that has it

    def add_controlled(self, rows: list[Row], listing_rows: list[Row]) -> None:
        names = {row["name"] for row in rows}
        for row in listing_rows:
            if row["name"] not in names:
                raise self._error("listings", row, "name", "no such name in controlled.csv")
        listings = _first_listing(listing_rows)
        for row in rows:
            kind = row["kind"]
            if kind not in CONTROLLED_KINDS:
                known = ", ".join(CONTROLLED_KINDS)
                raise self._error("controlled", row, "kind", f"`{kind}` is unknown; known: {known}")
            for column in ("smiles", "inchikey"):
                if row[column] and kind != "medicine_drug":
                    problem = f"no structures of kind {kind}; clear smiles and inchikey"
                    raise self._error("controlled", row, column, problem)
            if row["name"] not in listings:
                raise self._error("controlled", row, "name", "listings.csv has no row for it")
            substance = Substance(row["name"], "controlled", kind, cas=row["cas"] or None)
            substance.family = row["family"]
            if kind == "medicine_drug":
                substance.pharmacology = PHARMACOLOGY.get(row["family"])
            _set_listing(substance, listings[row["name"]])
            self._add("controlled", row, substance)

    def add_precursors(self, rows: list[Row]) -> None:
        for row in _first_listing(rows).values():
            substance = Substance(row["name"], "precursor", "precursor", cas=row["cas"] or None)
            substance.family = "precursor"
            _set_listing(substance, row)
            self._add("precursors", row, substance)

    def add_medicines(self, rows: list[Row]) -> None:
        for row in rows:
            substance = Substance(row["name"], "unregulated", "medicine", cas=row["cas"] or None)
            substance.family = substance.pharmacology = row["pharmacology"]
            self._add("medicines", row, substance)

    def add_everyday(self, rows: list[Row]) -> None:
        """Everyday substances get the structure that `chemicals` has for their CAS number."""
        for row in rows:
            substance = Substance(row["name"], "unregulated", "everyday", cas=row["cas"])
            substance.everyday = True
            substance.reaction_class = row["reaction_class"]
            self._add("everyday", row, substance)
            entry = pubchem_db.search_CAS(substance.cas, autoload=True)
            if not entry:
                problem = f"{substance.cas} is unknown to the chemicals package"
                raise self._error("everyday", row, "cas", problem)
            names = {name.lower() for name in (entry.common_name, *entry.synonyms)}
            if substance.name.lower() not in names:
                problem = f"{substance.cas} is {entry.common_name}"
                raise self._error("everyday", row, "cas", problem)
            set_structure(substance, identity.flat_molecule(entry.smiles))
            if other := self._owners.get(("smiles", substance.parent_key)):
                raise self._error("everyday", row, "cas", f"same parent structure as {other}")

    def _add(self, table: str, row: Row, substance: Substance) -> None:
        """Set the structure of `substance` from its row, and check that nothing else has it."""
        if row.get("smiles"):
            molecule = identity.flat_molecule(row["smiles"])
            if molecule is None:
                raise self._error(table, row, "smiles", f"rdkit can't read `{row['smiles']}`")
            inchikey = identity.inchikey(identity.Chem.MolFromSmiles(row["smiles"]))
            if row["inchikey"] != inchikey:
                raise self._error(table, row, "inchikey", f"the SMILES gives {inchikey}")
            set_structure(substance, molecule)

        # Flat structures don't distinguish salts and stereoisomers: two rows with one parent would
        # get the same questions and, if one of them is controlled, different answers.
        here = f"{table}.csv line {row.line} ({row['name']})"
        for column, label, value in (
            ("name", "name", substance.slug),
            ("cas", "CAS number", substance.cas),
            ("smiles", "parent structure", substance.parent_key),
        ):
            if value and (owner := self._owners.setdefault((column, value), here)) != here:
                raise self._error(table, row, column, f"same {label} as {owner}")
        self.substances.append(substance)

    def _error(self, table: str, row: Row, column: str, problem: str) -> LibraError:
        return row_error(self._folder / f"{table}.csv", row, column, problem)


def _read_table(folder: Path, table: str) -> list[Row]:
    """The rows of `table`.csv, with CAS numbers and dates checked."""
    path = folder / f"{table}.csv"
    rows = read_rows(path, COLUMNS[table], MAY_BE_EMPTY.get(table, ()))
    for row in rows:
        cas = row.get("cas")
        if cas and not identity.is_valid_cas(cas):
            digit = identity.cas_check_digit(cas)
            hint = "must look like 50-78-2" if digit is None else f"check digit must be {digit}"
            raise row_error(path, row, "cas", f"{cas} is not a CAS number: {hint}")
        if "as_of" in COLUMNS[table] and not re.fullmatch(r"\d{4}(-\d\d)?", row["as_of"]):
            raise row_error(path, row, "as_of", f"`{row['as_of']}` must look like 2026-03")
        if table == "exclusions" and row["reason"] != HELD_BACK:
            raise row_error(path, row, "reason", f"must be `{HELD_BACK}`, the same for all rows")
    return rows


def _first_listing(rows: list[Row]) -> dict[str, Row]:
    """Name -> the row to cite, by INSTRUMENT_ORDER, then alphabetically."""

    def rank(row: Row) -> tuple:
        positions = [
            i for i, start in enumerate(INSTRUMENT_ORDER) if row["instrument"].startswith(start)
        ]
        position = positions[0] if positions else len(INSTRUMENT_ORDER)
        return position, row["instrument"], row["schedule"]

    first: dict[str, Row] = {}
    for row in sorted(rows, key=rank):
        first.setdefault(row["name"], row)
    return dict(sorted(first.items()))


def _set_listing(substance: Substance, row: Row) -> None:
    schedule = row["schedule"] if " " in row["schedule"] else f"Schedule {row['schedule']}"
    substance.instrument, substance.schedule = row["instrument"], schedule
    substance.as_of = row["as_of"]
    substance.reference = f"{row['instrument']}, {schedule}, as of {row['as_of']}"
