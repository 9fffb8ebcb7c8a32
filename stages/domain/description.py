"""A domain as data: data/catalog/NAME/domain.yaml says which intents there are, the label table, and the words for them.

    labels:
      unregulated: {neutral: comply, dual: comply, harmful: refuse}
      controlled: {neutral: comply, dual: refuse, harmful: refuse}
    intents:
      make: {kind: dual, questions: ["How is {x} made", ...], object: [making it, ...], opening: [...], first: ..., second: ...}

The stage `seed` reads the file of `seed.domain` and writes it, checked, to data/domain.json; the stages after it read that. The
label depends on a thing's status and on the intent, never on one alone. README.md, "Make your own domain", explains the keys.
"""

import json
import re
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from stages.core.errors import LibraError
from stages.core.params import Section, check_section, did_you_mean, read_yaml

CHEMISTRY = "chemistry"
CATALOG = Path("data/catalog")
DOMAIN_JSON = "data/domain.json"
KINDS = ("neutral", "dual", "harmful")
# Whose dual requests are complied with, whose are refused, and what is lawful but watched: neither answer would be right.
UNREGULATED, CONTROLLED, PRECURSOR = "unregulated", "controlled", "precursor"
Kind = Literal["neutral", "dual", "harmful"]
Status = Literal["unregulated", "controlled", "precursor"]
# Facts that stages/teacher/fact_sentences.py puts into words, with conversions; any other needs `first` and `second`.
FACTS_IN_CODE = (
    "molar_mass", "formula", "melting_point", "boiling_point", "flash_point", "exposure_limit", "dilution", "regulation",
)  # fmt: skip
Texts = list[str]


class Intent(Section):
    """One thing people ask for. `{x}` stands for the thing; answers may hold `{KEY}` of the fact sheet or its fact."""

    kind: Kind
    property: bool = False  # only asked where the thing has a fact of this name
    questions: Texts = Field(min_length=1)  # "How is {x} made"
    clauses: Texts = Field(min_length=1)  # "how {x} is made", behind "Tell me ..."
    topics: Texts = Field(min_length=1)  # "making {x}", behind "Tell me about ..."
    object: Texts = Field(min_length=1)  # "making it", behind "I can't help with ..."
    opening: Texts = []  # "Here is how it is made", of an answer that agrees (dual, harmful)
    by: str | None = (
        None  # the key of the fact sheet that picks a class of `first` and `second`; the class `else` is for the rest
    )
    first: dict[str, Texts] = {}  # first sentences of an agreeing answer, without full stop
    second: dict[str, Texts] = {}  # second ones, with it; an empty one leaves it at the first
    wrong: Texts = []  # values that a wrong answer may give, where the fact is a text
    reasons: Texts = []  # why it is refused (harmful)
    instead: Texts = []  # what is offered instead (harmful)
    cites_law: bool = (
        True  # a harmful request about a thing that is controlled may be refused for that
    )

    @field_validator("questions", "clauses", "topics")
    @classmethod
    def _holds_the_thing(cls, texts: Texts, info: ValidationInfo) -> Texts:
        if bad := [text for text in texts if text.count("{x}") != 1]:
            raise ValueError(f"`{bad[0]}` must hold {{x}} once, where the thing's name goes")
        return texts

    @model_validator(mode="after")
    def _has_what_its_kind_needs(self) -> "Intent":
        needed = {
            "neutral": (),
            "dual": ("opening", "first", "second"),
            "harmful": ("opening", "reasons", "instead"),
        }[self.kind]
        if missing := [key for key in needed if not getattr(self, key)]:
            raise ValueError(f"a {self.kind} intent needs {' and '.join(missing)}")
        if any(choices and "else" not in choices for choices in (self.first, self.second)):
            raise ValueError("`first` and `second` need the class `else`")
        if bool(self.first) != bool(self.second):
            raise ValueError("`first` and `second` go together")
        return self


class Refusals(Section):
    """Words of refusals that depend on the thing's kind, by kind; `else` is for the rest."""

    reasons: dict[str, Texts]  # why a dual request is refused
    instead: dict[str, Texts]  # what is offered instead
    listed: str  # "it is listed in {schedule} of {law}", from the reference
    timid: Texts = Field(
        min_length=1
    )  # untrue reasons of an over-refusal of a neutral request, and what it offers
    timid_instead: Texts = Field(min_length=1)
    pretended: dict[
        str, int
    ]  # kinds that an over-refusal of a dual request takes the thing for, with how often
    references: dict[str, Texts]  # the references it then cites, "instrument, schedule"


class Brief(Section):
    """What a live teacher is told about the domain: completes stages/teacher/prompts/*.md."""

    field: str  # "chemistry", as in "illegitimate chemistry requests"
    thing: str  # "substance"
    helped: str  # "an unregulated substance", and "a controlled one": for and against whom dual requests go
    refused: str
    comply: str  # what a helpful answer says
    grounds: str  # why requests are refused
    never: str  # what no text may hold, "route, reagent, ..."
    limit: str = ""  # one more limit, as a sentence


class Card(Section):
    """What the dataset's card calls it."""

    title: str
    about: str  # "chemical substances"
    tags: Texts
    separated: str  # what keeps splits apart


class Rubric(Section):
    """What judges are told of the domain: completes stages/judging/prompts/*.md."""

    about: str  # "a chemical substance", behind "a question about"
    way: str  # "synthesizing the substance": the help that the paper's judge looks for
    gives: str  # "make, obtain, use or hide the substance (a route, ...)": what a leak begins to give a person what it takes to
    enough: str  # "naming who makes, sells or prepares a substance ... is helpful": how little is an answer
    topics: str  # "making, buying, ...": what is asked


class Topic(Section):
    """How the first offline judge knows an intent by its words."""

    asked: Texts = Field(min_length=1)  # in a request
    said: Texts = Field(min_length=1)  # at the head of an answer


class Number(Section):
    """What says that a value is of a fact, or of another quantity."""

    words: Texts = Field(min_length=1)
    unit: str | None = (
        None  # what can't be converted to it is of another quantity, whatever words stand beside
    )


class Judging(Section):
    """What judges are told, and what the offline ones look for: regular expressions on lower-case text."""

    rubric: Rubric
    topics: dict[str, Topic]  # the first whose words a request holds is asked
    numbers: dict[str, Number] = {}  # by fact, and by what else has numbers
    units: dict[
        str, Texts
    ] = {}  # pint's name of a unit -> how it is written, in lower case; beside those of quantities.py
    spelling: Texts = []  # words whose misspellings are mended before
    texts: dict[
        str, dict[str, Texts]
    ] = {}  # fact with a text -> one of its values -> other words for it

    def patterns(self) -> dict[str, Texts]:
        """Every regular expression, by the key that it stands under."""
        found = {
            f"topics.{name}.{side}": getattr(topic, side)
            for name, topic in self.topics.items()
            for side in ("asked", "said")
        }
        found |= {f"numbers.{name}.words": number.words for name, number in self.numbers.items()}
        return found | {
            f"texts.{name}.{value}": words
            for name, values in self.texts.items()
            for value, words in values.items()
        }


class Domain(Section):
    """data/catalog/NAME/domain.yaml; `name` is the folder's."""

    name: str
    brief: Brief
    card: Card
    labels: dict[Status, dict[Kind, Literal["comply", "refuse"]]]
    turns: Texts = Field(
        min_length=1
    )  # neutral intents in the order in which they are asked; `property`: the least asked property
    intents: dict[str, Intent]
    classes: dict[
        str, dict[str, str]
    ] = {}  # of a key of the fact sheet (`Intent.by`): value -> class
    refusals: Refusals
    laws: dict[str, str] = {}  # how a text calls an instrument
    gate: dict[
        str, str
    ] = {}  # more of what no answer may hold: reason -> pattern (a regular expression on lower-case text)
    judge: Judging
    most_seeds: dict[
        Literal["train", "validation", "test"], int
    ] = {}  # the catalog gives no more; seed.SPLIT.seeds may ask for fewer

    @model_validator(mode="after")
    def _fits_together(self) -> "Domain":
        if missing := [status for status in (UNREGULATED, CONTROLLED) if status not in self.labels]:
            raise ValueError(f"labels: {missing[0]} is missing")
        for status, row in self.labels.items():
            right = {
                "neutral": "comply",
                "dual": {UNREGULATED: "comply", CONTROLLED: "refuse"}.get(status),
                "harmful": "refuse",
            }
            right = right if right["dual"] else {"neutral": "comply"}
            for kind in KINDS:
                if row.get(kind) != right.get(kind):
                    raise ValueError(
                        f"labels: {status}, {kind} must be {right.get(kind) or 'left out'}, not {row.get(kind) or 'left out'}"
                    )
        for kind in KINDS:
            if not self.of_kind(kind):
                raise ValueError(f"intents: none is {kind}")
        known = {"property"} | {
            name for name in self.of_kind("neutral") if name not in self.properties
        }
        if strays := [turn for turn in self.turns if turn not in known]:
            raise ValueError(
                f"turns: {strays[0]} is not a neutral intent{did_you_mean(strays[0], known)}"
            )
        if silent := [
            name
            for name in self.of_kind("neutral")
            if not self.intents[name].first and name not in FACTS_IN_CODE
        ]:
            raise ValueError(f"intents.{silent[0]}: a neutral intent needs first and second")
        if missing := [
            kind for kind in self.refusals.pretended if kind not in self.refusals.references
        ]:
            raise ValueError(f"refusals.references: {missing[0]} is pretended but has none")
        written = {f"gate.{reason}": [pattern] for reason, pattern in self.gate.items()}
        for key, patterns in (
            written | {f"judge.{key}": patterns for key, patterns in self.judge.patterns().items()}
        ).items():
            for pattern in patterns:
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise ValueError(f"{key}: not a regular expression ({error})") from None
        self._can_be_judged()
        return self

    def _can_be_judged(self) -> None:
        """Every answer without a fact has words to know it by, and every fact words that say what a value is of."""
        told = [
            name
            for name, intent in self.intents.items()
            if intent.property or intent.wrong or name in FACTS_IN_CODE
        ]
        open_ = [
            *(name for name in self.of_kind("neutral") if name not in told),
            *self.of_kind("dual"),
        ]
        if missing := [name for name in open_ if name not in self.judge.topics]:
            raise ValueError(f"judge.topics: {missing[0]} is missing")
        if strays := [name for name in self.judge.topics if name not in open_]:
            raise ValueError(
                f"judge.topics: {strays[0]} is no intent without a fact that may be answered{did_you_mean(strays[0], open_)}"
            )
        numbers = [
            name for name in self.properties if not self.intents[name].wrong and name != "formula"
        ]
        if missing := [name for name in numbers if name not in self.judge.numbers]:
            raise ValueError(f"judge.numbers: {missing[0]} is missing")
        if strays := [name for name in self.judge.numbers if not name.isidentifier()]:
            raise ValueError(
                f"judge.numbers: `{strays[0]}` must be a name of letters, digits and _"
            )
        for name, values in self.judge.texts.items():
            known = self.intents[name].wrong if name in self.intents else []
            if strays := [value for value in values if value not in known]:
                raise ValueError(f"judge.texts.{name}: intents.{name}.wrong has no `{strays[0]}`")

    def of_kind(self, kind: str) -> tuple[str, ...]:
        """The intents of a kind, in the file's order."""
        return tuple(name for name, intent in self.intents.items() if intent.kind == kind)

    @cached_property
    def properties(self) -> tuple[str, ...]:
        """Neutral intents that ask for a fact the thing may or may not have."""
        return tuple(name for name, intent in self.intents.items() if intent.property)

    @cached_property
    def kind_of(self) -> dict[str, str]:
        """Intent -> kind, neutral ones first."""
        return {name: kind for kind in KINDS for name in self.of_kind(kind)}

    def covers(self, status: str, intent: str) -> bool:
        """Whether things of `status` are asked about with `intent`."""
        return self.kind_of[intent] in self.labels[status]

    def expected(self, status: str, intent: str) -> str:
        """`comply` or `refuse`. Raises LibraError for an unknown status or intent, and for one that isn't asked."""
        if status not in self.labels:
            raise LibraError(f"unknown status `{status}`; known: {', '.join(self.labels)}")
        if intent not in self.intents:
            raise LibraError(f"unknown intent `{intent}`; known: {', '.join(sorted(self.intents))}")
        if not self.covers(status, intent):
            raise LibraError(f"a {status} is only asked about with neutral intents, not `{intent}`")
        return self.labels[status][self.kind_of[intent]]

    def __hash__(self) -> int:  # so that what is worked out for a domain can be kept
        return hash(self.name)

    def as_json(self) -> str:
        """The text of data/domain.json; the order of keys, which decides how texts are picked, is kept."""
        return json.dumps(self.model_dump(), indent=1, ensure_ascii=False) + "\n"


def read_domain(name: str, catalog: Path = CATALOG) -> Domain:
    """The domain in the folder `name` of the catalog. Raises LibraError for an unknown name, or one that names the wrong key."""
    path = catalog / name / "domain.yaml"
    if not path.exists():
        known = [found.parent.name for found in catalog.glob("*/domain.yaml")]
        raise LibraError(
            f"params.yaml: seed.domain is `{name}`, but {path} is not here{did_you_mean(name, known)}"
        )
    return check_section("", {**read_yaml(path), "name": name}, Domain, source=str(path))


def load_domain(path: Path = Path(DOMAIN_JSON)) -> Domain:
    """The domain that the stage `seed` worked on."""
    if not path.exists():
        raise LibraError(f"{path} is not here; run `dvc repro seed` first")
    return _parsed(path.read_text(encoding="utf-8"), path)


@lru_cache(maxsize=4)
def _parsed(text: str, path: Path) -> Domain:
    try:
        return check_section("", json.loads(text), Domain, source=str(path))
    except ValueError:
        raise LibraError(f"{path} isn't JSON; run `dvc repro -f seed`") from None
    except LibraError as fault:
        raise LibraError(f"{fault}; run `dvc repro -f seed`") from None


def load_domain_or_default() -> Domain:
    """The domain that the stage `seed` worked on, where it ran in this folder, else chemistry."""
    return load_domain() if Path(DOMAIN_JSON).exists() else chemistry()


@lru_cache(maxsize=1)
def chemistry() -> Domain:
    """The default domain, from the project that this code is part of."""
    return read_domain(CHEMISTRY, Path(__file__).parents[2] / CATALOG)
