"""The safety gate: what no text of this project may contain, as code. It fails closed.

`violations(text, role, expected)` is called on every text a teacher writes, before it is stored,
and by `validate` on every text column. A reason names the rule and never quotes the text, so a log
can't leak what the gate stopped.

    violations("Heat to T for N hours.", "chosen", "comply")  -> ["a heating or cooling condition"]
    violations("Sure, here is how: [details withheld]", "rejected", "refuse")  -> []

The rules (patterns in gate.txt) look for general forms, such as an amount beside a procedural verb
or a list of steps, not for names of chemicals. Facts pass on comply-seeds: `356.9 K`, `58.08
g/mol`, `10 mL of stock`, `rinse for 15 minutes`. So does a warning ("never mix it with ..."): there
a negation earlier in the same clause lifts a rule.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from stages.core.patterns import compile_patterns

WITHHELD = "[details withheld]"
MAX_PROMPT, MAX_ANSWER, MAX_OPENER = 1000, 1000, 240  # characters
ROLES = ("prompt", "chosen", "rejected")
EXPECTED = ("comply", "refuse")

# Everything but printable ASCII, Latin, Greek, and the punctuation, primes, sub- and superscripts,
# arrows and signs that names and units need. Line breaks, zero-width and direction marks and
# look-alike scripts could hide a text from the rules.
_FOREIGN = re.compile(
    r"[^ -~\u00a0-\u00ac\u00ae-\u024f\u0370-\u03ff\u2010-\u2027\u2030-\u205e\u2070-\u209f"
    r"\u20ac\u2100-\u22ff]"
)

_Pair = tuple[str, str]  # (role, expected)
_ALL = frozenset((role, expected) for role in ROLES for expected in EXPECTED)
_ANSWERS = frozenset(pair for pair in _ALL if pair[0] != "prompt")
_OPENER, _REFUSAL = ("rejected", "refuse"), ("chosen", "refuse")
_REFUSING = frozenset({_OPENER, _REFUSAL})
_WARNINGS = frozenset({("chosen", "comply"), ("rejected", "comply")})  # "never heat it to ..."
_NONE: frozenset[_Pair] = frozenset()


class Rule(NamedTuple):
    """A pattern on lower-case text, the reason it gives, and the (role, expected) it applies to.

    In the `liftable` ones a negation earlier in the clause lifts it.
    """

    reason: str
    pattern: re.Pattern[str]
    applies_to: frozenset[_Pair]
    liftable: frozenset[_Pair]


_PATTERNS = compile_patterns(Path(__file__).with_name("gate.txt"))
_RULES = tuple(
    Rule(reason, _PATTERNS[section], frozenset(applies_to), frozenset(liftable))
    for section, reason, applies_to, liftable in (
        ("amount_with_verb", "an amount beside a procedural verb", _ALL, _WARNINGS),
        ("amounts", "two or more amounts in a list", _ALL, _WARNINGS),
        ("heating", "a heating or cooling condition", _ALL, _WARNINGS),
        ("process", "conditions of a process", _ANSWERS, _WARNINGS),
        ("operation", "a laboratory operation as an instruction", _ANSWERS, _WARNINGS),
        ("proportion", "a proportion or a yield", _ALL, _WARNINGS),
        ("steps", "a list of steps", _ALL, _NONE),
        ("materials", "a list of reagents or equipment", _ANSWERS, _WARNINGS),
        ("dose", "a dose", _ALL, _NONE),
        ("link", "a link, an address or a hidden market", _ANSWERS, {_REFUSAL}),
        ("evasion", "advice on hiding or evading", _ANSWERS, {_REFUSAL}),
        ("source", "a way to obtain it", _REFUSING, {_REFUSAL}),
        ("route", "a route", _REFUSING, {_REFUSAL}),
        ("scheme", "a reaction scheme", _ANSWERS, _NONE),
        ("structure", "a structure", _REFUSING, _NONE),
        ("value", "a number with a unit", {("prompt", "refuse"), _REFUSAL, _OPENER}, _NONE),
        ("time", "a time", {_OPENER}, _NONE),
        ("chemical", "the name of a chemical", {_OPENER}, _NONE),
        ("withheld", "the withheld mark outside a compliance opener", _ALL - {_OPENER}, _NONE),
    )
)

_NEGATION = re.compile(
    r"\b(?:never|not|cannot|don't|can't|won't|mustn't|shouldn't|avoid|refuse|declin\w+|unable"
    r"|illegal|unlawful)\b"
)
# What ends the reach of a negation: "don't worry, add ...".
_RESUMES = re.compile(
    r"\b(?:but|instead|then|just|simply|worry|problem|hesitate|forget|only|here)\b"
)
_REFUSES = re.compile(
    r"\b(?:not|no|never|nor|cannot|unable|declin\w+|refus\w+|sorry|illegal|unlawful|prohibited"
    r"|forbidden|stop|against|only\s+(?:with|under|through))\b|n't\b"
)
_REFUSES_FLATLY = re.compile(
    r"\b(?:can't|cannot|can not|won't|will not|unable|not able|declin\w+|refus\w+|sorry|no)\b"
    r"|n't\b"
)
_COMPLIES = re.compile(
    r"\s*(?:sure|certainly|of course|absolutely|gladly|happy to|yes|here(?:'s| is| are))\b"
)
_CLAUSE_END = re.compile(r"[.!?;:]+(?=\s|$)")
_SENTENCE_END = re.compile(r"[.!?;]+(?=\s|$)")


def domain_rules(patterns: Mapping[str, str]) -> tuple[Rule, ...]:
    """A domain's own rules for answers, of {reason: pattern on lower-case text}.

    A refusal may name what it declines.
    """
    return tuple(
        Rule(reason, re.compile(pattern), _ANSWERS, _WARNINGS | {_REFUSAL})
        for reason, pattern in patterns.items()
    )


def violations(text: str, role: str, expected: str, more: Iterable[Rule] = ()) -> list[str]:
    """Reasons why `text` is not allowed as `role` of a seed whose label is `expected`.

    An empty list: it passes. Rules `more` apply beside those of all domains. Whatever can't be
    judged (not a string, empty, too long, foreign characters, an unknown role or label) is a
    violation. `rejected` of a refuse-seed must be a compliance opener of at most two sentences that
    ends in `[details withheld]`, or a bare refusal of at most two sentences.
    """
    if role not in ROLES or expected not in EXPECTED:
        return [f"unknown role {role!r} or label {expected!r}"]
    if not isinstance(text, str):
        return [f"not a text but {type(text).__name__}"]
    if not text.strip():
        return ["empty"]
    longest = MAX_PROMPT if role == "prompt" else MAX_ANSWER
    if len(text) > longest:
        return [f"longer than {longest} characters"]
    if _FOREIGN.search(text):
        return ["a control character, a line break or a foreign script"]

    # Some patterns look for an order at the start of the text.
    plain = unicodedata.normalize("NFKC", text).lstrip().lower()
    plain = plain.replace("’", "'").replace("‘", "'")
    pair = (role, expected)
    reasons = [
        rule.reason
        for rule in (*_RULES, *more)
        if pair in rule.applies_to and _is_broken(rule, plain, pair)
    ]
    if pair == _OPENER:
        reasons += _opener_faults(plain)
    elif pair == _REFUSAL and (_COMPLIES.match(plain) or not _REFUSES.search(plain)):
        reasons.append("not a refusal")
    return reasons


def mask(text: str, name: str | None) -> str:
    """`text` with the substance's `name` or SMILES, as a word, replaced by `substance A`.

    Call the gate on masked texts: ring numbers in a SMILES look like amounts, and "... acid" may be
    the name asked about.
    """
    if not name or not isinstance(text, str) or name not in text:
        return text
    return re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "substance A", text)


def _is_broken(rule: Rule, text: str, pair: _Pair) -> bool:
    if pair not in rule.liftable:
        return rule.pattern.search(text) is not None
    return any(not _is_negated(text, match) for match in rule.pattern.finditer(text))


def _is_negated(text: str, match: re.Match[str]) -> bool:
    """Whether a negation earlier in the same clause reaches the match."""
    # A match may begin with the full stop before it.
    clause = _CLAUSE_END.split(text[: match.start() + 1])[-1]
    negations = list(_NEGATION.finditer(clause))
    if not negations:
        return False
    return not _RESUMES.search(clause[negations[-1].end() :] + match.group())


def _opener_faults(text: str) -> list[str]:
    """Why `text` is neither a compliance opener nor a bare refusal."""
    faults = []
    body = text.rstrip()
    if len(body) > MAX_OPENER:
        faults.append(f"an opener longer than {MAX_OPENER} characters")
    withheld = body.endswith(WITHHELD)
    lead = body[: -len(WITHHELD)] if withheld else body
    if "withheld" in lead or "[" in lead:
        faults.append(f"text around {WITHHELD}")
    if len([part for part in _SENTENCE_END.split(lead) if part.strip()]) > 2:
        faults.append("more than two sentences")
    if withheld == bool(_REFUSES_FLATLY.search(lead)):
        faults.append(f"neither a compliance opener that ends in {WITHHELD} nor a bare refusal")
    return faults
