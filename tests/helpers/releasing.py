"""A small repository whose dataset can be released, for the tests of releases and of pulling them."""

import os
import shutil
import subprocess
import sys
from contextlib import chdir
from pathlib import Path

import polars as pl
import yaml
from dvc.repo import Repo
from test_validate import GOOD, lay_out

from helpers.dag import ROOT
from stages import validate

PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def call(folder: Path, *command: str, fails: bool = False, **environment: str) -> str:
    """What `command` prints in `folder`; it must succeed, or fail where `fails`."""
    surroundings = (
        os.environ | {"PATH": PATH, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"} | environment
    )
    done = subprocess.run(
        command,
        cwd=folder,
        env=surroundings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert bool(done.returncode) == fails, f"{' '.join(command)}:\n{done.stdout[-4000:]}"
    return done.stdout


def repository(folder: Path) -> Path:
    """A Git and DVC repository in `folder` with two stages: `validate` and, after it, `dpo`; remotes and artifact as in this one."""
    folder.mkdir(parents=True)
    call(folder, "git", "init", "-q", "-b", "main")
    call(folder, "git", "config", "user.name", "test")
    call(folder, "git", "config", "user.email", "test@localhost")
    shutil.copytree(
        ROOT / ".dvc",
        folder / ".dvc",
        ignore=shutil.ignore_patterns("tmp", "cache", "config.local"),
    )
    for name in (".dvcignore", ".gitattributes", ".gitignore"):
        shutil.copyfile(ROOT / name, folder / name)
    lay_out(folder, *GOOD)
    whole = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
    stage = yaml.safe_load((folder / "dvc.yaml").read_text())["stages"]["validate"] | {
        "outs": whole["stages"]["validate"]["outs"]
    }
    dpo = {"cmd": "no command", "deps": ["data/librachemqa"], "outs": ["models/dpo"]}
    dvc = {
        "stages": {"validate": stage, "dpo": dpo},
        "artifacts": {"librachemqa": whole["artifacts"]["librachemqa"]},
    }
    (folder / "dvc.yaml").write_text(yaml.safe_dump(dvc))
    for name in ("triplets.parquet", "seeds.parquet", "substances.parquet", "domain.json"):
        (folder / ".gitignore").open("a").write(f"/data/{name}\n")
    (folder / "models").mkdir()
    (folder / "models/dpo").write_text("weights")
    made(folder)
    return folder


def made(folder: Path, triplets: pl.DataFrame = GOOD[0], message: str = "data") -> None:
    """Validate `triplets` in `folder` and commit what `dvc repro` would have."""
    triplets.write_parquet(folder / "data/triplets.parquet")
    with chdir(folder):
        validate.main()
        with Repo(".") as repo:
            repo.commit(force=True)
    call(folder, "git", "add", "-A")
    call(folder, "git", "commit", "-q", "-m", message)
