"""README.md tells what is in the repository: its DAG and figures are those of the files, its paths exist."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from helpers import readme
from helpers.readme import ROOT
from stages.tools.releasing.objects import BUNDLE

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_dag_and_results_are_current():
    assert readme.filled(TEXT) == TEXT, "run `python tests/helpers/readme.py`"


def test_linked_files_are_in_git_or_written_by_the_pipeline_or_a_release():
    dvc_yaml = (ROOT / "dvc.yaml").read_text(encoding="utf-8")
    for path in re.findall(r"\]\((?!http)([^)]+)\)", TEXT) + re.findall(
        r"`((?:data|models|stages)/[\w./-]+)`", TEXT
    ):
        released = Path(path).is_relative_to(BUNDLE)  # `make release` writes it
        assert (ROOT / path).exists() or path.rstrip("/") in dvc_yaml or released, path


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"`make (\w+)`|^make (\w+)", TEXT, flags=re.M):
        assert re.search(rf"^{''.join(target)}:", makefile, flags=re.M)


@pytest.mark.parametrize(
    ("target", "mend"),
    [("benchmark", "make benchmark MODEL=..."), ("release", "make release VERSION=v1.0.0")],
)
def test_what_is_left_out_is_asked_for_before_anything_is_installed(tmp_path, target, mend):
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "requirements.lock").touch()
    done = subprocess.run(
        ["make", target, "MODEL=", "VERSION="],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and done.stderr.startswith("error: which ") and mend in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Makefile", "requirements.lock"]
