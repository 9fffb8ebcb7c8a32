"""Tables and small files: faults are named, files are complete, equal rows give equal bytes."""

import polars as pl
import pytest

from stages.core import tables
from stages.core.errors import LibraError

PATH = "data/t.parquet"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_missing_table_says_how_to_get_it():
    with pytest.raises(LibraError, match=f"^{PATH} not found; run `dvc repro` first$"):
        tables.read_table(PATH, ("a",))
    released = "data/librachemqa/t.parquet"
    message = rf"^{released} not found; run `dvc repro` \(or `dvc pull`\) first$"
    with pytest.raises(LibraError, match=message):
        tables.scan_table(released, ("a",))


def test_a_missing_column_is_named():
    tables.write_table(pl.DataFrame({"a": [2, 1], "b": ["x", "y"]}), PATH, "a")
    assert tables.read_table(PATH, ("a",))["b"].to_list() == ["y", "x"]
    with pytest.raises(LibraError, match=f"^{PATH} has no column c, d; it has a, b$"):
        tables.read_table(PATH, ("c", "a", "d"))


def test_an_empty_or_damaged_table_is_named(folder):
    tables.write_table(pl.DataFrame({"a": []}), PATH, "a")
    with pytest.raises(LibraError, match=f"^{PATH} has no rows"):
        tables.read_table(PATH, ("a",))
    (folder / PATH).write_text("a,b\n1,2\n")
    fix = "delete it and run `dvc repro`"
    with pytest.raises(LibraError, match=rf"^{PATH} isn't a readable Parquet file \(.*\); {fix}$"):
        tables.read_table(PATH, ("a",))


def test_a_file_is_written_completely_or_not_at_all(folder):
    path = folder / "folder/table.json"
    tables.write_json({"b": 1, "a": "°"}, path)
    written = path.read_bytes()
    assert written == b'{\n  "a": "\xc2\xb0",\n  "b": 1\n}\n'

    def write_half(temporary):
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        tables.write_atomically(path, write_half)
    with pytest.raises(ValueError, match="not JSON compliant"):
        tables.write_json({"a": float("nan")}, path)
    assert path.read_bytes() == written
    assert [file.name for file in path.parent.iterdir()] == ["table.json"]


def test_the_same_rows_are_the_same_bytes(folder):
    rows = pl.DataFrame({"id": ["b", "a", "c"], "n": [1, 2, 3]})
    for name, table in (("one", rows), ("two", rows.reverse())):
        tables.write_table(table, folder / name, "id")
    assert (folder / "one").read_bytes() == (folder / "two").read_bytes()
