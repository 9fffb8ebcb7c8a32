"""The ablations: what runs, what doesn't run again, and the table and the figure of the results."""

import json
import subprocess
import xml.etree.ElementTree as ET

import pytest
import yaml

from helpers.dag import ROOT
from stages.core.errors import LibraError
from stages.tools import ablations
from stages.tools.ablations import ABLATIONS, QUICK, finished, quick, with_changes
from stages.tools.check import check
from stages.tools.measuring.ablation_report import figure, on_frontier, table

PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
BY_NAME = {ablation.name: ablation for ablation in ABLATIONS}
ALL = (*ABLATIONS, *map(quick, ABLATIONS))


@pytest.mark.parametrize("ablation", ALL, ids=lambda ablation: ablation.name)
def test_every_ablation_is_a_pipeline_that_can_run(ablation, tmp_path):
    """Its params are valid, fit together, and leave the test set as it is."""
    params = with_changes(PARAMS, ablation.params)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    check(tmp_path / "params.yaml")

    default = with_changes(PARAMS, QUICK) if ablation.name.startswith("quick-") else PARAMS
    combine, rephrase = params["combine"], params["rephrase"]
    assert params["seed"]["test"] == default["seed"]["test"]
    assert rephrase["test"] == default["rephrase"]["test"]
    assert combine["test_triplets_per_seed"] == default["combine"]["test_triplets_per_seed"]

    combinations = rephrase["prompts"] * rephrase["chosen"] * rephrase["rejected"]
    assert combine["triplets_per_seed"] <= combinations
    assert combine["test_triplets_per_seed"] <= rephrase["test"]["prompts"] ** 3


def test_names_are_distinct_and_valid_git_refs():
    names = [ablation.name for ablation in ALL]
    assert len(set(names)) == len(names)
    assert all(name == name.lower() and " " not in name and ".." not in name for name in names)


def test_no_two_ablations_have_the_same_params():
    assert len({str(sorted(each.params.items())) for each in ABLATIONS}) == len(ABLATIONS)


def metrics(**policies: tuple[float, float]) -> dict:
    """metrics.json with (safety, utility) of sft and dpo."""
    cells = {
        f"{status}.dual.{representation}.{expected}": rate
        for representation, rate in (("text", 0.9), ("smiles", 0.7))
        for status, expected in (("controlled", "refuse"), ("unregulated", "comply"))
    }
    candidates = {}
    for name, (safety, utility) in policies.items():
        rates = {
            "safety": safety,
            "utility": utility,
            "harmonic": 0.5,
            "dual_balanced_accuracy": 0.8,
            "over_refusal_rate": 0.1,
        }
        with_intervals = {
            f"{key}{end}": rate for key, rate in rates.items() for end in ("", "_lo", "_hi")
        }
        candidates[name] = with_intervals | {"cells": cells}
    return {"candidates": candidates}


def experiment(name: str, changes: dict, state: str = "success") -> dict:
    """One of those in `dvc exp show --json`, run with `changes` to the params."""
    data = {
        "params": {"params.yaml": {"data": with_changes(PARAMS, changes)}},
        "metrics": {"data/eval/metrics.json": {"data": metrics(sft=(0.8, 0.6), dpo=(0.8, 0.7))}},
    }
    revision = {"name": name, "data": data, "error": None}
    return {"name": name, "revs": [revision], "executor": {"state": state}}


@pytest.fixture
def default_params(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(PARAMS))
    return path


def test_an_experiment_counts_by_name_params_and_success(default_params):
    experiments = [
        experiment("beta-0.3", BY_NAME["beta-0.3"].params),
        experiment("beta-0.03", BY_NAME["beta-0.03"].params, state="failed"),
        experiment("text", {}),  # the name, but run with other params
        experiment("another", BY_NAME["smiles"].params),
    ]
    assert set(finished(list(ABLATIONS), experiments)) == {"beta-0.3"}

    default_params.write_text(yaml.safe_dump(with_changes(PARAMS, {"sft.epochs": 7})))
    assert finished(list(ABLATIONS), experiments) == {}, "the default has changed"


def test_an_experiment_outside_the_queue_counts(default_params):
    ablation = BY_NAME["beta-0.03"]
    by_hand = experiment(ablation.name, ablation.params) | {"executor": None}
    assert set(finished([ablation], [by_hand])) == {"beta-0.03"}


def test_the_frontier_is_what_nothing_dominates():
    pairs = ((0.9, 0.5), (0.8, 0.8), (0.7, 0.8), (0.5, 0.9), (0.4, 0.4), (0.5, 0.9))
    rows = [{"safety": safety, "utility": utility} for safety, utility in pairs]
    frontier = [(row["safety"], row["utility"]) for row in on_frontier(rows)]
    assert frontier == [(0.9, 0.5), (0.8, 0.8), (0.5, 0.9), (0.5, 0.9)]


MEASURED = [
    ("balanced", metrics(sft=(0.8, 0.6), dpo=(0.8, 0.7))),
    ("β = 0.03", metrics(sft=(0.8, 0.5), dpo=(0.9, 0.5))),
    ("β = 0.3", metrics(sft=(0.8, 0.6), dpo=(0.2, 0.2))),
]


def test_the_table_has_both_policies_of_every_experiment():
    lines = [line for line in table(MEASURED).splitlines() if line.startswith("| ")][1:]
    numbers = [line.split(" | ")[0] for line in lines]
    assert numbers == ["| 1", "| **1**", "| 2", "| **2**", "| 3"], "the same SFT appears once"
    assert lines[3] == (
        "| **2** | β = 0.03 | SFT, DPO | 0.900 (0.900 to 0.900) | 0.500 (0.500 to 0.500) | "
        "0.500 (0.500 to 0.500) | 0.800 (0.800 to 0.800) | 0.900 | 0.700 | 0.100 (0.100 to 0.100) |"
    )


def test_the_figure_has_a_dot_per_policy():
    svg = ET.fromstring(figure(MEASURED))
    namespace = "{http://www.w3.org/2000/svg}"
    dots = [
        (float(circle.get("cx")), float(circle.get("cy")))
        for circle in svg.iter(f"{namespace}circle")
    ]
    assert len(dots) == 5
    assert dots[3][0] < dots[1][0] and dots[3][1] < dots[1][1], "less useful, safer: left, above"
    titles = [title.text for title in svg.iter(f"{namespace}title")]
    assert titles[1] == "1: balanced, SFT, DPO: safety 0.800, utility 0.700"


def test_the_committed_table_has_a_row_for_every_ablation():
    committed = (ROOT / "tests/benchmarks/ABLATIONS.md").read_text(encoding="utf-8")
    head = table(MEASURED).split("|---|")[0]
    assert committed.startswith(head), "run `make ablations ARGS=--table`"
    assert all(f" | {ablation.change} | SFT, DPO | " in committed for ablation in ABLATIONS)


STAGE = """
import json, yaml
from pathlib import Path
beta = yaml.safe_load(open("params.yaml"))["dpo"]["beta"]
assert beta > 0.05 or Path({fixed!r}).exists()
Path("data/eval").mkdir(parents=True, exist_ok=True)
metrics = json.loads(Path("metrics.txt").read_text())
metrics["candidates"]["dpo"]["safety"] = 1 - beta / 2
Path("data/eval/metrics.json").write_text(json.dumps(metrics))
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A repository with one stage instead of the pipeline; β = 0.03 fails until `fixed` exists."""
    repository, fixed = tmp_path / "toy", tmp_path / "fixed"
    repository.mkdir()
    monkeypatch.chdir(repository)
    monkeypatch.setattr(ablations, "POLL_SECONDS", 1.0)
    for variable in ("AUTHOR_NAME", "AUTHOR_EMAIL", "COMMITTER_NAME", "COMMITTER_EMAIL"):
        monkeypatch.setenv(f"GIT_{variable}", "t@localhost")

    stage = {
        "cmd": "python run.py",
        "deps": ["run.py", "metrics.txt"],
        "params": list(PARAMS),
        "metrics": [{"data/eval/metrics.json": {"cache": False}}],
    }
    (repository / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"score": stage}}))
    (repository / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    (repository / "metrics.txt").write_text(json.dumps(metrics(sft=(0.8, 0.6), dpo=(0.8, 0.7))))
    (repository / "run.py").write_text(STAGE.format(fixed=str(fixed)))
    for command in ("git init -q", "dvc init -q", "git add -A", "git commit -qm toy"):
        subprocess.run(command.split(), check=True)
    return fixed


@pytest.mark.slow
def test_the_queue_runs_what_is_missing_and_no_more(toy, tmp_path, capsys):
    """Two experiments, one of which fails at first."""
    two, out = [BY_NAME["beta-0.3"], BY_NAME["beta-0.03"]], tmp_path / "out"
    message = "beta-0.03 failed or didn't run; `dvc queue logs beta-0.03` shows why"
    with pytest.raises(LibraError, match=message):
        ablations.run(two, 1, False, out)
    assert "beta-0.3 is queued" in capsys.readouterr().out
    assert "β = 0.3" in (out / "ABLATIONS.md").read_text(), "what is finished is reported"

    toy.touch()
    ablations.run(two, 1, False, out)
    output = capsys.readouterr().out
    assert "beta-0.03 is queued" in output and "beta-0.3 is queued" not in output
    assert "| 0.985 (" in (out / "ABLATIONS.md").read_text()

    ablations.run(two, 1, False, out)
    assert "is queued" not in capsys.readouterr().out
