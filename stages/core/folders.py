"""Folders for files that are not stage outputs: records, caches, the reply store.

`dvc exp run --queue` works in a temporary copy; DVC_ROOT is the project it belongs to.
"""

import os
from pathlib import Path


def project_folder() -> Path:
    """The project's real folder."""
    return Path(os.environ.get("DVC_ROOT") or ".").resolve()


def cache_folder() -> Path:
    """`.cache/` of the project's real folder: outlives a run, and DVC doesn't track it."""
    return project_folder() / ".cache"
