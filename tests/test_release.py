"""Releasing a version: what it refuses, what it writes, that a second one tells its rows, and that the folder loads as it lies."""

import json
import re
import subprocess
from pathlib import Path

import polars as pl
import pytest
from dvc.repo import Repo
from test_training import SIZE, texts
from test_validate import GOOD, changed

from helpers.releasing import call, made, repository
from helpers.venvs import venv_python
from stages.core.errors import LibraError
from stages.dataset.checksums import check, sums
from stages.tools import release as command
from stages.tools.releasing.changelog import with_entry
from stages.tools.releasing.changes import changes
from stages.tools.releasing.make import ARTIFACT, number, release, versions
from stages.tools.releasing.objects import fetch
from stages.training.models import new_model, train_tokenizer


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A repository after its v1.0.0."""
    folder = repository(tmp_path_factory.mktemp("release") / "libra")
    call(folder, "python", "-m", "stages.tools", "release", "make", "v1.0.0")
    return folder


@pytest.fixture
def here(released, monkeypatch):
    """The repository as the current folder; afterwards Git's files in it are as they were."""
    monkeypatch.chdir(released)
    head = call(released, "git", "rev-parse", "HEAD").strip()
    yield released
    call(released, "git", "reset", "-q", "--hard", head)
    call(released, "git", "clean", "-qfd")


@pytest.fixture
def changeable(here):
    """The same, to make other data in and release it; afterwards data and tags are as they were, too."""
    head = call(here, "git", "rev-parse", "HEAD").strip()
    yield here
    call(here, "git", "reset", "-q", "--hard", head)
    if later := set(call(here, "git", "tag").split()) - {f"{ARTIFACT}@v1.0.0"}:
        call(here, "git", "tag", "-d", *later)
    GOOD[0].write_parquet("data/triplets.parquet")
    with Repo(".") as repo:
        repo.checkout(force=True)


def refusal(version: str) -> str:
    """Why `version` isn't released; nothing is committed or tagged."""
    before = call(Path(), "git", "log", "-1", "--format=%H"), call(Path(), "git", "tag")
    with pytest.raises(LibraError) as error:
        release(version)
    assert (call(Path(), "git", "log", "-1", "--format=%H"), call(Path(), "git", "tag")) == before
    return str(error.value)


def test_a_release_is_one_commit_and_a_tag(here):
    assert versions() == ["v1.0.0"]
    assert call(here, "git", "log", "-1", "--format=%s").strip() == "Release librachemqa v1.0.0"
    assert call(here, "git", "rev-list", "-1", "librachemqa@v1.0.0") == call(
        here, "git", "rev-parse", "HEAD"
    )
    changed_files = call(here, "git", "show", "--name-only", "--format=", "HEAD").split()
    assert changed_files[:2] == ["CHANGELOG.md", "data/released/croissant.json"]
    assert len(changed_files) == 2 + 8, "seven files and their list"
    assert all(
        re.fullmatch(r"data/released/files/md5/../[0-9a-f]{30}(\.dir)?", name)
        for name in changed_files[2:]
    )
    assert (
        "up to date" in call(here, "dvc", "status")
        and call(here, "git", "status", "--porcelain") == ""
    )
    assert "librachemqa" in call(here, "gto", "show") and "v1.0.0" in call(
        here, "gto", "show", "librachemqa"
    )


def test_the_changelog_tells_what_the_version_is_and_is_made_from(here):
    text = Path("CHANGELOG.md").read_text()
    lock = Path("dvc.lock").read_text()
    md5 = re.search(r"path: data/librachemqa\n\s+hash: md5\n\s+md5: (\S+\.dir)", lock)[1]
    assert (
        f"384 triplets (train 192, validation 64, test 128), MD5 `{md5}`" in text
        and "The first version." in text
    )
    assert re.search(
        r"^- validate: `validate: \{'probe_limit': 0.6\}`; .*read `data/seeds.parquet` [0-9a-f]{32}; .* wrote `",
        text,
        re.M,
    )
    assert "- dpo" not in text, "only what the dataset comes from"
    total = sum(int(row) for row in re.findall(r"\| 0 \| \d+ \| 0 \| 0 \| (\d+) \|", text))
    assert total == 384


def test_list_shows_versions_with_date_rows_and_hash(here):
    said = call(here, "python", "-m", "stages.tools", "release", "list")
    assert re.fullmatch(r"v1\.0\.0 +\d{4}-\d\d-\d\d  384 triplets  [0-9a-f]{32}\.dir\n", said)


@pytest.mark.parametrize("version", ["1.0.0", "v1.0", "v1.0.0-rc1", "v01.0.0", ""])
def test_what_is_no_version_is_refused(here, version):
    assert f"`{version}` is no version; write it as v1.0.0" in refusal(version)


def test_an_existing_version_is_refused(here):
    assert "librachemqa v1.0.0 exists" in refusal("v1.0.0")


def test_a_dirty_tree_is_refused(here):
    Path("dvc.yaml").open("a").write("# later\n")
    Path("notes.txt").write_text("new")
    assert "the tree is dirty: dvc.yaml, notes.txt; commit or undo" in refusal("v1.1.0")


def test_a_folder_that_was_released_is_refused(here):
    assert "data/librachemqa is what v1.0.0 released, to the byte" in refusal("v1.0.1")


def test_verify_knows_a_version_that_isn_t_there_from_a_folder(here):
    said = call(here, "python", "-m", "stages.tools", "release", "verify", "v9.9.9", fails=True)
    assert (
        said
        == "release: error: v9.9.9 is not released here (there are: v1.0.0); `git fetch --tags` gets those of the origin\n"
    )


def test_replies_are_archived_only_where_a_remote_takes_them(changeable, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "stages.tools.releasing.make._archive", lambda version: asked.append(version)
    )
    made(changeable, GOOD[0].with_columns(teacher=pl.lit("teacher-b")))
    release("v1.1.0")
    assert asked == []
    call(
        changeable,
        "dvc",
        "remote",
        "add",
        "--local",
        "-d",
        "storage",
        str(changeable.parent / "storage"),
    )
    try:
        made(changeable, GOOD[0].with_columns(teacher=pl.lit("teacher-c")))
        release("v1.2.0")
    finally:
        Path(".dvc/config.local").unlink()
    assert asked == ["v1.2.0"]


def test_stale_outputs_are_refused(changeable):
    GOOD[0].head(380).write_parquet("data/triplets.parquet")
    assert "`dvc status` isn't clean (validate)" in refusal("v1.1.0")


def test_a_dataset_that_fails_validation_is_refused(changeable):
    """Committed to DVC by hand, past the gate."""
    changed(GOOD[0], 0, chosen="").write_parquet("data/triplets.parquet")
    with Repo(".") as repo:
        repo.commit(force=True)
    call(changeable, "git", "commit", "-q", "-am", "by hand")
    said = refusal("v1.1.0")
    assert (
        said.startswith("the dataset fails validation: data/triplets.parquet breaks")
        and GOOD[0]["triplet_id"][0] in said
    )


def test_a_remote_that_cannot_be_written_releases_nothing(changeable):
    Path(".dvc/config.local").write_text("['remote \"release\"']\n    url = /proc/nowchangeable\n")
    try:
        made(changeable, GOOD[0].with_columns(teacher=pl.lit("teacher-b")))
        assert "nothing is released, the push failed" in refusal("v1.1.0")
    finally:
        Path(".dvc/config.local").unlink()


def test_the_second_version_tells_its_rows(changeable):
    """Two rows gone and one chosen text changed wherever it stands; then all of it back."""
    first = GOOD[0].filter(split="train")
    gone = {first.filter(expected=label)["triplet_id"][0] for label in ("refuse", "comply")}
    edited = first.filter(~pl.col("triplet_id").is_in(gone), expected="comply", intent_kind="dual")[
        "chosen_id"
    ][0]
    new = GOOD[0].filter(~pl.col("triplet_id").is_in(gone))
    new = new.with_columns(
        chosen=pl.when(chosen_id=edited).then(pl.lit("Another good answer.")).otherwise("chosen")
    )
    count = new.filter(chosen_id=edited).height
    made(changeable, new)
    release("v1.1.0")
    text = Path("CHANGELOG.md").read_text()
    assert text.index("## v1.1.0") < text.index("## v1.0.0")
    told = f"Rows against v1.0.0: 0 added, 2 removed, {count} changed, {382 - count} the same. Changed columns: chosen {count}."
    assert count > 0 and told in text
    rows = first.filter(expected="comply", intent_kind="dual")
    lost = rows.filter(pl.col("triplet_id").is_in(gone)).height
    assert (
        f"| train | comply | dual | {rows.height} | 0 | {lost} | {count} | {rows.height - lost} |"
        in text
    )
    made(changeable)
    release("v2.0.0")
    text = Path("CHANGELOG.md").read_text()
    assert f"Rows against v1.1.0: 2 added, 0 removed, {count} changed" in text
    assert versions() == ["v1.0.0", "v1.1.0", "v2.0.0"]
    assert set(fetch("librachemqa@v1.1.0")) == set(fetch("librachemqa@v2.0.0")), "old versions stay"


def test_a_moved_row_is_removed_from_one_split_and_added_to_the_other(tmp_path):
    for name, table in (
        ("old", GOOD[0]),
        ("new", changed(GOOD[0], GOOD[0]["split"].to_list().index("train"), split="test")),
    ):
        for split in ("train", "validation", "test"):
            (tmp_path / name).mkdir(exist_ok=True)
            table.filter(split=split).write_parquet(tmp_path / name / f"{split}.parquet")
    found = changes(tmp_path / "old", tmp_path / "new").classes
    assert (
        found.filter(split="train")["removed"].sum()
        == found.filter(split="test")["added"].sum()
        == 1
    )
    assert found["changed"].sum() == 0 and found["before"].sum() == found["after"].sum() == 384


def test_a_null_that_becomes_a_value_is_a_change(tmp_path):
    for name, fact in (("old", None), ("new", "{}")):
        (tmp_path / name).mkdir()
        for split in ("train", "validation", "test"):
            changed(GOOD[0], 0, fact=fact).filter(split=split).write_parquet(
                tmp_path / name / f"{split}.parquet"
            )
    found = changes(tmp_path / "old", tmp_path / "new")
    assert found.total("changed") == 1 and found.columns == {"fact": 1}


def test_a_killed_release_is_run_again(changeable, monkeypatch):
    """Killed after the push, and after the commit: the next run ends with one entry and the tag."""
    made(changeable, GOOD[0].with_columns(teacher=pl.lit("teacher-b")))
    for step in ("_described", "_register"):
        with monkeypatch.context() as patch:
            patch.setattr(
                f"stages.tools.releasing.make.{step}",
                lambda *_: (_ for _ in ()).throw(KeyboardInterrupt),
            )
            with pytest.raises(KeyboardInterrupt):
                release("v1.1.0")
    release("v1.1.0")
    assert Path("CHANGELOG.md").read_text().count("## v1.1.0 ") == 1 and versions() == [
        "v1.0.0",
        "v1.1.0",
    ]


def test_numbers_are_ordered_as_numbers():
    assert sorted(["v1.10.0", "v1.9.0", "v2.0.0"], key=number) == ["v1.9.0", "v1.10.0", "v2.0.0"]


def test_an_entry_is_replaced_by_itself_only():
    text = with_entry(with_entry("", "v1.0.0", "## v1.0.0 (a)\nold\n"), "v1.1.0", "## v1.1.0 (b)\n")
    assert with_entry(text, "v1.0.0", "## v1.0.0 (c)\nnew\n").count("## v1.0.0") == 1
    assert re.findall(r"## (\S+)", text) == ["v1.1.0", "v1.0.0"]


def test_sums_name_what_is_wrong(tmp_path, capsys, monkeypatch):
    for name in ("a.parquet", "b.parquet"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "SHA256SUMS").write_text(sums(tmp_path))
    assert check(tmp_path) == 2
    assert call(tmp_path, "sha256sum", "-c", "SHA256SUMS").count("OK") == 2
    (tmp_path / "a.parquet").write_bytes(b"A.parquet")
    (tmp_path / "b.parquet").unlink()
    (tmp_path / "c.txt").write_text("c")
    with pytest.raises(
        LibraError,
        match=r"a.parquet is damaged; b.parquet is missing; c.txt isn't part of the release",
    ):
        check(tmp_path)
    (tmp_path / "SHA256SUMS").write_text("nonsense\n")
    monkeypatch.setattr("sys.argv", ["release", "verify", str(tmp_path)])
    with pytest.raises(SystemExit, match="SHA256SUMS is damaged"):
        command.main()


def test_the_folder_loads_with_datasets_and_polars(here, tmp_path):
    from datasets import load_dataset

    loaded = load_dataset(str(here / "data/librachemqa"), cache_dir=str(tmp_path))
    assert {split: rows.num_rows for split, rows in loaded.items()} == {
        "train": 192,
        "validation": 64,
        "test": 128,
    }
    rows = pl.read_parquet(here / "data/librachemqa/train.parquet")
    assert rows.rows() == [tuple(row.values()) for row in loaded["train"]]


def test_trl_trains_on_the_folder_as_it_is(here, tmp_path):
    from datasets import load_dataset
    from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

    rows = load_dataset(str(here / "data/librachemqa"), cache_dir=str(tmp_path / "cache"))["train"]
    common = {
        "max_steps": 1,
        "per_device_train_batch_size": 2,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "max_length": 96,
    }
    common |= {
        "activation_checkpointing": False,
        "disable_tqdm": True,
        "output_dir": str(tmp_path / "run"),
        "save_strategy": "no",
    }
    tokenizer = train_tokenizer(texts(), SIZE.vocab_size)
    policy = str(tmp_path / "policy")
    new_model(SIZE, tokenizer).save_pretrained(policy)
    tokenizer.save_pretrained(policy)
    for trainer, config in ((DPOTrainer, DPOConfig), (RewardTrainer, RewardConfig)):
        trained = trainer(
            model=policy, args=config(**common), train_dataset=rows, processing_class=tokenizer
        )
        trained.train()
        assert trained.state.global_step == 1


@pytest.mark.parametrize(
    "where", ["data/librachemqa/croissant.json", "data/released/croissant.json"]
)
def test_croissant_is_valid_and_loads(here, where):
    """In the pulled folder, and from a clone of the repository alone (with version and date, so without any warning)."""
    python = venv_python("mlcroissant", "mlcroissant==1.1.1", "pyarrow")
    code = """
import sys, json, mlcroissant
dataset = mlcroissant.Dataset(sys.argv[1])
issues = dataset.metadata.ctx.issues
rows = {split: [row[f"{split}/triplet_id"].decode() for row in dataset.records(split)] for split in ("train", "validation", "test")}
meta = dataset.metadata
print(json.dumps({"warnings": sorted(issues.warnings), "errors": sorted(issues.errors), "rows": rows,
    "conforms": meta.ctx.conforms_to.value, "biases": meta.data_biases, "limits": meta.data_limitations, "uses": meta.data_use_cases, "version": meta.version}))
"""
    done = subprocess.run(
        [python, "-c", code, str(here / where)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout)
    assert told["errors"] == [] and told["conforms"] == "http://mlcommons.org/croissant/1.1"
    assert told["biases"] and told["limits"] and any("Out of scope" in use for use in told["uses"])
    for split, ids in told["rows"].items():
        assert sorted(ids) == GOOD[0].filter(split=split)["triplet_id"].sort().to_list()
    if "released" in where:
        assert told["warnings"] == [] and told["version"] == "1.0.0"
    else:
        assert told["version"] is None and len(told["warnings"]) == 2, (
            "a folder doesn't know its version; the tag does"
        )
