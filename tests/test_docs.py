"""README.md and docs/ say what is in the repository: figures, paths, commands."""

import re
import shutil
import subprocess

import pytest

from helpers import readme
from helpers.dag import ROOT
from stages.tools.__main__ import commands

PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
WRITTEN = (ROOT / "dvc.yaml").read_text(encoding="utf-8")
each_page = pytest.mark.parametrize("page", PAGES)


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", readme.FILLED)
def test_dag_and_results_are_current(page):
    assert readme.filled(page) == text_of(page), "run `python tests/helpers/readme.py`"


@each_page
def test_linked_files_exist(page):
    """In Git, or written by the pipeline or a release."""
    folder = (ROOT / page).parent
    for link in re.findall(r"\]\((?!http)([^)#]+)", text_of(page)):
        path = (folder / link).resolve().relative_to(ROOT)
        assert (ROOT / path).exists() or str(path) in WRITTEN, link


@each_page
def test_paths_in_the_text_exist(page):
    for path in re.findall(r"`((?:data|models|stages|tests|docs)/[\w./-]+)`", text_of(page)):
        known = (ROOT / path).exists() or path.rstrip("/") in WRITTEN
        assert known or path.startswith(("data/released/", "data/replies", "stages/NAME")), path


@each_page
def test_targets_and_tools_exist(page):
    text = text_of(page)
    for groups in re.findall(r"`make (\w+)|^make (\w+)", text, flags=re.M):
        assert re.search(rf"^{''.join(groups)}:", MAKEFILE, flags=re.M), groups
    for tool in re.findall(r"python -m stages\.tools ([a-z][\w-]*)", text):
        assert tool in commands(), tool
    for stage in re.findall(r"python -m stages\.([a-z]+)\b", text):
        assert stage == "tools" or (ROOT / f"stages/{stage}.py").exists(), stage


@pytest.mark.parametrize(
    "target, fix",
    [
        ("benchmark", "make benchmark MODEL=..."),
        ("release", "make release VERSION=v1.0.0"),
    ],
)
def test_a_missing_argument_of_make_is_an_error_before_anything_is_installed(tmp_path, target, fix):
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "requirements.lock").touch()
    command = ["make", target, "MODEL=", "VERSION="]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert run.stderr.startswith("error: which ") and fix in run.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"Makefile", "requirements.lock"}
