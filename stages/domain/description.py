"""A domain as data: data/catalog/NAME/domain.yaml has its intents, label table and words.

    labels:
      unregulated: {neutral: comply, dual: comply, harmful: refuse}
      controlled: {neutral: comply, dual: refuse, harmful: refuse}
    intents:
      make: {kind: dual, questions: ["How is {x} made", ...], object: [making it, ...], ...}

The stage `seed` reads the file of `seed.domain` and writes it, checked, to data/domain.json, which
the later stages read. The label depends on a thing's status and on the intent, never on one alone.
docs/domain.md explains the keys.
"""

import json
import re
from collections.abc import Collection
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
Kind = Literal["neutral", "dual", "harmful"]
# Dual requests get help for the first and a refusal for the second. About a precursor none are
# asked: it is lawful but controlled, and neither answer would be right.
UNREGULATED, CONTROLLED, PRECURSOR = "unregulated", "controlled", "precursor"
Status = Literal["unregulated", "controlled", "precursor"]
# stages/teacher/fact_sentences.py writes these facts, with conversions; all others need the keys
# `first` and `second`.
FACTS_IN_CODE = (
    "molar_mass",
    "formula",
    "melting_point",
    "boiling_point",
    "flash_point",
    "exposure_limit",
    "dilution",
    "regulation",
)
Texts = list[str]


class Intent(Section):
    """One thing people ask for.

    `{x}` is the thing's name. Answers may contain `{KEY}` of the fact sheet or of its fact.
    """

    kind: Kind
    property: bool = False  # only asked if the thing has a fact of this name
    questions: Texts = Field(min_length=1)  # "How is {x} made"
    clauses: Texts = Field(min_length=1)  # "how {x} is made", after "Tell me ..."
    topics: Texts = Field(min_length=1)  # "making {x}", after "Tell me about ..."
    object: Texts = Field(min_length=1)  # "making it", after "I can't help with ..."
    opening: Texts = []  # "Here is how it is made", of an answer that agrees (dual, harmful)
    # The key of the fact sheet that picks a class of `first` and `second`; `else` is the default.
    by: str | None = None
    first: dict[str, Texts] = {}  # first sentences of an agreeing answer, without full stop
    second: dict[str, Texts] = {}  # second ones, with full stop; an empty one is left out
    wrong: Texts = []  # values for wrong answers, if the fact is a text
    reasons: Texts = []  # why it is refused (harmful)
    instead: Texts = []  # what is offered instead (harmful)
    cites_law: bool = True  # whether a harmful request on a controlled thing may cite its listing

    @field_validator("questions", "clauses", "topics")
    @classmethod
    def _name_the_thing_once(cls, texts: Texts, info: ValidationInfo) -> Texts:
        if bad := [text for text in texts if text.count("{x}") != 1]:
            raise ValueError(f"`{bad[0]}` must contain {{x}} once, where the thing's name goes")
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
        if any(classes and "else" not in classes for classes in (self.first, self.second)):
            raise ValueError("`first` and `second` need the class `else`")
        if bool(self.first) != bool(self.second):
            raise ValueError("`first` and `second` go together")
        return self


class Refusals(Section):
    """Words of refusals by the thing's kind; `else` is the default."""

    reasons: dict[str, Texts]  # why a dual request is refused
    instead: dict[str, Texts]  # what is offered instead
    listed: str  # "it is listed in {schedule} of {law}", from the reference
    # Untrue reasons of an over-refusal of a neutral request, and what it offers.
    timid: Texts = Field(min_length=1)
    timid_instead: Texts = Field(min_length=1)
    # Kinds that an over-refusal of a dual request takes the thing for, with their frequency, and
    # the references it then cites ("instrument, schedule").
    pretended: dict[str, int]
    references: dict[str, Texts]


class Brief(Section):
    """What a live teacher learns about the domain: completes stages/teacher/prompts/*.md."""

    field: str  # "chemistry", as in "illegitimate chemistry requests"
    thing: str  # "substance"
    helped: str  # "an unregulated substance": dual requests are answered
    refused: str  # "a controlled one": dual requests are refused
    comply: str  # what a helpful answer says
    grounds: str  # why requests are refused
    never: str  # what no text may contain, "route, reagent, ..."
    limit: str = ""  # one more limit, as a sentence


class Card(Section):
    """Words for the dataset card."""

    title: str
    about: str  # "chemical substances"
    tags: Texts
    separated: str  # what keeps splits apart


class Rubric(Section):
    """What judges learn about the domain: completes stages/judging/prompts/*.md."""

    about: str  # "a chemical substance", after "a question about"
    way: str  # "synthesizing the substance": the help that the paper's judge looks for
    gives: str  # "make, obtain, use or hide the substance": what a leak starts to enable
    enough: str  # "naming who makes, sells or ... is helpful": how short an answer may be
    topics: str  # "making, buying, ...": what requests are about


class Topic(Section):
    """How the first offline judge recognises an intent."""

    asked: Texts = Field(min_length=1)  # in a request
    said: Texts = Field(min_length=1)  # at the start of an answer


class Number(Section):
    """How a value is assigned to a fact, or to another quantity."""

    words: Texts = Field(min_length=1)
    unit: str | None = None  # a value that can't be converted to it is of another quantity


class Judging(Section):
    """What judges learn, and what the offline ones look for: patterns on lower-case text."""

    rubric: Rubric
    topics: dict[str, Topic]  # the first one whose words are in a request is its topic
    numbers: dict[str, Number] = {}  # by fact, and by other quantities
    # pint's name of a unit -> its spellings in lower case, beside those of quantities.py.
    units: dict[str, Texts] = {}
    spelling: Texts = []  # words whose misspellings are corrected first
    # Fact with a text -> one of its values -> other words for it.
    texts: dict[str, dict[str, Texts]] = {}

    def patterns(self) -> dict[str, Texts]:
        """Every regular expression, by its key in domain.yaml."""
        patterns = {}
        for name, topic in self.topics.items():
            patterns |= {f"topics.{name}.asked": topic.asked, f"topics.{name}.said": topic.said}
        for name, number in self.numbers.items():
            patterns[f"numbers.{name}.words"] = number.words
        for name, values in self.texts.items():
            patterns |= {f"texts.{name}.{value}": words for value, words in values.items()}
        return patterns


class Domain(Section):
    """data/catalog/NAME/domain.yaml; `name` is the folder's."""

    name: str
    brief: Brief
    card: Card
    labels: dict[Status, dict[Kind, Literal["comply", "refuse"]]]
    # Neutral intents in the order in which they are asked; `property` is the property asked least.
    turns: Texts = Field(min_length=1)
    intents: dict[str, Intent]
    # Key of the fact sheet (`Intent.by`) -> value -> class.
    classes: dict[str, dict[str, str]] = {}
    refusals: Refusals
    laws: dict[str, str] = {}  # what texts call an instrument
    # Reason -> pattern on lower-case text: what no answer may contain, beside the gate's own rules.
    gate: dict[str, str] = {}
    judge: Judging
    # The catalog has no more; seed.SPLIT.seeds may ask for fewer.
    most_seeds: dict[Literal["train", "validation", "test"], int] = {}

    @model_validator(mode="after")
    def _is_consistent(self) -> "Domain":
        self._check_labels()
        for kind in KINDS:
            if not self.of_kind(kind):
                raise ValueError(f"intents: none is {kind}")
        neutral = self.of_kind("neutral")
        turns = {"property"} | {name for name in neutral if name not in self.properties}
        _refuse_strays(self.turns, turns, "turns: {} is not a neutral intent")
        for name in neutral:
            if not self.intents[name].first and name not in FACTS_IN_CODE:
                raise ValueError(f"intents.{name}: a neutral intent needs first and second")
        for kind in self.refusals.pretended:
            if kind not in self.refusals.references:
                raise ValueError(f"refusals.references: {kind} is missing, but it is in pretended")
        self._check_patterns()
        self._check_judging()
        return self

    def _check_labels(self) -> None:
        for status in (UNREGULATED, CONTROLLED):
            if status not in self.labels:
                raise ValueError(f"labels: {status} is missing")
        for status, labels in self.labels.items():
            right = {"neutral": "comply"}
            if status in (UNREGULATED, CONTROLLED):
                dual = "comply" if status == UNREGULATED else "refuse"
                right |= {"dual": dual, "harmful": "refuse"}
            for kind in KINDS:
                if labels.get(kind) != right.get(kind):
                    must, is_ = (table.get(kind) or "left out" for table in (right, labels))
                    raise ValueError(f"labels: {status}, {kind} must be {must}, not {is_}")

    def _check_patterns(self) -> None:
        patterns = {f"gate.{reason}": [pattern] for reason, pattern in self.gate.items()}
        patterns |= {f"judge.{key}": words for key, words in self.judge.patterns().items()}
        for key, words in patterns.items():
            for pattern in words:
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise ValueError(f"{key}: not a regular expression ({error})") from None

    def _check_judging(self) -> None:
        """Answers without a fact need words to recognise them, and facts words for their values."""
        open_ended = [
            name
            for name in (*self.of_kind("neutral"), *self.of_kind("dual"))
            if self.intents[name].kind == "dual" or not self._has_fact(name)
        ]
        for name in open_ended:
            if name not in self.judge.topics:
                raise ValueError(f"judge.topics: {name} is missing")
        problem = "judge.topics: {} is not a neutral or dual intent without a fact"
        _refuse_strays(self.judge.topics, open_ended, problem)
        for name in self.properties:
            is_number = not self.intents[name].wrong and name != "formula"
            if is_number and name not in self.judge.numbers:
                raise ValueError(f"judge.numbers: {name} is missing")
        for name in self.judge.numbers:
            if not name.isidentifier():
                raise ValueError(f"judge.numbers: `{name}` must be a name of letters, digits and _")
        for name, values in self.judge.texts.items():
            wrong = self.intents[name].wrong if name in self.intents else []
            for value in values:
                if value not in wrong:
                    raise ValueError(f"judge.texts.{name}: intents.{name}.wrong has no `{value}`")

    def _has_fact(self, name: str) -> bool:
        intent = self.intents[name]
        return bool(intent.property or intent.wrong or name in FACTS_IN_CODE)

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
        """`comply` or `refuse`.

        Raises LibraError for an unknown status or intent, and for a pair that isn't asked.
        """
        if status not in self.labels:
            raise LibraError(f"unknown status `{status}`; known: {', '.join(self.labels)}")
        if intent not in self.intents:
            raise LibraError(f"unknown intent `{intent}`; known: {', '.join(sorted(self.intents))}")
        if not self.covers(status, intent):
            raise LibraError(f"a {status} is only asked about with neutral intents, not `{intent}`")
        return self.labels[status][self.kind_of[intent]]

    def __hash__(self) -> int:  # so that functions of a domain can be cached
        return hash(self.name)

    def as_json(self) -> str:
        """The text of data/domain.json, in the order of keys, which decides how texts are drawn."""
        return json.dumps(self.model_dump(), indent=1, ensure_ascii=False) + "\n"


def read_domain(name: str, catalog: Path = CATALOG) -> Domain:
    """The domain in the folder `name` of the catalog.

    Raises LibraError for an unknown name, or naming the wrong key.
    """
    path = catalog / name / "domain.yaml"
    if not path.exists():
        names = [other.parent.name for other in catalog.glob("*/domain.yaml")]
        hint = did_you_mean(name, names)
        raise LibraError(f"params.yaml: seed.domain is `{name}`, but {path} is missing{hint}")
    return check_section("", {**read_yaml(path), "name": name}, Domain, source=str(path))


def load_domain(path: Path = Path(DOMAIN_JSON)) -> Domain:
    """The domain that the stage `seed` worked on. Raises LibraError if there is none."""
    if not path.exists():
        raise LibraError(f"{path} not found; run `dvc repro seed` first")
    return _parsed(path.read_text(encoding="utf-8"), path)


def load_domain_or_default() -> Domain:
    """The domain that the stage `seed` worked on in this folder, else chemistry."""
    return load_domain() if Path(DOMAIN_JSON).exists() else chemistry()


@lru_cache(maxsize=1)
def chemistry() -> Domain:
    """The default domain, from the project that this code belongs to."""
    return read_domain(CHEMISTRY, Path(__file__).parents[2] / CATALOG)


@lru_cache(maxsize=4)
def _parsed(text: str, path: Path) -> Domain:
    try:
        return check_section("", json.loads(text), Domain, source=str(path))
    except ValueError:
        raise LibraError(f"{path} isn't JSON; run `dvc repro -f seed`") from None
    except LibraError as error:
        raise LibraError(f"{error}; run `dvc repro -f seed`") from None


def _refuse_strays(names: Collection[str], known: Collection[str], problem: str) -> None:
    """Raise ValueError for the first of `names` that isn't known; `problem` has {} for it."""
    for name in names:
        if name not in known:
            raise ValueError(problem.format(name) + did_you_mean(name, known))
