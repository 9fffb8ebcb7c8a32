"""dvc.yaml against the code: what a stage imports and reads is what it depends on; a change re-runs what it must, and no more."""

import ast
import importlib
import itertools
import os
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

from helpers.dag import ROOT, code_files
from stages.report import SHOWN

DVC = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
STAGES = DVC["stages"]
ORDER = [
    "seed",
    "craft",
    "rephrase",
    "combine",
    "validate",
    "sft",
    "dpo",
    "respond",
    "judge",
    "score",
    "report",
]
HEAVY = set(
    ["torch", "polars", "numpy", "pandas", "rdkit", "chemicals", "sklearn", "scipy", "transformers", "trl", "datasets", "mlflow", "openai"]
)
UNCACHED = (
    "metrics.json",
    "cells.csv",
    "comparisons.csv",
    "intents.csv",
    "plane.csv",
    "plane.svg",
    "cells.svg",
    "margins.svg",
)
each_stage = pytest.mark.parametrize("stage", STAGES)


def entries(listed: list) -> dict[str, dict]:
    """{path: options} of a list under `outs`, `metrics` or `plots`."""
    return {
        path: options
        for entry in listed
        for path, options in (entry.items() if isinstance(entry, dict) else [(entry, {})])
    }


def outs(stage: str) -> dict[str, dict]:
    """All that a stage writes: {path: options}."""
    listed = [entries(STAGES[stage].get(kind, [])) for kind in ("outs", "metrics", "plots")]
    return listed[0] | listed[1] | listed[2]


def makers(dep: str) -> set[str]:
    """The outs that `dep` is, or lies in."""
    return {
        path
        for stage in STAGES
        for path in outs(stage)
        if dep == path or dep.startswith(f"{path}/")
    }


def trees(stage: str) -> dict[str, ast.Module]:
    """{file: syntax tree} of all code a stage may run."""
    return {
        file: ast.parse((ROOT / file).read_text(encoding="utf-8"))
        for file in code_files(f"stages.{stage}")
    }


def strings(stage: str) -> set[str]:
    """All string constants in the code a stage may run."""
    nodes = [node for tree in trees(stage).values() for node in ast.walk(tree)]
    return {
        node.value
        for node in nodes
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def stale(changed: str) -> set[str]:
    """The stages that `dvc repro` runs again once the param `changed` (`dpo.beta`) has another value, from dvc.yaml alone."""
    again = {
        name
        for name, stage in STAGES.items()
        if {changed, changed.split(".")[0]} & set(stage.get("params", []))
    }
    while True:
        written = [path for stage in again for path in outs(stage)]
        after = {
            name
            for name in STAGES
            if any(makers(dep) & set(written) for dep in STAGES[name]["deps"])
        }
        if after <= again:
            return again
        again |= after


def test_the_story_has_eleven_stages_in_order():
    assert list(STAGES) == ORDER
    for place, stage in enumerate(ORDER):
        for dep in STAGES[stage]["deps"]:
            made_by = [other for other in ORDER if makers(dep) & set(outs(other))]
            assert all(maker in ORDER[:place] for maker in made_by), (
                f"{stage} needs {dep}, made later"
            )


@each_stage
def test_a_stage_runs_its_own_module_and_says_what_for(stage):
    assert STAGES[stage]["cmd"] == f"python -m stages.{stage}"
    assert len(STAGES[stage]["desc"]) > 10


@each_stage
def test_code_deps_are_the_imports(stage):
    declared = {dep for dep in STAGES[stage]["deps"] if dep.endswith(".py")}
    assert declared == code_files(f"stages.{stage}")


@each_stage
def test_texts_that_code_reads_are_deps(stage):
    """Prompts, templates and rubrics: every file beside the code that its code names is a dep, and no other."""
    files = sorted((ROOT / "stages").rglob("*"))
    texts = [
        str(path.relative_to(ROOT)) for path in files if path.suffix not in (".py", ".pyc", "")
    ]
    declared = {
        dep
        for dep in STAGES[stage]["deps"]
        if dep.startswith("stages/") and not dep.endswith(".py")
    }
    assert declared <= set(texts)
    words = strings(stage)
    named = {text for text in texts if Path(text).name in words}
    # stages.teacher.sheets builds a file's name from the kind of its request
    kinds = {
        function.removesuffix("_request")
        for function in called(stage)
        if function.endswith("_request")
    }
    named |= {text for text in texts if Path(text).stem in kinds}
    assert declared == named


def called(stage: str) -> set[str]:
    """Names of the functions that a stage's own file calls."""
    tree = ast.parse((ROOT / f"stages/{stage}.py").read_text(encoding="utf-8"))
    return {
        node.func.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }


@each_stage
def test_data_deps_are_what_the_code_names(stage):
    """Every out of another stage that the code opens is a dep, and the other way round; what people write by hand is one too."""
    made = {path for other in STAGES if other != stage for path in outs(other)}
    data = {dep for dep in STAGES[stage]["deps"] if not dep.startswith("stages/")}
    by_hand = {"seed": {"data/catalog"}, "score": {"data/labels/verdicts.csv"}}
    assert {dep for dep in data if not makers(dep)} == by_hand.get(stage, set())
    # Strings with a blank are sentences: messages and help name files without opening them.
    words = {word for word in strings(stage) if not re.search(r"\s", word)}
    named = {
        path for path in made if any(word == path or word.startswith(f"{path}/") for word in words)
    }
    if stage == "respond":
        assert "models/" in words  # f"models/{name}"
        named |= {"models/sft", "models/dpo"}
    assert set().union(*map(makers, data)) & made == named
    splits = {
        dep for dep in data if dep.startswith("data/librachemqa")
    }  # of the release single files: a new card trains nothing anew
    assert own_splits(stage) <= splits <= words | own_splits(stage)


def own_splits(stage: str) -> set[str]:
    """The files of the release that a stage's own code reads."""
    tree = ast.parse((ROOT / f"stages/{stage}.py").read_text(encoding="utf-8"))
    first = [
        (ast.unparse(node.func), node.args[0])
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and node.args
    ]
    read = {
        arg.value
        for function, arg in first
        if function == "read_table" and isinstance(arg, ast.Constant)
    }
    read |= {
        f"data/librachemqa/{arg.value}.parquet"
        for function, arg in first
        if function == "data.triplets"
    }
    return {path for path in read if path.startswith("data/librachemqa/")}


@each_stage
def test_params_read_are_the_params_declared(stage):
    found = set()
    for tree in trees(stage).values():
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr == "section"
            ):
                found |= (
                    {node.args[0].value} if isinstance(node.args[0], ast.Constant) else set(SHOWN)
                )
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id == "read_params"
            ):
                assert node.args[0].value == stage, "a stage reads its own params"
    own = ast.parse((ROOT / f"stages/{stage}.py").read_text(encoding="utf-8"))
    holders = ("params", f"read_params('{stage}')")
    reads = {
        node.attr
        for node in ast.walk(own)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in holders
    }
    found |= reads & {"random_seed"}
    assert set(STAGES[stage].get("params", [])) == found


def test_every_section_of_params_is_used_and_shown():
    used = {
        name for stage in STAGES if stage != "report" for name in STAGES[stage].get("params", [])
    }
    assert set(PARAMS) == used | {"report"} == set(STAGES["report"]["params"])


def test_outs_are_cached_but_for_small_texts_and_never_persisted():
    uncached = {
        path
        for stage in STAGES
        for path, options in outs(stage).items()
        if options.get("cache") is False
    }
    assert uncached == {f"data/eval/{name}" for name in UNCACHED}
    assert not any("persist" in options for stage in STAGES for options in outs(stage).values())
    assert not any({"frozen", "always_changed"} & set(stage) for stage in STAGES.values())


def test_dvc_reads_the_same_graph():
    """What the tests above read from dvc.yaml is what DVC makes of it."""
    from dvc.repo import Repo

    with Repo(ROOT) as repo:
        assert [stage.name for stage in repo.stage.load_all("dvc.yaml")] == list(STAGES)
        edges = {(stage.name, other.name) for stage, other in repo.index.graph.edges()}
    needed = {stage: set().union(*map(makers, STAGES[stage]["deps"])) for stage in STAGES}
    assert edges == {
        (stage, other) for stage in STAGES for other in STAGES if set(outs(other)) & needed[stage]
    }


@pytest.mark.parametrize(
    ("param", "first"),
    [
        ("model.layers", "sft"),
        ("dpo.beta", "dpo"),
        ("judge.max_abstained", "judge"),
        ("score.confidence", "score"),
    ],
)
def test_a_training_or_evaluation_param_touches_only_what_comes_after(param, first):
    assert stale(param) == set(ORDER[ORDER.index(first) :])


def test_beta_and_the_number_of_prompts():
    """`dvc exp run -S dpo.beta=0.3` and `-S rephrase.prompts=8`."""
    assert stale("dpo.beta") == {"dpo", "respond", "judge", "score", "report"}
    assert stale("rephrase.prompts") == {
        "rephrase",
        "combine",
        "validate",
        "sft",
        "dpo",
        "respond",
        "judge",
        "score",
        "report",
    }
    assert stale("random_seed") == set(ORDER) == stale("seed.train.seeds")
    assert stale("respond.batch_size") == {"respond", "judge", "score", "report"}


@each_stage
def test_help_answers_at_once(stage):
    """Exit status 0, tells what is read and written, and imports nothing heavy for it."""
    command = [sys.executable, "-X", "importtime", "-m", f"stages.{stage}", "--help"]
    before = os.times()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    after = os.times()
    assert done.returncode == 0, done.stderr.splitlines()[-1]
    assert re.search(r"\b[Rr]eads\b", done.stdout) and re.search(r"\b[Ww]rites\b", done.stdout)
    assert re.search(r"\b[Pp]arams\b", done.stdout)
    imported = {
        line.rsplit("|", 1)[1].strip()
        for line in done.stderr.splitlines()
        if line.startswith("import time:")
    }
    assert not HEAVY & imported
    cpu = (
        after.children_user + after.children_system - before.children_user - before.children_system
    )
    assert cpu < 2, f"{cpu:.1f} s of CPU"


def spelled_out(words: str) -> list[str]:
    """`data/{a,b}.csv` as `data/a.csv` and `data/b.csv`, for every word."""
    found = []
    for word in words.split():
        parts = [
            part.split(",") if i % 2 else [part] for i, part in enumerate(re.split(r"[{}]", word))
        ]
        found += ["".join(choice).strip("`.,;:()") for choice in itertools.product(*parts)]
    return found


@each_stage
def test_help_names_all_that_is_read_written_and_changes_it(stage):
    words = spelled_out(importlib.import_module(f"stages.{stage}").__doc__)
    paths = [dep for dep in STAGES[stage]["deps"] if not dep.startswith("stages/")] + list(
        outs(stage)
    )
    assert [
        path
        for path in paths
        if not any(fnmatch(path, word) or word.startswith(f"{path}/") for word in words)
    ] == []
    told = {word.split(".")[0] for word in words}
    assert set(STAGES[stage].get("params", [])) <= told


@each_stage
def test_a_stage_is_read_in_one_sitting(stage):
    lines = (ROOT / f"stages/{stage}.py").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 160
