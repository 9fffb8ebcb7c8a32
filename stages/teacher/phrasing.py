"""Prompts from a grammar: each intent in many wordings, from the words that the domain has for it.

    >>> prompts("d-0001", chemistry().intents["make"], "text", "paracetamol", None, 2, 0)
    ['How can I synthesize paracetamol?', 'How does one synthesize paracetamol?']

The grammar gets the seed's id, intent, representation and (for a dilution) the numbers of the
request. It never gets the label or the legal status, so only the substance, and not the wording,
can tell whether a request is legitimate.
"""

import re
from collections.abc import Callable, Iterable
from hashlib import blake2b
from typing import Any, TypeVar

from stages.domain.description import Intent

T = TypeVar("T")
SHORT = 150  # characters an answer should have at most: small models learn short answers sooner
LONGEST = 110  # characters of a prompt besides the name or SMILES; a longer one loses its opener

# How the substance appears in the sentence.
_SHOWN = {
    "text": ("{s}",),
    "smiles": ("{s}", "the compound {s}"),
}
_STYLES = ("question", "question", "clause", "clause", "topic")
_OPENERS = ("", "", "", "Quick question: ", "For my report: ")
_LEADS = ("Tell me {c}.", "Can you tell me {c}?", "Please explain {c}.")
_TOPICS = ("Tell me about {n}.", "I have a question about {n}.")


def pick(options: tuple[T, ...] | list[T], *key: Any) -> T:
    """One of `options`, decided by `key` alone: the same on every machine and in every Python."""
    digest = blake2b("\x1f".join(map(str, key)).encode(), digest_size=8).digest()
    return options[int.from_bytes(digest, "big") % len(options)]


def distinct(make: Callable[[int], str], count: int, taken: Iterable[str] = ()) -> list[str]:
    """`count` different texts of make(0), make(1), ..., none of them in `taken`.

    Raises ValueError if `make` has no more different ones.
    """
    texts, seen, tries = [], set(taken), 0
    while len(texts) < count:
        if tries > 200 + 20 * count:
            raise ValueError(f"the grammar has only {len(texts)} of {count} different texts here")
        text = make(tries)
        tries += 1
        if text not in seen:
            seen.add(text)
            texts.append(text)
    return texts


def fitting(make: Callable[[int], str]) -> str:
    """The first of make(0), ..., make(19) within SHORT characters, or the shortest of them."""
    shortest = ""
    for n in range(20):
        text = make(n)
        if len(text) <= SHORT:
            return text
        shortest = min(shortest or text, text, key=len)
    return shortest


def joined(sentences: tuple[str, ...] | list[str]) -> tuple[str, ...]:
    """Each text as a second sentence after a full stop; an empty one is the full stop alone."""
    return tuple(f". {text[0].upper()}{text[1:]}" if text else "." for text in sentences)


def prompts(
    seed_id: str,
    intent: Intent,
    representation: str,
    shown: str,
    numbers: dict[str, str] | None,
    count: int,
    sampling: int,
    taken: Iterable[str] = (),
) -> list[str]:
    """`count` different prompts in the words of `intent`, none of them in `taken`.

    `shown` is the substance's name or SMILES, in each prompt letter by letter. `numbers` holds
    {stock, target, volume} of a dilution; `sampling` is the request's sampling seed.
    """
    return distinct(
        lambda n: _prompt((seed_id, "prompt", sampling, n), intent, representation, shown, numbers),
        count,
        taken,
    )


def _prompt(
    key: tuple, intent: Intent, representation: str, shown: str, numbers: dict[str, str] | None
) -> str:
    style = pick(_STYLES, *key, "style")
    if style == "question":
        text = pick(intent.questions, *key, "core") + "?"
    elif style == "clause":
        text = pick(_LEADS, *key, "lead").replace("{c}", pick(intent.clauses, *key, "core"))
    else:
        topic = pick(intent.topics, *key, "core")
        text = pick(_TOPICS, *key, "lead").replace("{n}", topic)

    values = {**(numbers or {}), "x": pick(_SHOWN[representation], *key, "shown")}
    for name, value in values.items():
        text = text.replace("{" + name + "}", value)

    opener = pick(_OPENERS, *key, "opener")
    if len(opener + text) > LONGEST:
        opener = ""
    if opener and not text.startswith("I "):
        text = text[0].lower() + text[1:]
    return (opener + text).replace("{s}", shown)


def dilution_numbers(source: str) -> dict[str, str]:
    """{stock, target, volume} of a dilution fact's source, "stock 1.0 M, 100 mL of 0.1 M".

    Raises ValueError for another form.
    """
    match = re.fullmatch(r"stock ([\d.]+) M, ([\d.]+) mL of ([\d.]+) M", source)
    if match is None:
        raise ValueError(
            f"the source of a dilution fact is {source!r}, not `stock S M, V mL of T M`"
        )
    return {"stock": match[1], "volume": match[2], "target": match[3]}
