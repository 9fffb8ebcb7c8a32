"""The things of a domain that isn't chemistry, from two tables in its folder, checked: data/catalog/NAME/things.csv and facts.csv.

    things.csv   name,status,kind,class,group,instrument,schedule,as_of
                 wall socket,controlled,fixed wiring,fixed,socket,QLD Electrical Safety Act 2002,section 55,2024-08
    facts.csv    name,fact,value,unit,tolerance,method,source
                 wall socket,supply_voltage,230,V,0.5,nominal value,AS 60038

A thing becomes a `Substance` with a name and no structure: `group` ties things that belong together (its parent_key; they stay in one
split), `class` picks the advice (its hazard_class), and instrument, schedule and as_of, which go together, are its reference. A fact is
named after the intent that asks for it; a value with a unit is a number, one without is a text. Every fault is a LibraError that
names file, row and column.
"""

import csv
import re
from pathlib import Path
from typing import NoReturn

from stages.core.errors import LibraError
from stages.domain.description import CATALOG, REFUSED, Domain
from stages.domain.substance import Substance

THINGS = ("name", "status", "kind", "class", "group", "instrument", "schedule", "as_of")
FACTS = ("name", "fact", "value", "unit", "tolerance", "method", "source")
REFERENCE = ("instrument", "schedule", "as_of")


def read_things(domain: Domain, catalog: Path = CATALOG) -> list[Substance]:
    """The things of `domain` with their facts. Raises LibraError for the first fault found."""
    path, facts = (catalog / domain.name / f"{table}.csv" for table in ("things", "facts"))
    found: dict[str, Substance] = {}
    slugs: dict[str, str] = {}
    for row in _rows(path, THINGS, may_be_empty=REFERENCE):
        if row["status"] not in domain.labels:
            _fault(
                path,
                row,
                "status",
                f"`{row['status']}` is unknown; known: {', '.join(domain.labels)}",
            )
        if row["as_of"] and not re.fullmatch(r"\d{4}(-\d\d)?", row["as_of"]):
            _fault(path, row, "as_of", f"`{row['as_of']}` must look like 2026-03")
        if empty := [column for column in REFERENCE if not row[column]]:
            if row["status"] == REFUSED or len(empty) < len(REFERENCE):
                _fault(
                    path,
                    row,
                    empty[0],
                    f"the cell is empty; what is {REFUSED} needs {', '.join(REFERENCE)}, and they go together",
                )
        if bad := next((column for column in REFERENCE if "," in row[column]), None):
            _fault(path, row, bad, "commas part a reference; leave them out here")
        thing = Substance(
            row["name"],
            None,
            row["status"],
            row["kind"],
            family=row["kind"],
            hazard_class=row["class"],
        )
        if (taken := slugs.setdefault(thing.slug, thing.name)) != thing.name or thing.name in found:
            _fault(path, row, "name", f"the same name as `{taken}` but for case and signs")
        thing.parent_key = row["group"]
        if row["instrument"]:
            thing.instrument, thing.schedule, thing.as_of = (row[column] for column in REFERENCE)
            thing.reference = f"{thing.instrument}, {thing.schedule}, as of {thing.as_of}"
        found[thing.name] = thing
    for row in _rows(facts, FACTS, may_be_empty=("unit", "tolerance")):
        if row["name"] not in found:
            _fault(facts, row, "name", "no such thing in things.csv")
        if row["fact"] not in domain.of_kind("neutral"):
            _fault(
                facts,
                row,
                "fact",
                f"`{row['fact']}` is no neutral intent; known: {', '.join(domain.of_kind('neutral'))}",
            )
        thing = found[row["name"]]
        if thing.fact(row["fact"]):
            _fault(facts, row, "fact", f"{row['name']} has this fact already")
        thing.facts.append(_fact(facts, row))
        wrong = domain.intents[row["fact"]].wrong
        if not row["unit"] and not [text for text in wrong if text != row["value"]]:
            _fault(
                facts,
                row,
                "value",
                f"domain.yaml has no other value for it: add some to intents.{row['fact']}.wrong",
            )
    return list(found.values())


def _fact(path: Path, row: dict) -> dict:
    """A fact as data/seeds.parquet holds it: a number with unit and tolerance, or a text with neither."""
    value, tolerance = row["value"], None
    if row["unit"]:
        numbers = {}
        for column in ("value", "tolerance"):
            try:
                numbers[column] = float(row[column])
            except ValueError:
                _fault(
                    path,
                    row,
                    column,
                    f"`{row[column]}` is not a number, but the fact has the unit {row['unit']}",
                )
        value, tolerance = numbers["value"], numbers["tolerance"]
        if not 0 < tolerance <= abs(value) / 50:
            _fault(
                path,
                row,
                "tolerance",
                "must be above zero and at most a fiftieth of the value, or right and wrong can't be told apart",
            )
    elif row["tolerance"]:
        _fault(path, row, "tolerance", "a text has none; a number needs a unit")
    return {
        "name": row["fact"], "value": value, "unit": row["unit"] or None, "tolerance": tolerance,
        "method": row["method"], "source": row["source"],
    }  # fmt: skip


def _rows(path: Path, columns: tuple[str, ...], may_be_empty: tuple[str, ...]) -> list[dict]:
    """The rows of a table as dicts; `_row` holds the line's number."""
    try:
        with path.open(encoding="utf-8", newline="") as handle:
            reader = csv.DictReader(handle)
            header = reader.fieldnames or []
            rows = [row | {"_row": reader.line_num} for row in reader]
    except FileNotFoundError:
        raise LibraError(
            f"{path} is not here; a domain needs things.csv and facts.csv beside its domain.yaml"
        ) from None
    except UnicodeDecodeError as error:
        raise LibraError(
            f"{path} isn't UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from None
    if missing := [column for column in columns if column not in header]:
        raise LibraError(
            f"{path}: column {', '.join(missing)} is missing; it has {', '.join(header)}"
        )
    for row in rows:
        for column in columns:
            if row[column] is None or None in row:
                _fault(
                    path,
                    row,
                    column,
                    f"the row doesn't have {len(header)} cells; quote cells that hold a comma",
                )
            if row[column] != row[column].strip():
                _fault(path, row, column, f"blanks around `{row[column].strip()}`")
            if not row[column] and column not in may_be_empty:
                _fault(path, row, column, "the cell is empty")
    return rows


def _fault(path: Path, row: dict, column: str, what: str) -> NoReturn:
    raise LibraError(f"{path}, row {row['_row']} ({row['name']}), column {column}: {what}")
