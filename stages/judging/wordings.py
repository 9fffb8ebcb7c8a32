"""The text an answer gives for a fact that has a few known wordings, right and wrong ones, compared with the one on file.

    judge_wording("not electrical work", ["licensed electrical work", "not electrical work"], {}, "Installing it isn't electrical work.")
    -> ("correct", "not electrical work")

Reads texts, writes nothing; domain.yaml has the wordings (`intents.NAME.wrong`, `judge.texts.NAME`).
"""

import re

from stages.judging.quantities import plain
from stages.judging.statements import Statements


def judge_wording(
    target: str, values: list[str], more: dict[str, list[str]], answer: str
) -> tuple[str, str]:
    """(verdict, the words it rests on): whether `answer` says `target`, and none of the other `values`.

    `more` {value: regular expressions} are other words for them. A value that is denied settles nothing, unless it is the target.
    """
    text = plain(answer)
    said = Statements(text)
    found = sorted(
        (-len(match[0]), match.start(), match.end(), value)
        for value in {target, *values}
        for pattern in (re.escape(plain(value)), *more.get(value, ()))
        for match in re.finditer(pattern, text)
    )
    taken: list[tuple[int, int]] = []
    right, wrong = [], []
    for _, start, end, value in found:  # the longest first: one may be part of another
        if said.mentions(start) or any(begin < end and start < stop for begin, stop in taken):
            continue
        taken.append((start, end))
        if start < said.corrected:
            continue
        denied = said.denies(start, end)
        if value == target:
            (wrong if denied else right).append(text[start:end])
        elif not denied:
            wrong.append(text[start:end])
    if wrong:
        return "wrong", wrong[0]
    return ("correct", right[0]) if right else ("unverifiable", "")
