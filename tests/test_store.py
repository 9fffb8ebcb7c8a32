"""The reply store: what was received is kept, nothing else is, and nothing that was kept is asked for twice."""

import asyncio
import json
import sqlite3
import threading
import time
from dataclasses import replace

import polars as pl
import pytest
import uvicorn

from helpers.asking import ask_all, endpoint, make_app
from stages.chat import store
from stages.chat.client import Session
from stages.chat.offline import last_user_text
from stages.chat.protocol import ChatRequest
from stages.chat.store import Kept, Store, reply_key
from stages.core.errors import LibraError
from stages.tools import store as store_tool

BODY = {
    "model": "m",
    "messages": [{"role": "user", "content": "How is soap made?"}],
    "temperature": 0.0,
    "seed": 7,
}
REPLY = {
    "choices": [{"message": {"content": "By saponification."}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 9, "completion_tokens": 5},
}


def kept(i: int = 0) -> tuple[str, Kept]:
    body = {**BODY, "seed": i}
    return reply_key("http://h/v1", body, i), Kept(
        "craft", "http://h/v1", i, body, {**REPLY, "id": str(i)}
    )


def keep_all(opened: Store, count: int) -> None:
    async def go() -> None:
        async with asyncio.timeout(60):
            await asyncio.gather(*(opened.keep(*kept(i)) for i in range(count)))

    asyncio.run(go())


@pytest.fixture
def path(tmp_path):
    return tmp_path / ".cache" / "replies.sqlite"


def test_what_was_kept_is_found_by_another_process_s_connection(path):
    with Store(path) as first, Store(path) as second:
        keep_all(first, 1200)
        keys = [kept(i)[0] for i in range(1300)]
        found = second.find(keys)
        assert len(found) == 1200 and found[keys[7]] == ({**REPLY, "id": "7"}, None, 9, 5, None)
        assert second.totals() == [("craft", "m", 1200, 0, 9 * 1200, 5 * 1200, None)]


def test_the_key_is_made_of_all_that_decides_a_reply():
    key = reply_key("http://h/v1", BODY, 0)
    assert key == reply_key("http://h/v1/", dict(reversed(BODY.items())), 0)
    changes = [
        ("http://h2/v1", BODY, 0), ("http://h/v1", BODY, 1), ("http://h/v1", {**BODY, "model": "n"}, 0),
        ("http://h/v1", {**BODY, "temperature": 0.1}, 0), ("http://h/v1", {**BODY, "messages": []}, 0),
        ("http://h/v1", {**BODY, "response_format": {"type": "json_object"}}, 0),
    ]  # fmt: skip
    assert len({key, *(reply_key(*change) for change in changes)}) == 1 + len(changes)


def test_the_first_reply_stays(path):
    with Store(path) as opened:
        keep_all(opened, 1)
        key, other = kept(0)
        asyncio.run(
            opened.keep(
                key, Kept("craft", "http://h/v1", 0, other.request, {**REPLY, "id": "other"})
            )
        )
        assert opened.find([key])[key].reply["id"] == "0"


@pytest.mark.parametrize(
    "damage",
    [lambda raw: b"not a database" * 400, lambda raw: raw[:100] + b"\xff" * (len(raw) - 100)],
)
def test_an_unreadable_store_is_set_aside_and_named(path, capsys, damage):
    with Store(path) as opened:
        keep_all(opened, 50)
        opened._connection.execute("pragma wal_checkpoint(truncate)")
    path.write_bytes(damage(path.read_bytes()))
    with Store(path) as opened:
        assert opened.totals() == []
        keep_all(opened, 3)
    aside = list(path.parent.glob("replies.sqlite.unreadable-*"))
    assert len(aside) == 1 and aside[0].name in capsys.readouterr().err


def test_a_store_somebody_holds_is_an_error_that_says_so(path, monkeypatch):
    monkeypatch.setattr(store, "WAIT", 0.1)
    with Store(path) as opened:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("begin immediate")
        with pytest.raises(
            LibraError,
            match=r"1 replies can't be kept in .*replies.sqlite \(database is locked\); free the disk or stop",
        ):
            keep_all(opened, 1)
        other.execute("rollback")
        keep_all(opened, 1)
        assert opened.totals()[0][2] == 1


def test_all_else_goes_on_while_another_process_writes(path):
    """What comes in meanwhile waits on a thread of its own, not on that of the requests in flight."""

    async def go(opened, other):
        keeping = asyncio.gather(*(opened.keep(*kept(i)) for i in range(3)))
        turns, longest, last = 0, 0.0, time.monotonic()
        while turns < 20:
            await asyncio.sleep(0.01)
            now = time.monotonic()
            turns, longest, last = turns + 1, max(longest, now - last), now
        assert not keeping.done()
        other.execute("rollback")
        await keeping
        return longest

    with Store(path) as opened:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("begin immediate")
        assert asyncio.run(go(opened, other)) < 5, "seconds: far less than the store's WAIT"
        assert opened.totals()[0][2] == 3


def test_a_slow_disk_is_waited_for_on_another_thread(path, monkeypatch):
    threads, add = [], Store.add
    monkeypatch.setattr(store, "QUICK", 0.2)

    def slow(self, *rows):
        threads.append(threading.current_thread() is threading.main_thread())
        time.sleep(2 * store.QUICK if len(threads) < 3 else 0)
        return add(self, *rows)

    monkeypatch.setattr(Store, "add", slow)

    async def go(opened):
        for i in range(4):
            await opened.keep(*kept(i))

    with Store(path) as opened:
        asyncio.run(go(opened))
        assert opened.totals()[0][2] == 4
    assert threads == [True, False, False, True], (
        "here until it is slow, and again when it is no more"
    )


@pytest.mark.parametrize(
    "reply", ['{"choices": [', "[]", '{"choices": [{"message": "no object"}]}']
)
def test_a_damaged_reply_is_named_with_its_mend(path, tmp_path, monkeypatch, capsys, reply):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    with Store(path) as opened:
        keep_all(opened, 3)
        keys = [kept(i)[0] for i in range(3)]
        opened._connection.execute("update replies set reply = ? where key = ?", (reply, keys[1]))
        with pytest.raises(
            LibraError,
            match=rf"replies.sqlite holds a damaged reply \({keys[1]}\): `python -m stages.tools store retry`",
        ):
            opened.find(keys)
        store_tool._command("retry", None)
        assert capsys.readouterr().out.startswith("1 replies of no use") and set(
            opened.find(keys)
        ) == {keys[0], keys[2]}
        store_tool._command("faults", None)
        assert f"craft: damaged\n  {keys[1]}#" in capsys.readouterr().out, (
            "its text stays to be read"
        )


def test_a_store_of_an_older_version_is_set_aside_and_its_replies_can_be_taken_over(
    path, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    with Store(path) as opened:
        keep_all(opened, 20)
    older = sqlite3.connect(path)
    for column in ("fault", "usd", "bought"):
        older.execute(f"alter table replies drop column {column}")
    older.commit()
    older.close()
    with Store(path) as opened:
        assert opened.totals() == []
    (aside,) = path.parent.glob("replies.sqlite.unreadable-*")
    said = capsys.readouterr().err
    assert "other columns: key, stage" in said and said.count("\n") == 1
    assert (
        f"kept as {aside.name}, and a new one begun; `python -m stages.tools store import {aside}` takes its replies over"
        in said
    )
    store_tool._command("import", aside)
    store_tool._command("import", aside)
    assert capsys.readouterr().out == "20 of 20 replies were new\n0 of 20 replies were new\n"
    with Store(path) as opened:
        assert opened.find([kept(7)[0]])[kept(7)[0]] == (
            {**REPLY, "id": "7"},
            None,
            9,
            5,
            None,
        ) and opened.spent() == (0, 0, 0.0)


def test_what_is_no_store_to_take_over_is_an_error_that_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    file = tmp_path / "old.sqlite"
    with sqlite3.connect(file) as other:
        other.execute("create table replies (key text, reply text)")
    with pytest.raises(
        LibraError,
        match=r"old.sqlite lacks column base_url, completion_tokens, .*: its replies can't be taken over",
    ):
        store_tool._command("import", file)
    file.write_bytes(store.SQLITE + b"\xff" * 9000)
    with pytest.raises(LibraError, match=r"old.sqlite can't be read \(.*\); import an archive"):
        store_tool._command("import", file)


def test_what_another_process_with_the_run_s_name_pays_shows_at_the_next_reply(path, monkeypatch):
    def pay(opened: Store, i: int) -> None:
        key, reply = kept(i)
        asyncio.run(opened.keep(key, replace(reply, usd=0.25, used_by="craft")))

    with Store(path) as first, Store(path) as second:
        pay(first, 0)
        first.reckon()
        assert first.paid_elsewhere == (1, 14, 0.25)
        second.reckon()
        for i in (1, 2, 3):
            pay(second, i)
        assert first.paid_elsewhere == second.paid_elsewhere == (1, 14, 0.25), (
            "its own isn't elsewhere"
        )
        pay(first, 4)
        assert first.paid_elsewhere == (4, 56, 1.0)
        pay(first, 3)  # known already: it isn't paid for again
        monkeypatch.setenv("DVC_EXP_NAME", "another")
        pay(second, 5)
        monkeypatch.delenv("DVC_EXP_NAME")
        pay(first, 6)
        assert first.paid_elsewhere == (4, 56, 1.0) and first.spent() == (6, 84, 1.5)


def test_a_full_disk_keeps_what_was_there(path):
    with Store(path) as opened:
        keep_all(opened, 5)
        pages = opened._connection.execute("pragma page_count").fetchone()[0]
        opened._connection.execute(f"pragma max_page_count = {pages}")
        with pytest.raises(LibraError, match="replies can't be kept in .*full"):
            keep_all(opened, 500)
        assert opened.totals()[0][2] == 5


def test_a_reply_with_half_a_surrogate_pair_or_an_absurd_count_is_kept(path):
    odd = {**REPLY, "usage": {"prompt_tokens": 2**63, "completion_tokens": True}, "id": "\ud83d"}
    with Store(path) as opened:
        key = kept(0)[0]
        reply = Kept("craft", "http://h/v1", 0, {**BODY, "user": "\udc00"}, odd, fault="\ud800")
        asyncio.run(asyncio.wait_for(opened.keep(key, reply), 10))
        assert opened.find([key])[key] == (odd, "\\ud800", 12, 5, None)
        assert json.loads(opened.rows()[0][5])["user"] == "\udc00"


def test_whatever_keeps_a_reply_from_the_disk_is_told_to_all_who_wait(path, monkeypatch):
    with Store(path) as opened:
        row = Kept.row
        monkeypatch.setattr(
            Kept, "row", lambda self, key: (*row(self, key)[:8], 2**63, *row(self, key)[9:])
        )
        with pytest.raises(OverflowError):
            keep_all(opened, 3)
        monkeypatch.undo()
        keep_all(opened, 3)
        assert opened.totals()[0][2] == 3, "the store goes on"


def test_a_store_that_can_t_be_read_any_more_is_an_error_that_says_so(path):
    with Store(path) as opened:
        opened._connection.execute("drop table replies")
        opened._connection.execute("drop table batches")
        for read in (lambda: opened.find(["k"]), opened.spent, lambda: opened.average("u", "m", "s"), lambda: opened.batches("u"),
                     opened.totals, opened.rows):  # fmt: skip
            with pytest.raises(
                LibraError,
                match=r"can't be read from .*replies.sqlite \(no such table: \w+\); free the disk or stop",
            ):
                read()


def test_what_is_measured_beside_the_pipeline_goes_into_no_archive(path, monkeypatch):
    with Store(path) as opened:
        for i, run in enumerate(("", "try-beta-1", "benchmark my-model", "pairwise dpo sft")):
            monkeypatch.setenv("DVC_EXP_NAME", run)
            key, reply = kept(i)
            asyncio.run(opened.keep(key, replace(reply, used_by="respond")))
        assert [row[0] for row in opened.rows(used=True)] == sorted(kept(i)[0] for i in (0, 1))


def test_what_was_put_aside_stays_paid_and_no_archive_brings_it_back(
    path, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    key, good = kept(0)
    bad_key, bad = kept(1)
    with Store(path) as opened:
        for one, reply in ((key, good), (bad_key, replace(bad, fault="not JSON"))):
            asyncio.run(opened.keep(one, replace(reply, used_by="craft")))
        store_tool._command("export", tmp_path / "replies" / "a.parquet")
        assert opened.retry("craft", unfit={key: "twice the same"}) == 2 and opened.spent() == (
            2,
            28,
            0.0,
        )
        opened.use("craft", [key, bad_key], anew=True)
        assert opened.spent() == (2, 28, 0.0) and opened.rows(used=True) == []
        assert (
            opened.archived([key, bad_key], tmp_path / "replies")
            == 0
            == len(opened.find([key, bad_key]))
        )
        store_tool._command("import", tmp_path / "replies" / "a.parquet")
        assert opened.find([key, bad_key]) == {}
        asyncio.run(opened.keep(key, replace(good, reply={**REPLY, "id": "new"}, used_by="craft")))
        assert opened.spent() == (3, 42, 0.0) and [row[0] for row in opened.rows(used=True)] == [
            key
        ]
        capsys.readouterr()
        store_tool._command("faults", None)
        said = capsys.readouterr().out
        assert (
            f"craft: not JSON\n  {bad_key}#" in said
            and "craft: twice the same" in said
            and said.count("By saponification") == 2
        )


@pytest.mark.parametrize("used", [False, True])
def test_of_no_replies_no_archive_is_written(path, tmp_path, monkeypatch, used):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    if used:  # ... by what is measured beside the pipeline
        monkeypatch.setenv("DVC_EXP_NAME", "pairwise dpo sft")
        with Store(path) as opened:
            keep_all(opened, 1)
    with pytest.raises(
        LibraError,
        match=r"replies.sqlite holds no replies .*, so \S+ isn't written; what `offline` answers is never kept",
    ):
        store_tool._command("export", tmp_path / "a.parquet", used)
    assert not (tmp_path / "a.parquet").exists()


def test_an_archive_goes_into_another_store(path, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    with Store(path) as opened:
        keep_all(opened, 20)
    archive = tmp_path / "a" / "replies.parquet"
    store_tool._command("export", archive)
    first = archive.read_bytes()
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "b"))
    store_tool._command("import", archive)
    store_tool._command("import", archive)
    store_tool._command("show", None)
    said = capsys.readouterr().out
    assert (
        "20 of 20 replies were new" in said
        and "0 of 20 replies were new" in said
        and "20 replies          180 + 100 tokens, no price" in said
    )
    store_tool._command("export", archive)
    assert archive.read_bytes() == first
    assert json.loads(pl.read_parquet(archive)["request"][0])["model"] == "m"


class Server:
    """A chat server on a port of its own that counts what it is sent and answers with the prompt, or with `says`."""

    def __init__(self):
        self.bodies, self.says, self.latency = [], last_user_text, 0.0
        chat = make_app("m", lambda body: self.bodies.append(body) or self.says(body))

        async def app(scope, receive, send):
            if self.latency:
                await asyncio.sleep(self.latency)
            await chat(scope, receive, send)

        self._server = uvicorn.Server(
            uvicorn.Config(app, port=0, log_level="error", lifespan="off")
        )
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        self.url = f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}/v1"

    def sent(self) -> int:
        """How many requests came in since the last call."""
        count = len(self.bodies)
        self.bodies.clear()
        return count

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(10)


@pytest.fixture
def server():
    started = Server()
    yield started
    started.stop()


def requests(*texts: str, system: str = "You are brief.") -> list[ChatRequest]:
    return [
        ChatRequest([{"role": "system", "content": system}, {"role": "user", "content": text}])
        for text in texts
    ]


def test_an_edit_asks_for_exactly_what_it_changes(server):
    texts = [f"prompt {i}" for i in range(60)]

    def run(rows, random_seed=7, system="You are brief.", **changes):
        replies = ask_all(
            endpoint(server.url, **changes),
            requests(*rows, system=system),
            "edit",
            random_seed=random_seed,
        )
        assert [reply.content for reply in replies] == list(rows)
        return server.sent()

    assert run(texts) == 60
    assert run(texts) == 0 == run(texts[::-1]) == run(texts[10:])
    assert run([*texts, "one", "more"]) == 2
    assert run([f"{text}!" if i < 5 else text for i, text in enumerate(texts)]) == 5
    assert run(texts, timeout_s=20.0, concurrency=2, api_key_env="ANOTHER") == 0
    assert (
        run(texts, temperature=0.6)
        == run(texts, max_tokens=101)
        == run(texts, system="Be long.")
        == run(texts, random_seed=8)
        == 60
    )


def test_a_reply_of_no_use_is_never_taken_for_a_good_one(server, path):
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    asked = [ChatRequest([{"role": "user", "content": "a"}], "number", schema)]
    server.says = lambda body: "no JSON"
    first = Session("bad", 0)
    assert first.ask(endpoint(server.url), asked, "bad")[0].error and server.sent() == 3
    assert ask_all(endpoint(server.url), asked, "bad")[0].error and server.sent() == 0, (
        "the same result without asking"
    )
    with Store(path) as opened:
        assert opened.totals()[0][2:4] == (3, 3)
    server.says = lambda body: '{"n": 1}'
    first.give_up()  # the stage fails: the next run asks once more
    assert ask_all(endpoint(server.url), asked, "bad")[0].parsed == {"n": 1} and server.sent() == 1
    assert ask_all(endpoint(server.url), asked, "bad")[0].parsed == {"n": 1} and server.sent() == 0
    with Store(path) as opened:
        assert opened.totals()[0][2:4] == (4, 3), "what was of no use stays to be read"
