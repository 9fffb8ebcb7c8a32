"""Stages in processes of their own, with the faults of tests/helpers/faults/sitecustomize.py."""

import os
import subprocess
import sys

from helpers.dag import ROOT

PYTHON = [sys.executable, "-W", "ignore"]


def environment(fault: str = "", rank: int = 0) -> dict[str, str]:
    """For a stage's process: the project's code, one thread, and a `fault` in process `rank`."""
    paths = os.pathsep.join([str(ROOT / "tests/helpers/faults"), str(ROOT)])
    return {
        **os.environ,
        "PYTHONPATH": paths,
        "OMP_NUM_THREADS": "1",
        "FAULT": fault,
        "FAULT_RANK": str(rank),
    }


def run_stage(
    name: str, fault: str = "", rank: int = 0, launcher: list[str] = PYTHON
) -> subprocess.CompletedProcess:
    """`python -m stages.NAME` in the current folder."""
    return subprocess.run(
        [*launcher, "-m", f"stages.{name}"],
        env=environment(fault, rank),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
