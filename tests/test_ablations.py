"""The ablations: what is run, what isn't run again, and the table and the figure of what came out."""

import subprocess
import xml.etree.ElementTree as ET

import pytest
import yaml

from helpers.dag import ROOT
from stages.core.errors import LibraError
from stages.tools import ablations
from stages.tools.ablations import (
    ABLATIONS,
    QUICK,
    finished,
    frontier,
    on_frontier,
    quick,
    table,
    with_changes,
)
from stages.tools.check import check

PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
BY_NAME = {one.name: one for one in ABLATIONS}


@pytest.mark.parametrize("one", [*ABLATIONS, *map(quick, ABLATIONS)], ids=lambda one: one.name)
def test_every_ablation_is_a_pipeline_that_can_run(one, tmp_path):
    """Its params are params, fit together, and leave the test set as it is."""
    params = with_changes(PARAMS, one.params)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    check(tmp_path / "params.yaml")
    base = with_changes(PARAMS, QUICK) if one.name.startswith("quick-") else PARAMS
    assert (
        params["seed"]["test"] == base["seed"]["test"]
        and params["rephrase"]["test"] == base["rephrase"]["test"]
    )
    assert params["combine"]["test_triplets_per_seed"] == base["combine"]["test_triplets_per_seed"]
    counts = params["rephrase"]
    assert (
        params["combine"]["triplets_per_seed"]
        <= counts["prompts"] * counts["chosen"] * counts["rejected"]
    )
    assert params["rephrase"]["test"]["prompts"] ** 3 >= params["combine"]["test_triplets_per_seed"]


def test_names_are_names_of_git_refs_and_no_two_are_the_same():
    names = [one.name for one in (*ABLATIONS, *map(quick, ABLATIONS))]
    assert len(set(names)) == len(names)
    assert all(name == name.lower() and " " not in name and ".." not in name for name in names)
    assert len({str(sorted(one.params.items())) for one in ABLATIONS}) == len(ABLATIONS)


def metrics(**rates):
    """metrics.json with (safety, utility) of sft and dpo."""
    cells = {
        f"{status}.dual.{representation}.{expected}": rate
        for representation, rate in (("text", 0.9), ("smiles", 0.7))
        for status, expected in (("controlled", "refuse"), ("unregulated", "comply"))
    }
    found = {}
    for name, (safety, utility) in rates.items():
        keys = {
            "safety": safety,
            "utility": utility,
            "harmonic": 0.5,
            "dual_balanced_accuracy": 0.8,
            "over_refusal_rate": 0.1,
        }
        found[name] = {
            f"{key}{end}": rate for key, rate in keys.items() for end in ("", "_lo", "_hi")
        } | {"cells": cells}
    return {"candidates": found}


def experiment(name, changes, state="success", rates=None):
    """As `dvc exp show --json` has it."""
    data = {
        "params": {"params.yaml": {"data": with_changes(PARAMS, changes)}},
        "metrics": {
            "data/eval/metrics.json": {"data": rates or metrics(sft=(0.8, 0.6), dpo=(0.8, 0.7))}
        },
    }
    executor = {"state": state}
    return {
        "name": name,
        "revs": [{"name": name, "data": data, "error": None}],
        "executor": executor,
    }


def test_what_is_done_is_known_by_name_params_and_success(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    three, one = BY_NAME["beta-0.3"], BY_NAME["beta-0.03"]
    there = [
        experiment("beta-0.3", three.params),
        experiment("beta-0.03", one.params, state="failed"),
        experiment("text", {}),  # the name, but run with other params
        experiment("another", BY_NAME["smiles"].params),
    ]
    assert set(finished(list(ABLATIONS), there)) == {"beta-0.3"}
    by_hand = experiment("beta-0.03", one.params) | {
        "executor": None
    }  # by `dvc exp run`, outside the queue
    assert set(finished([one], [by_hand])) == {"beta-0.03"}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(with_changes(PARAMS, {"sft.epochs": 7})))
    assert finished(list(ABLATIONS), there) == {}, "another default"


def test_the_frontier_is_what_nothing_beats():
    rows = [
        {"safety": s, "utility": u}
        for s, u in ((0.9, 0.5), (0.8, 0.8), (0.7, 0.8), (0.5, 0.9), (0.4, 0.4), (0.5, 0.9))
    ]
    assert [(row["safety"], row["utility"]) for row in on_frontier(rows)] == [
        (0.9, 0.5),
        (0.8, 0.8),
        (0.5, 0.9),
        (0.5, 0.9),
    ]


def test_table_and_figure_hold_both_policies_of_every_experiment():
    measured = [
        (BY_NAME["default"], metrics(sft=(0.8, 0.6), dpo=(0.8, 0.7))),
        (BY_NAME["beta-0.03"], metrics(sft=(0.8, 0.5), dpo=(0.9, 0.5))),
        (BY_NAME["beta-0.3"], metrics(sft=(0.8, 0.6), dpo=(0.2, 0.2))),
    ]
    lines = [
        line for line in table(measured).splitlines() if line.startswith("| ") and "no." not in line
    ]
    assert [line.split(" | ")[0] for line in lines] == [
        "| 1",
        "| **1**",
        "| 2",
        "| **2**",
        "| 3",
    ], "the same SFT once"
    assert lines[3] == (
        "| **2** | β = 0.03 | SFT, DPO | 0.900 (0.900 to 0.900) | 0.500 (0.500 to 0.500) | 0.500 (0.500 to 0.500) | "
        "0.800 (0.800 to 0.800) | 0.900 | 0.700 | 0.100 (0.100 to 0.100) |"
    )
    figure = ET.fromstring(frontier(measured))
    space = "{http://www.w3.org/2000/svg}"
    places = [
        (float(circle.get("cx")), float(circle.get("cy")))
        for circle in figure.iter(f"{space}circle")
    ]
    assert len(places) == 5 and places[3][0] < places[1][0] and places[3][1] < places[1][1], (
        "less useful, safer: left, above"
    )
    assert [title.text for title in figure.iter(f"{space}title")][1] == (
        "1: balanced, 5-5-5, TEXT and SMILES, β = 0.1, SFT, DPO: safety 0.800, utility 0.700"
    )


STAGE = """
import json, yaml
from pathlib import Path
beta = yaml.safe_load(open("params.yaml"))["dpo"]["beta"]
assert beta > 0.05 or Path({mended!r}).exists()
Path("data/eval").mkdir(parents=True, exist_ok=True)
metrics = json.loads(Path("metrics.txt").read_text())
metrics["candidates"]["dpo"]["safety"] = 1 - beta / 2
Path("data/eval/metrics.json").write_text(json.dumps(metrics))
"""


@pytest.mark.slow
def test_the_queue_runs_what_is_missing_and_no_more(tmp_path, monkeypatch, capsys):
    """A repository of one stage in the pipeline's place: two experiments, one of which fails at first."""
    import json

    repository, mended = tmp_path / "toy", tmp_path / "mended"
    repository.mkdir()
    monkeypatch.chdir(repository)
    monkeypatch.setattr(ablations, "POLL", 1.0)
    stage = {"cmd": "python run.py", "deps": ["run.py", "metrics.txt"], "params": list(PARAMS),
             "metrics": [{"data/eval/metrics.json": {"cache": False}}]}  # fmt: skip
    (repository / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"score": stage}}))
    (repository / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    (repository / "metrics.txt").write_text(json.dumps(metrics(sft=(0.8, 0.6), dpo=(0.8, 0.7))))
    (repository / "run.py").write_text(STAGE.format(mended=str(mended)))
    chosen = [BY_NAME["beta-0.3"], BY_NAME["beta-0.03"]]
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@localhost"]
    monkeypatch.setenv("GIT_AUTHOR_NAME", "t")
    for variable in ("AUTHOR_NAME", "AUTHOR_EMAIL", "COMMITTER_NAME", "COMMITTER_EMAIL"):
        monkeypatch.setenv(f"GIT_{variable}", "t@localhost")
    for command in (
        ["git", "init", "-q"],
        ["dvc", "init", "-q"],
        ["git", "add", "-A"],
        [*git, "commit", "-qm", "toy"],
    ):
        subprocess.run(command, check=True)
    with pytest.raises(
        LibraError, match="beta-0.03 failed or didn't run; `dvc queue logs beta-0.03` says why"
    ):
        ablations.run(chosen, 1, False, tmp_path / "out")
    assert "beta-0.3 is queued" in capsys.readouterr().out
    assert "β = 0.3" in (tmp_path / "out/ABLATIONS.md").read_text(), "what is finished is told"
    mended.touch()
    ablations.run(chosen, 1, False, tmp_path / "out")
    said = capsys.readouterr().out
    assert "beta-0.03 is queued" in said and "beta-0.3 is queued" not in said
    assert "| 0.985 (" in (tmp_path / "out/ABLATIONS.md").read_text()
    ablations.run(chosen, 1, False, tmp_path / "out")
    assert "is queued" not in capsys.readouterr().out
