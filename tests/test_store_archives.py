"""Archives of the reply store, and imports of archives and of other stores."""

import asyncio
import json
import shutil
import sqlite3
from dataclasses import replace

import polars as pl
import pytest

from helpers.stored import REPLY, URL, keep_all, received
from stages.chat.archives import SQLITE_MAGIC, import_file, store_from_archives
from stages.chat.store import Store
from stages.core.errors import LibraError
from stages.tools import store as store_tool


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path / ".cache" / "replies.sqlite"


def pay(store: Store, i: int, usd: float | None = 0.25) -> str:
    key, reply = received(i)
    asyncio.run(store.keep(key, replace(reply, usd=usd, used_by="craft")))
    return key


def test_an_archive_goes_into_another_store(path, tmp_path, monkeypatch, capsys):
    with Store(path) as opened:
        keep_all(opened, 20)
    archive = tmp_path / "a" / "replies.parquet"
    store_tool.run("export", archive)
    first = archive.read_bytes()
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "b"))
    store_tool.run("import", archive)
    store_tool.run("import", archive)
    store_tool.run("show")
    output = capsys.readouterr().out
    assert "20 of 20 replies were new" in output and "0 of 20 replies were new" in output
    assert "20 replies          180 + 100 tokens, no price" in output
    store_tool.run("export", archive)
    assert archive.read_bytes() == first
    assert json.loads(pl.read_parquet(archive)["request"][0])["model"] == "m"


def test_an_archive_of_everything_keeps_what_was_bought_and_when(path, tmp_path):
    with Store(path) as opened:
        keys = [pay(opened, i) for i in range(3)]
        opened._connection.execute("update replies set received = 1700000000")
    store_tool.run("export", tmp_path / "all.parquet")
    with Store(tmp_path / "new" / "replies.sqlite") as other:
        assert import_file(other, tmp_path / "all.parquet") == (3, 3)
        other.use("craft", keys, replace=True)  # as the next run does
        assert other.spent() == (3, 42, 0.75)
        assert {row[11:] for row in other.rows()} == {(1700000000, 1)}


def test_a_release_s_archive_is_nobody_s_spending(path, tmp_path):
    with Store(path) as opened:
        keys = [pay(opened, i) for i in range(3)]
    store_tool.run("export", tmp_path / "used.parquet", used=True)
    assert "bought" not in pl.read_parquet_schema(tmp_path / "used.parquet")
    with Store(tmp_path / "new" / "replies.sqlite") as other:
        assert import_file(other, tmp_path / "used.parquet") == (3, 3)
        other.use("craft", keys, replace=True)
        assert other.spent() == (0, 0, 0.0)


def test_a_store_s_import_keeps_what_was_bought_and_when_and_its_batches(path, tmp_path):
    with Store(path) as opened:
        keys = [pay(opened, i) for i in range(4)]
        opened.retry("craft", unfit={keys[3]: "empty"})
        opened._connection.execute("update replies set received = 1700000000")
        opened.begin_batch("open", URL, ["f" * 64])
        opened.set_batch_id("open", "batch_1")
        opened.begin_batch("collected", URL, keys[:3])
        opened.keep_unasked({"e" * 64: REPLY})
        opened.note_unfit("craft", {keys[0]: "same text twice"})
    before = path.read_bytes()
    with Store(tmp_path / "new" / "replies.sqlite") as other:
        assert import_file(other, path) == (4, 4) and import_file(other, path) == (0, 4)
        assert other.spent() == (4, 56, 1.0)
        assert {row[11:] for row in other.rows()} == {(1700000000, 1)}
        assert other.batches(URL) == [("open", "batch_1", {"f" * 64})]
        assert other.unasked(["e" * 64]) == {"e" * 64: REPLY}
        assert {fault for _, fault, _, _ in other.faults()} == {"empty", "same text twice"}
    assert path.read_bytes() == before


def test_replies_that_a_release_brought_count_once_a_store_says_they_were_bought(path, tmp_path):
    with Store(path) as opened:
        keys = [pay(opened, i) for i in range(2)]
    store_tool.run("export", tmp_path / "data" / "a.parquet", used=True)
    with Store(tmp_path / "new" / "replies.sqlite") as other:
        assert store_from_archives(other, keys, tmp_path / "data") == 2
        other.use("craft", keys, replace=True)
        assert other.spent().requests == 0
        assert import_file(other, path) == (0, 2) and other.spent() == (2, 28, 0.5)


def test_no_archive_and_no_store_brings_back_what_was_retired(path, tmp_path):
    with Store(path) as opened:
        keys = [pay(opened, i) for i in range(2)]
        store_tool.run("export", tmp_path / "replies" / "a.parquet")
        shutil.copy(path, tmp_path / "copy.sqlite")
        shutil.copy(f"{path}-wal", tmp_path / "copy.sqlite-wal")
        assert opened.retry("craft", unfit=dict.fromkeys(keys, "empty")) == 2
        assert store_from_archives(opened, keys, tmp_path / "replies") == 0
        assert import_file(opened, tmp_path / "replies" / "a.parquet") == (0, 2)
        assert import_file(opened, tmp_path / "copy.sqlite") == (0, 2)
        assert opened.find(keys) == {} and opened.spent() == (2, 28, 0.5)


def test_measurements_beside_the_pipeline_go_into_no_archive(path, monkeypatch):
    with Store(path) as opened:
        for i, run in enumerate(("", "try-beta-1", "benchmark my-model", "pairwise dpo sft")):
            monkeypatch.setenv("DVC_EXP_NAME", run)
            key, reply = received(i)
            asyncio.run(opened.keep(key, replace(reply, used_by="respond")))
        expected = sorted(received(i)[0] for i in (0, 1))
        assert [row[0] for row in opened.rows(used=True)] == expected


@pytest.mark.parametrize("used", [False, True])
def test_no_archive_is_written_of_no_replies(path, tmp_path, monkeypatch, used):
    if used:  # what is measured beside the pipeline is in no archive
        monkeypatch.setenv("DVC_EXP_NAME", "pairwise dpo sft")
        with Store(path) as opened:
            keep_all(opened, 1)
    message = r"replies.sqlite holds no replies .*, so \S+ isn't written; what `offline` answers"
    with pytest.raises(LibraError, match=message):
        store_tool.run("export", tmp_path / "a.parquet", used)
    assert not (tmp_path / "a.parquet").exists()


def test_a_file_that_can_t_be_imported_is_an_error_that_says_why(path, tmp_path):
    file = tmp_path / "old.sqlite"
    with sqlite3.connect(file) as other:
        other.execute("create table replies (key text, reply text)")
    other.close()
    message = r"old.sqlite isn't a reply store of any known version \(its table lacks base_url, "
    with pytest.raises(LibraError, match=message):
        store_tool.run("import", file)
    file.write_bytes(SQLITE_MAGIC + b"\xff" * 9000)
    with pytest.raises(LibraError, match=r"old.sqlite can't be read \(.*\); the file is damaged"):
        store_tool.run("import", file)
    with pytest.raises(LibraError, match="missing.parquet not found"):
        store_tool.run("import", tmp_path / "missing.parquet")
    with Store(path) as opened:
        assert opened.rows() == []
