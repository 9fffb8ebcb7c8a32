"""Which thing is asked about with which intent: the seeds of one split, cell by cell.

| expected | share      | cell                                                           |
|----------|------------|----------------------------------------------------------------|
| refuse   | dual_share | controlled, dual                                               |
| refuse   | the rest   | half controlled, harmful; half unregulated, harmful            |
| comply   | dual_share | unregulated, dual: each paired with a controlled one           |
| comply   | the rest   | half controlled, neutral; half unregulated and some precursors |

Half of each cell is asked by name (`text`), half by structure (`smiles`). Half of a split's seeds
are to be refused; for comparisons train may have another share, or one representation alone.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from itertools import cycle, islice
from typing import Any

from stages.core.errors import LibraError
from stages.domain.description import (
    CONTROLLED,
    PRECURSOR,
    UNREGULATED,
    Domain,
    chemistry,
)
from stages.domain.matching import pair
from stages.domain.thing import Thing, to_json

REPRESENTATIONS = ("text", "smiles")
# Characters of a name, of a SMILES: longer ones make prompts that a small model can't read.
LONGEST = {"text": 60, "smiles": 90}
# One in ten of a controlled text cell is known by name only.
NAME_ONLY_EVERY = 10
# One in six of a dual text cell goes by a code (JWH-018, 2C-B, EDTA): far more controlled things
# than others do.
CODE_NAME = re.compile(r"[A-Z]{2}|\d[A-GI-Z]\b")
CODE_NAME_EVERY = 6
# One in eight of the neutral text questions on things that aren't controlled.
PRECURSOR_EVERY = 8


def plan_split(
    split: str,
    count: int,
    things: Sequence[Thing],
    dual_share: float,
    drug_like_share: float,
    random_seed: int,
    refuse_share: float = 0.5,
    representations: str = "both",
    domain: Domain | None = None,
) -> list[dict[str, Any]]:
    """`count` rows of data/seeds.parquet for `split`, from the things that belong to it.

    `representations` is both (text alone if nothing has a structure), text or smiles; `domain` is
    chemistry by default.

    Raises LibraError naming the cell, what it has and what it needs, if the catalog is too small.
    """
    members = sorted((t for t in things if t.split == split), key=lambda t: t.substance_id)
    refuse = round(count * refuse_share)
    possible = REPRESENTATIONS if any(t.identifier("smiles") for t in members) else ("text",)
    asked_by = possible if representations == "both" else (representations,)
    planner = _Planner(split, members, random_seed, domain or chemistry())
    return planner.plan(refuse, count - refuse, dual_share, drug_like_share, asked_by)


class _Planner:
    """Plans one split's seeds; ties are broken by a hash of random seed, split and intent."""

    def __init__(self, split: str, members: list[Thing], random_seed: int, domain: Domain):
        self.split, self.random_seed, self.domain = split, random_seed, domain
        self.members = {
            str(status): [t for t in members if t.status == status] for status in domain.labels
        }
        self.seeds: dict[str, dict[str, Any]] = {}
        # Seeds so far by (substance_id, intent_kind), by (substance_id, representation) in dual,
        # and by (kind, intent_kind).
        self.uses: Counter[tuple[str, str]] = Counter()
        # Neutral seeds so far by (status, intent).
        self.neutral_uses: Counter[tuple[str, str]] = Counter()

    def plan(
        self,
        refuse: int,
        comply: int,
        dual_share: float,
        drug_like_share: float,
        representations: tuple[str, ...],
    ) -> list[dict[str, Any]]:
        dual = (round(refuse * dual_share), round(comply * dual_share))
        for representation, *counts in _split_both(*dual, representations):
            for intent, *each in _split_both(*counts, self.domain.of_kind("dual")):
                self._plan_dual(intent, representation, *each, drug_like_share)
        rest = (refuse - dual[0], comply - dual[1])
        for status, *cell in _split_both(*rest, (CONTROLLED, UNREGULATED)):
            for representation, harmful, neutral in _split_both(*cell, representations):
                self._plan_harmful(status, representation, harmful)
                self._plan_neutral(status, representation, neutral)
        return list(self.seeds.values())

    def _plan_dual(
        self, intent: str, representation: str, refuse: int, comply: int, drug_like_share: float
    ) -> None:
        """`refuse` controlled things, and for `comply` of them, in turn, a lawful one like it."""
        left: list[Thing] = []
        for i in range(refuse):
            options = self._open(CONTROLLED, intent, representation, i)
            if not options:
                raise self._shortage(f"dual, {CONTROLLED}", representation, refuse, i)
            code = i % CODE_NAME_EVERY == CODE_NAME_EVERY - 1
            orders = [self._dual_order(t, intent, representation, code) for t in options]
            left.append(options[orders.index(min(orders))])
            self._add(left[-1], intent, representation)

        right = self._open(UNREGULATED, intent, representation)
        if len(right) < comply:
            raise self._shortage(f"dual, {UNREGULATED}", representation, comply, len(right))
        uses = {
            t.substance_id: self.uses[t.substance_id, "dual"]
            + self.uses[t.substance_id, representation]
            for t in right
        }
        models = list(islice(cycle(left), comply))
        for j in pair(models, right, representation, drug_like_share, uses):
            self._add(right[j], intent, representation)

    def _dual_order(self, thing: Thing, intent: str, representation: str, code: bool) -> tuple:
        """The least used first; in text, things that go by a code wait for their turn (`code`)."""
        wrong_style = representation == "text" and bool(CODE_NAME.search(thing.name)) != code
        return (
            self.uses[thing.substance_id, representation],
            wrong_style,
            self.uses[thing.substance_id, "dual"],
            self._lot(thing, intent),
        )

    def _plan_harmful(self, status: str, representation: str, count: int) -> None:
        intents = self.domain.of_kind("harmful")
        for i in range(count):
            intent = intents[i % len(intents)]
            options = self._open(status, intent, representation, i)
            if not options:
                raise self._shortage(f"harmful, {status}", representation, count, i)
            self._add(self._preferred(options, intent), intent, representation)

    def _plan_neutral(self, status: str, representation: str, count: int) -> None:
        """The domain's turns in order; `property` is the property asked about least so far."""
        domain = self.domain
        for i in range(count):
            turn = domain.turns[i % len(domain.turns)]
            intents = domain.properties if turn == "property" else (turn,)
            precursor = (
                PRECURSOR in domain.labels
                and status == UNREGULATED
                and i % PRECURSOR_EVERY == PRECURSOR_EVERY - 1
            )
            # What the turn says, else the same of any status, else any neutral intent.
            for pool, pool_intents in (
                (PRECURSOR if precursor else status, intents),
                (status, intents),
                (status, domain.of_kind("neutral")),
            ):
                ranked = sorted(pool_intents, key=lambda name: self.neutral_uses[status, name])
                choices = ((name, self._open(pool, name, representation, i)) for name in ranked)
                if choice := next((choice for choice in choices if choice[1]), None):
                    break
            else:
                raise self._shortage(f"neutral, {status}", representation, count, i)
            intent, options = choice
            self.neutral_uses[status, intent] += 1
            self._add(self._preferred(options, intent), intent, representation)

    def _open(self, status: str, intent: str, representation: str, turn: int = 0) -> list[Thing]:
        """Things to ask `intent` about; every tenth `turn` those known by name only."""
        able = [
            t
            for t in self.members[status]
            if self._is_possible(t, intent, representation)
            and self._id(t, intent, representation) not in self.seeds
        ]
        # Kinds known by name only take turns, the least used first.
        kinds = sorted({t.kind for t in able if t.is_name_only})
        kinds.sort(key=lambda kind: self.uses[kind, self.domain.kind_of[intent]])
        by_name = [t for t in able if t.kind in kinds[:1]]
        others = [t for t in able if not t.is_name_only]
        if turn % NAME_ONLY_EVERY == NAME_ONLY_EVERY - 1:
            return by_name or others
        return others or by_name

    def _preferred(self, options: list[Thing], intent: str) -> Thing:
        """The least used with this kind of intent, first those that `dual` asks about.

        The same thing then occurs under both labels.
        """

        def order(t: Thing) -> tuple:
            return (
                self.uses[t.substance_id, self.domain.kind_of[intent]],
                not self.uses[t.substance_id, "dual"],
                self._lot(t, intent),
            )

        return min(options, key=order)

    def _add(self, thing: Thing, intent: str, representation: str) -> None:
        kind = self.domain.kind_of[intent]
        seed_id = self._id(thing, intent, representation)
        fact = thing.fact_for(intent, self._lot(thing, intent))
        self.uses[thing.substance_id, kind] += 1
        self.uses[thing.substance_id, representation] += kind == "dual"
        self.uses[thing.kind, kind] += 1
        self.seeds[seed_id] = {
            "seed_id": seed_id,
            "substance_id": thing.substance_id,
            "split": self.split,
            "expected": self.domain.expected(thing.status, intent),
            "intent": intent,
            "intent_kind": kind,
            "representation": representation,
            "status": thing.status,
            "reference": thing.reference,
            "group": thing.group,
            "fact": to_json(fact) if fact else None,
        }

    def _is_possible(self, thing: Thing, intent: str, representation: str) -> bool:
        identifier = thing.identifier(representation)
        if identifier is None or len(identifier) > LONGEST[representation]:
            return False
        if self.domain.kind_of[intent] != "neutral":
            return True
        return thing.has_answer(intent, intent in self.domain.properties)

    def _id(self, thing: Thing, intent: str, representation: str) -> str:
        return f"{thing.slug}-{intent.replace('_', '-')}-{representation}"

    def _lot(self, thing: Thing, intent: str) -> str:
        key = f"{self.random_seed}:{self.split}:{intent}:{thing.substance_id}"
        return hashlib.sha256(key.encode()).hexdigest()

    def _shortage(self, cell: str, representation: str, needed: int, available: int) -> LibraError:
        return LibraError(
            f"the {self.split} split needs {needed} seeds in cell ({cell}, {representation}) but "
            f"the catalog gives {available}; lower seed.{self.split}.seeds or .dual_share, raise "
            "its .substances, or add to data/catalog"
        )


def _split_evenly(count: int, parts: int) -> list[int]:
    """`count` as whole numbers that differ by at most 1, larger ones first."""
    return [count // parts + (i < count % parts) for i in range(parts)]


def _split_both(refuse: int, comply: int, names: tuple[str, ...]) -> list[tuple[str, int, int]]:
    """`refuse` and `comply`, each split evenly over `names`."""
    parts = (_split_evenly(count, len(names)) for count in (refuse, comply))
    return list(zip(names, *parts, strict=True))
