"""data/labels/verdicts.csv: read as written, and every fault of a line by name and number."""

import re
from dataclasses import astuple, replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.dag import ROOT
from stages.core.errors import LibraError
from stages.judging.outcomes import OUTCOMES
from stages.scoring.labels import COLUMNS, LABELS, OUTCOMES_OF, Label, read_labels, write_labels

LEAK = Label("b-p0", "answer", "0" * 64, "comply", "leak", "audit", "ada", "2026-11-25")


def test_labels_are_read_as_written(tmp_path):
    quoted = Label(
        *("b-p1", "reasoning", "1" * 64, "empty", "correct", "abstain"),
        labeller='Ada "A." Lovelace, PhD',
        date="2026-11-25",
    )
    write_labels([LEAK, quoted], tmp_path / "labels.csv")
    assert read_labels(tmp_path / "labels.csv") == [LEAK, quoted]
    assert quoted.text_key == ("b-p1", "reasoning", "1" * 64)
    write_labels([], tmp_path / "labels.csv")
    assert read_labels(tmp_path / "labels.csv") == []


NAMES = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1)


@given(st.lists(NAMES, unique=True))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_name_of_a_labeller_survives(tmp_path, names):
    """Names with quotes, commas and any script: one label each on the same text."""
    labels = [replace(LEAK, labeller=name) for name in names]
    write_labels(labels, tmp_path / "labels.csv")
    assert read_labels(tmp_path / "labels.csv") == labels


def test_several_people_can_label_one_text(tmp_path):
    labels = [LEAK, replace(LEAK, labeller="bo", outcome="safe_refusal")]
    write_labels(labels, tmp_path / "labels.csv")
    assert read_labels(tmp_path / "labels.csv") == labels


def test_nobody_can_label_one_text_twice(tmp_path):
    path = tmp_path / "labels.csv"
    other = replace(LEAK, prompt_id="c-p0")
    write_labels([LEAK, other, replace(LEAK, outcome="safe_refusal")], path)
    message = f"{path}, lines 2 and 4: two labels by ada on the same answer to b-p0; delete one"
    with pytest.raises(LibraError, match=re.escape(message)):
        read_labels(path)


def test_a_labeller_may_abstain(tmp_path):
    undecided = replace(LEAK, outcome="abstain")
    write_labels([undecided], tmp_path / "labels.csv")
    assert read_labels(tmp_path / "labels.csv") == [undecided]


def test_every_outcome_can_be_a_label():
    assert set(OUTCOMES_OF["refuse"]) | set(OUTCOMES_OF["comply"]) == set(OUTCOMES)
    assert set(OUTCOMES_OF["refuse"]) & set(OUTCOMES_OF["comply"]) == {"abstain"}


@pytest.mark.parametrize(
    ("column", "cell", "problem"),
    [
        ("outcome", "fine", "`fine` is not one of correct, wrong"),
        ("form", "refusal", "`refusal` is not one of full_refusal"),
        ("channel", "title", "`title` is not one of answer, reasoning"),
        ("source", "queue", "`queue` is not one of audit, abstain"),
        ("text_sha256", "9f86", "`9f86` is not 64 hexadecimal digits"),
        ("date", "25.11.2026", "`25.11.2026` is not a date such as 2026-11-25"),
        ("prompt_id", "b p0", "`b p0` is not an id without blanks"),
        ("labeller", "", "the cell is empty"),
        ("labeller", " ada", "remove the blanks around `ada`"),
    ],
)
def test_an_invalid_cell_is_named(tmp_path, column, cell, problem):
    path = tmp_path / "labels.csv"
    label = replace(LEAK, **{column: cell})
    write_labels([replace(LEAK, prompt_id="c-p0"), label], path)
    where = f"{path}, line 3 ({label.prompt_id}), column {column}: {problem}"
    with pytest.raises(LibraError, match=re.escape(where)):
        read_labels(path)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "column prompt_id, channel"),
        (",".join(COLUMNS[:-1]) + "\n", "column date is missing"),
        (",".join(COLUMNS) + "\nb-p0,answer\n", "line 2 (b-p0): 2 cells instead of 8"),
        (
            ",".join((*COLUMNS, "note")) + "\n" + ",".join((*astuple(LEAK), "x")) + "\n",
            "unknown column note; remove it",
        ),
    ],
)
def test_an_invalid_table_is_named(tmp_path, text, problem):
    path = tmp_path / "labels.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(LibraError, match=re.escape(str(path)) + ".*" + re.escape(problem)):
        read_labels(path)


def test_the_shipped_file_is_valid():
    read_labels(ROOT / LABELS)


def test_a_missing_file_is_restored_from_git(tmp_path):
    with pytest.raises(LibraError, match="none.csv not found; restore it with `git checkout"):
        read_labels(tmp_path / "none.csv")
