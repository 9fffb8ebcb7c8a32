"""A session under everything that goes wrong with servers, keys, money, disks and processes: nothing is lost or paid twice."""

import asyncio
import json
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from helpers.asking import (
    KEY,
    PRICE,
    SCHEMA,
    ask_all,
    endpoint,
    make_app,
    number,
    numbers,
    on_port,
    start,
    texts,
)
from helpers.dag import ROOT
from stages.chat import client, schema, store, wire
from stages.chat.budget import Budget, BudgetParams, OverBudget, price_of
from stages.chat.client import Session
from stages.chat.offline import OfflineApp, RequestError, last_user_text
from stages.chat.pace import CUT, Pace
from stages.chat.protocol import ChatRequest
from stages.chat.records import Spent
from stages.chat.store import Store
from stages.core import cli
from stages.core.errors import Interrupted, LibraError
from stages.tools import store as store_tool
from stages.tools.estimate import Rehearsal
from stages.tools.serving.fault_injection import Faults

@pytest.fixture
def path(tmp_path):
    return tmp_path / ".cache" / "replies.sqlite"


@pytest.fixture
def brisk(monkeypatch):
    monkeypatch.setattr(wire, "LONGEST_PAUSE", 0.02)


# --- faults of servers -------------------------------------------------------------------------------------------------------


def test_failing_cut_malformed_and_garbled_replies_are_asked_for_again(brisk, path):
    shares = {"fail_share": 0.1, "cut_share": 0.05, "malformed_share": 0.06, "garbage_share": 0.05}
    faulty = Faults(make_app("m", number), **shares, random_seed=3)
    with on_port(faulty) as url:
        replies = ask_all(endpoint(url), numbers(150), "faults")
        assert [reply.parsed for reply in replies] == [{"n": i} for i in range(150)]
        before = dict(faulty.served)
        assert ask_all(endpoint(url), numbers(150), "faults") == replies
        assert faulty.served == before and before["failed"] > 15
    with Store(path) as kept:
        good = kept.totals()[0][2] - kept.totals()[0][3]
        assert good == 150 and kept.totals()[0][3] > 3, (
            "malformed replies are kept with their fault"
        )


def test_a_reply_over_the_length_limit_is_never_kept_as_a_good_one(path):
    with on_port(Faults(make_app("m", last_user_text), length_share=1.0)) as url:
        asked = [ChatRequest([{"role": "user", "content": '{"n": 12345}'}], "number", SCHEMA)]
        (cut,) = ask_all(endpoint(url), asked, "length")
        assert cut.error == "cut off at max_tokens" and cut.parsed is None
        (plain,) = ask_all(endpoint(url), texts(1), "length")
        assert plain.error is None and plain.finish_reason == "length", (
            "a candidate's cut answer is measured as what it is"
        )
    with Store(path) as kept:
        assert kept.totals()[0][2:4] == (4, 4), "each has its fault"


def test_a_server_that_hangs_is_left_after_timeout_s(monkeypatch):
    monkeypatch.setattr(wire, "MAX_RETRIES", 1)
    hanging = Faults(make_app("m", last_user_text), hang_share=1.0)
    with (
        on_port(hanging) as url,
        pytest.raises(LibraError, match="took longer than 0.2 s, 2 times: raise timeout_s"),
    ):
        ask_all(endpoint(url, timeout_s=0.2), texts(2), "hang")


def test_half_a_reply_is_named(brisk):
    with on_port(Faults(make_app("m", last_user_text), cut_share=1.0)) as url, pytest.raises(
        LibraError,
        match="broke the connection in the middle of a reply, 5 times: see the server's log",
    ):
        ask_all(endpoint(url), texts(2), "half")


def test_garbage_is_named(brisk):
    with on_port(Faults(make_app("m", last_user_text), garbage_share=1.0)) as url:
        with pytest.raises(
            LibraError, match="didn't answer with JSON: is this the address of a chat API"
        ):
            ask_all(endpoint(url), texts(2), "garbage")


def test_an_unknown_host_is_named(brisk):
    with pytest.raises(
        LibraError,
        match="the name `no-such-host.invalid` isn't known to DNS: mend base_url or the network",
    ):
        ask_all(endpoint("http://no-such-host.invalid/v1"), texts(2), "dns")


def test_a_bad_certificate_is_named(brisk, tmp_path):
    made = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        "k.pem",
        "-out",
        "c.pem",
        "-days",
        "1",
    ]
    subprocess.run([*made, "-subj", "/CN=localhost"], cwd=tmp_path, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "c.pem", tmp_path / "k.pem")
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    raw, _ = listening.accept()
                except OSError:
                    return
                try:
                    context.wrap_socket(raw, server_side=True).close()
                except OSError:
                    raw.close()

        threading.Thread(target=serve, daemon=True).start()
        url = f"https://127.0.0.1:{listening.getsockname()[1]}/v1"
        with pytest.raises(
            LibraError, match=r"has no good TLS certificate \(.*self.signed.*\): mend base_url"
        ):
            ask_all(endpoint(url), texts(1), "tls")
        listening.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_what_no_other_try_can_mend_stops_at_once(status):
    tried = []

    def answer(body):
        tried.append(1)
        raise RequestError("no", status=status)

    with on_port(make_app("m", answer)) as url, pytest.raises(LibraError, match=str(status)):
        ask_all(endpoint(url, concurrency=3), texts(50), "stop")
    assert len(tried) <= 3


def test_the_error_of_one_request_loses_none_of_the_others():
    def answer(body):
        if last_user_text(body) == "prompt 5":
            raise RequestError("the prompt is too long", status=400)
        return last_user_text(body)

    with on_port(Faults(make_app("m", answer), latency_s=0.05)) as url:
        with pytest.raises(
            LibraError,
            match=r"refused the request with 400: the prompt is too long.*\(\d\d of 50 requests are left",
        ):
            ask_all(endpoint(url, concurrency=8), texts(50), "one")


# --- what a server doesn't know ----------------------------------------------------------------------------------------------


def test_a_server_without_schemas_is_asked_in_json_mode_then_in_plain_text():
    forms = []

    def answer(body):
        form = (body.get("response_format") or {}).get("type")
        forms.append(form)
        if form is not None and form != answer.takes:
            raise RequestError(
                f"response_format of type {form} is not supported", "response_format"
            )
        return f"Here you are:\n```json\n{number(body)}\n```" if form is None else number(body)

    with on_port(make_app("m", answer)) as url:
        answer.takes = "json_object"
        assert [
            reply.parsed for reply in ask_all(endpoint(url, concurrency=1), numbers(3), "json")
        ] == [{"n": i} for i in range(3)]
        assert forms == ["json_schema", "json_object", "json_object", "json_object"]
        forms.clear()
        answer.takes = None
        again = ask_all(endpoint(url, concurrency=1), numbers(5), "text")
        assert [reply.parsed for reply in again] == [{"n": i} for i in range(5)]
        assert forms == ["json_schema", "json_object", None, None], (
            "what was kept in JSON mode isn't asked for again"
        )


def test_a_server_that_wants_max_completion_tokens_gets_it():
    bodies = []

    def answer(body):
        bodies.append(body)
        if "max_tokens" in body:
            raise RequestError(
                "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.",
                "max_tokens",
            )
        return last_user_text(body)

    with on_port(make_app("m", answer)) as url:
        assert len(ask_all(endpoint(url, concurrency=1), texts(3), "limit")) == 3
    assert [("max_tokens" in body, body.get("max_completion_tokens")) for body in bodies] == [
        (True, None)
    ] + [(False, 100)] * 3


@pytest.mark.parametrize(
    "text",
    [
        '```json\n{"n": 7}\n```',
        'Sure! {"n": 7} Anything else?',
        '{"no": 1} or rather {"n": 7}',
        ' {"n": 7}\n\n',
    ],
)
def test_an_object_wrapped_in_words_is_found(text):
    (reply,) = ask_all(endpoint(), numbers(1), "wrapped", make_app("m", lambda body: text))
    assert reply.parsed == {"n": 7}


def test_a_content_filter_before_a_structured_reply_is_of_no_use_and_kept_as_such(path):
    def answer(body):
        raise RequestError("The response was filtered", status=400, code="content_filter")

    with on_port(make_app("m", answer)) as url:
        session = Session("filter", 0)
        (reply,) = session.ask(endpoint(url), numbers(1), "filter")
        assert (
            reply.error == "stopped by the server's content filter"
            and session.tallies["filter"].unusable == 3
        )
        (candidate,) = ask_all(endpoint(url), texts(1), "filter")
        assert candidate.error is None and candidate.finish_reason == "content_filter"
    with Store(path) as kept:
        assert kept.totals()[0][2:4] == (4, 4)


# --- pace --------------------------------------------------------------------------------------------------------------------


def test_a_capped_server_refuses_few():
    capped = Faults(make_app("m", last_user_text), rate_limit=150)
    with on_port(capped) as url:
        replies = ask_all(endpoint(url, concurrency=64), texts(900), "capped")
    assert [reply.content for reply in replies] == [f"prompt {i}" for i in range(900)]
    assert capped.served["chat"] == 900 and 0 < capped.served["refused"] <= 0.2 * 900


class Clock:
    """Time that passes only when somebody sleeps."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr("stages.chat.pace.time.monotonic", lambda: self.now)
        monkeypatch.setattr("stages.chat.pace.asyncio.sleep", self.sleep)

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_pace_is_cut_once_per_round_and_grows_again(monkeypatch):
    clock, pace = Clock(monkeypatch), Pace()

    async def go() -> list[float]:
        first = [await pace.turn() for _ in range(30)][0]
        assert clock.now == 100.0, "no pace before the first refusal"
        for _ in range(10):
            pace.refused(first, None)  # 20 of 30 were taken
        second = await pace.turn()
        assert clock.now == 101.0, "nothing starts for a second"
        rates = [pace._rate]
        clock.now += 0.1
        for _ in range(5):
            pace.refused(second, None)
        rates.append(pace._rate)
        third = [await pace.turn() for _ in range(200)][0]
        pace.refused(third, None)  # it started after the last cut
        return [*rates, pace._rate]

    first, second, third = asyncio.run(go())
    assert first == 20 and second == pytest.approx(20 * 1.01 * CUT, rel=0.01)
    assert 10 < clock.now - 101 < 13, "two hundred turns at 17 to 20 a second"
    assert third == pytest.approx((second + 0.02 * 20.2 * (clock.now - 101.1)) * CUT, rel=0.05)


def test_retry_after_holds_all_requests_back(monkeypatch):
    clock, pace = Clock(monkeypatch), Pace()

    async def go() -> None:
        started = await pace.turn()
        pace.refused(started, 30.0)
        await pace.turn()

    asyncio.run(go())
    assert 130 <= clock.now < 132


def test_a_stop_doesnt_wait_for_a_far_retry_after(tmp_path):
    capped = Faults(make_app("m", last_user_text), rate_limit=5, retry_after=60)
    with on_port(capped) as url:
        run = start(url, 100, tmp_path)
        while not capped.served["refused"]:
            assert run.poll() is None
            time.sleep(0.01)
        time.sleep(0.3)
        began = time.monotonic()
        run.send_signal(signal.SIGINT)
        said = run.communicate(timeout=30)[1]
    assert run.returncode == 130 and "requests are left" in said and time.monotonic() - began < 5


# --- budget ------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(
    ("cap", "most"),
    # ten replies of 2 + 2 tokens and 0.006 USD, then 3 + 3 tokens and 0.009 USD
    [({"max_requests": 30}, 30), ({"max_tokens": 150}, 29), ({"max_usd": 0.2}, 26)],
)
def test_a_cap_stops_cleanly_and_a_higher_one_goes_on(cap, most):
    served = Faults(make_app("m", last_user_text), latency_s=0.005)
    with on_port(served) as url:
        asked = {"usd_per_million": PRICE, "concurrency": 2}
        with pytest.raises(
            OverBudget,
            match=rf"budget.{next(iter(cap))} = .* is reached: .* raise the cap and run again",
        ):
            ask_all(endpoint(url, **asked), texts(60), "cap", budget=BudgetParams(**cap))
        first = served.served["chat"]
        assert most - 3 <= first <= most + 1
        with pytest.raises(OverBudget):
            ask_all(endpoint(url, **asked), texts(60), "cap", budget=BudgetParams(**cap))
        assert served.served["chat"] <= most + 1, "the same cap again buys nothing more"
        higher = BudgetParams(**{key: value * 10 for key, value in cap.items()})
        assert len(ask_all(endpoint(url, **asked), texts(60), "cap", budget=higher)) == 60
        assert served.served["chat"] == 60
        assert (
            len(ask_all(endpoint(url, **asked), texts(60), "cap", budget=BudgetParams(**cap))) == 60
        ), "what is kept is free"


def test_the_cap_is_one_for_all_stages_of_a_run_and_each_experiment_has_its_own(monkeypatch):
    with on_port(make_app("m", last_user_text)) as url:
        caps = BudgetParams(max_requests=30)
        Session("craft", 0, caps).ask(endpoint(url), texts(20), "craft")
        with pytest.raises(OverBudget, match="has paid for 30 replies"):
            Session("rephrase", 1, caps).ask(endpoint(url), texts(20), "rephrase")
        Session("craft", 2, caps).ask(
            endpoint(url), texts(20), "craft"
        )  # edited: the old replies of craft don't count any more
        monkeypatch.setenv("DVC_EXP_NAME", "other")
        Session("rephrase", 3, caps).ask(endpoint(url), texts(30), "rephrase")


def test_two_processes_of_one_run_keep_one_cap(tmp_path):
    """Each asks for its own; the cap is passed by no more than what both have in flight."""
    served = Faults(make_app("m", last_user_text), latency_s=0.02)
    with on_port(served) as url:
        runs = [start(url, 400, tmp_path, stage=name, cap="150") for name in ("craft", "rephrase")]
        said = [run.communicate(timeout=60)[1] for run in runs]
    assert [run.returncode for run in runs] == [1, 1] and all(
        "budget.max_requests = 150 is reached" in one for one in said
    ), said
    assert 150 <= served.served["chat"] <= 150 + 2 * 8
    with Store(tmp_path / ".cache/replies.sqlite") as kept:
        assert kept.spent().requests == served.served["chat"]


def test_a_cap_in_usd_needs_a_price(monkeypatch):
    monkeypatch.setenv("TEST_LLM_KEY", KEY)
    with pytest.raises(LibraError, match="has no price in the price table.*usd_per_million"):
        ask_all(
            endpoint("http://127.0.0.1:9/v1"), texts(1), "price", budget=BudgetParams(max_usd=1.0)
        )
    known = endpoint("https://api.openai.com/v1", "gpt-4o-mini")
    pricing = price_of(known)
    assert pricing.source.startswith("genai-prices ")
    usage = {"prompt_tokens_details": {"cached_tokens": 1_000_000}}
    assert pricing.usd(1_000_000, 1_000_000, {}) == pytest.approx(0.15 + 0.6)
    assert pricing.usd(1_000_000, 0, usage) == pytest.approx(0.075)
    assert price_of(known.model_copy(update={"mode": "batch"})).usd(
        1_000_000, 1_000_000, {}
    ) == pytest.approx(0.375)
    assert price_of(endpoint("https://api.openai.com/v1", "no-such-model")) is None
    Budget(BudgetParams(max_usd=1.0), known, pricing, lambda: Spent(0, 0, 0.0)).admit()


def test_a_reply_of_no_use_costs_too(path):
    with on_port(make_app("m", lambda body: "no JSON")) as url:
        session = Session("useless", 0)
        session.ask(endpoint(url, usd_per_million=PRICE), numbers(1), "useless")
        tally = vars(session.tallies["useless"])
        assert tally | {"wall_s": 0, "costs": [round(usd, 9) for usd in tally["costs"]]} == {
            "base_url": url, "model": "m", "mode": "online", "price": "params", "requests": 1, "from_store": 0, "from_archive": 0,
            "received": 3, "retries": 0, "refusals": 0, "unusable": 3, "quarantined": 0, "prompt_tokens": 24,
            "completion_tokens": 6, "costs": 3 * [0.012], "wall_s": 0,
        }  # fmt: skip
    with Store(path) as kept:
        assert kept.spent().requests == 3


# --- disks, clocks, processes ------------------------------------------------------------------------------------------------


def test_a_full_disk_stops_the_stage_and_keeps_what_was_there(path, monkeypatch):
    with on_port(make_app("m", last_user_text)) as url:
        ask_all(endpoint(url), texts(20), "disk")
        opened = schema.open_database

        def small(file):
            connection = opened(file)
            connection.execute(
                f"pragma max_page_count = {connection.execute('pragma page_count').fetchone()[0] + 2}"
            )
            return connection

        monkeypatch.setattr(schema, "open_database", small)
        with pytest.raises(LibraError, match="can't be stored in .*full.*free the disk"):
            ask_all(endpoint(url), texts(500), "disk")
        monkeypatch.setattr(schema, "open_database", opened)
        assert len(ask_all(endpoint(url), texts(500), "disk")) == 500


HOLD = """
import sqlite3, sys
held = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=0.2)
held.execute("pragma locking_mode = exclusive")
held.execute("begin exclusive")
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def held(path):
    """The store, locked as a whole by another process."""
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as other:
        yield other.stdout.readline()
        other.communicate()


def test_a_store_locked_by_another_process_is_one_line_and_loses_nothing(path, monkeypatch, capsys):
    served = Faults(make_app("m", last_user_text))
    with on_port(served) as url:
        ask_all(endpoint(url), texts(20), "locked")
        monkeypatch.setattr(store, "WAIT", 0.3)
        with held(path) as said:
            assert said == "held\n"
            with pytest.raises(
                SystemExit,
                match=r"^run: error: .*replies.sqlite can't be opened \(database is locked\); free the disk or stop what",
            ):
                cli.guarded("run", lambda: ask_all(endpoint(url), texts(40), "locked"))
        assert served.served["chat"] == 20, "nothing was asked for that couldn't be kept"
        with Store(path) as opened:
            with held(path) as said:
                assert said == "", "while a run has it open, nobody locks it against reading"
            assert len(opened.find(row[0] for row in opened.rows())) == 20
        assert (
            len(ask_all(endpoint(url), texts(40), "locked")) == 40 and served.served["chat"] == 40
        )


def test_a_store_locked_against_reading_is_one_line_and_loses_nothing(path, monkeypatch):
    """As a network file system does it, whose locks SQLite can't share: simulated in the reader."""
    served = Faults(make_app("m", last_user_text))
    read = Store._read
    with on_port(served) as url:

        class Locked:
            def execute(self, *_):
                raise store.sqlite3.OperationalError("database is locked")

            def close(self):
                pass

        def locked(self, query, values=()):
            if served.served["chat"] >= 10:
                self._reader = Locked()
            return read(self, query, values)

        monkeypatch.setattr(Store, "_read", locked)
        with pytest.raises(
            LibraError,
            match=r"can't be read from .*\(database is locked\); free the disk.*requests are left; what came in is kept",
        ):
            ask_all(endpoint(url, concurrency=2), texts(40), "locked")
        monkeypatch.setattr(Store, "_read", read)
        assert 10 <= served.served["chat"] <= 12
        assert (
            len(ask_all(endpoint(url), texts(40), "locked")) == 40 and served.served["chat"] == 40
        )


def test_a_clock_that_jumps_changes_nothing(monkeypatch):
    jumps = iter(range(10**9, 0, -(10**6)))
    monkeypatch.setattr(store.time, "time", lambda: next(jumps))
    with on_port(make_app("m", last_user_text)) as url:
        assert len(ask_all(endpoint(url), texts(50), "clock")) == 50
        assert len(ask_all(endpoint(url), texts(50), "clock")) == 50


def test_two_runs_at_once_never_ask_for_the_same_thing(tmp_path):
    served = Faults(make_app("m", last_user_text), latency_s=0.02)
    with on_port(served) as url:
        runs = [start(url, 400, tmp_path) for _ in range(2)]
        said = [run.communicate(timeout=60)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    assert served.served["chat"] == 400


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_lets_what_is_in_flight_come_in(tmp_path, number):
    served = Faults(make_app("m", last_user_text), latency_s=0.15)
    with on_port(served) as url:
        run = start(url, 100, tmp_path)
        while served.served["chat"] < 16:
            assert run.poll() is None
            time.sleep(0.01)
        run.send_signal(number)
        said = run.communicate(timeout=30)[1]
        assert run.returncode == 130, said
        done = served.served["chat"]
        assert (
            done < 100
            and f"{100 - done} of 100 requests are left; what came in is kept" in said
            and "Traceback" not in said
        )
        assert not (tmp_path / "data/generation/run.json").exists()
        run = start(url, 100, tmp_path)
        said = run.communicate(timeout=30)[1]
    assert (
        run.returncode == 0
        and served.served["chat"] == 100
        and f"{done} from the store" in said
    )


def test_ten_kills_lose_and_repeat_at_most_what_is_in_flight(tmp_path):
    import random

    lots = random.Random(5)
    seen = []
    served = Faults(
        make_app("m", lambda body: seen.append(last_user_text(body)) or last_user_text(body)),
        latency_s=0.01,
    )
    with on_port(served) as url:
        for _ in range(10):
            run = start(url, 400, tmp_path)
            until = len(seen) + lots.randrange(1, 36)
            while len(seen) < until and run.poll() is None:
                time.sleep(0.001)
            run.kill()
            run.communicate()
        run = start(url, 400, tmp_path)
        said = run.communicate(timeout=60)[1]
    assert run.returncode == 0, said
    assert set(seen) == {f"prompt {i}" for i in range(400)} and len(seen) <= 400 + 10 * 8
    with Store(tmp_path / ".cache/replies.sqlite") as kept:
        assert kept.totals()[0][2:4] == (400, 0)


# --- archives, records, keys -------------------------------------------------------------------------------------------------


def test_a_release_s_archive_replays_without_a_request(tmp_path, monkeypatch):
    served = Faults(make_app("m", number))
    with on_port(served) as url:
        first = Session("craft", 0).ask(endpoint(url, usd_per_million=PRICE), numbers(40), "craft")
        ask_all(endpoint(url), numbers(3), "other", random_seed=1)
        with Store(tmp_path / ".cache/replies.sqlite") as kept:
            kept.use("other", [], replace=True)  # an edit: the stage uses none of its old replies
        monkeypatch.setenv("DVC_ROOT", str(tmp_path))
        monkeypatch.chdir(tmp_path)
        command = [
            sys.executable,
            "-m",
            "stages.tools",
            "store",
            "export",
            "--used",
            str(tmp_path / "data/replies/v1.parquet"),
        ]
        said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert said.startswith("40 replies written to")
        other = tmp_path / "b" / ".cache" / "replies.sqlite"
        monkeypatch.setattr(client, "store_path", lambda: other)
        before = dict(served.served)
        with Session("craft", 0, BudgetParams(max_requests=0)) as session:
            assert session.ask(endpoint(url, usd_per_million=PRICE), numbers(40), "craft") == first
        assert served.served == before
        tally = session.tallies["craft"]
        assert (tally.from_archive, tally.from_store, tally.received) == (40, 40, 0)
        written = json.loads(Path("data/generation/craft.json").read_text())["craft"]
        assert written == tally.report() and tally.wall_s == 0
        assert written["usd"] == pytest.approx(40 * 0.012, rel=0.3)
        with Store(other) as kept:
            assert kept.totals()[0][2] == 40 and kept.spent() == (0, 0, 0.0), (
                "an archive's replies are nobody's spending"
            )


def test_an_archive_with_replies_of_no_use_replays_them_too(tmp_path, monkeypatch):
    """Its first attempts lead to the next ones; all of them are noted as used, on every run."""

    def answer(body):  # the seed tells the attempt: 0, 1000, 2000
        return "no JSON" if int(last_user_text(body)) % 4 > body["seed"] // 1000 else number(body)

    served = Faults(make_app("m", answer))
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with on_port(served) as url:
        first = ask_all(endpoint(url), numbers(40), "craft")
        sent = served.served["chat"]
        assert (
            sent == 10 * (1 + 2 + 3 + 3) and sum(reply.error is not None for reply in first) == 10
        )
        for _ in range(2):
            with Store(store.store_path()) as kept:
                assert kept.spent().requests == sent == len(kept.rows(used=True))
            assert ask_all(endpoint(url), numbers(40), "craft") == first
        store_tool.run("export", Path("data/replies/v1.parquet"), used=True)
        monkeypatch.setattr(
            client, "store_path", lambda: tmp_path / "b" / ".cache" / "replies.sqlite"
        )
        session = Session("craft", 0, BudgetParams(max_requests=0))
        assert session.ask(endpoint(url), numbers(40), "craft") == first
        assert session.tallies["craft"].from_archive == sent == served.served["chat"]

        monkeypatch.setattr(
            "stages.tools.estimate.store_path", lambda: tmp_path / "c" / ".cache" / "replies.sqlite"
        )
        Rehearsal.estimates = {}
        Rehearsal("craft", 0).ask(endpoint(url), numbers(40), "craft", OfflineApp({"m": number}))
        assert Rehearsal.estimates["craft"].to_send == 0


def test_a_stage_that_gave_up_has_paid_for_what_it_put_aside(path):
    answers = ["no JSON"] * 3 + ['{"n": 0}']
    with on_port(make_app("m", lambda body: answers.pop(0))) as url:
        session = Session("craft", 0)
        session.ask(endpoint(url), numbers(1), "craft")
        session.give_up()
        assert ask_all(endpoint(url), numbers(1), "craft")[0].parsed == {"n": 0}
    with Store(path) as kept:
        assert kept.spent().requests == 4


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "text", "text": "0"}],
        '{"n": ' + "9" * 5000 + "}",
        "[" * 100_000,
        '{"n": "\\ud800"}',
    ],
)
def test_a_reply_that_can_t_be_read_is_kept_with_its_fault(path, content):
    async def app(scope, receive, send):
        usage = {"prompt_tokens": 10**30, "completion_tokens": "7", "prompt_tokens_details": []}
        body = json.dumps(
            {
                "choices": [{"message": {"content": content}, "finish_reason": ["stop"]}],
                "usage": usage,
            }
        ).encode()
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"content-type", b"application/json")],
            }
        )
        await send({"type": "http.response.body", "body": body})

    with on_port(app) as url:
        (reply,) = ask_all(endpoint(url), numbers(1), "odd")
        assert reply.error and ask_all(endpoint(url), numbers(1), "odd") == [reply]
    with Store(path) as kept:
        assert kept.totals()[0][2:4] == (3, 3)


def test_the_key_is_in_nothing_that_is_written(tmp_path, monkeypatch, capfd, brisk):
    """A server that repeats the key it got, in replies and in errors."""
    monkeypatch.setenv("TEST_LLM_KEY", KEY)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_LOG", "debug")
    got = []

    def answer(body):
        if last_user_text(body) == "prompt 9":
            raise RequestError(f"Incorrect API key provided: {KEY}", status=401)
        return f"your key is {KEY}"

    inner = make_app("m", answer)

    async def app(scope, receive, send):
        got.append(dict(scope.get("headers") or {}).get(b"authorization"))
        await inner(scope, receive, send)

    with on_port(app) as url:
        for mode in ("online", "batch"):
            with Session("keys", 0) as session:
                session.ask(endpoint(url, mode=mode), texts(5 if mode == "online" else 8), "keys")
        with pytest.raises(LibraError) as caught:
            ask_all(endpoint(url), texts(12), "keys")
    assert f"Bearer {KEY}".encode() in got, "it was sent"
    store_tool.run("export", Path("data/replies/all.parquet"))
    with Store(tmp_path / ".cache/replies.sqlite") as kept:
        assert "***" in kept.rows()[0][6]
    import polars as pl

    said = capfd.readouterr()
    written = [
        str(caught.value),
        said.out,
        said.err,
        str(pl.read_parquet("data/replies/all.parquet").to_dicts()),
    ]
    written += [
        file.read_bytes().decode("latin-1") for file in tmp_path.rglob("*") if file.is_file()
    ]
    assert len(written) > 6 and not any(KEY in text for text in written)


@pytest.mark.parametrize("mode", ["online", "batch"])
@pytest.mark.parametrize("repeats", ["a header", "a reply", "an error"])
def test_the_key_is_in_no_log_of_the_client_s_own(tmp_path, monkeypatch, mode, repeats):
    """The libraries below log what they send and get where OPENAI_LOG asks for it; the server repeats the key it got."""
    monkeypatch.setenv("OPENAI_LOG", "debug")
    got = []

    def answer(body):
        if repeats == "an error" and last_user_text(body) == "prompt 3":
            raise RequestError(f"Incorrect API key provided: {KEY}", status=401)
        return f"your key is {KEY}" if repeats == "a reply" else last_user_text(body)

    inner = make_app("m", answer)

    async def app(scope, receive, send):
        async def echo(message):
            if "headers" in message and repeats == "a header":
                message = {
                    **message,
                    "headers": [
                        *message["headers"],
                        (b"x-your-key", KEY.encode()),
                        (b"x-request-id", KEY.encode()),
                    ],
                }
            await send(message)

        got.append(dict(scope.get("headers") or {}).get(b"authorization"))
        await inner(scope, receive, echo)

    with on_port(app) as url:
        run = start(url, 5, tmp_path, mode, stdout=subprocess.PIPE)
        said = "".join(run.communicate(timeout=60))
    assert f"Bearer {KEY}".encode() in got and "DEBUG" in said, "it was sent, and the log is on"
    assert run.returncode == (repeats != "a header"), said
    written = [
        file.read_bytes().decode("latin-1") for file in tmp_path.rglob("*") if file.is_file()
    ]
    assert len(written) > 1 and not [text for text in (said, *written) if KEY in text]


def test_an_interrupted_stage_writes_no_report(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Interrupted), Session("s", 0):
        raise Interrupted("stopped")
    assert not Path("data").exists()
