"""A small repository whose dataset can be released, for the tests of releasing and pulling."""

import os
import shutil
import subprocess
import sys
from contextlib import chdir
from pathlib import Path

import polars as pl
import yaml
from dvc.repo import Repo

from helpers.dag import ROOT
from helpers.dataset_tables import GOOD, lay_out
from stages import validate
from stages.dataset.checksums import check

PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
RELEASE = ("python", "-m", "stages.tools", "release")
# The versions of the tests have the same rows and differ by this teacher.
TEACHERS = {"v1.0.0": "teacher-a", "v1.1.0": "teacher-b", "v1.2.0": "teacher-c"}


def call(folder: Path, *command: str, fails: bool = False, **environment: str) -> str:
    """Output of `command` run in `folder`; it must succeed, or fail if `fails`."""
    own = {"PATH": PATH, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | own | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert bool(done.returncode) == fails, f"{' '.join(command)}:\n{done.stdout[-4000:]}"
    return done.stdout


def repository(folder: Path) -> Path:
    """A Git and DVC repository in `folder` with the stages `validate` and, after it, `dpo`.

    Remotes and artifact are those of this project.
    """
    folder.mkdir(parents=True)
    call(folder, "git", "init", "-q", "-b", "main")
    call(folder, "git", "config", "user.name", "test")
    call(folder, "git", "config", "user.email", "test@localhost")
    ignored = shutil.ignore_patterns("tmp", "cache", "config.local")
    shutil.copytree(ROOT / ".dvc", folder / ".dvc", ignore=ignored)
    for name in (".dvcignore", ".gitattributes", ".gitignore"):
        shutil.copyfile(ROOT / name, folder / name)

    lay_out(folder, *GOOD)
    project = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
    stages = yaml.safe_load((folder / "dvc.yaml").read_text())["stages"]
    stages["validate"]["outs"] = project["stages"]["validate"]["outs"]
    stages["dpo"] = {"cmd": "no command", "deps": ["data/librachemqa"], "outs": ["models/dpo"]}
    artifacts = {"librachemqa": project["artifacts"]["librachemqa"]}
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages, "artifacts": artifacts}))
    with (folder / ".gitignore").open("a") as ignored_files:
        for name in ("triplets.parquet", "seeds.parquet", "substances.parquet", "domain.json"):
            ignored_files.write(f"/data/{name}\n")
    (folder / "models").mkdir()
    (folder / "models/dpo").write_text("weights")
    commit_data(folder)
    return folder


def commit_data(folder: Path, triplets: pl.DataFrame = GOOD[0]) -> None:
    """Validate `triplets` in `folder` and commit the result, as after `dvc repro`."""
    triplets.write_parquet(folder / "data/triplets.parquet")
    with chdir(folder):
        validate.main()
        with Repo(".") as repo:
            repo.commit(force=True)
    call(folder, "git", "add", "-A")
    call(folder, "git", "commit", "-q", "-m", "data")


def version_in(folder: Path) -> str:
    """The version in TEACHERS that the dataset in `folder`, whole and undamaged, is."""
    assert check(folder) == 6
    splits = ("train", "validation", "test")
    rows = pl.concat(pl.read_parquet(folder / f"{split}.parquet") for split in splits)
    assert rows.height == GOOD[0].height
    (teacher,) = rows["teacher"].unique()
    return next(version for version, name in TEACHERS.items() if name == teacher)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
