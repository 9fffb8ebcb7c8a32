"""The things of a domain other than chemistry, from two tables in its folder, read and checked.

    things.csv   name,status,kind,class,group,instrument,schedule,as_of
                 wall socket,controlled,fixed wiring,fixed,socket,QLD Electrical Safety Act 2002,...
    facts.csv    name,fact,value,unit,tolerance,method,source
                 wall socket,supply_voltage,230,V,0.5,nominal value,AS 60038

`group` ties things that must stay in one split, `class` selects the advice, and instrument,
schedule and as_of, which go together, form the reference. A fact is named after the intent that
asks for it; a value with a unit is a number, one without is a text. Every fault is a LibraError
naming file, line and column.
"""

import math
import re
from pathlib import Path

from stages.core.checked_csv import Row, read_rows, row_error
from stages.domain.description import CATALOG, CONTROLLED, Domain
from stages.domain.thing import Thing

THINGS = ("name", "status", "kind", "class", "group", "instrument", "schedule", "as_of")
FACTS = ("name", "fact", "value", "unit", "tolerance", "method", "source")
REFERENCE = ("instrument", "schedule", "as_of")
MOST_TOLERANCE = 1 / 50  # of the value; with more, right and wrong answers overlap


def read_things(domain: Domain, catalog: Path = CATALOG) -> list[Thing]:
    """The things of `domain` with their facts. Raises LibraError for the first fault."""
    things = _read_things(domain, catalog / domain.name / "things.csv")
    path = catalog / domain.name / "facts.csv"
    neutral = domain.of_kind("neutral")
    hint = "a domain needs things.csv and facts.csv beside its domain.yaml"
    for row in read_rows(path, FACTS, may_be_empty=("unit", "tolerance"), hint=hint):
        name, intent = row["name"], row["fact"]
        if name not in things:
            raise row_error(path, row, "name", "no such thing in things.csv")
        if intent not in neutral:
            known = ", ".join(neutral)
            raise row_error(
                path, row, "fact", f"`{intent}` is not a neutral intent; known: {known}"
            )
        if things[name].fact(intent):
            raise row_error(path, row, "fact", f"{name} has this fact already")
        things[name].facts.append(_fact(path, row))
        wrong = domain.intents[intent].wrong
        if not row["unit"] and not [text for text in wrong if text != row["value"]]:
            problem = f"domain.yaml has no other value for it; add some to intents.{intent}.wrong"
            raise row_error(path, row, "value", problem)
    return list(things.values())


def _read_things(domain: Domain, path: Path) -> dict[str, Thing]:
    """The rows of things.csv by name, without facts."""
    things: dict[str, Thing] = {}
    names: dict[str, str] = {}  # by slug
    hint = "a domain needs things.csv and facts.csv beside its domain.yaml"
    for row in read_rows(path, THINGS, may_be_empty=REFERENCE, hint=hint):
        _check_thing(domain, path, row)
        thing = Thing(
            row["name"],
            row["status"],
            row["kind"],
            family=row["kind"],
            parent_key=row["group"],
            advice_class=row["class"],
        )
        name = names.setdefault(thing.slug, thing.name)
        if name != thing.name or thing.name in things:
            raise row_error(
                path, row, "name", f"same name as `{name}` but for case and punctuation"
            )
        if row["instrument"]:
            thing.instrument, thing.schedule, thing.as_of = (row[column] for column in REFERENCE)
            thing.reference = f"{thing.instrument}, {thing.schedule}, as of {thing.as_of}"
        things[thing.name] = thing
    return things


def _check_thing(domain: Domain, path: Path, row: Row) -> None:
    if row["status"] not in domain.labels:
        known = ", ".join(domain.labels)
        raise row_error(path, row, "status", f"`{row['status']}` is unknown; known: {known}")
    if row["as_of"] and not re.fullmatch(r"\d{4}(-\d\d)?", row["as_of"]):
        raise row_error(path, row, "as_of", f"`{row['as_of']}` must look like 2026-03")
    empty = [column for column in REFERENCE if not row[column]]
    if empty and (row["status"] == CONTROLLED or len(empty) < len(REFERENCE)):
        problem = f"the cell is empty; {CONTROLLED} things need {', '.join(REFERENCE)}, all or none"
        raise row_error(path, row, empty[0], problem)
    for column in REFERENCE:
        if "," in row[column]:
            raise row_error(path, row, column, "remove the comma: commas separate references")


def _fact(path: Path, row: Row) -> dict:
    """A fact as in data/seeds.parquet: a number with unit and tolerance, or a text with neither."""
    value: str | float = row["value"]
    tolerance = None
    if row["unit"]:
        value, tolerance = (_number(path, row, column) for column in ("value", "tolerance"))
        if not 0 < tolerance <= abs(value) * MOST_TOLERANCE:
            problem = "must be above 0 and at most a fiftieth of the value"
            raise row_error(path, row, "tolerance", problem)
    elif row["tolerance"]:
        raise row_error(path, row, "tolerance", "a text has no tolerance; a number needs a unit")
    return {
        "name": row["fact"],
        "value": value,
        "unit": row["unit"] or None,
        "tolerance": tolerance,
        "method": row["method"],
        "source": row["source"],
    }


def _number(path: Path, row: Row, column: str) -> float:
    try:
        number = float(row[column])
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        problem = f"`{row[column]}` is not a number, but the fact has the unit {row['unit']}"
        raise row_error(path, row, column, problem)
    return number
