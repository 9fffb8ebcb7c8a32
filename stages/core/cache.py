"""Caches keyed by content: a value is reused only while everything that decides it is unchanged.

    cache = TableCache("reference", keep=32)
    key = content_key(rows, code_digest("training/encode.py"), package_versions("torch"))
    table = cache.read(key, rows=len(rows))     # None: missing, damaged or of another length
    cache.write(key, pl.DataFrame({"log_probability": values}))

Files are in `.cache/` of the project's real folder. Nothing in them was paid for: each can be
deleted at any time.
"""

import contextlib
import hashlib
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.core.folders import cache_folder

if TYPE_CHECKING:
    import polars as pl

STAGES = Path(__file__).parents[1]


def content_key(*parts: Any) -> str:
    """SHA-256 (hex) of `parts` as canonical JSON; key order and list or tuple do not matter."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """SHA-256 (or another hash, by hashlib's name) of a file's bytes, in hex. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def files_in(path: Path) -> list[Path]:
    """All files below a folder, sorted, without `__pycache__`; a file gives itself."""
    if not path.is_dir():
        return [path]
    files = (file for file in path.rglob("*") if "__pycache__" not in file.parts)
    return sorted(file for file in files if file.is_file())


def code_digest(*paths: str) -> str:
    """SHA-256 (hex) over names and bytes of files and whole rooms, as paths below `stages/`."""
    files = [file for path in paths for file in files_in(STAGES / path)]
    return content_key([(file.relative_to(STAGES).as_posix(), file_digest(file)) for file in files])


def package_versions(*names: str) -> dict[str, str]:
    """Installed versions. Raises importlib.metadata.PackageNotFoundError."""
    return {name: version(name) for name in names}


class TableCache:
    """Parquet tables in `.cache/NAME/`, of which the `keep` last used stay (default: all)."""

    def __init__(self, name: str, keep: int | None = None):
        self._name, self._keep = name, keep

    def path(self, key: str) -> Path:
        return cache_folder() / self._name / f"{key}.parquet"

    def read(self, key: str, rows: int) -> "pl.DataFrame | None":
        """The table of `key`; None if it is missing, damaged or hasn't exactly `rows` rows."""
        import polars as pl

        path = self.path(key)
        try:
            table = pl.read_parquet(path)
            path.touch()  # the most recently used tables are kept
        except (OSError, pl.exceptions.PolarsError):
            return None
        return table if table.height == rows else None

    def write(self, key: str, table: "pl.DataFrame") -> None:
        """Store `table` and drop the least recently used ones; a full disk costs only a warning."""
        import polars as pl

        from stages.core.tables import write_atomically

        path = self.path(key)
        try:
            write_atomically(path, table.write_parquet)
        except (OSError, pl.exceptions.PolarsError) as error:
            message = f"warning: {path} can't be written ({error}); the next run computes it again"
            print(message, file=sys.stderr)
            return
        if self._keep is None:
            return

        with contextlib.suppress(FileNotFoundError):  # another process drops tables as well
            by_age = sorted(path.parent.glob("*.parquet"), key=lambda file: file.stat().st_mtime)
            for old in by_age[: -self._keep]:
                old.unlink(missing_ok=True)
