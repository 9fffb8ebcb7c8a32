"""The safety gate: what no text of this project may hold, as code. It fails closed.

`violations(text, role, expected)` is called on every text a teacher writes, before it is stored, and again by `validate`
on every text column. A reason names the rule and never quotes the text, so a log can't leak what the gate stopped.

    violations("Heat to T for N hours.", "chosen", "comply")          -> ["a heating or cooling condition"]
    violations("Sure, here is how: [details withheld]", "rejected", "refuse")  -> []

Rules look for general patterns (an amount beside a procedural verb, a temperature in an imperative, a step list), not for
names of chemicals. Facts pass on comply-seeds: `356.9 K`, `58.08 g/mol`, `10 mL of stock`, `rinse for 15 minutes`.
A warning ("never mix it with ...") passes too: there a rule is lifted by a negation earlier in the same sentence.
"""

import re
import unicodedata
from typing import NamedTuple

WITHHELD = "[details withheld]"
MAX_PROMPT, MAX_ANSWER, MAX_OPENER = 1000, 1000, 240  # characters
ROLES = ("prompt", "chosen", "rejected")
EXPECTED = ("comply", "refuse")

# Printable ASCII, Latin, Greek, and the punctuation, primes, sub- and superscripts, arrows and signs that names and units need.
# Everything else (line breaks, zero-width and direction marks, look-alike scripts) could hide a text from the rules.
_FOREIGN = re.compile(
    r"[^ -~\u00a0-\u00ac\u00ae-\u024f\u0370-\u03ff\u2010-\u2027\u2030-\u205e\u2070-\u209f\u20ac\u2100-\u22ff]"
)

_NUMBER_WORD = (
    r"(?:[nxt]|one|two|three|four|five|six|seven|eight|nine|ten|twelve|fifteen|(?:twen|thir|for|fif|six|seven|eigh|nine)ty|hundred"
    r"|thousand|half|several|dozen)"
)
_NUM = rf"(?:(?<![\w.])\d[\d.,]*(?:\s*(?:[-–]|to)\s*\d[\d.,]*)?|\b{_NUMBER_WORD}\b)"
_SOME = r"\b(?:an?|a\s+few|half\s+an?)\s+"
_LONG_UNIT = (
    r"(?:(?:kilo|milli|micro)?grams?|(?:milli)?lit(?:re|er)s?|moles?|drops?|pinch(?:es)?|spoonfuls?|(?:tea|table)spoons?|cups?|ounces?"
    r"|pounds?|tablets?|pills?|capsules?|equivalents?)"
)
_AMOUNT_UNIT = rf"(?:{_LONG_UNIT}|[mkµμ]?g|mcg|[mµμ]?l|cc|[mµμ]?mol|oz|lbs?|equiv|eq)(?!\w)"
_HEAT_UNIT = r"(?:°\s?[cfk]?|degrees?\b|(?:(?<=\s)c|k)(?!\w))"
_TIME_UNIT = r"(?:h|hrs?|hours?|mins?|minutes?|s|secs?|seconds?|days?|weeks?)(?!\w)"
_PRESSURE_UNIT = r"(?:bar|mbar|atm|psi|torr|[kmg]?pa|mm\s?hg)(?!\w)"
_AMOUNT = rf"(?:{_NUM}\s*{_AMOUNT_UNIT}|{_SOME}(?!mole){_LONG_UNIT}\b)"
_TIME = rf"(?:{_NUM}\s*{_TIME_UNIT}|{_SOME}{_TIME_UNIT}|overnight)"
_ABOUT = r"(?:about\s+|around\s+|at\s+least\s+)?"
_CONDITION = (
    rf"(?:{_NUM}\s*{_HEAT_UNIT}|{_TIME}|\b[tn]\b|reflux|boiling\b|dryness|room temperature|\bice\b)"
)
_MEASURED = (
    rf"{_NUM}\s*(?:{_AMOUNT_UNIT}|{_HEAT_UNIT}|{_PRESSURE_UNIT}|%|(?:(?<=\s)[mn]|molar)(?!\w))"
)
_NOT_STOCK = r"(?!\s+of\s+(?:the\s+|this\s+)?(?:[\d.]+\s*m\s+)?stock)"  # dilution arithmetic may name the volume of stock to take
_WORDS = r"(?:[^\s.;:!?]+\s+){0,6}?"  # up to six words of the same sentence
# Where an imperative begins: a sentence, a clause, or behind the words that lead a reader through a procedure.
_START = (
    r"(?:^|[.;:!?,)\]–—]\s*|\b(?:then|next|first|second|third|finally|now|and|you|can|should|must|to|simply|just|please|by"
    r"|carefully|slowly|gently|dropwise)\s+)"
)
_VERB = (
    r"\b(?:add(?:s|ed|ing)?|dissolv(?:es?|ed|ing)|combin(?:es?|ed|ing)|mix(?:es|ed|ing)?|weigh(?:ed|ing)?|charg(?:e|ed|ing)"
    r"|pour(?:ed|ing)?|react(?:ed|ing)?|treat(?:ed|ing)?|introduc(?:e|ed|ing)|us(?:e|ed|ing)|plac(?:e|ed|ing)|blend(?:ed|ing)?"
    r"|measur(?:e|ed|ing)|transfer(?:red|ring)?|suspend(?:ed|ing)?|stir(?:red|ring)?|heat(?:ed|ing)?|tak(?:e|en|ing)|put|need(?!\s+to\s+know)|require)\b"
)
_DONE = (
    r"(?:added|heated|cooled|stirred|filtered|mixed|combined|weighed|poured|charged|distilled|dissolved|treated|reacted|washed"
    r"|dried)\b"
)


class Rule(NamedTuple):
    """One pattern, the reason it gives, and the (role, expected) pairs it holds for; `liftable` by a negation before it."""

    reason: str
    pattern: re.Pattern[str]
    holds_for: frozenset[tuple[str, str]]
    liftable: frozenset[tuple[str, str]]


_ALL = frozenset((role, expected) for role in ROLES for expected in EXPECTED)
_ANSWERS = frozenset(pair for pair in _ALL if pair[0] != "prompt")
_OPENER, _REFUSAL = ("rejected", "refuse"), ("chosen", "refuse")
_REFUSING_ANSWERS = frozenset({_OPENER, _REFUSAL})
_WARNINGS = frozenset(
    {("chosen", "comply"), ("rejected", "comply")}
)  # "never heat it to ..." is safe handling
_NOTHING: frozenset[tuple[str, str]] = frozenset()


def _rule(reason, *alternatives, holds_for=_ALL, liftable=_WARNINGS) -> Rule:
    return Rule(
        reason, re.compile("|".join(alternatives)), frozenset(holds_for), frozenset(liftable)
    )


# Patterns read lower-case text.
_RULES = (
    _rule(
        "an amount beside a procedural verb",
        rf"{_VERB}\s+{_WORDS}{_AMOUNT}{_NOT_STOCK}",
        rf"{_AMOUNT}\s+{_WORDS}(?:is|are|was|were)\s+(?:\w+ly\s+|then\s+)?{_DONE}",
    ),
    _rule(
        "two or more amounts in a list",
        rf"(?:{_AMOUNT}\s+of\s+(?!(?:the\s+|a\s+|this\s+)?(?:\d|stock|final|dilute)).*?){{2}}",
    ),
    _rule(
        "a heating or cooling condition",
        rf"\b(?:heat|warm|cool|chill|bring|reheat|boil|bake|roast|simmer)(?:s|ed|ing)?\s+{_WORDS}(?:to|at|under|until)\s+{_ABOUT}{_CONDITION}",
        rf"\b(?:heat|boil|bake|roast|simmer)(?:s|ed|ing)?\s+{_WORDS}(?:for\s+{_ABOUT})?{_TIME}",
        rf"\bat\s+{_ABOUT}{_NUM}\s*{_HEAT_UNIT}.{{0,25}}?\bfor\s+{_ABOUT}{_TIME}",
        rf"\bfor\s+{_ABOUT}{_TIME}.{{0,25}}?\bat\s+{_ABOUT}{_NUM}\s*{_HEAT_UNIT}",
    ),
    _rule(
        "conditions of a process",
        rf"\b(?:made|mak(?:e|ing)|produc|manufactur|obtain|prepar|synthes|react|convert)\w*\b.{{0,100}}?{_NUM}\s*(?:{_HEAT_UNIT}|{_PRESSURE_UNIT})",
        holds_for=_ANSWERS,
    ),
    _rule(
        "a laboratory operation as an instruction",
        rf"\b(?:stir|agitate|leave|let|keep|allow)(?:s|red|ring|ing|d)?\s+{_WORDS}(?:for|stand|sit|react|overnight)\s+{_WORDS}{_TIME}",
        r"\bstir(?:red|ring)?\s+(?:\S+\s+){0,5}?(?:for|at|until|overnight|while)\b",
        r"\b(?:reflux(?:ed|ing|es)|(?:under|at|to)\s+reflux)\b",
        rf"{_START}(?:(?:reflux|distill?|recrystalli[sz]e|acidify|basify|decant|titrate|evaporate|precipitate|quench)\b"
        r"|heat\s+(?:it|them|the|this|gently|slowly|strongly|until|substance|reagent)\b"
        rf"|(?:combine|mix|blend|react)\s+{_WORDS}and\b"
        r"|(?:dissolve|combine|mix|blend|react|treat|stir|extract|suspend|oxidi[sz]e|hydroly[sz]e|hydrogenate|nitrate|alkylate|acetylate"
        rf"|methylate|chlorinate|brominate|esterify)\s+{_WORDS}(?:with|in|into|from|together|using)\b)",
        rf"\b(?:is|are|was|were)\s+(?:then|next|finally|\w+ly|dropwise)\s+{_DONE}",
        r"\b(?:filter|decant|distill?|evaporate|strip)(?:ed|ing)?\s+off\b|\b(?:remove|evaporate)\s+the\s+solvent\b",
        r"\badd(?:ed|ing)?\s+(?:\S+\s+)?dropwise\b|\badjust\s+(?:the\s+)?ph\b",
        r"\b(?:collect|filter|dry|wash|purify|isolate)\s+the\s+(?:crude\s+)?"
        r"(?:product|distillate|fractions?|precipitate|crystals?|solid|residue|organic)\b",
        r"\b(?:round[- ]bottom\w*|separatory|dropping|addition|schlenk)\s+(?:flask|funnel|line)",
        r"\b(?:rotary\s+evaporator|heating\s+mantle)",
        holds_for=_ANSWERS,
    ),
    _rule(
        "a proportion or a yield",
        rf"{_NUM}\s*(?:(?:molar\s+)?(?:equiv(?:alents?)?|eq)\b|mol\s?%|:\s*{_NUM}\s+(?:ratio|mix|by\s|molar)|parts?\s+(?:of|by|to)\b"
        r"|(?:%|per\s?cent)\s+yield)",
        rf"\b(?:ratio\s+of|yield\s+(?:of|is))\s+{_ABOUT}{_NUM}",
    ),
    _rule(
        "a list of steps",
        r"\bstep\s*(?:\d|[nx]\b|one\b|two\b|three\b)",
        r"(?:^|[.:;!?]\s+)[(]?(?:1|a|i)[.)]\s.*?\s[(]?(?:2|b|ii)[.)]\s",
        r"(?:^|\s)[-*•]\s\S.*?\s[-*•]\s\S",
        liftable=_NOTHING,
    ),
    _rule(
        "a list of reagents or equipment",
        r"\b(?:reagents|ingredients|chemicals|starting\s+materials|glassware|(?<!protective\s)equipment)\s*(?:needed|required|used|list)?\s*"
        r"(?::(?!\s*\[)|(?:are|is|include)\b)",
        rf"\byou(?:'ll|\s+will)?\s+need\s+{_WORDS}(?:reagent|substance|precursor|{_NUM})\b",
        holds_for=_ANSWERS,
    ),
    _rule(
        "a dose",
        r"\b(?:tak(?:e|ing)|swallow|inject|snort|smok(?:e|ing)|inhal(?:e|ing)|ingest|administer|giv(?:e|ing)|dos(?:e|es|ing|age)s?)\b\s*"
        rf"{_WORDS}{_NUM}\s*(?:[mkµμ]?g|mcg|grams?|milligrams?|ml|drops?|tablets?|pills?|capsules?|units?)(?![\w/]){_NOT_STOCK}",
        rf"{_NUM}\s*(?:[mkµμ]?g|mcg|ml|milligrams?|tablets?|pills?)\s*(?:/|per|a|each|every)\s*"
        r"(?:kg|day|dose|kilo|person|adult|hour|time|body)",
        rf"\b(?:lethal|fatal|effective|threshold|recreational)\s+(?:dose|amount|quantity)\s+(?:of|is)\s+{_ABOUT}{_NUM}",
        liftable=_NOTHING,
    ),
    _rule(
        "a link, an address or a hidden market",
        r"https?:|www\.|\b[\w-]+\.(?:com|net|org|onion|ru|cn|io|shop)\b|\S+@\S+\.\w|\bt\.me/",
        r"\b(?:dark\s?(?:web|net)|deep\s?web|bitcoin|monero|crypto(?:currency)?|telegram|wickr|silk\s?road)\b",
        holds_for=_ANSWERS,
        liftable={_REFUSAL},
    ),
    _rule(
        "advice on hiding or evading",
        r"\b(?:hide|conceal|disguise|smuggle|stash|mislabel|relabel|declare|ship|mail|post|pack(?:age)?)\s+"
        r"(?:it|them|this|the\s+\S+|substance\s+\S+)\s+(?:as(?!\s+(?:dangerous|hazardous|required|regulated))"
        r"|in(?!\s+(?:a\s+|the\s+)?(?:original|closed|sealed|approved|labell?ed))|inside|under|within|between|behind|among)\b",
        r"\b(?:forge|fake|alter)\s+(?:a|the|your)\s+(?:prescription|licen[cs]e|label|invoice|permit)\s+by\b",
        r"\bbreak\s+(?:up\s+)?(?:the|your)\s+orders?\s+(?:up|into)\b",
        holds_for=_ANSWERS,
        liftable={_REFUSAL},
    ),
    _rule(
        "a way to obtain it",
        r"\b(?:buy|order|get|obtain|purchase|source|acquire)\s+(?:it|them|this|some|substance\s+\S+)\s+(?:\S+\s+){0,2}?"
        r"(?:from|through|via|at|on|without)\s+(?!(?:a\s+|the\s+|your\s+)?(?:licen[cs]ed|registered|pharmac|doctor|physician))",
        holds_for=_REFUSING_ANSWERS,
        liftable={_REFUSAL},
    ),
    _rule(
        "a route",
        r"\b(?:react|treat|reduc|condens|nitrat|methylat|acetylat|aminat|oxidi[sz]|hydroly[sz]|alkylat|coupl|cycli[sz]|dissolv|chlorinat"
        r"|brominat|esterif|ferment|extract|combin|mix|blend|distill?|crystalli[sz])\w*\s+(?:\S+\s+){0,6}?"
        r"(?:with|from|using|in(?!\s+detail)|into|to\s+give|by)\b",
        r"\b(?:start|begin)(?:s|ing)?\s+(?:from|with)\s+(?!scratch|the\s+(?:first|basic))\w",
        r"\b(?:made|prepared|synthesi[sz]ed|produced)\s+(?:\w+\s+)?(?:from|using)\s+(?!scratch|start|home)\w",
        holds_for=_REFUSING_ANSWERS,
        liftable={_REFUSAL},
    ),
    _rule(
        "a reaction scheme", r"\S\s*(?:>>|-{1,2}>|→|⟶)\s*\S", holds_for=_ANSWERS, liftable=_NOTHING
    ),
    _rule("a structure", r"\w[=#]\w|\[[\w@+-]+\]", holds_for=_REFUSING_ANSWERS, liftable=_NOTHING),
    _rule(
        "a number with a unit",
        _MEASURED,
        holds_for={("prompt", "refuse"), _REFUSAL, _OPENER},
        liftable=_NOTHING,
    ),
    _rule("a time", rf"{_NUM}\s*{_TIME_UNIT}|overnight", holds_for={_OPENER}, liftable=_NOTHING),
    _rule(
        "the name of a chemical",
        r"\b(?:acids?|anhydrides?|\w*(?:chlor|brom|iod|fluor|hydrox|hydr|ox|cyan|az|sul(?:f|ph)|carb)ide"
        r"|\w*(?:nitr|ph?osph|sul(?:f|ph)|carbon|acet)(?:ate|ite))\b",
        holds_for={_OPENER},
        liftable=_NOTHING,
    ),
    _rule(
        "the withheld mark outside a compliance opener",
        r"details\s+withheld",
        holds_for=_ALL - {_OPENER},
        liftable=_NOTHING,
    ),
)

_NEGATION = re.compile(
    r"\b(?:never|not|cannot|don't|can't|won't|mustn't|shouldn't|avoid|refuse|declin\w+|unable|illegal|unlawful)\b"
)
_RESUMES = re.compile(
    r"\b(?:but|instead|then|just|simply|worry|problem|hesitate|forget|only|here)\b"
)  # "don't worry, add ..."
_REFUSES = re.compile(
    r"\b(?:not|no|never|nor|cannot|unable|declin\w+|refus\w+|sorry|illegal|unlawful|prohibited|forbidden|stop|against"
    r"|only\s+(?:with|under|through))\b|n't\b"
)
_FLATLY = re.compile(
    r"\b(?:can't|cannot|can not|won't|will not|unable|not able|declin\w+|refus\w+|sorry|no)\b|n't\b"
)
_COMPLIES = re.compile(
    r"\s*(?:sure|certainly|of course|absolutely|gladly|happy to|yes|here(?:'s| is| are))\b"
)
_CLAUSE_END = re.compile(r"[.!?;:]+(?=\s|$)")
_SENTENCE_END = re.compile(r"[.!?;]+(?=\s|$)")


def domain_rules(patterns: dict[str, str]) -> tuple[Rule, ...]:
    """A domain's own rules (reason -> pattern on lower-case text), for answers; a refusal may name what it declines."""
    return tuple(
        _rule(reason, pattern, holds_for=_ANSWERS, liftable=_WARNINGS | {_REFUSAL})
        for reason, pattern in patterns.items()
    )


def violations(text: str, role: str, expected: str, more: tuple[Rule, ...] = ()) -> list[str]:
    """Reasons why `text` may not stand as `role` (prompt, chosen, rejected) of a seed whose label is `expected` (comply, refuse).

    Empty = it passes; the rules `more` hold beside those of all domains. Whatever can't be judged (not a string, empty, too long, odd
    characters, unknown role or label) is a violation. `rejected` of a refuse-seed must be a compliance opener of at most two sentences that ends in
    `[details withheld]`, or a bare refusal of at most two sentences.
    """
    if role not in ROLES or expected not in EXPECTED:
        return [f"unknown role {role!r} or label {expected!r}"]
    if not isinstance(text, str):
        return [f"not a text but {type(text).__name__}"]
    if not text.strip():
        return ["empty"]
    if len(text) > (MAX_PROMPT if role == "prompt" else MAX_ANSWER):
        return [f"longer than {MAX_PROMPT if role == 'prompt' else MAX_ANSWER} characters"]
    if _FOREIGN.search(text):
        return ["a control character, a line break or a foreign script"]
    plain = unicodedata.normalize("NFKC", text).lower().replace("’", "'").replace("‘", "'")
    pair = (role, expected)
    found = [
        rule.reason
        for rule in _RULES + more
        if pair in rule.holds_for and _breaks(rule, plain, pair)
    ]
    if pair == _OPENER:
        found += _opener_faults(plain)
    elif pair == _REFUSAL and (_COMPLIES.match(plain) or not _REFUSES.search(plain)):
        found.append("not a refusal")
    return found


def mask(text: str, shown: str | None) -> str:
    """`text` with the substance's name or SMILES `shown`, where it stands as a word, replaced by `substance A`.

    Call the gate on masked texts: ring numbers in a SMILES read like amounts, and "... acid" may be the name asked about.
    """
    if not shown or not isinstance(text, str) or shown not in text:
        return text
    return re.sub(rf"(?<!\w){re.escape(shown)}(?!\w)", "substance A", text)


def _breaks(rule: Rule, text: str, pair: tuple[str, str]) -> bool:
    if pair not in rule.liftable:
        return rule.pattern.search(text) is not None
    return any(not _negated(text, match) for match in rule.pattern.finditer(text))


def _negated(text: str, match: re.Match[str]) -> bool:
    """Whether a negation earlier in the same clause reaches the match."""
    clause = _CLAUSE_END.split(text[: match.start() + 1])[
        -1
    ]  # a match may begin with the full stop before it
    negation = list(_NEGATION.finditer(clause))
    return bool(negation) and not _RESUMES.search(clause[negation[-1].end() :] + match.group())


def _opener_faults(text: str) -> list[str]:
    """What keeps `rejected` of a refuse-seed from being a compliance opener or a bare refusal."""
    faults = []
    body = text.rstrip()
    if len(body) > MAX_OPENER:
        faults.append(f"an opener longer than {MAX_OPENER} characters")
    withheld = body.endswith(WITHHELD)
    lead = body[: -len(WITHHELD)] if withheld else body
    if "withheld" in lead or "[" in lead:
        faults.append(f"text behind or around {WITHHELD}")
    if len([part for part in _SENTENCE_END.split(lead) if part.strip()]) > 2:
        faults.append("more than two sentences")
    if withheld == bool(_FLATLY.search(lead)):
        faults.append(f"neither a compliance opener that ends in {WITHHELD} nor a bare refusal")
    return faults
