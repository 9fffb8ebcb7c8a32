"""Hand-written CSV tables, read strictly: every error names file, line and column.

for row in read_rows(path, ("name", "cas"), may_be_empty=("cas",)):
    if row["cas"] == "50-78-3":
        raise row_error(path, row, "cas", "its check digit should be 2")

LibraError: medicines.csv, line 3 (aspirin), column cas: its check digit should be 2
"""

import csv
import io
from collections.abc import Collection, Sequence
from pathlib import Path

from stages.core.errors import LibraError


class Row(dict[str, str]):
    """The cells of a row by column, and the line of the file on which the row ends."""

    def __init__(self, cells: dict[str, str], line: int):
        super().__init__(cells)
        self.line = line


def read_rows(
    path: Path, columns: Sequence[str], may_be_empty: Collection[str] = (), hint: str = ""
) -> list[Row]:
    """The rows of the UTF-8 table at `path`, whose header must name `columns`; more are allowed.

    `hint` completes the error for a missing file; by default it is how to restore one from Git.

    Raises LibraError for a file that is missing, isn't UTF-8 or isn't CSV, a missing or repeated
    column, a row with too few or too many cells, and of `columns` a cell with surrounding blanks,
    and an empty one outside of `may_be_empty`.
    """
    reader = csv.reader(io.StringIO(_read_text(path, hint), newline=""), strict=True)
    rows = []
    try:
        header = next(reader, [])
        _check_header(path, header, columns)
        for cells in reader:
            if not cells:  # a blank line
                continue
            if len(cells) != len(header):
                raise LibraError(
                    f"{path}, line {reader.line_num} ({_one_line(cells[0])}): {len(cells)} cells "
                    f"instead of {len(header)}; quote cells that contain a comma"
                )
            row = Row(dict(zip(header, cells, strict=True)), reader.line_num)
            _check_cells(path, row, columns, may_be_empty)
            rows.append(row)
    except csv.Error as error:
        raise LibraError(f"{path}, line {reader.line_num}: not valid CSV ({error})") from None
    return rows


def row_error(path: Path, row: Row, column: str, problem: str) -> LibraError:
    """The error to raise for a cell: where it is (the first cell names the row), and `problem`."""
    name = _one_line(next(iter(row.values())))
    place = f"{path}, line {row.line}" + (f" ({name})" if name else "")
    return LibraError(f"{place}, column {column}: {problem}")


def _read_text(path: Path, hint: str) -> str:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        hint = hint or f"restore it with `git checkout {path}`"
        raise LibraError(f"{path} not found; {hint}") from None
    try:
        return content.decode("utf-8-sig")  # spreadsheets put a byte order mark first
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise LibraError(f"{path}, line {line}: not UTF-8; save the file as UTF-8") from None


def _check_header(path: Path, header: list[str], columns: Sequence[str]) -> None:
    if missing := [column for column in columns if column not in header]:
        raise LibraError(
            f"{path}: column {', '.join(missing)} is missing; "
            f"the first line has {', '.join(header) or 'none'}"
        )
    if repeated := [column for i, column in enumerate(header) if column in header[:i]]:
        raise LibraError(f"{path}: column {repeated[0]} appears twice")


def _check_cells(
    path: Path, row: Row, columns: Sequence[str], may_be_empty: Collection[str]
) -> None:
    for column in columns:
        cell = row[column]
        if cell != cell.strip():
            raise row_error(path, row, column, f"remove the blanks around `{_one_line(cell)}`")
        if not cell and column not in may_be_empty:
            raise row_error(path, row, column, "the cell is empty")


def _one_line(text: str) -> str:
    return " ".join(text.split())
