"""README.md tells what is in the repository: its DAG and figures are those of the files, its paths exist."""

import re

import readme
from readme import ROOT

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_dag_and_results_are_current():
    assert readme.filled(TEXT) == TEXT, "run `python tests/readme.py`"


def test_linked_files_are_in_git_or_written_by_the_pipeline():
    dvc_yaml = (ROOT / "dvc.yaml").read_text(encoding="utf-8")
    for path in re.findall(r"\]\((?!http)([^)]+)\)", TEXT) + re.findall(r"`((?:data|models|stages)/[\w./-]+)`", TEXT):
        assert (ROOT / path).exists() or path.rstrip("/") in dvc_yaml, path


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"`make (\w+)`|^make (\w+)", TEXT, flags=re.M):
        assert re.search(rf"^{''.join(target)}:", makefile, flags=re.M)
