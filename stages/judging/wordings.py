"""The wording an answer gives for a fact with a few known wordings, compared with the one on file.

    judge_wording("not electrical work", ["licensed electrical work", "not electrical work"], {},
                  "Installing it isn't electrical work.")
    -> ("correct", "not electrical work")

domain.yaml has the wordings: `intents.NAME.wrong` and `judge.texts.NAME`.
"""

import re

from stages.judging.quantity_text import normalized
from stages.judging.statements import Statements


def judge_wording(
    target: str, values: list[str], more: dict[str, list[str]], answer: str
) -> tuple[str, str]:
    """(verdict, the words it rests on): whether `answer` says `target`, and no other of `values`.

    `more` {value: regular expressions} are other words for them. A denied value settles nothing,
    unless it is the target.
    """
    text = normalized(answer)
    statements = Statements(text)
    matches = sorted(
        (-len(match[0]), match.start(), match.end(), value)
        for value in {target, *values}
        for pattern in (re.escape(normalized(value)), *more.get(value, ()))
        for match in re.finditer(pattern, text)
    )
    taken: list[tuple[int, int]] = []
    right, wrong = [], []
    for _, start, end, value in matches:  # the longest first: one may be part of another
        overlaps = any(begin < end and start < stop for begin, stop in taken)
        if overlaps or statements.mentions(start):
            continue
        taken.append((start, end))
        if start < statements.last_correction:
            continue
        denied = statements.denies(start, end)
        if value == target:
            (wrong if denied else right).append(text[start:end])
        elif not denied:
            wrong.append(text[start:end])
    if wrong:
        return "wrong", wrong[0]
    return ("correct", right[0]) if right else ("unverifiable", "")
