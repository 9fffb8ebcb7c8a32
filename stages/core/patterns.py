"""Regular expressions kept as data: one a line, with what each stands for.

    # a comment
    [words]
    drug    (?:cocaine|heroin)       named fragments, written {{drug}} in the patterns below them
    [openers]
    ^sure,                           agrees before it says what to

A line is a pattern, at least two blanks, and what it stands for; in [words] a name comes first.
A fragment matches as a group of its own. One named on several lines matches any of them, in order.
A blank at either end of a pattern is written `[ ]`.
"""

import re
from pathlib import Path

from stages.core.errors import LibraError

WORDS = "words"
_FRAGMENT = re.compile(r"\{\{(\w+)\}\}")


def read_patterns(path: Path) -> dict[str, list[tuple[str, str]]]:
    """{section: [(pattern, what it stands for)]} of a file, in its order, fragments filled in.

    Raises LibraError that names the line for one that isn't of this form.
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
            re.compile(pattern)
        except KeyError as error:
            raise LibraError(f"{path}, line {number}: no fragment {error} in [{WORDS}]") from None
        except re.error as error:
            raise LibraError(f"{path}, line {number}: not a regular expression ({error})") from None
        if section == WORDS:
            words.setdefault(name, []).append(pattern)
        else:
            sections[section].append((pattern, meaning))
    sections.pop(WORDS, None)
    return sections


def compile_patterns(path: Path, flags: int = 0) -> dict[str, re.Pattern[str]]:
    """{section: a pattern that matches where any line of the section does}, by `read_patterns`."""
    return {
        section: re.compile("|".join(pattern for pattern, _ in lines), flags)
        for section, lines in read_patterns(path).items()
    }
