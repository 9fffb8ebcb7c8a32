"""The reply store keeps what was received, and no stored reply is requested again."""

import asyncio
import json
import sqlite3
import threading
import time
from dataclasses import replace

import pytest

from helpers.asking import ask_all, endpoint, make_app, on_port
from helpers.stored import BODY, REPLY, keep_all, received
from stages.chat import migrations, store
from stages.chat.client import Session
from stages.chat.offline import last_user_text
from stages.chat.protocol import ChatRequest
from stages.chat.records import ReceivedReply, reply_key
from stages.chat.store import Store
from stages.core.errors import LibraError
from stages.tools import store as store_tool


@pytest.fixture
def path(tmp_path):
    return tmp_path / ".cache" / "replies.sqlite"


def test_stored_replies_are_found_by_another_process_s_connection(path):
    with Store(path) as first, Store(path) as second:
        keep_all(first, 1200)
        keys = [received(i)[0] for i in range(1300)]
        replies = second.find(keys)
        assert len(replies) == 1200
        assert replies[keys[7]] == ({**REPLY, "id": "7"}, None, 9, 5, None)
        assert second.totals() == [("craft", "m", 1200, 0, 9 * 1200, 5 * 1200, None)]


def test_the_key_depends_on_all_that_decides_a_reply():
    url = "http://h/v1"
    key = reply_key(url, BODY, 0)
    assert key == reply_key(f"{url}/", dict(reversed(BODY.items())), 0)
    changes = [
        ("http://h2/v1", BODY, 0),
        (url, BODY, 1),
        (url, {**BODY, "model": "n"}, 0),
        (url, {**BODY, "temperature": 0.1}, 0),
        (url, {**BODY, "messages": []}, 0),
        (url, {**BODY, "response_format": {"type": "json_object"}}, 0),
    ]
    assert len({key, *(reply_key(*change) for change in changes)}) == 1 + len(changes)


def test_the_first_reply_stays(path):
    with Store(path) as opened:
        keep_all(opened, 1)
        key, reply = received(0)
        asyncio.run(opened.keep(key, replace(reply, reply={**REPLY, "id": "other"})))
        assert opened.find([key])[key].reply["id"] == "0"


def test_a_store_held_by_another_process_is_an_error_that_says_so(path, monkeypatch):
    monkeypatch.setattr(migrations, "WAIT", 0.1)
    with Store(path) as opened:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("begin immediate")
        message = r"1 replies can't be stored in .*replies.sqlite \(database is locked\); free the"
        with pytest.raises(LibraError, match=message):
            keep_all(opened, 1)
        other.execute("rollback")
        other.close()
        keep_all(opened, 1)
        assert opened.totals()[0][2] == 1


def test_the_event_loop_goes_on_while_another_process_writes(path):
    """What comes in meanwhile waits on a thread of its own, not on that of the requests."""

    async def turns_while_locked(opened, other):
        keeping = asyncio.gather(*(opened.keep(*received(i)) for i in range(3)))
        for _ in range(20):
            await asyncio.sleep(0.01)
        assert not keeping.done()
        other.execute("rollback")
        await keeping

    with Store(path) as opened:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("begin immediate")
        asyncio.run(turns_while_locked(opened, other))
        other.close()
        assert opened.totals()[0][2] == 3


def test_a_slow_disk_is_waited_for_on_another_thread(path, monkeypatch):
    on_main_thread, add = [], Store.add
    monkeypatch.setattr(store, "QUICK", 0.2)

    def slow(self, *rows):
        on_main_thread.append(threading.current_thread() is threading.main_thread())
        time.sleep(2 * store.QUICK if len(on_main_thread) < 3 else 0)
        return add(self, *rows)

    monkeypatch.setattr(Store, "add", slow)

    async def keep_four(opened):
        for i in range(4):
            await opened.keep(*received(i))

    with Store(path) as opened:
        asyncio.run(keep_four(opened))
        assert opened.totals()[0][2] == 4
    # The main thread until the disk is slow, and again once it is quick.
    assert on_main_thread == [True, False, False, True]


@pytest.mark.parametrize(
    "reply", ['{"choices": [', "[]", '{"choices": [{"message": "no object"}]}']
)
def test_a_damaged_reply_is_named_with_its_fix(path, tmp_path, monkeypatch, capsys, reply):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    with Store(path) as opened:
        keep_all(opened, 3)
        keys = [received(i)[0] for i in range(3)]
        opened._connection.execute("update replies set reply = ? where key = ?", (reply, keys[1]))
        message = rf"holds a damaged reply \({keys[1]}\): run `python -m stages.tools store retry`"
        with pytest.raises(LibraError, match=message):
            opened.find(keys)
        store_tool.run("retry")
        assert capsys.readouterr().out.startswith("1 unusable replies")
        assert set(opened.find(keys)) == {keys[0], keys[2]}
        store_tool.run("faults")  # its text can still be read
        assert f"craft: damaged\n  {keys[1]}#" in capsys.readouterr().out


def test_what_other_processes_with_the_run_s_name_pay_shows_at_the_next_reply(path, monkeypatch):
    def pay(opened: Store, i: int) -> None:
        key, reply = received(i)
        asyncio.run(opened.keep(key, replace(reply, usd=0.25, used_by="craft")))

    with Store(path) as first, Store(path) as second:
        pay(first, 0)
        first.watch_spending()
        assert first.paid_elsewhere == (1, 14, 0.25)
        second.watch_spending()
        for i in (1, 2, 3):
            pay(second, i)
        # What a process pays itself isn't elsewhere.
        assert first.paid_elsewhere == second.paid_elsewhere == (1, 14, 0.25)
        pay(first, 4)
        assert first.paid_elsewhere == (4, 56, 1.0)
        pay(first, 3)  # stored already: it isn't paid for again
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
        with pytest.raises(LibraError, match="replies can't be stored in .*full"):
            keep_all(opened, 500)
        assert opened.totals()[0][2] == 5


def test_a_reply_with_half_a_surrogate_pair_or_an_absurd_token_count_is_stored(path):
    usage = {"prompt_tokens": 2**63, "completion_tokens": True}
    completion = {**REPLY, "usage": usage, "id": "\ud83d"}
    with Store(path) as opened:
        key = received(0)[0]
        body = {**BODY, "user": "\udc00"}
        reply = ReceivedReply("craft", "http://h/v1", 0, body, completion, fault="\ud800")
        asyncio.run(asyncio.wait_for(opened.keep(key, reply), 10))
        assert opened.find([key])[key] == (completion, "\\ud800", 12, 5, None)
        assert json.loads(opened.rows()[0][5])["user"] == "\udc00"


def test_an_error_that_keeps_a_reply_from_the_disk_reaches_all_who_wait(path, monkeypatch):
    with Store(path) as opened:
        row = ReceivedReply.row
        monkeypatch.setattr(
            ReceivedReply,
            "row",
            lambda self, key: (*row(self, key)[:8], 2**63, *row(self, key)[9:]),
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
        for read in (
            lambda: opened.find(["k"]),
            opened.spent,
            lambda: opened.average("u", "m", "s"),
            lambda: opened.batches("u"),
            opened.totals,
            opened.rows,
        ):
            message = r"can't be read from .*replies.sqlite \(no such table: \w+\); free the disk"
            with pytest.raises(LibraError, match=message):
                read()


def test_retired_replies_stay_paid_and_readable(path, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    (key, good), (bad_key, bad) = received(0), received(1)
    with Store(path) as opened:
        asyncio.run(opened.keep(key, replace(good, used_by="craft")))
        asyncio.run(opened.keep(bad_key, replace(bad, fault="not JSON", used_by="craft")))
        assert opened.retry("craft", unfit={key: "same text twice"}) == 2
        assert opened.spent() == (2, 28, 0.0) and opened.find([key, bad_key]) == {}
        opened.use("craft", [key, bad_key], replace=True)
        assert opened.spent() == (2, 28, 0.0) and opened.rows(used=True) == []

        new = replace(good, reply={**REPLY, "id": "new"}, used_by="craft")
        asyncio.run(opened.keep(key, new))
        assert opened.spent() == (3, 42, 0.0)
        assert [row[0] for row in opened.rows(used=True)] == [key]

        store_tool.run("faults")
        output = capsys.readouterr().out
        assert f"craft: not JSON\n  {bad_key}#" in output and "craft: same text twice" in output
        assert output.count("By saponification") == 2


def test_replies_a_stage_can_t_use_are_noted_until_they_are_retired(path):
    keys = [received(i)[0] for i in range(3)]
    with Store(path) as opened:
        keep_all(opened, 3)
        opened.use("craft", keys, replace=True)
        opened.note_unfit("craft", {keys[0]: "empty", keys[1]: "same text twice"})
        opened.note_unfit("craft", {keys[1]: "same text twice"})  # replaces the first note
        assert [(fault, key) for _, fault, key, _ in opened.faults()] == [
            ("same text twice", keys[1])
        ]
        assert opened.retry() == 1 and set(opened.find(keys)) == {keys[0], keys[2]}
        assert opened.retry() == 0 and opened.spent().requests == 3


def requests(*texts: str, system: str = "You are brief.") -> list[ChatRequest]:
    return [
        ChatRequest([{"role": "system", "content": system}, {"role": "user", "content": text}])
        for text in texts
    ]


def test_an_edit_sends_exactly_what_it_changes():
    texts = [f"prompt {i}" for i in range(60)]
    bodies = []

    def sent(rows, random_seed=7, system="You are brief.", **changes):
        """How many requests reach the server for `rows`."""
        bodies.clear()
        to = endpoint(url, **changes)
        replies = ask_all(to, requests(*rows, system=system), "edit", random_seed=random_seed)
        assert [reply.content for reply in replies] == list(rows)
        return len(bodies)

    with on_port(make_app("m", lambda body: bodies.append(body) or last_user_text(body))) as url:
        assert sent(texts) == 60
        assert sent(texts) == 0 == sent(texts[::-1]) == sent(texts[10:])
        assert sent([*texts, "one", "more"]) == 2
        assert sent([f"{text}!" if i < 5 else text for i, text in enumerate(texts)]) == 5
        assert sent(texts, timeout_s=20.0, concurrency=2, api_key_env="ANOTHER") == 0
        assert sent(texts, temperature=0.6) == sent(texts, max_tokens=101) == 60
        assert sent(texts, system="Be long.") == sent(texts, random_seed=8) == 60


def test_an_unusable_reply_is_never_taken_for_a_good_one(path):
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    question = [ChatRequest([{"role": "user", "content": "a"}], "number", schema)]
    bodies, contents = [], ["no JSON"]
    with on_port(make_app("m", lambda body: bodies.append(body) or contents[-1])) as url:
        first = Session("bad", 0)
        assert first.ask(endpoint(url), question, "bad")[0].error and len(bodies) == 3
        # The same result, without a request.
        assert ask_all(endpoint(url), question, "bad")[0].error and len(bodies) == 3
        with Store(path) as opened:
            assert opened.totals()[0][2:4] == (3, 3)

        contents.append('{"n": 1}')
        first.give_up()  # the stage fails: the next run asks once more
        for _ in range(2):
            assert ask_all(endpoint(url), question, "bad")[0].parsed == {"n": 1}
            assert len(bodies) == 4
        with Store(path) as opened:
            assert opened.totals()[0][2:4] == (4, 3), "the unusable ones can still be read"
