"""Patterns as text files: one per line, with what it stands for.

    # a comment
    [words]
    drug    (?:cocaine|heroin)       named fragments, written {{drug}} in the patterns below them
    [openers]
    ^sure,                           agrees before it says what to

A line is a pattern, at least two blanks, and what it stands for; in [words] a name comes first.
A fragment matches as a group. If several lines have its name, it matches any of them, in order.
A blank at either end of a pattern is written `[ ]`. Patterns are regular expressions, or what the
argument `compiler` reads, as SMARTS; [words] are for regular expressions only.
"""

import re
from collections.abc import Callable
from pathlib import Path

from stages.core.errors import LibraError

WORDS = "words"
_FRAGMENT = re.compile(r"\{\{(\w+)\}\}")


def read_patterns(
    path: Path, compiler: Callable[[str], object] = re.compile
) -> dict[str, list[tuple[str, str]]]:
    """{section: [(pattern, what it stands for)]} of a file, in its order, fragments filled in.

    Raises LibraError naming the line if it isn't of this form, or if `compiler` raises re.error or
    ValueError for its pattern or returns None.
    """
    sections: dict[str, list[tuple[str, str]]] = {}
    words: dict[str, list[str]] = {}
    section = None
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("# "):
            continue
        if heading := re.fullmatch(r"\[(\w+)\]", line):
            section = heading[1]
            sections.setdefault(section, [])
            continue

        cells = re.split(r" {2,}", line)
        if section is None or len(cells) != (3 if section == WORDS else 2):
            raise LibraError(f"{path}, line {number}: `{line}` isn't `pattern  what it stands for`")
        name, pattern, meaning = cells if section == WORDS else ("", *cells)
        try:
            pattern = _FRAGMENT.sub(lambda name: f"(?:{'|'.join(words[name[1]])})", pattern)
            if compiler(pattern) is None:
                raise ValueError(f"`{pattern}` can't be read")
        except KeyError as error:
            raise LibraError(f"{path}, line {number}: no fragment {error} in [{WORDS}]") from None
        except (re.error, ValueError) as error:
            raise LibraError(f"{path}, line {number}: not a valid pattern ({error})") from None
        if section == WORDS:
            words.setdefault(name, []).append(pattern)
        else:
            sections[section].append((pattern, meaning))
    sections.pop(WORDS, None)
    return sections


def compile_patterns(path: Path, flags: int = 0) -> dict[str, re.Pattern[str]]:
    """{section: one regular expression that matches where any line of the section does}."""
    return {
        section: re.compile("|".join(pattern for pattern, _ in lines), flags)
        for section, lines in read_patterns(path).items()
    }
