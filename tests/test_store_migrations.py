"""Stores of older schemas are migrated in place; what can't be used stops a run and stays."""

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.asking import ask_all, endpoint, make_app, on_port
from helpers.dag import ROOT
from helpers.old_stores import LAYOUTS, as_layout
from helpers.stored import REPLY, URL, checkpoint, keep_all, received
from stages.chat import migrations
from stages.chat.archives import import_file
from stages.chat.budget import BudgetParams, OverBudget
from stages.chat.client import Session
from stages.chat.offline import last_user_text
from stages.chat.protocol import ChatRequest
from stages.chat.store import Store
from stages.core.errors import LibraError

TODAY = "667d597"  # the layout in use when schemas were first numbered
OPEN = "import sys; from pathlib import Path; from stages.chat.store import Store; "


@pytest.fixture
def path(tmp_path):
    return tmp_path / ".cache" / "replies.sqlite"


def contents(path: Path) -> dict[str, list[tuple]]:
    """{table: rows} of a store, with its schema number and the tables' SQL."""
    connection = sqlite3.connect(path)
    try:
        version = connection.execute("pragma user_version").fetchone()[0]
        tables = connection.execute("select name, sql from sqlite_master order by name").fetchall()
        rows = {name: sorted(connection.execute(f"select * from {name}")) for name, _ in tables}
    finally:
        connection.close()
    return rows | {"version": [(version,)], "tables": tables}


def old_store(path: Path, layout: str) -> None:
    """A store with 20 replies, two of them unfit, an open batch and an unasked completion."""
    current = path.parent / "current.sqlite"
    with Store(current) as store:
        for i in range(20):
            key, reply = received(i)
            asyncio.run(store.keep(key, replace(reply, usd=0.25, used_by="craft")))
        store.note_unfit("craft", {received(1)[0]: "empty", "e" * 64: "used by nothing"})
        store.begin_batch("mark", URL, ["f" * 64])
        store.set_batch_id("mark", "batch_1")
        store.keep_unasked({"d" * 64: REPLY})
        store.watch_spending()
        store._connection.execute("update replies set received = 1700000000")
    as_layout(current, path, layout)


def test_a_store_is_migrated_with_all_its_tables(path):
    old_store(path, TODAY)
    before = contents(path)
    assert before["version"] == [(0,)] and len(before["unfit"]) == 2
    Store(path).__exit__()
    after = contents(path)
    for table in ("replies", "batches", "batch_keys", "unasked", "paid"):
        assert after[table] == before[table] and before[table], table
    faults = {(run, stage, key): fault for run, stage, key, fault in after["used"]}
    assert faults.keys() == {*before["used"], *(row[:3] for row in before["unfit"])}
    assert {(*key, fault) for key, fault in faults.items() if fault} == set(before["unfit"])
    assert after["version"] == [(len(migrations.MIGRATIONS),)] and "unfit" not in after

    with Store(path) as store:
        assert store.spent() == (20, 280, 5.0)
        assert store.batches(URL) == [("mark", "batch_1", {"f" * 64})]
        assert store.unasked(["d" * 64]) == {"d" * 64: REPLY}
        assert store.retry() == 1, "the unfit reply, as noted"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_migrated_store_has_the_schema_of_a_new_one(path, tmp_path, layout):
    old_store(path, layout)
    with Store(path) as store:
        keys = [received(i)[0] for i in range(20)]
        assert len(store.find(keys)) == 20
        assert {row[11:] for row in store.rows()} == {(1700000000, 1)}, "bought, and when"
        store.use("craft", keys, replace=True)
        assert store.spent()[:2] == (20, 280)
    Store(tmp_path / "new.sqlite").__exit__()

    def columns(file):
        connection = sqlite3.connect(file)
        tables = [row[0] for row in connection.execute("select name from sqlite_master")]
        described = {
            name: connection.execute(f"pragma table_info({name})").fetchall() for name in tables
        }
        connection.close()
        return described

    assert columns(path) == columns(tmp_path / "new.sqlite")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("way", ["in place", "imported"])
def test_a_paid_run_on_an_older_store_sends_nothing(path, tmp_path, monkeypatch, layout, way):
    requests = [ChatRequest([{"role": "user", "content": f"prompt {i}"}]) for i in range(30)]
    price = {"prompt": 100.0, "completion": 100.0}
    monkeypatch.setattr("stages.chat.client.store_path", lambda: path)
    bodies = []
    with on_port(make_app("m", lambda body: bodies.append(body) or last_user_text(body))) as url:
        first = ask_all(endpoint(url, usd_per_million=price), requests, "craft")
        with Store(path) as store:
            paid = store.spent()
        assert len(bodies) == 30 == paid.requests

        old = tmp_path / "old" / "replies.sqlite"
        checkpoint(path)
        as_layout(path, old, layout)
        for file in path.parent.iterdir():
            file.unlink()
        if way == "in place":
            shutil.move(old, path)
        else:
            with Store(path) as store:
                assert import_file(store, old) == (30, 30)

        assert ask_all(endpoint(url, usd_per_million=price), requests, "craft") == first
        assert len(bodies) == 30
        with Store(path) as store:
            spent = store.spent()
        assert spent[:2] == paid[:2]
        if layout != "0093d13":  # which noted no USD
            assert spent == paid

        # The cap counts what was paid before.
        further = [ChatRequest([{"role": "user", "content": "one more"}])]
        caps = BudgetParams(max_requests=30)
        with pytest.raises(OverBudget, match="this pipeline run has paid for 30 replies"):
            Session("rephrase", 0, caps).ask(
                endpoint(url, usd_per_million=price), further, "rephrase"
            )
        assert len(bodies) == 30


@pytest.mark.parametrize("way", ["in place", "imported"])
def test_a_batch_under_way_in_an_older_store_is_not_sent_twice(path, tmp_path, monkeypatch, way):
    """The first run is killed after it submitted a batch; the second one waits for it."""
    requests = [ChatRequest([{"role": "user", "content": f"prompt {i}"}]) for i in range(10)]
    monkeypatch.setattr("stages.chat.client.store_path", lambda: path)
    created = []

    def counted(app):
        async def counting(scope, receive, send):
            if scope.get("path", "").endswith("/batches") and scope.get("method") == "POST":
                created.append(scope["path"])
            await app(scope, receive, send)

        return counting

    with on_port(counted(make_app("m", last_user_text))) as url:
        with monkeypatch.context() as killed:
            killed.setattr(Store, "set_batch_id", die_after_noting)
            with pytest.raises(RuntimeError, match="killed"):
                ask_all(endpoint(url, mode="batch"), requests, "craft")
        assert len(created) == 1
        old = tmp_path / "old" / "replies.sqlite"
        checkpoint(path)
        as_layout(path, old, "763379b")
        for file in path.parent.iterdir():
            file.unlink()
        if way == "in place":
            shutil.move(old, path)
        else:
            with Store(path) as store:
                assert import_file(store, old) == (0, 0)
        replies = ask_all(endpoint(url, mode="batch"), requests, "craft")
        assert [reply.content for reply in replies] == [f"prompt {i}" for i in range(10)]
        assert len(created) == 1


def die_after_noting(store: Store, mark: str, server_id: str, note=Store.set_batch_id) -> None:
    note(store, mark, server_id)
    raise RuntimeError("killed")


def test_of_two_processes_that_open_an_old_store_one_migrates_and_one_waits(path):
    old_store(path, TODAY)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("begin immediate")  # both reach the migration before either may begin it
    code = OPEN + "print(Store(Path(sys.argv[1])).spent().requests)"
    command = [sys.executable, "-W", "ignore", "-c", code, str(path)]
    processes = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    with pytest.raises(subprocess.TimeoutExpired):
        processes[0].wait(1)
    holder.execute("rollback")
    holder.close()
    assert [process.communicate(timeout=60)[0] for process in processes] == ["20\n", "20\n"]
    assert contents(path)["version"] == [(len(migrations.MIGRATIONS),)]


@pytest.mark.parametrize("step", range(len(migrations.MIGRATIONS) + 1))
def test_a_kill_during_a_migration_leaves_the_old_store_whole(path, step):
    old_store(path, "0093d13" if step == 1 else TODAY)
    before = contents(path)
    code = (
        OPEN
        + "import os; from stages.chat import migrations; steps = list(migrations.MIGRATIONS); "
        "steps.insert(int(sys.argv[2]), lambda connection: os._exit(9)); "
        "migrations.MIGRATIONS = tuple(steps); Store(Path(sys.argv[1]))"
    )
    command = [sys.executable, "-c", code, str(path), str(step)]
    assert subprocess.run(command, cwd=ROOT).returncode == 9
    assert contents(path) == before
    with Store(path) as store:
        assert store.totals()[0][2] == 20


def test_a_migration_that_fails_leaves_the_old_store_whole(path, monkeypatch):
    old_store(path, TODAY)
    before = contents(path)

    def full(connection):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(migrations, "MIGRATIONS", (*migrations.MIGRATIONS, full))
    with pytest.raises(LibraError, match="can't be opened .*disk is full.*; free the disk"):
        Store(path)
    assert contents(path) == before


def damaged_pages(raw: bytes) -> bytes:
    return raw[:100] + b"\xff" * (len(raw) - 100)


def damaged_end(raw: bytes) -> bytes:
    return raw[:4096] + b"\xff" * (len(raw) - 4096)


@pytest.mark.parametrize(
    "damage", [lambda raw: b"not a database" * 400, damaged_pages, damaged_end]
)
def test_a_damaged_store_stops_the_run_before_the_first_request(path, monkeypatch, damage):
    monkeypatch.setattr("stages.chat.client.store_path", lambda: path)
    with Store(path) as store:
        keep_all(store, 50)
    checkpoint(path)
    path.write_bytes(damage(path.read_bytes()))
    before = path.read_bytes()
    bodies = []
    with on_port(make_app("m", lambda body: bodies.append(body) or "")) as url:
        message = (
            r"replies.sqlite can't be opened \(.*\); the file is damaged .* store import FILE`"
        )
        with pytest.raises(LibraError, match=message):
            ask_all(endpoint(url), [ChatRequest([{"role": "user", "content": "a"}])], "craft")
    assert not bodies and path.read_bytes() == before
    assert [file.name for file in path.parent.glob("*.sqlite*") if file.suffix == ".sqlite"] == [
        path.name
    ]


def test_a_store_of_a_newer_schema_says_to_update(path):
    with Store(path) as store:
        keep_all(store, 3)
        store._connection.execute("pragma user_version = 99")
    message = r"has schema 99, written by a newer Libra; this one knows up to \d+. Update Libra"
    with pytest.raises(LibraError, match=message):
        Store(path)
    assert len(contents(path)["replies"]) == 3


@pytest.mark.parametrize(
    "sql, fault",
    [
        ("create table other (a)", "it has no table `replies`"),
        ("create table replies (key, reply)", "its table lacks base_url, completion_tokens, "),
        (LAYOUTS[TODAY] + "alter table replies add column extra", "unknown columns: extra"),
        (LAYOUTS["0093d13"] + "pragma user_version = 1", "its table lacks bought, fault, usd"),
    ],
)
def test_a_file_that_is_no_known_store_is_left_alone(path, sql, fault):
    path.parent.mkdir()
    connection = sqlite3.connect(path)
    connection.executescript(sql)
    connection.close()
    before = path.read_bytes()
    with pytest.raises(LibraError, match=f"isn't a reply store of any known version .*{fault}"):
        Store(path)
    assert path.read_bytes() == before and os.listdir(path.parent) == [path.name]


def test_token_counts_that_the_first_layout_left_open_are_worked_out(path):
    path.parent.mkdir()
    connection = sqlite3.connect(path)
    connection.executescript(LAYOUTS["0093d13"])
    key, reply = received(0)
    row = reply.row(key)
    values = (*row[:7], None, None, 1700000000)
    connection.execute(f"insert into replies values ({', '.join('?' * 10)})", values)
    damaged = ("b" * 64, *row[1:6], "[", None, None, 1700000000)
    connection.execute(f"insert into replies values ({', '.join('?' * 10)})", damaged)
    connection.commit()
    connection.close()
    with Store(path) as store:
        assert store.find([key])[key][2:] == (9, 5, None)
        assert store.retry() == 1, "the damaged one"
