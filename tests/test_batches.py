"""The Batch API as a mode of the client: same replies as online, resumed after a kill."""

import signal

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
    under_way,
)
from stages.chat import batches, wire
from stages.chat.budget import BudgetParams, OverBudget
from stages.chat.client import Session
from stages.chat.offline import RequestError, last_user_text
from stages.chat.store import Store
from stages.core.errors import LibraError
from stages.tools.serving import batch_input
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
    with Store(tmp_path / ".cache/replies.sqlite") as stored:
        assert stored.batches(url) == []


def test_lines_that_fail_are_sent_again_and_unusable_replies_are_requested_again():
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


def test_an_error_retries_cant_fix_stops_but_keeps_the_rest():
    def answer(body):
        if last_user_text(body) == "prompt 3":
            raise RequestError("the prompt is too long", status=400)
        return last_user_text(body)

    with (
        on_port(make_app("m", answer)) as url,
        pytest.raises(
            LibraError,
            match="refused the request with 400: the prompt is too long.*1 of 20 requests are left",
        ),
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
    monkeypatch.setattr(batch_input, "MAX_LINES", 2)
    with on_port(make_app("m", number)) as url:
        with pytest.raises(LibraError, match="batch batch_.* failed as a whole: .*2"):
            ask_all(endpoint(url, mode="batch"), numbers(3), "batch")
        with pytest.raises(LibraError, match="answered 404: the model `other` does not exist"):
            ask_all(endpoint(url, "other", mode="batch"), numbers(2), "batch")


@pytest.mark.parametrize("moment", ["between", "waiting"])
def test_a_killed_run_finds_its_batch_again(tmp_path, moment, monkeypatch):
    """Killed while it waits, or (simulated) before the id of the batch is noted."""
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
        output = run.communicate(timeout=60)[1]
    assert run.returncode == 0, output
    assert (served.served["batches"], served.served["chat"]) == (1, 0)


def test_ctrl_c_leaves_the_batch_to_the_server_and_the_next_run_fetches_it(tmp_path):
    served = Faults(make_app("m", last_user_text), latency_s=0.4)
    with on_port(served) as url:
        run = start(url, 60, tmp_path, "batch")
        under_way(run, served)
        run.send_signal(signal.SIGINT)
        output = run.communicate(timeout=30)[1]
        assert (
            run.returncode == 130
            and "go on at the server, and the next run fetches them" in output
            and "Traceback" not in output
        )
        run = start(url, 60, tmp_path, "batch")
        output = run.communicate(timeout=60)[1]
        assert run.returncode == 0, output
    assert served.served["batches"] == 1


def test_two_runs_at_once_share_a_batch(tmp_path):
    served = Faults(make_app("m", last_user_text), latency_s=0.3)
    with on_port(served) as url:
        runs = [start(url, 60, tmp_path, "batch") for _ in range(2)]
        output = [run.communicate(timeout=60)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], output
    assert (served.served["batches"], served.served["chat"]) == (1, 0)


def test_a_server_that_lost_its_batch_gets_a_new_one(tmp_path):
    with on_port(make_app("m", last_user_text)) as url:
        with Store(tmp_path / ".cache/replies.sqlite") as stored:
            stored.begin_batch("mark", url, reply_keys(endpoint(url), texts(5)))
            stored.set_batch_id("mark", "batch_of_yesterday")
        assert len(ask_all(endpoint(url, mode="batch"), texts(5), "batch")) == 5


def test_a_cap_holds_back_what_may_not_fit_and_a_higher_one_goes_on():
    served = Faults(make_app("m", last_user_text))
    with on_port(served) as url:
        # Before anything is known, a request may cost its 2 or 3 + 100 tokens: the first wave is
        # small, the next ones know better.
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
    with Store(tmp_path / ".cache/replies.sqlite") as stored:
        assert len(stored.rows()) == 60 and not stored.unasked(row[0] for row in stored.rows())
