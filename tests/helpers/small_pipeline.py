"""The whole pipeline at toy size, run once per test run, and copies of it to change."""

import fcntl
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from helpers.dag import ROOT

SMALL = {
    "seed": {"train": {"seeds": 48}, "validation": {"seeds": 16}, "test": {"seeds": 48}},
    "rephrase": {
        "prompts": 3,
        "chosen": 3,
        "rejected": 3,
        "test": {"prompts": 3, "chosen": 3, "rejected": 3},
    },
    "combine": {"triplets_per_seed": 9, "test_triplets_per_seed": 9},
    "model": {
        "vocab_size": 400,
        "hidden_size": 32,
        "intermediate_size": 64,
        "layers": 1,
        "heads": 2,
    },
    "sft": {"epochs": 1, "batch_size": 16},
    "dpo": {"epochs": 1, "batch_size": 16, "soup": 2},
    "respond": {"max_new_tokens": 24},
    "judge": {"max_abstained": 1.0},
    "score": {"bootstrap": 100},
}


def merged(base: dict, changes: dict) -> dict:
    """`base` with the values of `changes`, nested dicts merged."""
    return base | {
        key: merged(base[key], value) if isinstance(value, dict) else value
        for key, value in changes.items()
    }


def call(folder: Path, *command: str, **environment: str) -> str:
    """Output of `command` in `folder`, which must succeed; this Python's `python` and `dvc` are
    first on PATH."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    run = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"PATH": path, "NO_COLOR": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert run.returncode == 0, f"{' '.join(command)}:\n{run.stdout[-4000:]}"
    return run.stdout


def stages_run(output: str) -> list[str]:
    """The stages that `dvc repro` said it ran."""
    return re.findall(r"Running stage '(\w+)'", output)


def commit(folder: Path) -> None:
    if call(folder, "git", "status", "--porcelain"):
        call(folder, "git", "add", "-A")
        call(folder, "git", "commit", "-q", "-m", "results")


def small_pipeline(tmp_path_factory) -> tuple[Path, str]:
    """(a copy of the small pipeline after its first `dvc repro`, what that printed).

    The first caller of a test run builds it; workers of pytest-xdist wait for one another.
    """
    shared = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        shared = shared.parent
    original, output = shared / "pipeline/libra", shared / "pipeline/output.txt"
    original.parent.mkdir(exist_ok=True)
    with (shared / "pipeline.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not output.exists():
            shutil.rmtree(original, ignore_errors=True)
            output.write_text(_build(original), encoding="utf-8")
    copy = tmp_path_factory.mktemp("pipeline") / "libra"
    shutil.copytree(original, copy, symlinks=True)
    return copy, output.read_text(encoding="utf-8")


def _build(folder: Path) -> str:
    """The working tree as a commit of its own, with small params; returns what `dvc repro` says."""
    call(ROOT, "git", "clone", "-q", str(ROOT), str(folder))
    listing = call(ROOT, "git", "ls-files", "-co", "-z", "--exclude-standard")
    for name in listing.strip("\0").split("\0"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file():
            shutil.copyfile(ROOT / name, folder / name)
        else:
            (folder / name).unlink(missing_ok=True)
    (folder / "dvc.lock").unlink(missing_ok=True)
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    text = yaml.safe_dump(merged(params, SMALL), sort_keys=False)
    (folder / "params.yaml").write_text(text, encoding="utf-8")
    call(folder, "git", "config", "user.name", "test")
    call(folder, "git", "config", "user.email", "test@localhost")
    call(folder, "git", "add", "-A")
    call(folder, "git", "commit", "-q", "-m", "small")
    call(folder, "python", "-m", "stages.tools", "check")
    return call(folder, "dvc", "repro")
