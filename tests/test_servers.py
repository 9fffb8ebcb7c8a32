"""The small pipeline with servers on ports: what it asks for, what that costs, what is kept."""

import json
import re
import socket
import sqlite3
import sys
import time
import urllib.request
from pathlib import Path

import polars as pl
import pytest
import yaml

from helpers.asking import ask_all, endpoint
from helpers.server_process import served
from helpers.small_pipeline import call, commit, small_pipeline, stages_run
from stages.core.errors import LibraError
from stages.teacher.sheets import craft_request

pytestmark = pytest.mark.pipeline

KEY = "sk-planted-" + "in-the-pipeline"  # in two parts: the search below finds this file too
ASKED = ("craft", "rephrase", "respond: teacher", "respond: served")
JUDGED = ("judge: rules", "judge: words", "judge: paper")
ROW = re.compile(r"^(\S.*?) {2,}([\d,]+) +([\d,]+) +([\d,]+) +([\d,]+) +([\d,]+) +([\d.]+)  ", re.M)
SHEET = {
    "seed_id": "s",
    "representation": "text",
    "name": "substance A",
    "intent": "make",
    "intent_kind": "dual",
    "expected": "comply",
    "status": "unregulated",
    "kind": "medicine",
}


@pytest.fixture
def folder(tmp_path_factory):
    """A copy of the small pipeline with its results committed."""
    copy, _ = small_pipeline(tmp_path_factory)
    commit(copy)
    return copy


def read_params(folder: Path) -> dict:
    return yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))


def write_params(folder: Path, params: dict) -> None:
    text = yaml.safe_dump(params, sort_keys=False)
    (folder / "params.yaml").write_text(text, encoding="utf-8")


def out_hashes(folder: Path) -> dict[str, str]:
    lock = yaml.safe_load((folder / "dvc.lock").read_text(encoding="utf-8"))["stages"]
    return {out["path"]: out["md5"] for stage in lock.values() for out in stage["outs"]}


def generation(folder: Path) -> dict[str, dict]:
    return json.loads((folder / "data/eval/metrics.json").read_text())["generation"]


def estimate(folder: Path) -> dict[str, list[float]]:
    """`make estimate`: {kind: [requests, in store, to send, prompt and completion tokens, USD]}."""
    output = call(folder, "make", "estimate", f"BIN={Path(sys.executable).parent}", "VENV=.")
    return {
        row[1]: [float(number.replace(",", "")) for number in row.groups()[1:]]
        for row in ROW.finditer(output)
    }


def assert_close(estimated: list[float], measured: dict, share: float) -> None:
    """Requests are those that were sent; tokens and USD are within `share` of what they took."""
    requests, _, to_send, *amounts = estimated
    assert requests == to_send == measured["requests"]
    keys = ("prompt_tokens", "completion_tokens", "usd")
    assert amounts == pytest.approx([measured[key] for key in keys], rel=share)


def logged(folder: Path, stage: str) -> dict[str, float]:
    """The metrics of the last MLflow run of `stage`."""
    with sqlite3.connect(folder / "mlflow.db") as database:
        last = "select run_uuid from runs where name = ? order by start_time desc limit 1"
        query = f"select key, value from metrics where run_uuid = ({last})"
        return dict(database.execute(query, (stage,)).fetchall())


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return str(server.getsockname()[1])


def test_servers_give_what_the_embedded_default_gives_and_the_estimate_says_the_cost(folder):
    """Teacher and judges on ports, a trained policy under `transformers serve` as a candidate."""
    before, params = out_hashes(folder), read_params(folder)
    counting = (sys.executable, "tests/helpers/counting.py")
    transformers = str(Path(sys.executable).with_name("transformers"))
    serve_policy = (transformers, "serve", "models/dpo", "--host", "127.0.0.1", "--device", "cpu")
    with (
        served(folder, *counting, "teacher", "--port", "0") as teacher,
        served(folder, *counting, "judges", "--port", "0") as judges,
        served(folder, *serve_policy, "--port", free_port()) as policy,
    ):
        params["teacher"]["base_url"] = teacher
        for member in params["judge"]["panel"].values():
            member["base_url"] = judges
        candidate = {"base_url": policy, "model": "models/dpo", "temperature": 0.0}
        candidate["max_tokens"] = 24
        params["respond"]["candidates"] = {"served": candidate}
        connections = params["connections"]
        connections["default"]["usd_per_million"] = {"prompt": 1.0, "completion": 2.0}
        connections["judge"] = {name: {"mode": "batch"} for name in params["judge"]["panel"]}
        free = {"prompt": 0.0, "completion": 0.0}
        connections["respond"] = {
            "served": {"concurrency": 4, "api_key_env": "NONE", "usd_per_million": free}
        }
        write_params(folder, params)
        first = estimate(folder)
        output = call(folder, "dvc", "repro", OPENAI_API_KEY=KEY)
        changed = ["craft", "rephrase", "respond", "judge", "score", "report"]
        assert stages_run(output) == changed and KEY not in output
        measured = generation(folder)

        # A forced run finds all replies in the store and writes the same bytes.
        for stage in ("craft", "rephrase"):
            report = folder / f"data/generation/{stage}.json"
            content = report.read_bytes()
            output = call(folder, "python", "-m", f"stages.{stage}")
            assert report.read_bytes() == content
            assert f"{measured[stage]['requests']:,} from the store" in output
            metrics = logged(folder, stage)
            assert metrics[f"{stage}.received"] == 0
            assert metrics[f"{stage}.from_store"] == measured[stage]["requests"]

        # The policy as a teacher: it can't write JSON, and every reply says so.
        (reply,) = ask_all(
            endpoint(policy, "models/dpo"), [craft_request(SHEET, "over_refusal")], "craft"
        )
        assert reply.error.startswith(("not JSON", "cut off at max_tokens"))
        with pytest.raises(LibraError, match="refused the request with 400: .*no-such-model"):
            ask_all(
                endpoint(policy, "no-such-model"), [craft_request(SHEET, "over_refusal")], "craft"
            )

        # Another temperature, another limit: everything is asked for again, and the replies in the
        # store say what it will cost.
        responses = pl.read_parquet(folder / "data/eval/responses.parquet")
        params["teacher"]["temperature"], candidate["max_tokens"] = 0.8, 23
        for member in params["judge"]["panel"].values():
            member["temperature"] = 0.1
        write_params(folder, params)
        again = estimate(folder)
        call(folder, "dvc", "repro", "respond", OPENAI_API_KEY=KEY)
        again |= {kind: row for kind, row in estimate(folder).items() if kind in JUDGED}
        call(folder, "dvc", "repro", OPENAI_API_KEY=KEY)

    assert set(again) == set(first) == set(measured) == {*ASKED, *JUDGED}
    for kind, row in again.items():
        assert_close(row, generation(folder)[kind], 0.1)
    after = out_hashes(folder)
    for path in ("data/crafted.parquet", "data/rephrasings.parquet"):
        assert after[path] == before[path]
    answers = {
        name: responses.filter(candidate=name)["answer"].to_list() for name in ("dpo", "served")
    }
    same = sum(a == b.strip() for a, b in zip(answers["dpo"], answers["served"], strict=True))
    assert same > 0.9 * len(answers["dpo"]), "a served policy answers as it does in process"

    for kind in JUDGED:  # what a new candidate will say isn't known before
        assert measured[kind]["requests"] <= first[kind][0] <= 1.5 * measured[kind]["requests"]
    for kind in ASKED[:3]:  # this tokenizer needs more tokens than those the guess is made for
        assert_close(first[kind], measured[kind], 0.25)
    assert first["respond: served"][2] == measured["respond: served"]["requests"]

    files = [path for path in folder.rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert {"mlflow.db", "replies.sqlite", "dvc.lock", "metrics.json"} <= names
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []


def test_settings_of_a_run_leave_dvc_status_clean(folder):
    """Caps, concurrency, time-outs, key variables, prices and mode re-run nothing."""
    params = read_params(folder)
    params["budget"]["max_usd"] = 1000.0
    params["connections"]["default"] |= {
        "concurrency": 3,
        "api_key_env": "OTHER_KEY",
        "timeout_s": 7.0,
        "mode": "batch",
        "usd_per_million": {"prompt": 9.0, "completion": 9.0},
    }
    write_params(folder, params)
    assert "up to date" in call(folder, "dvc", "status")
    assert stages_run(call(folder, "dvc", "repro")) == []


def queue_status(folder: Path) -> list[str]:
    """A line for each of the experiments `one` and `two`."""
    lines = call(folder, "dvc", "queue", "status").splitlines()
    return [line for line in lines if re.search(r"\b(one|two)\b", line)]


@pytest.mark.slow
def test_two_queued_experiments_at_once_share_one_store(folder):
    """Both succeed, and what both ask for is paid for once."""
    params = read_params(folder)
    serve = (sys.executable, "-m", "stages.tools", "serve", "teacher", "--port", "0")
    with served(folder, *serve, "--latency", "0.05") as teacher:
        params["teacher"]["base_url"] = teacher
        price = {"prompt": 1.0, "completion": 2.0}
        params["connections"]["default"] |= {"usd_per_million": price, "concurrency": 4}
        write_params(folder, params)
        for name, replicates in (("one", 100), ("two", 101)):
            change = ("-S", f"score.bootstrap={replicates}")
            call(folder, "dvc", "exp", "run", "--queue", "-n", name, *change)
        call(folder, "dvc", "queue", "start", "-j", "2")
        until = time.monotonic() + 240
        while len(re.findall("Success|Failed", text := "\n".join(queue_status(folder)))) < 2:
            assert time.monotonic() < until, text
            time.sleep(1)
        counts = json.loads(urllib.request.urlopen(f"{teacher}/served").read())
    logs = "".join(call(folder, "dvc", "queue", "logs", name) for name in ("one", "two"))
    assert "Failed" not in text, logs

    reports = {}
    for ref in call(folder, "git", "for-each-ref", "refs/exps", "--format=%(refname)").split():
        if (name := ref.rpartition("/")[2]) in ("one", "two"):
            metrics = call(folder, "git", "show", f"{ref}:data/eval/metrics.json")
            reports[name] = json.loads(metrics)["generation"]
    needed = sum(reports["one"][kind]["requests"] for kind in ASKED[:3])
    assert needed == 2 * 112 + 144 == counts["chat"], "each request was sent once"
    assert reports["one"] == reports["two"]
