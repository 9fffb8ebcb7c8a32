"""Batches that another run left under way: joined, collected, never paid twice."""

import time
from dataclasses import replace
from pathlib import Path

import openai
import pytest

from helpers.asking import (
    PRICE,
    ask_all,
    endpoint,
    make_app,
    on_port,
    reply_keys,
    start,
    texts,
    under_way,
)
from stages.chat import batches, sender, wire
from stages.chat.budget import BudgetParams, OverBudget, Pricing
from stages.chat.client import Session
from stages.chat.offline import last_user_text
from stages.chat.store import Store
from stages.core.errors import LibraError
from stages.tools.serving.fault_injection import Faults


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(batches, "POLL_FIRST", 0.02)
    monkeypatch.setattr(batches, "POLL_LONGEST", 0.1)
    monkeypatch.setattr(wire, "LONGEST_PAUSE", 0.02)


def left_under_way(run_in: Path, url: str, served: Faults, count: int = 60) -> None:
    """A killed run of `count` requests whose batch goes on at the server."""
    run = start(url, count, run_in, "batch")
    under_way(run, served)
    run.kill()
    run.communicate()


def test_online_a_batch_under_way_is_waited_for_and_not_paid_twice(tmp_path, capsys):
    served = Faults(make_app("m", last_user_text), latency_s=0.3)
    with on_port(served) as url:
        left_under_way(tmp_path, url, served)
        session = Session("run", 0, BudgetParams(max_requests=70))
        replies = session.ask(endpoint(url), texts(70), "run")
    assert [reply.content for reply in replies] == [f"prompt {i}" for i in range(70)]
    assert (served.served["batches"], served.served["chat"]) == (1, 10) and session.tallies[
        "run"
    ].received == 70
    assert "waiting for a batch with 60 of the requests, which is paid" in capsys.readouterr().err


def test_online_what_a_batch_cancelled_at_the_server_left_is_asked_for(tmp_path):
    served = Faults(make_app("m", last_user_text), latency_s=0.2)
    with on_port(served) as url:
        left_under_way(tmp_path, url, served)
        server = openai.OpenAI(base_url=url, api_key="none")
        server.batches.cancel(server.batches.list().data[0].id)
        assert len(ask_all(endpoint(url), texts(60), "run")) == 60
    assert served.served["batches"] == 1 and 0 < served.served["chat"] < 60


@pytest.mark.parametrize("mode", ["online", "batch"])
def test_a_batch_nothing_of_which_is_asked_for_any_more_is_collected_for_later(tmp_path, mode):
    """Its rows were edited: nothing waits for it, and once it is done an edit back is free."""
    served = Faults(make_app("m", last_user_text), latency_s=0.4)
    with on_port(served) as url:
        left_under_way(tmp_path, url, served)
        edited = [replace(request, sample_index=1) for request in texts(5)]
        ask_all(endpoint(url, mode=mode), edited, "run")
        with Store(tmp_path / ".cache/replies.sqlite") as stored:
            assert len(stored.batches(url)) == 1
        while (
            openai.OpenAI(base_url=url, api_key="none").batches.list().data[-1].status
            != "completed"
        ):
            time.sleep(0.05)
        edited = [replace(request, sample_index=2) for request in texts(5)]
        ask_all(endpoint(url, mode=mode), edited, "run")
        before = dict(served.served)
        to = endpoint(url, "m", mode=mode, usd_per_million=PRICE)
        session = Session("run", 0, BudgetParams(max_requests=60))
        assert len(session.ask(to, texts(60), "run")) == 60
        assert served.served == before and session.tallies["run"].received == 60
    with Store(tmp_path / ".cache/replies.sqlite") as stored:
        keys = [row[0] for row in stored.rows()]
        assert (
            len(keys) == 70
            and stored.unasked(keys) == {}
            and stored.batches(url) == []
            and stored.spent().requests == 60
        )


def test_a_batch_nobody_asks_for_that_cant_be_fetched_stops_nothing(tmp_path, capsys):
    inner = make_app("m", last_user_text)

    async def app(scope, receive, send):
        if not scope.get("path", "").startswith("/v1/batches"):
            return await inner(scope, receive, send)
        await send({"type": "http.response.start", "status": 403, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    with on_port(app) as url:
        with Store(tmp_path / ".cache/replies.sqlite") as stored:
            stored.begin_batch("mark", url, ["another key"])
            stored.set_batch_id("mark", "batch_1")
        assert len(ask_all(endpoint(url), texts(5), "run")) == 5
        assert (
            "batch batch_1, of which nothing is asked for any more, is left at the server"
            in capsys.readouterr().err
        )
        with Store(tmp_path / ".cache/replies.sqlite") as stored:
            stored.begin_batch("ours", url, reply_keys(endpoint(url), texts(6)))
            stored.set_batch_id("ours", "batch_2")
        with pytest.raises(LibraError, match="answered 403"):
            ask_all(endpoint(url), texts(6), "run")


def test_what_a_batch_brought_costs_what_a_batch_costs(monkeypatch):
    """... also when it is asked for online."""
    half = (
        Pricing("table", lambda prompt, completion, usage: 0.5),
        Pricing("table", lambda prompt, completion, usage: 1.0),
    )
    monkeypatch.setattr(sender, "price_of", lambda to: half[to.mode == "online"])

    def stopped(*_):
        raise KeyboardInterrupt

    with on_port(make_app("m", last_user_text)) as url:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(batches.Batches, "_collect", stopped)
            ask_all(endpoint(url, mode="batch"), texts(20), "run")
        session = Session("run", 0)
        session.ask(endpoint(url), texts(30), "run")
        assert session.tallies["run"].usd == 20 * 0.5 + 10 * 1.0


@pytest.mark.parametrize("fault", ["cut", "error"])
def test_a_batch_the_server_took_without_our_hearing_it_isnt_made_again(fault):
    """Its answer was cut off, or a proxy between answered in its place."""
    inner = Faults(make_app("m", last_user_text))
    calls = []

    async def app(scope, receive, send):
        if (scope.get("method"), scope.get("path")) != ("POST", "/v1/batches") or calls:
            return await inner(scope, receive, send)
        calls.append(1)

        async def swallow(message):
            pass

        await inner(scope, receive, swallow)
        status, length = (502, b"0") if fault == "error" else (200, b"999")
        await send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [(b"content-length", length)],
            }
        )
        await send({"type": "http.response.body", "body": b""})

    with on_port(app) as url:
        assert len(ask_all(endpoint(url, mode="batch"), texts(20), "batch")) == 20
    assert calls and inner.served["batches"] == 1


def test_a_batch_under_way_is_collected_before_a_cap_stops_and_counts_towards_it(tmp_path):
    served = Faults(make_app("m", last_user_text))
    with on_port(served) as url:
        to = endpoint(url, mode="batch")

        def stopped(*_):
            raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(batches.Batches, "_collect", stopped)
            ask_all(to, texts(20), "batch")
        session = Session("batch", 0, BudgetParams(max_requests=30))
        with pytest.raises(
            OverBudget, match="max_requests = 30 .*paid for 30 replies.*30 of 60 requests are left"
        ):
            session.ask(to, texts(60), "batch")
        assert session.tallies["batch"].received == 30 and served.served["batches"] == 2
        # no room at all: what is under way comes in all the same
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(batches.Batches, "_collect", stopped)
            ask_all(to, texts(50), "batch")
        with pytest.raises(OverBudget, match="paid for 50 replies.*10 of 30 requests are left"):
            ask_all(to, texts(60), "batch", budget=BudgetParams(max_tokens=31))


def test_replies_of_a_batch_are_kept_in_few_writes(monkeypatch):
    writes, add = [], Store.add

    def counted(self, rows, used=()):
        writes.append(len(rows))
        return add(self, rows, used)

    monkeypatch.setattr(Store, "add", counted)
    with on_port(make_app("m", last_user_text)) as url:
        assert len(ask_all(endpoint(url, mode="batch"), texts(700), "batch")) == 700
    assert sum(writes) == 700 and len(writes) <= 4


def test_a_line_separator_in_a_reply_doesnt_lose_its_line():
    with on_port(Faults(make_app("m", lambda body: "one\u2028two\x85three"))) as url:
        assert (
            ask_all(endpoint(url, mode="batch"), texts(3), "batch")[2].content
            == "one\u2028two\x85three"
        )
