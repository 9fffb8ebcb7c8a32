"""Patterns as text files: how they are read, and that every file of the project is valid."""

import re

import pytest
from rdkit import Chem

from helpers.dag import ROOT
from stages.core.errors import LibraError
from stages.core.patterns import compile_patterns, read_patterns

FILE = """\
# a comment

[words]
pet     cat|dog            common pets
pet     (?:gold)?fish      another line of the same name
two     {{pet}} and {{pet}}  a pair
[pairs]
^{{two}}$  two pets
[ ]x       with a blank
[empty]
"""


def write(tmp_path, text):
    path = tmp_path / "patterns.txt"
    path.write_text(text, encoding="utf-8")
    return path


def test_sections_and_fragments_are_read_in_order(tmp_path):
    path = write(tmp_path, FILE)
    pet = "(?:cat|dog|(?:gold)?fish)"
    assert read_patterns(path) == {
        "pairs": [(f"^(?:{pet} and {pet})$", "two pets"), ("[ ]x", "with a blank")],
        "empty": [],
    }
    pairs = compile_patterns(path)["pairs"]
    assert pairs.search("dog and goldfish") and not pairs.search("a dog and goldfish")
    assert compile_patterns(path, re.IGNORECASE)["pairs"].search("Cat and DOG")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x  y\n", "line 1: `x  y` isn't `pattern  what it stands for`"),
        ("[a]\nx\n", "line 2: `x` isn't"),
        ("[a]\nx  y  z\n", "line 2: `x  y  z` isn't"),
        ("[words]\n\nx  y\n", "line 3: `x  y` isn't"),
        ("[a]\n(x  y\n", r"line 2: not a valid pattern \(missing \)"),
        ("[a]\n{{pet}}  y\n", r"line 2: no fragment 'pet' in \[words\]"),
    ],
)
def test_a_fault_names_the_line(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(LibraError, match=f"{path}, {message}"):
        read_patterns(path)


def test_patterns_may_be_smarts(tmp_path):
    path = write(tmp_path, "[acids]\n[CX3](=O)[OX2H1]  carboxylic acid\n")
    assert read_patterns(path, Chem.MolFromSmarts)["acids"][0][1] == "carboxylic acid"
    path = write(tmp_path, "[acids]\n[CX3](=O  unclosed\n")
    with pytest.raises(LibraError, match=r"line 2: not a valid pattern \(`\[CX3\]\(=O` can't"):
        read_patterns(path, Chem.MolFromSmarts)


@pytest.mark.parametrize("name", ["screens", "hazards"])
def test_structures_are_named_by_class_and_never_by_purpose(name):
    """stages/chemistry/*.txt say what a structure is (safety.md, 3)."""
    sections = read_patterns(ROOT / f"stages/chemistry/{name}.txt", Chem.MolFromSmarts)
    meanings = [meaning for lines in sections.values() for _, meaning in lines]
    purpose = re.compile(r"weapon|agent|explosive|poison|starting material|precursor|used|made")
    assert meanings and not [text for text in meanings if purpose.search(text)]
