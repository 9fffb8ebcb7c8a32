"""Misspelt words, matched to the few that are expected.

fix_spelling("celcius", frozenset(["celsius", "kelvin"]))    -> "celsius"
"""

import difflib
from collections.abc import Collection
from functools import lru_cache


@lru_cache(maxsize=1 << 14)
def fix_spelling(word: str, known: Collection[str]) -> str:
    """The word of `known` that `word` is a misspelling of, or `word` itself.

    A misspelling has two letters swapped, or one left out or doubled; a long word may also have one
    or two wrong letters.
    """
    if word in known or len(word) < 4:
        return word
    ordered = sorted(known)  # the same word in every process, if several fit
    for right in ordered:
        if word[0] == right[0] and (
            _is_swapped(word, right) or _lacks_one(word, right) or _doubles_one(word, right)
        ):
            return right
    if len(word) >= 7:
        alike = [right for right in ordered if len(right) >= 6 and right[0] == word[0]]
        close = difflib.get_close_matches(word, alike, n=1, cutoff=0.8)
        return close[0] if close else word
    return word


def _is_swapped(word: str, right: str) -> bool:
    if len(word) != len(right):
        return False
    places = [i for i in range(len(word)) if word[i] != right[i]]
    if len(places) != 2 or places[1] != places[0] + 1:
        return False
    return word[places[0]] == right[places[1]] and word[places[1]] == right[places[0]]


def _lacks_one(word: str, right: str) -> bool:
    return len(right) == len(word) + 1 and any(
        right[:i] + right[i + 1 :] == word for i in range(1, len(right))
    )


def _doubles_one(word: str, right: str) -> bool:
    return len(word) == len(right) + 1 and any(
        word[i] == word[i - 1] and word[:i] + word[i + 1 :] == right for i in range(1, len(word))
    )
