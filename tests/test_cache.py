"""Content keys and the table cache: what changes a key, and which tables are kept."""

import os

import polars as pl
import pytest

from stages.core import cache
from stages.core.cache import TableCache, code_digest, content_key, files_in


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))


def table(*values: float) -> pl.DataFrame:
    return pl.DataFrame({"value": values})


def test_a_content_key_depends_on_values_and_not_on_their_notation():
    key = content_key({"a": 1, "b": [1, 2]}, "é\ud800")
    assert len(key) == 64 and key == content_key({"b": (1, 2), "a": 1}, "é\ud800")
    others = [content_key({"a": 1, "b": [2, 1]}, "é\ud800"), content_key({"a": 1, "b": [1, 2]})]
    assert key not in others and content_key("ab") != content_key("a", "b")
    with pytest.raises(ValueError):
        content_key(float("nan"))


def test_a_code_digest_covers_files_and_rooms_but_not_compiled_files(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "STAGES", tmp_path)
    (tmp_path / "room/__pycache__").mkdir(parents=True)
    for name in ("a.py", "b.txt"):
        (tmp_path / "room" / name).write_text(name)
    room, file = code_digest("room"), code_digest("room/a.py")
    assert room != file
    (tmp_path / "room/__pycache__/a.cpython-311.pyc").touch()
    assert code_digest("room") == room
    (tmp_path / "room/b.txt").write_text("changed")
    assert code_digest("room") != room and code_digest("room/a.py") == file
    (tmp_path / "room/b.txt").rename(tmp_path / "room/c.txt")
    (tmp_path / "room/b.txt").touch()
    names = [path.name for path in files_in(tmp_path / "room")]
    assert names == ["a.py", "b.txt", "c.txt"]


def test_a_table_is_read_back_whole_or_not_at_all():
    tables = TableCache("numbers")
    assert tables.read("key", rows=2) is None
    tables.write("key", table(1.0, 2.0))
    assert tables.read("key", rows=2).equals(table(1.0, 2.0))
    assert tables.read("key", rows=3) is None
    tables.path("key").write_bytes(b"PAR1 half a table")
    assert tables.read("key", rows=2) is None


def test_the_least_recently_used_tables_are_dropped():
    tables = TableCache("numbers", keep=3)
    for age, key in enumerate("abc"):
        tables.write(key, table(float(age)))
        os.utime(tables.path(key), (age, age))
    assert tables.read("a", rows=1) is not None  # used now
    tables.write("d", table(4.0))
    assert [key for key in "abcd" if tables.path(key).exists()] == ["a", "c", "d"]


def test_a_table_that_cannot_be_written_costs_a_warning(tmp_path, capsys):
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache/numbers").write_text("a file where the folder should be")
    tables = TableCache("numbers")
    tables.write("key", table(1.0))
    assert "warning: " in capsys.readouterr().err
    assert tables.read("key", rows=1) is None
