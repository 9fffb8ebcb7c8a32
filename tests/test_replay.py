"""Archives, unreadable replies and reports: what was bought once is never bought again."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.asking import (
    PRICE,
    ask_all,
    endpoint,
    make_app,
    number,
    numbers,
    on_port,
)
from helpers.dag import ROOT
from stages.chat import client, store
from stages.chat.budget import BudgetParams
from stages.chat.client import Session
from stages.chat.offline import OfflineApp, last_user_text
from stages.chat.store import Store
from stages.core.errors import Interrupted
from stages.tools import store as store_tool
from stages.tools.estimate import Rehearsal
from stages.tools.serving.fault_injection import Faults


@pytest.fixture
def path(tmp_path):
    return tmp_path / ".cache" / "replies.sqlite"


def test_a_releases_archive_replays_without_a_request(tmp_path, monkeypatch):
    served = Faults(make_app("m", number))
    with on_port(served) as url:
        first = Session("craft", 0).ask(endpoint(url, usd_per_million=PRICE), numbers(40), "craft")
        ask_all(endpoint(url), numbers(3), "other", random_seed=1)
        with Store(tmp_path / ".cache/replies.sqlite") as stored:
            stored.use("other", [], replace=True)  # an edit: the stage uses none of its old replies
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
        output = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        assert output.startswith("40 replies written to")
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
        with Store(other) as stored:
            assert stored.totals()[0][2] == 40 and stored.spent() == (0, 0, 0.0), (
                "an archive's replies are nobody's spending"
            )


def test_an_archive_with_unusable_replies_replays_them_too(tmp_path, monkeypatch):
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
            with Store(store.store_path()) as stored:
                assert stored.spent().requests == sent == len(stored.rows(used=True))
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


def test_a_stage_that_gave_up_has_paid_for_what_it_retired(path):
    answers = ["no JSON"] * 3 + ['{"n": 0}']
    with on_port(make_app("m", lambda body: answers.pop(0))) as url:
        session = Session("craft", 0)
        session.ask(endpoint(url), numbers(1), "craft")
        session.give_up()
        assert ask_all(endpoint(url), numbers(1), "craft")[0].parsed == {"n": 0}
    with Store(path) as stored:
        assert stored.spent().requests == 4


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "text", "text": "0"}],
        '{"n": ' + "9" * 5000 + "}",
        "[" * 100_000,
        '{"n": "\\ud800"}',
    ],
)
def test_a_reply_that_cant_be_read_is_kept_with_its_fault(path, content):
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
    with Store(path) as stored:
        assert stored.totals()[0][2:4] == (3, 3)


def test_an_interrupted_stage_writes_no_report(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Interrupted), Session("s", 0):
        raise Interrupted("stopped")
    assert not Path("data").exists()
