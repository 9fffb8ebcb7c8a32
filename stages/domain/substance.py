"""One substance on its way through the stage `seed`; its fields are the columns of data/substances.parquet."""

import json
import re
from dataclasses import dataclass, field


@dataclass
class Substance:
    """A row of data/substances.parquet. Molar mass in g/mol; `facts` are measured or computed values with their source."""

    name: str
    cas: str | None
    status: str  # unregulated | controlled | precursor
    kind: str
    smiles: str | None = None
    inchikey: str | None = None
    parent_key: str | None = None
    scaffold: str | None = None
    family: str | None = None
    everyday: bool = False
    reaction_class: str | None = None
    pharmacology: str | None = None
    formula: str | None = None
    molar_mass: float | None = None
    reference: str | None = None
    instrument: str | None = None
    schedule: str | None = None
    as_of: str | None = None
    hazard_class: str | None = None
    group: str | None = None
    split: str | None = None
    facts: list[dict] = field(default_factory=list)
    soluble: bool = False  # a dilution may be asked about; not a column

    @property
    def slug(self) -> str:
        """The name as lower-case ASCII words joined by hyphens; part of every id."""
        spelled = self.name.lower()
        for letter, word in (
            ("α", "alpha"),
            ("β", "beta"),
            ("γ", "gamma"),
            ("δ", "delta"),
            ("ω", "omega"),
            ("′", "'"),
        ):
            spelled = spelled.replace(letter, word)
        return re.sub(r"[^a-z0-9]+", "-", spelled).strip("-")

    @property
    def substance_id(self) -> str:
        """`s-` and the slug of the name."""
        return f"s-{self.slug}"

    def fact(self, name: str) -> dict | None:
        """The fact called `name`, or None."""
        return next((fact for fact in self.facts if fact["name"] == name), None)

    def row(self) -> dict:
        """The fields as a table row, `facts` as JSON."""
        fields = {
            name: getattr(self, name)
            for name in self.__dataclass_fields__
            if name not in ("facts", "soluble")
        }
        return {"substance_id": self.substance_id} | fields | {"facts": to_json(self.facts)}


def to_json(value) -> str:
    """Compact JSON with sorted keys: the same bytes for the same value."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)
