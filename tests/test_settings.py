"""Settings of a run (budget, connections) can't change a result: a change re-runs nothing."""

import json
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from helpers.asking import PRICE, endpoint, make_app, number, numbers, on_port
from helpers.dag import PARAMS, STAGES
from stages.chat import tally
from stages.chat.budget import BudgetParams
from stages.chat.client import Session
from stages.chat.connections import Connections
from stages.chat.protocol import ChatModel
from stages.core.errors import LibraError
from stages.core.params import SETTINGS, Params, check_section

CHANGES = {
    "budget.max_usd": 500.0,
    "connections.default.concurrency": 64,
    "connections.default.timeout_s": 600.0,
    "connections.default.api_key_env": "ANOTHER_KEY",
    "connections.default.usd_per_million": {"prompt": 1.0, "completion": 2.0},
    "connections.default.mode": "batch",
}
MODEL = {"base_url": "http://h/v1", "model": "m", "temperature": 0.5, "max_tokens": 9}


def changed(params: dict, name: str, value) -> dict:
    """A copy of `params` with another value at `name` (`budget.max_usd`), which must be there."""
    params = json.loads(json.dumps(params))
    *sections, key = name.split(".")
    section = params
    for part in sections:
        section = section[part]
    assert section[key] != value
    section[key] = value
    return params


@pytest.mark.parametrize("name", CHANGES)
def test_no_stage_declares_a_setting(name):
    section = name.split(".")[0]
    declared = [
        (stage, param)
        for stage, entry in STAGES.items()
        for param in entry.get("params", [])
        if param == section or param.startswith(f"{section}.")
    ]
    assert section in SETTINGS and not declared


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """A project with the params and settings of this one, all of whose stages have run."""
    from dvc.repo import Repo

    monkeypatch.chdir(tmp_path)
    stages = {
        name: {"cmd": f"echo {name} > {name}.txt", "outs": [f"{name}.txt"]}
        | ({"params": entry["params"]} if "params" in entry else {})
        for name, entry in STAGES.items()
    }
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": stages}), encoding="utf-8")
    Path("params.yaml").write_text(yaml.safe_dump(PARAMS), encoding="utf-8")
    with Repo.init(no_scm=True) as repo:
        repo.reproduce()
        yield repo


def test_dvc_status_stays_clean_when_settings_change(finished):
    def status(params: dict) -> dict:
        Path("params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
        finished._reset()
        return finished.status()

    assert status(PARAMS) == {}
    for name, value in CHANGES.items():
        assert status(changed(PARAMS, name, value)) == {}, name
    assert set(status(changed(PARAMS, "teacher.temperature", 0.1))) >= {"craft", "rephrase"}


def test_a_setting_is_no_param_and_a_param_no_setting():
    params = Params("craft", ["teacher"], {"teacher": MODEL, "budget": {}, "connections": {}})
    with pytest.raises(LibraError, match="dvc.yaml doesn't declare"):
        params.section("budget", BudgetParams)
    with pytest.raises(LibraError, match="`teacher` is a param of a stage"):
        params.settings("teacher", ChatModel)
    declared = Params("craft", ["budget"], {"budget": {}})
    with pytest.raises(LibraError, match="remove it there, or each change to it re-runs"):
        declared.settings("budget", BudgetParams)


@pytest.mark.parametrize(
    ("key", "value"),
    [("concurrency", 4), ("api_key_env", "K"), ("timeout_s", 1.0), ("mode", "batch")],
)
def test_a_setting_at_its_old_place_says_where_it_is_now(key, value):
    with pytest.raises(LibraError) as caught:
        check_section("teacher", MODEL | {key: value}, ChatModel)
    assert f"`{key}`" in str(caught.value) and "connections.teacher" in str(caught.value)


def test_an_endpoint_has_the_default_connection_but_for_its_own_keys():
    connections = Connections.model_validate(
        {
            "default": {"concurrency": 32, "timeout_s": 9.0},
            "teacher": {"mode": "batch"},
            "judge": {"b": {"concurrency": 2}},
        }
    )
    model = ChatModel(**MODEL)
    teacher = connections.for_teacher(model)
    assert (teacher.concurrency, teacher.timeout_s, teacher.mode) == (32, 9.0, "batch")
    panel = connections.for_judges({"a": model, "b": model})
    assert [member.concurrency for member in panel.values()] == [32, 2]
    assert {member.mode for member in panel.values()} == {"online"}


def test_a_connection_of_nobody_is_an_error():
    unknown = {"default": {}, "judge": {"rulse": {}}, "respond": {"mine": {}}}
    connections = Connections.model_validate(unknown)
    model = ChatModel(**MODEL)
    with pytest.raises(LibraError, match=r"connections.judge.rulse.*did you mean `rules`\?"):
        connections.for_judges({"rules": model, "words": model})
    with pytest.raises(LibraError, match="connections.respond.mine.*there is none"):
        connections.for_candidates({})


def test_a_second_run_writes_the_same_report_and_says_where_replies_came_from(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    reports, lines = [], []
    with on_port(make_app("m", number)) as url:
        for _ in range(2):
            with Session("craft", 0) as session:
                session.ask(endpoint(url, usd_per_million=PRICE), numbers(30), "craft")
            reports.append(Path("data/generation/craft.json").read_bytes())
            lines.append(capsys.readouterr().err)
    assert reports[0] == reports[1]
    assert set(json.loads(reports[0])["craft"]) == {
        *("base_url", "model", "requests", "unusable", "quarantined"),
        *("prompt_tokens", "completion_tokens", "usd"),
    }
    assert "30 replies received" in lines[0] and "0 from the store" in lines[0]
    assert "0 replies received" in lines[1] and "30 from the store" in lines[1]


def test_only_a_run_that_asked_a_server_is_recorded(monkeypatch):
    records = []

    class Record:
        def metrics(self, values):
            records.append(values)

    @contextmanager
    def run(stage, params, inputs):
        records.append((stage, params))
        yield Record()

    monkeypatch.setattr("stages.core.tracking.run", run)
    offline, kept, sent = (
        tally.Tally.of(endpoint(url)) for url in ("offline", MODEL["base_url"], MODEL["base_url"])
    )
    offline.received, kept.from_store, sent.received, sent.wall_s = 5, 5, 7, 1.5
    tally.log_run("judge", {"judge: rules": offline})
    assert not records
    tally.log_run("judge", {"judge: rules": offline, "judge: words": sent, "judge: paper": kept})
    (stage, params), metrics = records
    assert stage == "judge" and params["judge.words"]["model"] == "m"
    assert metrics["judge.words"]["received"] == 7 and metrics["judge.words"]["wall_s"] == 1.5
    assert (metrics["judge.paper"]["received"], metrics["judge.paper"]["from_store"]) == (0, 5)
