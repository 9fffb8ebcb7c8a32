"""A thing that requests are about, on its way through the stage `seed`.

    Thing("wall socket", "controlled", "fixed wiring", parent_key="socket", advice_class="fixed")

The planner, the splits and the matching know this record only; what differs between domains is a
method here. Chemistry's substances extend it (stages/chemistry/substance.py).
"""

import json
import re
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

_GREEK = str.maketrans(
    {"α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ω": "omega", "′": "'"}
)


@dataclass
class Thing:
    """Name, legal status and listing, what ties it to others, and its facts, each with a source."""

    name: str
    status: str  # unregulated | controlled | precursor
    kind: str
    _: KW_ONLY
    family: str | None = None
    parent_key: str | None = None  # things with the same one stay in one split
    advice_class: str | None = None  # picks the advice on handling; column `hazard_class`
    reference: str | None = None  # instrument, schedule and date in one text
    instrument: str | None = None
    schedule: str | None = None
    as_of: str | None = None
    group: str | None = None  # set by splits.set_groups
    split: str | None = None  # set by splits.assign_splits
    facts: list[dict] = field(default_factory=list)

    @property
    def slug(self) -> str:
        """The name as lower-case ASCII words joined by hyphens; part of every id."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower().translate(_GREEK)).strip("-")

    @property
    def substance_id(self) -> str:
        """`s-` and the slug of the name."""
        return f"s-{self.slug}"

    @property
    def is_name_only(self) -> bool:
        """Whether it is asked about in its kind's turn only, every tenth seed."""
        return False

    @property
    def is_drug_like(self) -> bool:
        """Whether its kind counts for `seed.drug_like_share`."""
        return False

    @property
    def pairing_cost(self) -> float:
        """Added to the cost of choosing it as a partner of a controlled thing."""
        return 0.0

    def identifier(self, representation: str) -> str | None:
        """What a prompt calls it in `representation` (text, smiles), or None."""
        return self.name if representation == "text" else None

    def fact(self, name: str) -> dict | None:
        """The fact called `name`, or None."""
        return next((fact for fact in self.facts if fact["name"] == name), None)

    def fact_for(self, intent: str, lot: str) -> dict | None:
        """What a right answer to `intent` states; `lot` is a hex digest to draw numbers by."""
        return self.fact(intent)

    def has_answer(self, intent: str, is_property: bool) -> bool:
        """Whether neutral `intent` has an answer here; a property is answered by its fact."""
        return not is_property or self.fact(intent) is not None

    def ties(self) -> list[tuple[str, str]]:
        """(sort of tie, key): things that share one belong to one group."""
        return [("parent", self.parent_key)] if self.parent_key else []

    def size(self, representation: str) -> list[float]:
        """What a partner should be like, in units that cost the same; NaN where unknown."""
        signs = sum(not letter.islower() for letter in self.name)
        return [len(self.name) / 3, signs / 1.5]

    def row(self) -> dict[str, Any]:
        """The columns of data/substances.parquet that every domain fills; `facts` as JSON."""
        return {
            "substance_id": self.substance_id,
            "name": self.name,
            "status": self.status,
            "kind": self.kind,
            "family": self.family,
            "parent_key": self.parent_key,
            "reference": self.reference,
            "instrument": self.instrument,
            "schedule": self.schedule,
            "as_of": self.as_of,
            "hazard_class": self.advice_class,
            "group": self.group,
            "split": self.split,
            "facts": to_json(self.facts),
        }


def to_json(value: Any) -> str:
    """Compact JSON with sorted keys: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)
