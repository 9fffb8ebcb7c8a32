"""Caps on what a pipeline run spends, and prices."""

import pytest

from helpers.asking import (
    KEY,
    PRICE,
    ask_all,
    endpoint,
    make_app,
    numbers,
    on_port,
    start,
    texts,
)
from stages.chat.budget import Budget, BudgetParams, OverBudget, price_of
from stages.chat.client import Session
from stages.chat.offline import last_user_text
from stages.chat.records import Spent
from stages.chat.store import Store
from stages.core.errors import LibraError
from stages.tools.serving.fault_injection import Faults


@pytest.fixture
def path(tmp_path):
    return tmp_path / ".cache" / "replies.sqlite"


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
        output = [run.communicate(timeout=60)[1] for run in runs]
    assert [run.returncode for run in runs] == [1, 1] and all(
        "budget.max_requests = 150 is reached" in text for text in output
    ), output
    assert 150 <= served.served["chat"] <= 150 + 2 * 8
    with Store(tmp_path / ".cache/replies.sqlite") as stored:
        assert stored.spent().requests == served.served["chat"]


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


def test_an_unusable_reply_costs_too(path):
    with on_port(make_app("m", lambda body: "no JSON")) as url:
        session = Session("useless", 0)
        session.ask(endpoint(url, usd_per_million=PRICE), numbers(1), "useless")
        tally = vars(session.tallies["useless"])
        assert tally | {"wall_s": 0, "costs": [round(usd, 9) for usd in tally["costs"]]} == {
            "base_url": url, "model": "m", "mode": "online", "price": "params",
            "requests": 1, "unusable": 3, "quarantined": 0,
            "prompt_tokens": 24, "completion_tokens": 6, "costs": 3 * [0.012],
            "from_store": 0, "from_archive": 0, "received": 3, "retries": 0, "refusals": 0,
            "wall_s": 0,
        }  # fmt: skip
    with Store(path) as stored:
        assert stored.spent().requests == 3
