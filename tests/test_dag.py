"""dvc.yaml against the code: a stage depends on what it imports and reads, and on no more."""

import ast
import importlib
import itertools
import re
import subprocess
import sys
from fnmatch import fnmatch

import pytest

from helpers.dag import DVC, ORDER, PARAMS, ROOT, STAGES, UNCACHED, code_files, outs, room_of

HEAVY = {
    *("torch", "polars", "numpy", "pandas", "rdkit", "chemicals", "sklearn", "scipy"),
    *("transformers", "trl", "datasets", "mlflow", "openai"),
}
SETTINGS = {"budget", "connections"}  # how a run is carried out: no stage declares them
each_stage = pytest.mark.parametrize("stage", STAGES)


def makers(dep: str) -> set[str]:
    """The outs that `dep` is, or lies in."""
    every = (path for stage in STAGES for path in outs(stage))
    return {path for path in every if dep == path or dep.startswith(f"{path}/")}


def trees(stage: str) -> list[ast.Module]:
    """Syntax trees of all code a stage can run."""
    files = code_files(f"stages.{stage}")
    return [ast.parse((ROOT / file).read_text(encoding="utf-8")) for file in files]


def own_tree(stage: str) -> ast.Module:
    return ast.parse((ROOT / f"stages/{stage}.py").read_text(encoding="utf-8"))


def strings(stage: str) -> set[str]:
    """All string constants in the code a stage can run."""
    nodes = (node for tree in trees(stage) for node in ast.walk(tree))
    constants = (node.value for node in nodes if isinstance(node, ast.Constant))
    return {value for value in constants if isinstance(value, str)}


def calls(tree: ast.Module) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def stale(param: str) -> set[str]:
    """The stages that `dvc repro` runs again once `param` (`dpo.beta`) changes, from dvc.yaml."""
    names = {param, param.split(".")[0]}
    again = {name for name, stage in STAGES.items() if names & set(stage.get("params", []))}
    while True:
        written = {path for stage in again for path in outs(stage)}
        after = {n for n in STAGES if any(makers(dep) & written for dep in STAGES[n]["deps"])}
        if after <= again:
            return again
        again |= after


def test_the_story_has_eleven_stages_in_order():
    assert list(STAGES) == ORDER
    for place, stage in enumerate(ORDER):
        for dep in STAGES[stage]["deps"]:
            sources = [other for other in ORDER if makers(dep) & set(outs(other))]
            assert all(source in ORDER[:place] for source in sources), f"{stage} needs {dep}"


@each_stage
def test_a_stage_runs_its_own_module_and_says_what_for(stage):
    assert STAGES[stage]["cmd"] == f"python -m stages.{stage}"
    assert len(STAGES[stage]["desc"]) > 10


@each_stage
def test_code_deps_are_the_stage_and_the_rooms_it_imports(stage):
    files = code_files(f"stages.{stage}")
    rooms = {f"stages/{room}" for room in map(room_of, files) if room}
    declared = {dep for dep in STAGES[stage]["deps"] if dep.startswith("stages/")}
    assert declared == rooms | {f"stages/{stage}.py"}


def test_dpo_alone_depends_on_what_is_dpos():
    """A change in preference/ never trains SFT again."""
    assert [stage for stage in STAGES if "stages/preference" in STAGES[stage]["deps"]] == ["dpo"]


def test_texts_that_code_opens_lie_in_its_own_room():
    """Prompts, weights, templates, patterns: named by another file of the room they are in."""
    files = [path for path in (ROOT / "stages").rglob("*") if path.is_file()]
    files = [path for path in files if path.suffix != ".pyc"]
    for path in (path for path in files if path.suffix != ".py"):
        if path.parent.name == "launch":  # configurations that a user gives to a launcher
            continue
        room = room_of(path.relative_to(ROOT))
        assert room, path
        others = [file for file in (ROOT / "stages" / room).rglob("*") if file in files]
        text = "".join(file.read_text(encoding="utf-8") for file in others if file != path)
        # A prompt's file name is built from the kind of its request.
        assert path.name in text or (path.parent.name == "prompts" and f'"{path.stem}"' in text)


@each_stage
def test_data_deps_are_what_the_code_names(stage):
    """Each out of another stage that the code opens is a dep, and so is what people write."""
    others = {path for other in STAGES if other != stage for path in outs(other)}
    data = {dep for dep in STAGES[stage]["deps"] if not dep.startswith("stages/")}
    by_hand = {"seed": {"data/catalog"}, "score": {"data/labels/verdicts.csv"}}
    assert {dep for dep in data if not makers(dep)} == by_hand.get(stage, set())

    # Strings with a blank are sentences: messages and help name files without opening them.
    words = {word for word in strings(stage) if not re.search(r"\s", word)}
    named = {p for p in others if any(word == p or word.startswith(f"{p}/") for word in words)}
    if stage == "respond":
        assert "models/" in words  # f"models/{name}"
        named |= {"models/sft", "models/dpo"}
    assert set().union(*map(makers, data)) & others == named

    # Of the release single files, so that a new card trains nothing again.
    splits = {dep for dep in data if dep.startswith("data/librachemqa")}
    assert own_splits(stage) <= splits <= words | own_splits(stage)


def own_splits(stage: str) -> set[str]:
    """The files of the release that a stage's own code reads."""
    first = [(ast.unparse(call.func), call.args[0]) for call in calls(own_tree(stage)) if call.args]
    named = [(name, arg.value) for name, arg in first if isinstance(arg, ast.Constant)]
    paths = {value for name, value in named if name == "read_table"}
    paths |= {
        f"data/librachemqa/{value}.parquet" for name, value in named if name.endswith("triplets")
    }
    return {path for path in paths if path.startswith("data/librachemqa/")}


@each_stage
def test_params_read_are_the_params_declared(stage):
    from stages.report import LISTED

    read = set()
    for call in (call for tree in trees(stage) for call in calls(tree)):
        if isinstance(call.func, ast.Attribute) and call.func.attr == "section":
            name = call.args[0]
            read |= {name.value} if isinstance(name, ast.Constant) else set(LISTED)
        if isinstance(call.func, ast.Name) and call.func.id == "read_params":
            assert call.args[0].value == stage, "a stage reads its own params"
    holders = ("params", f"read_params('{stage}')")
    attributes = [node for node in ast.walk(own_tree(stage)) if isinstance(node, ast.Attribute)]
    read |= {a.attr for a in attributes if ast.unparse(a.value) in holders} & {"random_seed"}
    assert set(STAGES[stage].get("params", [])) == read


def test_every_section_of_params_is_a_stages_and_shown_or_a_setting_of_the_run():
    declared = {name for stage in STAGES for name in STAGES[stage].get("params", [])}
    assert set(PARAMS) == declared | SETTINGS
    assert not declared & SETTINGS
    assert declared == set(STAGES["report"]["params"])


def test_outs_are_cached_but_for_small_texts_and_never_persisted():
    options = {path: options for stage in STAGES for path, options in outs(stage).items()}
    assert {path for path in options if options[path].get("cache") is False} == set(UNCACHED)
    assert not any("persist" in of_path for of_path in options.values())
    assert not any({"frozen", "always_changed"} & set(stage) for stage in STAGES.values())


def test_dvc_reads_the_same_graph():
    """What the tests above read from dvc.yaml is what DVC makes of it."""
    from dvc.repo import Repo

    with Repo(ROOT) as repo:
        assert [stage.name for stage in repo.stage.load_all("dvc.yaml")] == list(STAGES)
        edges = {(stage.name, other.name) for stage, other in repo.index.graph.edges()}
    needs = {stage: set().union(*map(makers, DVC["stages"][stage]["deps"])) for stage in STAGES}
    pairs = itertools.product(STAGES, STAGES)
    assert edges == {(stage, other) for stage, other in pairs if set(outs(other)) & needs[stage]}


@pytest.mark.parametrize(
    "param, first",
    [
        ("model.layers", "sft"),
        ("dpo.beta", "dpo"),
        ("respond.batch_size", "respond"),
        ("judge.max_abstained", "judge"),
        ("score.confidence", "score"),
    ],
)
def test_a_training_or_evaluation_param_touches_only_what_comes_after(param, first):
    assert stale(param) == set(ORDER[ORDER.index(first) :])


def test_other_params_touch_their_stage_and_what_comes_after():
    assert stale("rephrase.prompts") == set(ORDER) - {"seed", "craft"}
    assert stale("random_seed") == set(ORDER) == stale("seed.train.seeds")
    assert stale("budget.max_usd") == set() == stale("connections.default.concurrency")


@each_stage
def test_help_imports_nothing_heavy(stage):
    """Exit status 0; says what is read and written and which params count."""
    command = [sys.executable, "-X", "importtime", "-m", f"stages.{stage}", "--help"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr.splitlines()[-1]
    for word in ("reads", "writes", "params"):
        assert re.search(rf"\b{word}\b", run.stdout, re.IGNORECASE)
    timings = [line for line in run.stderr.splitlines() if line.startswith("import time:")]
    assert not HEAVY & {line.rsplit("|", 1)[1].strip() for line in timings}


def alternatives(words: str) -> list[str]:
    """`data/{a,b}.csv` as `data/a.csv` and `data/b.csv`, for every word."""
    paths = []
    for word in words.split():
        parts = re.split(r"[{}]", word)
        choices = [part.split(",") if i % 2 else [part] for i, part in enumerate(parts)]
        paths += ["".join(choice).strip("`.,;:()") for choice in itertools.product(*choices)]
    return paths


@each_stage
def test_help_names_everything_that_is_read_and_written_and_every_param(stage):
    words = alternatives(importlib.import_module(f"stages.{stage}").__doc__)
    paths = [dep for dep in STAGES[stage]["deps"] if not dep.startswith("stages/")]
    paths += list(outs(stage))

    def named(path: str) -> bool:
        return any(fnmatch(path, word) or word.startswith(f"{path}/") for word in words)

    assert [path for path in paths if not named(path)] == []
    assert set(STAGES[stage].get("params", [])) <= {word.split(".")[0] for word in words}
