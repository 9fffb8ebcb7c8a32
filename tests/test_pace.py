"""The pace of requests to a server that refuses some of them."""

import asyncio
import signal
import time

import pytest

from helpers.asking import (
    ask_all,
    endpoint,
    make_app,
    on_port,
    start,
    texts,
)
from stages.chat.offline import last_user_text
from stages.chat.pace import CUT, Pace
from stages.tools.serving.fault_injection import Faults


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
        run.send_signal(signal.SIGINT)
        output = run.communicate(timeout=30)[1]  # half of the Retry-After
    assert run.returncode == 130 and "requests are left" in output
