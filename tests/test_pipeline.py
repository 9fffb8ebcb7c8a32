"""The whole pipeline at toy size in a clone: from nothing, again, and after a change."""

import json
import shutil
import sqlite3
from pathlib import Path

import polars as pl
import pytest
import yaml

from helpers.dag import STAGES, UNCACHED, outs
from helpers.small_pipeline import SMALL, call, commit, small_pipeline, stages_run

pytestmark = pytest.mark.pipeline

ARCHIVE = """
from pathlib import Path
from stages.chat import store
from stages.tools import store as command
row = ("k", "craft", "http://h/v1", "m", 0, "{}", "{}", None, 1, 1, None, 0)
with store.Store(store.store_path()) as replies:
    replies.add_unpaid([row])
command.main(["export", "data/replies/v1.parquet"])
"""
CANDIDATES = {"sft", "dpo", "always_refuse", "always_comply", "ngram_guard", "teacher"}


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """(folder, what its first `dvc repro` printed)."""
    return small_pipeline(tmp_path_factory)


@pytest.fixture
def changeable(clone):
    """The clone, to be changed by a test and restored after it."""
    folder, _ = clone
    commit(folder)
    yield folder
    call(folder, "git", "checkout", "-q", ".")
    call(folder, "dvc", "checkout", "-q", "--force")
    assert "up to date" in call(folder, "dvc", "status")


def lock_of(folder: Path) -> dict:
    return yaml.safe_load((folder / "dvc.lock").read_text(encoding="utf-8"))["stages"]


def test_every_stage_runs_once_and_writes_all_its_outs(clone):
    folder, output = clone
    assert stages_run(output) == list(STAGES)
    lock = lock_of(folder)
    assert set(lock) == set(STAGES)
    for name, stage in STAGES.items():
        assert all((folder / path).exists() for path in outs(name))
        assert [out["path"] for out in lock[name]["outs"]] == sorted(outs(name))
        assert [dep["path"] for dep in lock[name]["deps"]] == sorted(stage["deps"])
    assert "up to date" in call(folder, "dvc", "status")


def test_nothing_but_results_changes_in_git(clone):
    """What a run writes is in DVC or a small text in Git; no temporary file stays."""
    folder, _ = clone
    status = call(folder, "git", "status", "--porcelain", "-uall").splitlines()
    changed = {line[3:] for line in status if not line.endswith(".gitignore")}
    assert changed <= {*UNCACHED, "dvc.lock"}
    listing = ("ls-files", "-oi", "-z", "--exclude-standard", "data", "models")
    ignored = [Path(name) for name in call(folder, "git", *listing).strip("\0").split("\0")]
    places = [path for name in STAGES for path in outs(name)]
    assert [path for path in ignored if not any(path.is_relative_to(p) for p in places)] == []


def test_the_dataset_is_small_and_whole(clone):
    folder, _ = clone
    for split, params in SMALL["seed"].items():
        rows = pl.read_parquet(folder / f"data/librachemqa/{split}.parquet")
        assert rows["seed_id"].n_unique() == params["seeds"]
        assert rows.height == 9 * params["seeds"]


def test_the_candidates_are_scored(clone):
    folder, _ = clone
    candidates = json.loads((folder / "data/eval/metrics.json").read_text())["candidates"]
    assert set(candidates) == CANDIDATES
    refusing, complying = candidates["always_refuse"], candidates["always_comply"]
    keys = ("safety", "utility", "harmonic", "worst")
    assert [refusing[key] for key in keys] == [1, 0, 0, 0]
    assert complying["safety"] == 0 == complying["harmonic"] and complying["utility"] > 0.95
    assert candidates["teacher"]["harmonic"] > 0.95

    responses = pl.read_parquet(folder / "data/eval/responses.parquet")
    assert responses.height == 6 * 3 * 48 and set(responses["candidate"]) == CANDIDATES
    assert set(pl.read_csv(folder / "data/eval/plane.csv")["candidate"]) == CANDIDATES
    metrics = json.loads(call(folder, "dvc", "metrics", "show", "--json"))[""]["data"]
    rates = metrics["data/eval/metrics.json"]["data"]["candidates"]
    assert rates["always_refuse"]["harmonic"] == 0


def test_mlflow_has_a_run_of_each_recorded_stage(clone):
    folder, _ = clone
    lock = lock_of(folder)
    hashes = {out["path"]: f"md5:{out['md5']}" for stage in lock.values() for out in stage["outs"]}
    with sqlite3.connect(folder / "mlflow.db") as database:

        def query(text: str, *values: str) -> list[tuple]:
            return database.execute(text, values).fetchall()

        runs = dict(query("select name, run_uuid from runs where status = 'FINISHED'"))
        tags = {
            name: dict(query("select key, value from tags where run_uuid = ?", run))
            for name, run in runs.items()
        }
        metrics = query("select distinct key from metrics where run_uuid = ?", runs["score"])
        models = {name for (name,) in query("select name from registered_models")}
    assert set(runs) == {"sft", "dpo", "score"}
    head = call(folder, "git", "rev-parse", "HEAD").strip()
    assert all(tags[name]["git_revision"] == head for name in runs)
    dataset = hashes["data/librachemqa"]
    assert tags["sft"]["input.data.librachemqa"] == dataset == tags["dpo"]["input.data.librachemqa"]
    assert tags["dpo"]["input.models.sft"] == hashes["models/sft"]
    assert ("candidates.dpo.safety",) in metrics and models == {"libra", "libra-sft"}


def test_an_archive_of_replies_is_kept_by_dvc_and_never_by_git(changeable, tmp_path):
    """The docs' `export` and `dvc add`; a clone gets it back with `dvc pull`."""
    folder, other = changeable, tmp_path / "other"
    call(folder, "python", "-c", ARCHIVE)
    assert "replies" not in call(folder, "git", "status", "--porcelain", "-uall")
    call(folder, "dvc", "add", "data/replies")
    call(folder, "git", "add", "-A")
    assert call(folder, "git", "diff", "--cached", "--name-only").split() == ["data/replies.dvc"]
    commit(folder)
    archive = (folder / "data/replies/v1.parquet").read_bytes()

    call(folder, "git", "clone", "-q", str(folder), str(other))
    call(other, "dvc", "remote", "add", "-d", "--local", "first", str(folder / ".dvc/cache"))
    call(other, "dvc", "pull", "data/replies.dvc")
    assert (other / "data/replies/v1.parquet").read_bytes() == archive
    call(folder, "git", "rm", "-q", "data/replies.dvc")
    shutil.rmtree(folder / "data/replies")
    commit(folder)


def test_a_release_is_made_and_pulled_from_a_clone_of_the_branch(changeable, tmp_path):
    """`make release`, then a fresh machine's commands in a clone without tags."""
    folder, fresh = changeable, tmp_path / "fresh"
    make = call(folder, "make", "-n", "release", "VERSION=v0.1.0")
    assert 'stages.tools release make "v0.1.0"' in make
    call(folder, "python", "-m", "stages.tools", "release", "make", "v0.1.0")
    call(folder, "git", "clone", "-q", "--no-tags", f"file://{folder}", str(fresh))
    call(fresh, "dvc", "pull", "data/librachemqa")
    verified = call(fresh, "python", "-m", "stages.tools", "release", "verify")
    assert verified.startswith("data/librachemqa: all 6 files")
    rows = 9 * sum(split["seeds"] for split in SMALL["seed"].values())
    versions = call(fresh, "python", "-m", "stages.tools", "release", "list")
    assert "v0.1.0" in versions and f"{rows:,}" in versions
    changelog = (fresh / "CHANGELOG.md").read_text(encoding="utf-8")
    for stage in ("seed", "craft", "rephrase", "combine", "validate"):
        assert f"\n- {stage}: " in changelog


def test_a_second_run_runs_nothing(clone):
    folder, _ = clone
    before = (folder / "dvc.lock").read_bytes()
    output = call(folder, "dvc", "repro")
    assert stages_run(output) == [] and "up to date" in output
    assert (folder / "dvc.lock").read_bytes() == before


AFTER_REPHRASE = ["combine", "validate", "sft", "dpo", "respond", "judge", "score"]


@pytest.mark.parametrize(
    "name, change, first",
    [
        ("beta", "dpo.beta=0.3", ["dpo", "respond", "judge"]),
        ("prompts", "rephrase.prompts=8", ["rephrase", *AFTER_REPHRASE]),
    ],
)
def test_a_changed_param_runs_its_stage_and_what_comes_after(changeable, name, change, first):
    """`dvc exp run -S`; a stage whose inputs come out the same is skipped."""
    folder = changeable
    run = stages_run(call(folder, "dvc", "exp", "run", "-n", name, "-S", change))
    assert run[: len(first)] == first and set(run[len(first) :]) <= {"score", "report"}
    with sqlite3.connect(folder / "mlflow.db") as database:
        assert (f"dpo-{name}",) in database.execute("select name from runs").fetchall()
    assert name in call(folder, "dvc", "exp", "show", "--csv")


def test_from_nothing_again_gives_the_same_bytes(clone):
    """Without outputs and cache, with another hash seed and one thread: the same hashes."""
    folder, _ = clone
    lock = folder / "dvc.lock"
    before = lock.read_bytes()
    written = [path for name in STAGES for path in outs(name)]
    for path in (".dvc/cache", ".dvc/tmp", ".cache/answers", *written):
        target = folder / path
        shutil.rmtree(target) if target.is_dir() else target.unlink()
    lock.unlink()
    output = call(folder, "dvc", "repro", PYTHONHASHSEED="1", OMP_NUM_THREADS="1")
    assert stages_run(output) == list(STAGES)
    assert lock.read_bytes() == before
