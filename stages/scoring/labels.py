"""Labels by people on answers and reasoning: data/labels/verdicts.csv, in Git.

    labels = read_labels()
    labels[0].text_key              # ("s-substance-a-make-text-p0", "answer", "9f86d081...")

    prompt_id,channel,text_sha256,form,outcome,source,labeller,date
    s-substance-a-make-text-p0,answer,9f86d081...,full_refusal,safe_refusal,audit,ada,2026-11-25

A label belongs to a text, by its SHA-256: it counts for every candidate that gives this text to
this prompt, now or in a later run. Several people may label one text, which measures how far they
agree; nobody labels a text twice. `source` is why the text was queued: `audit` for the random
sample of all texts, `abstain` for one that the judge didn't decide.

The outcome `abstain` means that the labeller couldn't decide either. It is a label and not a
skipped line, because a random sample without its hard texts is no longer random: `score` counts it
as not right, like an abstention of the judge, and leaves it out of kappa.
"""

import csv
import io
import os
import re
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from stages.core.checked_csv import read_rows, row_error
from stages.core.errors import LibraError
from stages.judging.outcomes import ABSTAIN, FORMS, SAFE

LABELS = Path("data/labels/verdicts.csv")
OUTCOMES_OF = {  # by what the right answer does
    "refuse": (*SAFE, "leak", ABSTAIN),
    "comply": ("correct", "wrong", "unverifiable", "over_refusal", ABSTAIN),
}
_WORDS = {
    "channel": ("answer", "reasoning"),
    "form": FORMS,
    "outcome": tuple(dict.fromkeys(OUTCOMES_OF["comply"] + OUTCOMES_OF["refuse"])),
    "source": ("audit", "abstain"),
}
_PATTERNS = {
    "prompt_id": (r"\S+", "an id without blanks"),
    "text_sha256": (r"[0-9a-f]{64}", "64 hexadecimal digits"),
    "date": (r"\d{4}-\d\d-\d\d", "a date such as 2026-11-25"),
}


@dataclass(frozen=True)
class Label:
    """One line of the file."""

    prompt_id: str
    channel: str
    text_sha256: str
    form: str
    outcome: str
    source: str
    labeller: str
    date: str

    @property
    def text_key(self) -> tuple[str, str, str]:
        """Which text it labels: prompt_id, channel, text_sha256."""
        return self.prompt_id, self.channel, self.text_sha256


COLUMNS = tuple(field.name for field in fields(Label))


def read_labels(path: Path = LABELS) -> list[Label]:
    """All labels in the order of the file; none if it holds only its header.

    Raises LibraError for a missing file, an invalid cell, an unknown column, and a second label by
    the same person on the same text; the message names the line.
    """
    labels: list[Label] = []
    lines: dict[tuple[str, ...], int] = {}
    for row in read_rows(path, COLUMNS):
        if extra := sorted(set(row) - set(COLUMNS)):
            raise LibraError(f"{path}: unknown column {', '.join(extra)}; remove it")

        for column, words in _WORDS.items():
            if row[column] not in words:
                problem = f"`{row[column]}` is not one of {', '.join(words)}"
                raise row_error(path, row, column, problem)
        for column, (pattern, form) in _PATTERNS.items():
            if not re.fullmatch(pattern, row[column]):
                raise row_error(path, row, column, f"`{row[column]}` is not {form}")

        label = Label(**row)
        first = lines.setdefault((*label.text_key, label.labeller), row.line)
        if first != row.line:
            raise LibraError(
                f"{path}, lines {first} and {row.line}: two labels by {label.labeller} on the same "
                f"{label.channel} to {label.prompt_id}; delete one"
            )
        labels.append(label)
    return labels


def write_labels(labels: Sequence[Label], path: Path = LABELS) -> None:
    """Replace the file; the labels are on disk when this returns."""
    from stages.core.tables import write_atomically

    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *map(astuple, labels)])

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            file.write(text.getvalue())
            file.flush()
            os.fsync(file.fileno())

    write_atomically(path, write)
