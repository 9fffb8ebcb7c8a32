"""The Batch API as a mode of the same client: interchangeable with online replies, resumed after a kill, re-sent where it failed."""

import json
import signal
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
    number,
    numbers,
    on_port,
    reply_keys,
    start,
    texts,
)
from stages.chat import batches, sender, wire
from stages.chat.budget import BudgetParams, OverBudget, Pricing
from stages.chat.client import Session
from stages.chat.offline import RequestError, last_user_text
from stages.chat.store import Store
from stages.core.errors import LibraError
from stages.tools.serving import batch_api
from stages.tools.serving.fault_injection import Faults



@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(batches, "POLL_FIRST", 0.02)
    monkeypatch.setattr(batches, "POLL_LONGEST", 0.1)
    monkeypatch.setattr(wire, "LONGEST_PAUSE", 0.02)


def test_online_and_batch_replies_are_interchangeable(tmp_path):
    served = Faults(make_app("m", number))
    with on_port(served) as url:
        first = ask_all(endpoint(url, mode="batch"), numbers(30), "batch")
        assert [reply.parsed for reply in first] == [{"n": i} for i in range(30)]
        assert ask_all(endpoint(url), numbers(30), "online") == first
        assert (served.served["chat"], served.served["batches"]) == (0, 1)
        ask_all(endpoint(url), numbers(40), "online")
        assert ask_all(endpoint(url, mode="batch"), numbers(40), "batch")[:30] == first
        assert (served.served["chat"], served.served["batches"]) == (10, 1)
    with Store(tmp_path / ".cache/replies.sqlite") as kept:
        assert kept.batches(url) == []


def test_lines_that_fail_are_sent_again_and_replies_of_no_use_asked_for_again():
    served = Faults(make_app("m", number), fail_share=0.2, malformed_share=0.1, random_seed=4)
    with on_port(served) as url:
        session = Session("batch", 0)
        replies = session.ask(endpoint(url, mode="batch"), numbers(60), "batch")
    assert [reply.parsed for reply in replies] == [{"n": i} for i in range(60)]
    assert served.served["batches"] >= 2 and session.tallies["batch"].unusable > 0


def test_what_expired_is_sent_again_and_what_fails_three_times_stops():
    served = Faults(make_app("m", number), expire_after=25)
    with on_port(served) as url:
        assert len(ask_all(endpoint(url, mode="batch"), numbers(60), "batch")) == 60
        assert served.served["batches"] == 3
        served.expire_after = 0
        with pytest.raises(
            LibraError, match="5 requests failed in 3 batches .*expired.*run again later"
        ):
            ask_all(endpoint(url, mode="batch"), numbers(65), "batch")


def test_an_error_no_other_try_can_mend_stops_but_keeps_the_rest():
    def answer(body):
        if last_user_text(body) == "prompt 3":
            raise RequestError("the prompt is too long", status=400)
        return last_user_text(body)

    with on_port(make_app("m", answer)) as url, pytest.raises(
        LibraError,
        match="refused the request with 400: the prompt is too long.*1 of 20 requests are left",
    ):
        ask_all(endpoint(url, mode="batch"), texts(20), "batch")


def test_a_server_without_schemas_gets_json_mode_in_the_next_batch():
    served = Faults(make_app("m", number), no_schema=True)
    with on_port(served) as url:
        assert [
            reply.parsed for reply in ask_all(endpoint(url, mode="batch"), numbers(9), "batch")
        ] == [{"n": i} for i in range(9)]
    assert served.served["batches"] == 2


def test_a_batch_that_fails_as_a_whole_says_why(monkeypatch):
    monkeypatch.setattr(asgi_batches, "MAX_LINES", 2)
    with on_port(make_app("m", number)) as url:
        with pytest.raises(LibraError, match="batch batch_.* failed as a whole: .*2"):
            ask_all(endpoint(url, mode="batch"), numbers(3), "batch")
        with pytest.raises(LibraError, match="answered 404: the model `other` does not exist"):
            ask_all(endpoint(url, "other", mode="batch"), numbers(2), "batch")


@pytest.mark.parametrize("moment", ["between", "waiting"])
def test_a_killed_run_finds_its_batch_again(tmp_path, moment, monkeypatch):
    """Killed while it waits, or (simulated) between the server's taking the batch and its id's being noted."""
    served = Faults(make_app("m", last_user_text), latency_s=0.4)
    with on_port(served) as url:
        if moment == "waiting":
            run = start(url, 60, tmp_path, "batch")
            under_way(run, served)
            run.kill()
            run.communicate()
        else:

            def killed(self, mark, server_id):
                raise KeyboardInterrupt

            noted = Store.set_batch_id
            monkeypatch.setattr(Store, "set_batch_id", killed)
            monkeypatch.setattr(
                "stages.chat.client.store_path", lambda: tmp_path / ".cache" / "replies.sqlite"
            )
            with pytest.raises(KeyboardInterrupt):
                ask_all(endpoint(url, mode="batch"), texts(60), "run")
            monkeypatch.setattr(Store, "set_batch_id", noted)
        run = start(url, 60, tmp_path, "batch")
        said = run.communicate(timeout=60)[1]
    assert run.returncode == 0, said
    assert (served.served["batches"], served.served["chat"]) == (1, 0)


def under_way(run, served: Faults) -> None:
    """Wait until the server works on a batch of the process `run`, and a little more."""
    until(run, lambda: served.served["batches"])
    time.sleep(0.2)


def until(run, happened) -> None:
    """Wait for `happened()` while the process `run` goes on."""
    while not happened():
        assert run.poll() is None
        time.sleep(0.01)


def test_ctrl_c_leaves_the_batch_to_the_server_and_the_next_run_fetches_it(tmp_path):
    served = Faults(make_app("m", last_user_text), latency_s=0.4)
    with on_port(served) as url:
        run = start(url, 60, tmp_path, "batch")
        under_way(run, served)
        run.send_signal(signal.SIGINT)
        said = run.communicate(timeout=30)[1]
        assert (
            run.returncode == 130
            and "go on at the server, and the next run fetches them" in said
            and "Traceback" not in said
        )
        run = start(url, 60, tmp_path, "batch")
        said = run.communicate(timeout=60)[1]
        assert run.returncode == 0, said
    assert served.served["batches"] == 1


def test_two_runs_at_once_share_a_batch(tmp_path):
    served = Faults(make_app("m", last_user_text), latency_s=0.3)
    with on_port(served) as url:
        runs = [start(url, 60, tmp_path, "batch") for _ in range(2)]
        said = [run.communicate(timeout=60)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    assert (served.served["batches"], served.served["chat"]) == (1, 0)


def test_a_server_that_lost_its_batch_gets_a_new_one(tmp_path):
    with on_port(make_app("m", last_user_text)) as url:
        with Store(tmp_path / ".cache/replies.sqlite") as kept:
            kept.begin_batch("mark", url, reply_keys(endpoint(url), texts(5)))
            kept.set_batch_id("mark", "batch_of_yesterday")
        assert len(ask_all(endpoint(url, mode="batch"), texts(5), "batch")) == 5


def test_a_cap_holds_back_what_may_not_fit_and_a_higher_one_goes_on():
    served = Faults(make_app("m", last_user_text))
    with on_port(served) as url:
        # before anything is known, a request may cost its 2 or 3 + 100 tokens: the first wave is small, the next ones know better
        to = endpoint(url, mode="batch", usd_per_million=PRICE)
        session = Session("batch", 0, BudgetParams(max_tokens=3000))
        with pytest.raises(
            OverBudget, match="budget.max_tokens = 3000 is reached: this pipeline run has paid for"
        ):
            session.ask(to, texts(600), "batch")
        spent = session.tallies["batch"]
        assert (
            2500 < spent.prompt_tokens + spent.completion_tokens <= 3000
            and served.served["batches"] >= 2
        )
        assert len(ask_all(to, texts(600), "batch", budget=BudgetParams(max_tokens=30_000))) == 600


def test_what_a_batch_brings_beyond_what_is_asked_is_kept_for_the_run_that_asks(tmp_path):
    """The rows were edited while the batch was under way, or another run collects it."""
    served = Faults(make_app("m", last_user_text), latency_s=0.3)
    with on_port(served) as url:
        run = start(url, 60, tmp_path, "batch")
        under_way(run, served)
        run.kill()
        run.communicate()
        to = endpoint(url, mode="batch")  # as the run's
        assert len(ask_all(to, texts(5), "run")) == 5
        session = Session("run", 0, BudgetParams(max_requests=60))
        assert [reply.content for reply in session.ask(to, texts(60), "run")] == [
            f"prompt {i}" for i in range(60)
        ]
        assert served.served["batches"] == 1 and session.tallies["run"].received == 55
    with Store(tmp_path / ".cache/replies.sqlite") as kept:
        assert len(kept.rows()) == 60 and not kept.unasked(row[0] for row in kept.rows())


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
    """Its rows were edited; nobody waits for it while it is under way, and once it is done an edit back costs nothing."""
    served = Faults(make_app("m", last_user_text), latency_s=0.4)
    with on_port(served) as url:
        left_under_way(tmp_path, url, served)
        edited = [replace(request, sample_index=1) for request in texts(5)]
        ask_all(endpoint(url, mode=mode), edited, "run")
        with Store(tmp_path / ".cache/replies.sqlite") as kept:
            assert len(kept.batches(url)) == 1
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
    with Store(tmp_path / ".cache/replies.sqlite") as kept:
        keys = [row[0] for row in kept.rows()]
        assert (
            len(keys) == 70
            and kept.unasked(keys) == {}
            and kept.batches(url) == []
            and kept.spent().requests == 60
        )


def test_a_batch_nobody_asks_for_that_can_t_be_fetched_stops_nothing(tmp_path, capsys):
    inner = make_app("m", last_user_text)

    async def app(scope, receive, send):
        if not scope.get("path", "").startswith("/v1/batches"):
            return await inner(scope, receive, send)
        await send({"type": "http.response.start", "status": 403, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    with on_port(app) as url:
        with Store(tmp_path / ".cache/replies.sqlite") as kept:
            kept.begin_batch("mark", url, ["another key"])
            kept.set_batch_id("mark", "batch_1")
        assert len(ask_all(endpoint(url), texts(5), "run")) == 5
        assert (
            "batch batch_1, of which nothing is asked for any more, is left at the server"
            in capsys.readouterr().err
        )
        with Store(tmp_path / ".cache/replies.sqlite") as kept:
            kept.begin_batch("ours", url, reply_keys(endpoint(url), texts(6)))
            kept.set_batch_id("ours", "batch_2")
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


ODD = [b"<html>", b"[" * 100_000, b'{"n": ' + b"9" * 5000 + b"}", b"[]", b"{}", b"null"]


@pytest.mark.parametrize("body", ODD, ids=["html", "deep", "digits", "list", "empty", "null"])
@pytest.mark.parametrize("kind", [b"application/json", b"text/html"])
def test_odd_answers_about_files_and_batches_are_tried_again(kind, body):
    inner = Faults(make_app("m", last_user_text))
    calls, created = {}, []

    async def app(scope, receive, send):
        called = (scope.get("method"), scope.get("path"))
        calls[called] = calls.get(called, 0) + 1
        if scope["type"] != "http" or calls[called] > 1 or "content" in called[1]:
            return await inner(scope, receive, send)
        if called == ("POST", "/v1/batches"):  # the server takes it, and only its answer is odd
            created.append(1)

            async def swallow(message):
                pass

            await inner(scope, receive, swallow)
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]}
        )
        await send({"type": "http.response.body", "body": body})

    with on_port(app) as url:
        assert len(ask_all(endpoint(url, mode="batch"), texts(5), "batch")) == 5
    assert created and inner.served["batches"] == (2 if body == b"{}" else 1), (
        "{} is a list of no batches"
    )


@pytest.mark.parametrize(
    "result", ["[" * 100_000, '{"n": ' + "9" * 5000 + "}", '{"custom_id": []}', "7", '{"custom_id": KEY, "response": 3, "error": []}',
               '{"custom_id": KEY, "response": {"status_code": "400", "body": {"error": "no"}}, "error": "no"}']
)  # fmt: skip
def test_odd_lines_of_a_result_are_sent_again(result):
    inner, spoiled = Faults(make_app("m", last_user_text)), []

    async def app(scope, receive, send):
        if spoiled or not scope.get("path", "").endswith("/content"):
            return await inner(scope, receive, send)

        async def spoil(message):
            if body := message.get("body"):
                spoiled.append(1)
                first, rest = body.split(b"\n", 1)
                odd = result.replace("KEY", json.dumps(json.loads(first)["custom_id"])).encode()
                await send({**message, "body": odd + b"\n" + rest})
            else:
                head = [pair for pair in message.get("headers", []) if pair[0] != b"content-length"]
                await send({**message, "headers": head} if "headers" in message else message)

        await inner(scope, receive, spoil)

    with on_port(app) as url:
        replies = ask_all(endpoint(url, mode="batch"), texts(5), "batch")
        assert [reply.content for reply in replies] == [f"prompt {i}" for i in range(5)]
    assert spoiled and inner.served["batches"] == 2


@pytest.mark.parametrize("hung", ["/v1/files", "/v1/batches/batch_"])
def test_ctrl_c_doesnt_wait_for_a_server_that_hangs(tmp_path, hung):
    inner, waiting = make_app("m", last_user_text), []

    async def app(scope, receive, send):
        if not scope.get("path", "").startswith(hung):
            return await inner(scope, receive, send)
        waiting.append(1)
        while (await receive())["type"] != "http.disconnect":
            pass

    with on_port(app) as url:
        run = start(url, 5, tmp_path, "batch")
        until(run, lambda: waiting)
        began = time.monotonic()
        run.send_signal(signal.SIGINT)
        said = run.communicate(timeout=30)[1]
    assert run.returncode == 130 and "Traceback" not in said and time.monotonic() - began < 5, said


def test_a_second_ctrl_c_gives_up_a_batch_being_made_and_the_next_run_finds_it(tmp_path):
    served, hung = Faults(make_app("m", last_user_text)), []

    async def app(scope, receive, send):
        if (scope.get("method"), scope.get("path")) != ("POST", "/v1/batches") or hung:
            return await served(scope, receive, send)

        async def swallow(message):
            pass

        await served(scope, receive, swallow)
        hung.append(1)
        while (await receive())["type"] != "http.disconnect":
            pass

    with on_port(app) as url:
        run = start(url, 5, tmp_path, "batch")
        until(run, lambda: hung)
        run.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert run.poll() is None, "it waits to hear of the batch"
        began = time.monotonic()
        run.send_signal(signal.SIGINT)
        said = run.communicate(timeout=30)[1]
        assert run.returncode == 130 and "Traceback" not in said and time.monotonic() - began < 3, (
            said
        )
        run = start(url, 5, tmp_path, "batch")
        said = run.communicate(timeout=60)[1]
    assert run.returncode == 0 and served.served["batches"] == 1, said
