"""A session under full disks, locks, stops and kills: nothing is lost or paid twice."""

import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from helpers.asking import (
    ask_all,
    endpoint,
    make_app,
    on_port,
    start,
    texts,
)
from stages.chat import database, migrations, store
from stages.chat.offline import last_user_text
from stages.chat.store import Store
from stages.core import cli
from stages.core.errors import LibraError
from stages.tools.serving.fault_injection import Faults


@pytest.fixture
def path(tmp_path):
    return tmp_path / ".cache" / "replies.sqlite"


def test_a_full_disk_stops_the_stage_and_keeps_what_was_there(path, monkeypatch):
    with on_port(make_app("m", last_user_text)) as url:
        ask_all(endpoint(url), texts(20), "disk")
        opened = migrations.open_database

        def small(file):
            connection = opened(file)
            pages = connection.execute("pragma page_count").fetchone()[0]
            connection.execute(f"pragma max_page_count = {pages + 2}")
            return connection

        monkeypatch.setattr(database, "open_database", small)
        with pytest.raises(LibraError, match="can't be stored in .*full.*free the disk"):
            ask_all(endpoint(url), texts(500), "disk")
        monkeypatch.setattr(database, "open_database", opened)
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
        monkeypatch.setattr(migrations, "WAIT", 0.3)
        with held(path) as output:
            assert output == "held\n"
            with pytest.raises(
                SystemExit,
                match=r"^run: error: .*replies.sqlite can't be opened \(database is locked\); ",
            ):
                cli.guarded("run", lambda: ask_all(endpoint(url), texts(40), "locked"))
        assert served.served["chat"] == 20, "nothing was asked for that couldn't be kept"
        with Store(path) as opened:
            with held(path) as output:
                assert output == "", "while a run has it open, nobody locks it against reading"
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
            match=r"can't be read from .*\(database is locked\); free the disk.*"
            "requests are left; what came in is kept",
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
        output = [run.communicate(timeout=60)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], output
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
        output = run.communicate(timeout=30)[1]
        assert run.returncode == 130, output
        done = served.served["chat"]
        assert (
            done < 100
            and f"{100 - done} of 100 requests are left; what came in is kept" in output
            and "Traceback" not in output
        )
        assert not (tmp_path / "data/generation/run.json").exists()
        run = start(url, 100, tmp_path)
        output = run.communicate(timeout=30)[1]
    assert (
        run.returncode == 0 and served.served["chat"] == 100 and f"{done} from the store" in output
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
        output = run.communicate(timeout=60)[1]
    assert run.returncode == 0, output
    assert set(seen) == {f"prompt {i}" for i in range(400)} and len(seen) <= 400 + 10 * 8
    with Store(tmp_path / ".cache/replies.sqlite") as stored:
        assert stored.totals()[0][2:4] == (400, 0)
