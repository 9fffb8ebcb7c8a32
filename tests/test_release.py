"""Releasing a version: what is refused, what is written, and what the changelog says of it."""

import csv
import re
import shutil
from pathlib import Path

import polars as pl
import pytest
from dvc.repo import Repo

from helpers.dataset_tables import GOOD, changed
from helpers.releasing import RELEASE, call, commit_data, repository
from stages.core.errors import LibraError
from stages.tools.releasing import versions as versions_file
from stages.tools.releasing.changelog import with_entry
from stages.tools.releasing.changes import changes
from stages.tools.releasing.make import ARTIFACT, release
from stages.tools.releasing.objects import fetch
from stages.tools.releasing.versions import VERSIONS, number, read_versions


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A repository after its v1.0.0."""
    folder = repository(tmp_path_factory.mktemp("release") / "libra")
    call(folder, *RELEASE, "make", "v1.0.0")
    return folder


@pytest.fixture
def here(released, monkeypatch):
    """The repository as the current folder; files in Git are restored afterwards."""
    monkeypatch.chdir(released)
    head = call(released, "git", "rev-parse", "HEAD").strip()
    yield released
    call(released, "git", "reset", "-q", "--hard", head)
    call(released, "git", "clean", "-qfd")


@pytest.fixture
def changeable(here):
    """The same, to release other data in; data and tags are restored afterwards as well."""
    head = call(here, "git", "rev-parse", "HEAD").strip()
    yield here
    call(here, "git", "reset", "-q", "--hard", head)
    if later := set(call(here, "git", "tag").split()) - {f"{ARTIFACT}@v1.0.0"}:
        call(here, "git", "tag", "-d", *later)
    GOOD[0].write_parquet("data/triplets.parquet")
    with Repo(".") as repo:
        repo.checkout(force=True)


def written_by(teacher: str) -> pl.DataFrame:
    return GOOD[0].with_columns(teacher=pl.lit(teacher))


def refusal(version: str) -> str:
    """The error that refuses `version`; nothing is committed or tagged."""
    before = call(Path(), "git", "log", "-1", "--format=%H"), call(Path(), "git", "tag")
    with pytest.raises(LibraError) as error:
        release(version)
    assert (call(Path(), "git", "log", "-1", "--format=%H"), call(Path(), "git", "tag")) == before
    return str(error.value)


def test_a_release_is_one_commit_and_a_tag(here):
    assert list(read_versions()) == ["v1.0.0"]
    assert call(here, "git", "log", "-1", "--format=%s").strip() == "Release librachemqa v1.0.0"
    tagged = call(here, "git", "rev-list", "-1", "librachemqa@v1.0.0")
    assert tagged == call(here, "git", "rev-parse", "HEAD")

    paths = call(here, "git", "show", "--name-only", "--format=", "HEAD").split()
    objects = [path for path in paths if path.startswith("data/released/files/md5/")]
    assert len(objects) == 8, "seven files and their list"
    assert all(re.fullmatch(r".*/md5/../[0-9a-f]{30}(\.dir)?", path) for path in objects)
    assert set(paths) - set(objects) == {
        "CHANGELOG.md",
        "data/released/croissant.json",
        "data/released/versions.csv",
    }
    assert "up to date" in call(here, "dvc", "status")
    assert call(here, "git", "status", "--porcelain") == ""
    assert "librachemqa" in call(here, "gto", "show")
    assert "v1.0.0" in call(here, "gto", "show", "librachemqa")


def test_the_versions_file_has_the_released_commit_and_hash(here):
    """The commit before the release commit: the one whose dvc.lock has the hash."""
    with VERSIONS.open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["commit"] == call(here, "git", "rev-parse", "HEAD~1").strip()
    lock = call(here, "git", "show", f"{row['commit']}:dvc.lock")
    assert re.search(rf"path: data/librachemqa\n\s+hash: md5\n\s+md5: {row['md5']}", lock)
    assert row["rows"] == "384" and re.fullmatch(r"\d{4}-\d\d-\d\d", row["date"])


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        (["version,commit", "v1.0.0,abc"], "column md5, rows, date is missing"),
        (["{header}", "v1,{rest}"], "column version: `v1` is not a valid version"),
        (["{header}", "v1.0.0,{rest}", "v1.0.0,{rest}"], "line 3 .*: listed twice"),
    ],
)
def test_a_malformed_versions_file_is_an_error(tmp_path, monkeypatch, lines, error):
    header, rest = "version,commit,md5,rows,date", f"{'a' * 40},{'b' * 32}.dir,1,2026-01-01"
    path = tmp_path / "versions.csv"
    path.write_text("".join(f"{line.format(header=header, rest=rest)}\n" for line in lines))
    monkeypatch.setattr(versions_file, "VERSIONS", path)
    with pytest.raises(LibraError, match=error):
        read_versions()


def test_the_changelog_says_what_a_version_is_and_is_made_from(here):
    text = Path("CHANGELOG.md").read_text()
    row = read_versions()["v1.0.0"]
    assert "384 triplets (train 192, validation 64, test 128)." in text
    assert f"MD5 `{row.md5}`, commit `{row.commit}`." in text and "The first version." in text
    lineage = " ".join(text.partition("according to `dvc.lock`")[2].split())
    assert re.search(
        r"- validate: `validate.probe_limit=0.6`; .*"
        r"read `data/seeds.parquet` [0-9a-f]{32}; .*wrote `data/librachemqa`",
        lineage,
    )
    assert "- dpo" not in text, "only what the dataset comes from"
    total = sum(int(row) for row in re.findall(r"\| 0 \| \d+ \| 0 \| 0 \| (\d+) \|", text))
    assert total == 384


@pytest.mark.parametrize("version", ["1.0.0", "v1.0", "v1.0.0-rc1", "v01.0.0", ""])
def test_a_malformed_version_is_refused(here, version):
    assert f"`{version}` is not a version; write it like v1.0.0" in refusal(version)


def test_an_existing_version_is_refused_with_and_without_its_tag(changeable):
    assert "librachemqa v1.0.0 exists in data/released/versions.csv" in refusal("v1.0.0")
    commit_data(changeable, written_by("teacher-b"))
    tagged = call(changeable, "git", "rev-list", "-1", f"{ARTIFACT}@v1.0.0").strip()
    call(changeable, "git", "tag", "-d", f"{ARTIFACT}@v1.0.0")
    try:
        assert "librachemqa v1.0.0 exists in data/released/versions.csv" in refusal("v1.0.0")
    finally:
        call(changeable, "git", "tag", f"{ARTIFACT}@v1.0.0", tagged)


def test_a_dirty_tree_is_refused(here):
    Path("dvc.yaml").write_text(f"{Path('dvc.yaml').read_text()}# later\n")
    Path("notes.txt").write_text("new")
    assert "the tree is dirty: dvc.yaml, notes.txt; a release is made from a" in refusal("v1.1.0")


def test_an_identical_dataset_is_refused(here):
    assert "data/librachemqa is identical to v1.0.0; there is nothing to" in refusal("v1.0.1")


def test_stale_outputs_are_refused(changeable):
    GOOD[0].head(380).write_parquet("data/triplets.parquet")
    assert "`dvc status` isn't clean (validate)" in refusal("v1.1.0")


def test_a_dataset_that_fails_validation_is_refused(changeable):
    """Committed to DVC by hand, past the gate."""
    changed(GOOD[0], 0, chosen="").write_parquet("data/triplets.parquet")
    with Repo(".") as repo:
        repo.commit(force=True)
    call(changeable, "git", "commit", "-q", "-am", "by hand")
    message = refusal("v1.1.0")
    assert message.startswith("the dataset fails validation: data/triplets.parquet breaks")
    assert GOOD[0]["triplet_id"][0] in message


def test_nothing_is_released_if_the_remote_is_not_writable(changeable):
    Path(".dvc/config.local").write_text("['remote \"release\"']\n    url = /proc/nowhere\n")
    try:
        commit_data(changeable, written_by("teacher-b"))
        assert "the push failed and nothing is released" in refusal("v1.1.0")
    finally:
        Path(".dvc/config.local").unlink()


def test_replies_are_archived_only_if_a_remote_takes_them(changeable, monkeypatch):
    archived = []
    monkeypatch.setattr("stages.tools.releasing.make._archive", archived.append)
    commit_data(changeable, written_by("teacher-b"))
    release("v1.1.0")
    assert archived == []
    storage = str(changeable.parent / "storage")
    call(changeable, "dvc", "remote", "add", "--local", "-d", "storage", storage)
    try:
        commit_data(changeable, written_by("teacher-c"))
        release("v1.2.0")
    finally:
        Path(".dvc/config.local").unlink()
    assert archived == ["v1.2.0"]


def test_a_later_version_lists_its_changes(changeable):
    """Two rows removed and one chosen text changed wherever it occurs; then all of it undone."""
    train = GOOD[0].filter(split="train")
    gone = {train.filter(expected=label)["triplet_id"][0] for label in ("refuse", "comply")}
    is_gone = pl.col("triplet_id").is_in(gone)
    edited = train.filter(~is_gone, expected="comply", intent_kind="dual")["chosen_id"][0]
    answer = pl.when(chosen_id=edited).then(pl.lit("Another good answer.")).otherwise("chosen")
    new = GOOD[0].filter(~is_gone).with_columns(chosen=answer)
    count = new.filter(chosen_id=edited).height
    assert count > 0

    commit_data(changeable, new)
    release("v1.1.0")
    text = Path("CHANGELOG.md").read_text()
    assert text.index("## v1.1.0") < text.index("## v1.0.0")
    assert (
        f"Rows compared with v1.0.0: 0 added, 2 removed, {count} changed, {382 - count} unchanged."
        f" Changed columns: chosen {count}." in text
    )
    rows = train.filter(expected="comply", intent_kind="dual")
    lost = rows.filter(is_gone).height
    counts = f"{rows.height} | 0 | {lost} | {count} | {rows.height - lost}"
    assert f"| train | comply | dual | {counts} |" in text

    commit_data(changeable)
    release("v2.0.0")
    text = Path("CHANGELOG.md").read_text()
    assert f"Rows compared with v1.1.0: 2 added, 0 removed, {count} changed" in text
    rows = read_versions()
    assert list(rows) == ["v1.0.0", "v1.1.0", "v2.0.0"]
    assert [row.rows for row in rows.values()] == [384, 382, 384]
    files = [set(fetch(rows[version].md5, version)) for version in ("v1.1.0", "v2.0.0")]
    assert files[0] == files[1], "earlier versions stay in the remote"


def test_a_shallow_clone_without_tags_can_make_the_next_version(changeable, tmp_path):
    """It knows the previous version, and its rows, from the branch's files alone."""
    clone = tmp_path / "libra"
    url = f"file://{changeable}"
    call(tmp_path, "git", "clone", "-q", "--depth", "1", "--no-tags", url, str(clone))
    call(clone, "git", "config", "user.name", "test")
    call(clone, "git", "config", "user.email", "test@localhost")
    for path in ("data", "models"):
        shutil.copytree(changeable / path, clone / path, dirs_exist_ok=True)
    assert call(clone, "git", "tag") == "" and "exists" in call(
        clone, *RELEASE, "make", "v1.0.0", fails=True
    )
    commit_data(clone, written_by("teacher-b"))
    output = call(clone, *RELEASE, "make", "v1.1.0")
    assert "git push origin HEAD librachemqa@v1.1.0" in output
    text = (clone / "CHANGELOG.md").read_text()
    assert "Rows compared with v1.0.0: 0 added, 0 removed, 384 changed" in text
    assert call(clone, "git", "tag").split() == ["librachemqa@v1.1.0"]


@pytest.mark.parametrize("step", ["_describe", "_tag"])
def test_a_killed_release_is_run_again(changeable, monkeypatch, step):
    """Killed after the push, or after the commit: the next run ends with one entry and the tag."""

    def kill(*_):
        raise KeyboardInterrupt

    commit_data(changeable, written_by("teacher-b"))
    with monkeypatch.context() as patch:
        patch.setattr(f"stages.tools.releasing.make.{step}", kill)
        with pytest.raises(KeyboardInterrupt):
            release("v1.1.0")
    release("v1.1.0")
    assert Path("CHANGELOG.md").read_text().count("## v1.1.0 ") == 1
    assert list(read_versions()) == ["v1.0.0", "v1.1.0"]
    tagged = call(changeable, "git", "rev-list", "-1", "librachemqa@v1.1.0")
    assert tagged == call(changeable, "git", "rev-parse", "HEAD")


def test_a_version_is_released_without_its_tag_if_the_name_is_taken(changeable, capsys):
    call(changeable, "git", "tag", f"{ARTIFACT}@v1.1.0")
    commit_data(changeable, written_by("teacher-b"))
    release("v1.1.0")
    output = capsys.readouterr().out
    assert "no tag was made" in output and "`git push origin HEAD`" in output
    assert list(read_versions()) == ["v1.0.0", "v1.1.0"]


def test_a_row_that_moves_is_removed_from_one_split_and_added_to_the_other(tmp_path):
    moved = changed(GOOD[0], GOOD[0]["split"].to_list().index("train"), split="test")
    write_splits(GOOD[0], tmp_path / "old")
    write_splits(moved, tmp_path / "new")
    classes = changes(tmp_path / "old", tmp_path / "new").classes
    assert classes.filter(split="train")["removed"].sum() == 1
    assert classes.filter(split="test")["added"].sum() == 1
    assert classes["changed"].sum() == 0
    assert classes["before"].sum() == classes["after"].sum() == 384


def test_a_null_that_becomes_a_value_is_a_change(tmp_path):
    write_splits(changed(GOOD[0], 0, fact=None), tmp_path / "old")
    write_splits(changed(GOOD[0], 0, fact="{}"), tmp_path / "new")
    diff = changes(tmp_path / "old", tmp_path / "new")
    assert diff.total("changed") == 1 and diff.columns == {"fact": 1}


def write_splits(triplets: pl.DataFrame, folder: Path) -> None:
    folder.mkdir()
    for split in ("train", "validation", "test"):
        triplets.filter(split=split).write_parquet(folder / f"{split}.parquet")


def test_versions_are_ordered_by_number():
    assert sorted(["v1.10.0", "v1.9.0", "v2.0.0"], key=number) == ["v1.9.0", "v1.10.0", "v2.0.0"]


def test_an_entry_replaces_only_its_own_version():
    text = with_entry(with_entry("", "v1.0.0", "## v1.0.0 (a)\nold\n"), "v1.1.0", "## v1.1.0 (b)\n")
    assert with_entry(text, "v1.0.0", "## v1.0.0 (c)\nnew\n").count("## v1.0.0") == 1
    assert re.findall(r"## (\S+)", text) == ["v1.1.0", "v1.0.0"]
