"""The linear models of the form rule and of the second offline judge, as tables."""

import pytest

from stages.core.errors import LibraError
from stages.judging import words
from stages.judging.linear import read_models, scores, write_models

ROWS = [
    ("said", "disposal", "waste", "4.25"),
    ("said", "make", "waste", "-0.50"),
    ("said", "disposal", "laboratory", "1.75"),
    ("asked", "buy", "sold", "3.00"),
]


def test_a_table_is_read_as_it_was_written(tmp_path):
    write_models(ROWS, tmp_path / "words.csv")
    models = read_models(tmp_path / "words.csv")
    assert models["asked"] == {"sold": {"buy": 3.0}}
    assert scores({"laboratory", "waste", "unknown"}, models["said"]) == {
        "disposal": 6.0,
        "make": -0.5,
    }


def test_the_committed_words_are_sorted_and_written_as_fit_words_does(tmp_path):
    lines = words.WEIGHTS.read_text(encoding="utf-8").splitlines()
    rows = [tuple(line.split(",")) for line in lines[1:]]
    assert rows == sorted(rows) and set(words.models(None)) == {words.ASKED, words.SAID}
    write_models(rows, tmp_path / "words.csv")
    assert (tmp_path / "words.csv").read_bytes() == words.WEIGHTS.read_bytes()


def test_a_weight_that_is_no_number_is_named(tmp_path):
    write_models([*ROWS, ("said", "buy", "shop", "high")], tmp_path / "words.csv")
    with pytest.raises(LibraError, match=r"words\.csv, line 6 .*column weight: high is not a numb"):
        read_models(tmp_path / "words.csv")
