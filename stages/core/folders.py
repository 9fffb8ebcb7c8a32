"""The project's real folder: `dvc exp run --queue` works in a temporary copy, and DVC_ROOT names the project it belongs to."""

import os
from pathlib import Path


def project_folder() -> Path:
    """Where what isn't an output of a stage belongs: records, caches."""
    return Path(os.environ.get("DVC_ROOT") or ".").resolve()


def cache_folder() -> Path:
    """What outlives a run but can be done without, or isn't for DVC to keep."""
    return project_folder() / ".cache"
