"""Verdicts and opinions of earlier runs, by content: a text judged once costs only a look-up.

    with Memo(Path(".cache/verdicts.sqlite"), version) as memo:
        key = memo.key("rules", "I can't help with that.")
        memo.keep({key: '["full_refusal", ...]'})
        memo.find([key])                    # {key: '["full_refusal", ...]'}

`version` names the code that judges; rows of another version are dropped. Nothing in a memo was
paid for: it can be deleted at any time.
"""

import platform
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Self

from stages.core.cache import code_digest, content_key
from stages.core.errors import LibraError
from stages.core.params import DVC_YAML, read_yaml

KEYS_PER_QUERY = 900  # SQLite's limit on variables was 999 for long
WAIT_S = 60.0  # for another process that writes


class Memo:
    """A context manager. Raises LibraError if the file can't be used."""

    def __init__(self, path: Path, version: str):
        self._version = version
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._store = sqlite3.connect(path, timeout=WAIT_S)
            self._store.execute("pragma journal_mode = wal")
            self._store.execute("pragma synchronous = normal")
            self._store.execute(
                "create table if not exists kept "
                "(key blob primary key, version text, value text) without rowid"
            )
            with self._store:
                self._store.execute("delete from kept where version != ?", (version,))
        except sqlite3.Error as error:
            raise LibraError(
                f"{path} can't be used ({error}); delete it: everything in it can be recomputed"
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._store.close()

    def key(self, kind: str, *content: str) -> str:
        """The key of a value of `kind` that depends on `content` and the version alone."""
        return content_key(kind, self._version, content)

    def find(self, keys: Iterable[str]) -> dict[str, str]:
        """{key: value} of those of `keys` that are stored."""
        distinct, values = list(dict.fromkeys(keys)), {}
        for start in range(0, len(distinct), KEYS_PER_QUERY):
            part = distinct[start : start + KEYS_PER_QUERY]
            marks = ",".join("?" * len(part))
            query = f"select key, value from kept where key in ({marks})"
            values.update(self._store.execute(query, part))
        return values

    def keep(self, values: Mapping[str, str]) -> None:
        with self._store:
            rows = ((key, self._version, value) for key, value in values.items())
            self._store.executemany("insert or replace into kept values (?, ?, ?)", rows)


def code_version(*more: str) -> str:
    """A digest of Python's version, the code and rubrics of the stage `judge`, and `more`.

    The code is what dvc.yaml lists for the stage; tests prove that it runs nothing else.
    """
    deps = read_yaml(DVC_YAML)["stages"]["judge"].get("deps", [])
    code = [dep.removeprefix("stages/") for dep in deps if dep.startswith("stages/")]
    return content_key(platform.python_version(), code_digest(*code), more)
