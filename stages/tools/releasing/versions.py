"""The released versions of the dataset, one row each in data/released/versions.csv.

    read_versions()["v1.0.0"]
    # Version(version="v1.0.0", commit="b81c040e...", md5="6c0ba6be....dir", rows=66400, date=...)

The file is in Git, so a clone of the branch knows every version, whatever tags and history it has.
`md5` names the dataset's file list in the remote and is enough to fetch it. `commit` is the one
that was released: its dvc.lock has that hash, for `dvc get URL data/librachemqa --rev COMMIT`. The
release commit itself comes after it, since no file can hold the id of its own commit.
"""

import csv
import io
import re
from typing import NamedTuple

from stages.core.checked_csv import read_rows, row_error
from stages.core.errors import LibraError
from stages.tools.releasing.objects import BUNDLE

VERSIONS = BUNDLE / "versions.csv"
_NUMBER = re.compile(r"v(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)")


class Version(NamedTuple):
    """A row of versions.csv: `rows` triplets, released on `date` (ISO 8601, UTC)."""

    version: str
    commit: str
    md5: str
    rows: int
    date: str


_PATTERNS = {
    "version": _NUMBER.pattern,
    "commit": r"[0-9a-f]{40}",
    "md5": r"[0-9a-f]{32}\.dir",
    "rows": r"[1-9]\d*",
    "date": r"\d{4}-\d\d-\d\d",
}


def number(version: str) -> tuple[int, ...]:
    """(1, 0, 0) for `v1.0.0`. Raises LibraError for a name in any other form."""
    match = _NUMBER.fullmatch(version)
    if not match:
        raise LibraError(f"`{version}` is not a version; write it like v1.0.0")
    return tuple(map(int, match.groups()))


def is_version(name: str) -> bool:
    return _NUMBER.fullmatch(name) is not None


def read_versions() -> dict[str, Version]:
    """{version: its row}, lowest number first; empty if there is no file yet.

    Raises LibraError with line and column for a malformed cell.
    """
    if not VERSIONS.exists():
        return {}
    versions = {}
    for row in read_rows(VERSIONS, Version._fields):
        for column, pattern in _PATTERNS.items():
            if not re.fullmatch(pattern, row[column]):
                raise row_error(VERSIONS, row, column, f"`{row[column]}` is not a valid {column}")
        if row["version"] in versions:
            raise row_error(VERSIONS, row, "version", "listed twice")
        cells = {column: row[column] for column in Version._fields}
        versions[row["version"]] = Version(**cells | {"rows": int(row["rows"])})
    return dict(sorted(versions.items(), key=lambda item: number(item[0])))


def find_version(version: str) -> Version:
    """The row of `version`. Raises LibraError that lists the released versions if it isn't one."""
    number(version)
    versions = read_versions()
    if version not in versions:
        released = ", ".join(versions) or "none"
        raise LibraError(
            f"{version} is not in {VERSIONS} (released: {released}); `git pull` fetches newer ones"
        )
    return versions[version]


def add_version(row: Version) -> None:
    """Add `row` to versions.csv, replacing a row of the same version."""
    from stages.core.tables import write_text

    versions = read_versions() | {row.version: row}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Version._fields)
    writer.writerows(sorted(versions.values(), key=lambda other: number(other.version)))
    write_text(text.getvalue(), VERSIONS)
