"""data/catalog/*.csv: the real tables are valid, and every fault names file, line and column."""

import csv

import pytest

from helpers.dag import ROOT
from stages.chemistry import identity
from stages.chemistry.catalog import COLUMNS, read_catalog
from stages.core.errors import LibraError

CATALOG = ROOT / "data/catalog"
SAMPLE = {  # a few rows of the real catalog: reading all of it takes seconds
    "controlled": ("diazepam", "morphine"),
    "listings": ("diazepam", "morphine"),
    "medicines": ("propranolol", "atenolol"),
    "everyday": ("ethanol",),
    "precursors": ("acetone",),
}


@pytest.fixture
def edited(tmp_path):
    """`edited(table, old, new)` replaces a text in a small copy of the catalog: its folder."""
    for path in sorted(CATALOG.glob("*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file)
        names = SAMPLE.get(path.stem, ())
        with (tmp_path / path.name).open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows([header, *(row for row in rows if row[0] in names)])

    def edit(table, old, new):
        path = tmp_path / f"{table}.csv"
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new, 1), encoding="utf-8")
        return tmp_path

    return edit


@pytest.fixture(scope="module")
def catalog():
    return read_catalog(CATALOG)


def test_the_real_catalog_is_valid(catalog):
    substances, exclusions = catalog
    assert len([s for s in substances if s.kind == "medicine"]) >= 450
    assert len([s for s in substances if s.kind == "everyday"]) >= 60
    assert {row["reason"] for row in exclusions} == {"held back"}, "no list of reasons"
    assert {row["name"] for row in exclusions}.isdisjoint(s.name for s in substances)


def test_structures_are_of_medicines_and_drugs_only(catalog):
    for s in catalog[0]:
        if s.status != "unregulated" and s.kind != "medicine_drug":
            derived = (s.smiles, s.inchikey, s.parent_key, s.scaffold, s.formula, s.molar_mass)
            assert set(derived) == {None}, s.name


def test_immediate_precursors_are_a_kind_without_structures(catalog):
    kinds = {s.name: s.kind for s in catalog[0]}
    csa = ("ANPP", "norfentanyl", "phenylacetone", "1-phenylcyclohexylamine", "PCC")
    un_1961 = [name for name in kinds if "intermediate" in name]
    assert len(un_1961) == 5
    for name in (*csa, *un_1961, "lysergic acid"):
        assert kinds[name] == "immediate_precursor", name


def test_the_tables_are_those_that_are_checked():
    assert {path.stem for path in CATALOG.glob("*.csv")} == set(COLUMNS)


PROPRANOLOL = "CC(C)NCC(O)COc1cccc2ccccc12"
CONTROLLED = "name,cas,smiles,inchikey,kind,family,source_1,source_2\n"
LISTINGS = "name,instrument,schedule,as_of,citation\n"
EXCLUSIONS = "name,cas,reason\n"
FAULTS = [
    (
        "medicines",
        "propranolol,525-66-6",
        "propranolol,525-66-7",
        r"medicines\.csv, line \d+ \(propranolol\), column cas: .* must be 6",
    ),
    (
        "medicines",
        "propranolol,525-66-6",
        "propranolol,propanolol",
        "column cas: .* must look like",
    ),
    (
        "medicines",
        f",{PROPRANOLOL},",
        ",CC(C)NCC(O)COc1ccccc1,",
        r"\(propranolol\), column inchikey: the SMILES gives",
    ),
    (
        "medicines",
        f",{PROPRANOLOL},",
        ",CC(C,",
        r"\(propranolol\), column smiles: rdkit can't read",
    ),
    (
        "medicines",
        "\npropranolol,525-66-6",
        "\natenolol,",
        r"column name: same name as medicines\.csv line \d+ \(atenolol\)",
    ),
    (
        "medicines",
        "\npropranolol,525-66-6",
        "\npropranolol,29122-68-7",
        r"\(propranolol\), column cas: same CAS number as .*atenolol",
    ),
    ("medicines", ",beta blocker,", ",,", "column pharmacology: the cell is empty"),
    ("medicines", ",pharmacology,", ",class,", "column pharmacology is missing"),
    ("everyday", "ethanol,64-17-5", "ethanol,67-56-1", "column cas"),
    (
        "everyday",
        "ethanol,64-17-5",
        "brandy,64-17-5",
        r"everyday\.csv, line \d+ \(brandy\), column cas: 64-17-5 is ethanol",
    ),
    (
        "everyday",
        "ethanol,64-17-5",
        "acetone,67-64-1",
        r"everyday\.csv, line \d+ \(acetone\), column name: same name as precursors",
    ),
    (
        "listings",
        LISTINGS,
        f"{LISTINGS}substance A,US CSA,I,2026-03,x\n",
        r"listings\.csv, line 2 \(substance A\), column name: no such name",
    ),
    ("listings", ",2026-03,", ",March,", "column as_of: `March` must look like 2026-03"),
    ("controlled", ",medicine_drug,", ",medicine,", "column kind: `medicine` is unknown"),
    (
        "controlled",
        ",medicine_drug,",
        ",chemical_weapon,",
        "column smiles: no structures of kind chemical_weapon",
    ),
    (
        "controlled",
        ",medicine_drug,",
        ",immediate_precursor,",
        "column smiles: no structures of kind immediate_precursor",
    ),
    (
        "controlled",
        CONTROLLED,
        f"{CONTROLLED}substance A,,,,pop,pop,x,y\n",
        r"line 2 \(substance A\), column name: listings.csv has no row for it",
    ),
    (
        "exclusions",
        EXCLUSIONS,
        f"{EXCLUSIONS}substance A,50-78-2,pesticide\n",
        r"exclusions\.csv, line 2 \(substance A\), column reason: must be `held back`",
    ),
]


@pytest.mark.parametrize(("table", "old", "new", "message"), FAULTS)
def test_a_fault_names_file_line_and_column(edited, table, old, new, message):
    with pytest.raises(LibraError, match=message):
        read_catalog(edited(table, old, new))


def test_a_salt_of_a_controlled_substance_is_not_a_medicine(edited):
    substances, _ = read_catalog(edited("medicines", "", ""))
    diazepam = next(s for s in substances if s.name == "diazepam")
    salt = f"{diazepam.smiles}.Cl"
    inchikey = identity.inchikey(identity.Chem.MolFromSmiles(salt))
    row = f"substance A,,{salt},{inchikey},beta blocker,x,y\n"
    with pytest.raises(LibraError, match="same parent structure as controlled"):
        read_catalog(edited("medicines", "\npropranolol,", f"\n{row}propranolol,"))


def test_a_missing_table_is_named(tmp_path):
    message = r"controlled\.csv not found; restore it with `git checkout .*controlled\.csv`"
    with pytest.raises(LibraError, match=message):
        read_catalog(tmp_path)
