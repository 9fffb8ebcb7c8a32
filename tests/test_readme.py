"""README.md tells what is in the repository: its DAG and figures are those of the files, its paths exist."""

import re
from pathlib import Path

import readme
from readme import ROOT

from stages.release.objects import BUNDLE

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_dag_and_results_are_current():
    assert readme.filled(TEXT) == TEXT, "run `python tests/readme.py`"


def test_linked_files_are_in_git_or_written_by_the_pipeline_or_a_release():
    dvc_yaml = (ROOT / "dvc.yaml").read_text(encoding="utf-8")
    for path in re.findall(r"\]\((?!http)([^)]+)\)", TEXT) + re.findall(r"`((?:data|models|stages)/[\w./-]+)`", TEXT):
        released = Path(path).is_relative_to(BUNDLE)  # `make release` writes it
        assert (ROOT / path).exists() or path.rstrip("/") in dvc_yaml or released, path


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"`make (\w+)`|^make (\w+)", TEXT, flags=re.M):
        assert re.search(rf"^{''.join(target)}:", makefile, flags=re.M)
