"""What rules and judges inside this process made of a text, kept by content: a text judged once costs a look-up the next time.

    with Memo(Path(".cache/verdicts.sqlite"), version) as memo:
        key = memo.key("rules", "I can't help with that.")
        memo.keep({key: '["full_refusal", ...]'})
        memo.find([key])                    # {key: '["full_refusal", ...]'}

`version` stands for the code that judges: what another version kept is dropped. A memo holds nothing that was paid for, and may be
deleted at any time.
"""

import hashlib
import platform
import sqlite3
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Self

from stages.core.errors import LibraError
from stages.core.params import DVC_YAML, read_yaml

AT_ONCE = 900  # keys a query
WAIT_S = 60.0  # for another process that writes


class Memo:
    """A context manager. Raises LibraError when the file can't be used."""

    def __init__(self, path: Path, version: str):
        self._version = version
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._store = sqlite3.connect(path, timeout=WAIT_S)
            self._store.execute("pragma journal_mode = wal")
            self._store.execute("pragma synchronous = normal")
            self._store.execute(
                "create table if not exists kept (key blob primary key, version text, value text) without rowid"
            )
            with self._store:
                self._store.execute("delete from kept where version != ?", (version,))
        except sqlite3.Error as error:
            raise LibraError(
                f"{path} can't be used ({error}); delete it: all it holds can be worked out again"
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._store.close()

    def key(self, kind: str, text: str) -> bytes:
        """The key of a `text` that says all that a value of `kind` depends on, besides the version."""
        return blake2b(
            f"{kind}\0{self._version}\0{text}".encode("utf-8", "surrogatepass"), digest_size=16
        ).digest()

    def find(self, keys: Iterable[bytes]) -> dict[bytes, str]:
        """The values of those of `keys` that are kept."""
        different, found = list(dict.fromkeys(keys)), {}
        for start in range(0, len(different), AT_ONCE):
            part = different[start : start + AT_ONCE]
            marks = ",".join("?" * len(part))
            found.update(
                self._store.execute(f"select key, value from kept where key in ({marks})", part)
            )  # noqa: S608
        return found

    def keep(self, values: Mapping[bytes, str]) -> None:
        with self._store:
            rows = ((key, self._version, value) for key, value in values.items())
            self._store.executemany("insert or replace into kept values (?, ?, ?)", rows)


def code_version(*more: str) -> str:
    """A hash of all code and rubrics that dvc.yaml lists for stage `judge`, which tests prove to be all it runs, and of `more`."""
    digest = hashlib.sha256(platform.python_version().encode())
    for dep in read_yaml(DVC_YAML)["stages"]["judge"].get("deps", []):
        if dep.startswith("stages/"):
            for path in sorted(_files(Path(dep))):
                digest.update(path.read_bytes())
    for text in more:
        digest.update(f"\0{text}".encode())
    return digest.hexdigest()


def _files(dep: Path) -> list[Path]:
    """The files of a dep of dvc.yaml: itself, or all of a folder but what Python compiles."""
    return (
        [path for path in dep.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        if dep.is_dir()
        else [dep]
    )
