"""`make benchmark`: one model beside the stored candidates; outputs of the pipeline stay as is."""

import json
import re
import shutil

import polars as pl
import pytest
import yaml

from helpers.asking import make_app, on_port
from helpers.dag import ROOT
from helpers.judging import PANEL
from helpers.measured_project import files, small_test_set
from stages.chat import wire
from stages.chat.client import Session
from stages.chat.offline import RequestError, last_user_text
from stages.core.tables import write_table
from stages.judging import offline_judges
from stages.local.baselines import REFUSAL
from stages.tools import benchmark
from stages.tools.measuring.benchmark_table import TITLES
from stages.tools.measuring.judging_session import judge_responses
from stages.tools.measuring.sample import whole_substances

PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
HELP = "Keep it cool and dry, and wear gloves."
FREE = ("--usd-per-million", "0", "0")
KEY = "sk-of-the-benchmark-test"


@pytest.fixture()
def project(tmp_path, monkeypatch):
    """A folder with params, a test set, and verdicts on a candidate that refuses everything."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("DVC_EXP_NAME", "")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    score = {"score": {"bootstrap": 100, "confidence": 0.95}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(PARAMS | score))
    test, seeds = small_test_set()
    write_table(test, "data/librachemqa/test.parquet", "prompt_id")
    write_table(seeds, "data/seeds.parquet", "seed_id")

    prompts = test.select("seed_id", "prompt_id", "prompt")
    answers = [(REFUSAL, None, "stop", None)] * prompts.height
    responses = benchmark.as_responses(prompts, "always_refuse", answers)
    verdicts = judge_responses(Session("judge", 1), responses, test, PANEL)
    write_table(verdicts, "data/eval/verdicts.parquet", "prompt_id")
    return tmp_path


def careful(prompts):
    """A server whose model refuses what it should, but for one substance; notes `prompts`."""

    def answer(body):
        prompts.append(last_user_text(body))
        intent, status, substance = prompts[-1].split(",")[0].split()
        makes = intent == "make" and (status == "unregulated" or substance == "s1")
        return HELP if makes or intent == "handling" else REFUSAL

    return make_app("careful", answer)


def run(*arguments):
    benchmark.main(list(map(str, arguments)))


def test_a_model_is_measured_beside_the_stored_ones_and_nothing_else_changes(project, capsys):
    prompts, before = [], files(project)
    with on_port(careful(prompts)) as url:
        run("careful", "--base-url", url, "--usd-per-million", 1, 2)
        output = capsys.readouterr().out
        run("careful", "--base-url", url, "--usd-per-million", 1, 2)
    assert len(prompts) == 96, "the second run sent nothing"
    assert files(project) == before
    # The estimate comes first.
    assert output.index("respond: careful") < output.index("candidate")

    lines = output.splitlines()
    (estimate,) = [line.split()[2:5] for line in lines if line.startswith("respond: careful")]
    assert estimate == ["96", "0", "96"], "requests, kept, to send"
    rows = [line.split()[:3] for line in lines if line.startswith(("> careful", "  always_refuse"))]
    assert rows[0][:2] == [">", "careful"] and float(rows[0][2]) == 0.958, "46 of 48: s1 was made"
    # To `make`, always_refuse has no right answer.
    (utility,) = [line for line in lines if re.match(r"  always_refuse +utility", line)]
    pattern = r"\+0\.667 \(\+0\.\d+ to \+0\.\d+\), p .*, McNemar p .* \(32 : 0\)"
    assert re.search(pattern, utility)

    folder = project / ".cache/benchmark/careful"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["candidates"]["careful"]["utility"] == 0.666667
    assert metrics["generation"]["respond: careful"]["requests"] == 96
    assert {row["first"] for row in metrics["comparisons"]} == {"careful"}
    assert pl.read_parquet(folder / "responses.parquet").height == 96
    assert pl.read_parquet(folder / "verdicts.parquet").height == 96
    for path in folder.rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes()


def test_more_abstentions_than_allowed_are_an_error_after_the_row(project, monkeypatch, capsys):
    answers = {offline_judges.WORDS_MODEL: lambda body: ""}
    silent = make_app(offline_judges.MODEL, offline_judges.answer, answers)
    monkeypatch.setattr(offline_judges, "app_for", lambda domain: silent)
    with on_port(careful([])) as url, pytest.raises(SystemExit) as end:
        run("careful", "--base-url", url, "--usd-per-million", 1, 2)
    message = end.value.code
    assert "of 96 verdicts abstain" in message and "\n" not in message
    assert "if the members of judge.panel disagree" in message
    output = capsys.readouterr().out
    (row,) = [line.split() for line in output.splitlines() if line.startswith("> careful")]
    folder = project / ".cache/benchmark/careful"
    assert row[2] == "0.958" and (folder / "metrics.json").exists()
    assert "abstain" in pl.read_parquet(folder / "verdicts.parquet")["outcome"]


def test_missing_seeds_are_an_error_with_the_command_that_makes_them(project):
    (project / "data/seeds.parquet").unlink()
    with pytest.raises(SystemExit) as end:
        run("careful", "--base-url", "http://127.0.0.1:9/v1")
    message = "data/seeds.parquet is not here; `dvc repro seed` makes it in seconds"
    assert end.value.code == f"benchmark: error: {message}"


def test_without_stored_verdicts_the_row_is_beside_those_of_metrics_json(project, capsys):
    (project / "data/eval/verdicts.parquet").unlink()
    rates = {}
    for key in TITLES:
        rates |= {key: 0.5, f"{key}_lo": 0.4, f"{key}_hi": 0.6}
    (project / "data/eval/metrics.json").write_text(json.dumps({"candidates": {"dpo": rates}}))
    with on_port(careful([])) as url:
        run("careful", "--base-url", url, "--usd-per-million", 0, 0, "--out", project / "mine")
    output = capsys.readouterr().out
    assert "  dpo" in output and "no paired tests" in output
    assert (project / "mine/metrics.json").exists()


UNREACHABLE = ("--base-url", "http://127.0.0.1:9/v1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([""], "which model? `make benchmark MODEL=..."),
        (["m", "--base-url", "h"], "`--base-url`: String should match pattern"),
        (["m", "--max-tokens", "0"], "`--max-tokens`: Input should be greater than or equal to 1"),
        (["always_refuse"], "a candidate of the pipeline is called always_refuse; set --name"),
        (["./nothing"], "MODEL: there is no folder ./nothing"),
        (["m", "--limit", "0"], "--limit must be at least 1"),
        (["m", *UNREACHABLE], 'PROMPT COMPLETION (with make: ARGS="--usd-per-'),
        (["m", *UNREACHABLE, *FREE], " --base-url"),
        (
            ["gpt-4o-mini", "--base-url", "https://api.openai.com/v1", "--api-key-env", "NO_KEY"],
            "set the environment variable NO_KEY",
        ),
    ],
)
def test_a_mistake_is_one_line(project, monkeypatch, arguments, message):
    monkeypatch.setattr(wire, "MAX_RETRIES", 0)
    with pytest.raises(SystemExit) as end:
        run(*arguments)
    assert str(end.value.code).startswith("benchmark: error: ") and message in end.value.code
    assert "\n" not in end.value.code and "params.yaml" not in end.value.code


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (400, "`MODEL`, a sampling setting or `--max-tokens`"),
        (401, "OPENAI_API_KEY holds a wrong key"),
        (404, "`MODEL` or `--base-url` in the command"),
    ],
)
def test_a_wrong_key_and_an_unknown_model_are_one_line(project, status, words):
    def answer(body):
        raise RequestError("no", status=status)

    with on_port(make_app("m", answer)) as url, pytest.raises(SystemExit) as end:
        run("m", "--base-url", url, "--usd-per-million", 0, 0)
    assert words in end.value.code and "\n" not in end.value.code and KEY not in end.value.code


def test_a_cap_stops_it_and_holds_for_this_model_alone(project, capsys):
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["budget"]["max_requests"] = 40
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    prompts = []
    with on_port(careful(prompts)) as url:
        for name in ("one", "other"):
            # Another limit, so that nothing is answered from the store.
            limit = ("--max-tokens", 100 + len(prompts))
            with pytest.raises(SystemExit) as end:
                run("careful", "--base-url", url, "--name", name, *FREE, *limit)
            assert "budget.max_requests = 40 is reached" in end.value.code
    assert "the run will stop there" in capsys.readouterr().out and 40 <= len(prompts) <= 80


def test_a_sample_has_whole_substances_of_every_cell():
    test, _ = small_test_set(200)
    sample = whole_substances(test, 120, 2025)
    assert sample["prompt_id"].n_unique() == 120 and sample["substance_id"].n_unique() == 20
    substances = sample["substance_id"].implode()
    all_rows = test.filter(pl.col("substance_id").is_in(substances))
    assert sample.sort("prompt_id").equals(all_rows.sort("prompt_id"))
    # Half of the substances are controlled.
    assert sample["expected"].value_counts()["count"].to_list() == [60, 60]
    # The order of rows doesn't matter.
    assert whole_substances(test.reverse(), 120, 2025).reverse().equals(sample)
    assert set(whole_substances(test, 120, 7)["substance_id"]) != set(sample["substance_id"])
    assert whole_substances(test, 5000, 2025).equals(test)
