"""Getting a released version in the ways the docs show, and the errors of a damaged remote.

Every clone here shares no cache with the repository that made the release. v1.0.0 comes from the
remote in Git, as in a fresh clone. Later versions were released with the address at which a Git
host serves that folder, so that `dvc get URL` finds it: here, a file server on a checkout.
"""

import json
import re
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import polars as pl
import pytest
import yaml

from helpers.dag import ROOT
from helpers.dataset_tables import GOOD
from helpers.releasing import (
    RELEASE,
    TEACHERS,
    call,
    commit_data,
    flip_a_bit,
    repository,
    version_in,
)

BARE = ["--no-tags"], ["--no-tags", "--depth", "1"]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    """(URL, push): a bare repository with three versions, the last of which `push()` publishes."""
    folder = tmp_path_factory.mktemp("origin")
    work = repository(folder / "work")
    call(work, *RELEASE, "make", "v1.0.0")
    call(folder, "git", "clone", "-q", "--bare", str(work), "bare.git")
    url = f"file://{folder}/bare.git"
    call(work, "git", "remote", "add", "origin", url)
    call(folder, "git", "clone", "-q", url, "checkout")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder / "checkout"))
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def push() -> None:
        call(work, "git", "push", "-q", "origin", "main", "--tags")
        call(folder / "checkout", "git", "pull", "-q")

    address = f"http://127.0.0.1:{server.server_port}/data/released"
    call(work, "dvc", "remote", "modify", "release", "url", address)
    call(work, "dvc", "remote", "modify", "--local", "release", "url", "data/released")
    for version in ("v1.1.0", "v1.2.0"):
        commit_data(work, GOOD[0].with_columns(teacher=pl.lit(TEACHERS[version])))
        call(work, *RELEASE, "make", version)
        if version == "v1.1.0":
            push()
    yield url, push
    server.shutdown()
    server.server_close()


def listed(clone: Path) -> dict[str, list[str]]:
    """{version: [date, rows, hash, commit]} as `release list` prints them in `clone`."""
    lines = call(clone, *RELEASE, "list").splitlines()
    cells = [re.split(" {2,}", line) for line in lines]
    return {version: rest for version, *rest in cells}


@pytest.mark.parametrize("options", BARE, ids=["no tags", "shallow"])
def test_a_release_is_found_from_the_branch_alone(origin, tmp_path, options):
    """No tags, and in the second case no commit but the newest: list, get and verify still work."""
    call(tmp_path, "git", "clone", "-q", *options, origin[0], "libra")
    clone = tmp_path / "libra"
    assert call(clone, "git", "tag") == ""
    versions = listed(clone)
    assert list(versions)[-2:] == ["v1.1.0", "v1.0.0"], "newest first"
    date, rows, md5, commit = versions["v1.0.0"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", date) and rows == "384 triplets"
    assert re.fullmatch(r"[0-9a-f]{32}\.dir", md5) and re.fullmatch(r"[0-9a-f]{40}", commit)

    for version in ("v1.0.0", "v1.1.0"):
        output = call(clone, *RELEASE, "verify", version)
        assert f"{version}: all 7 files are in the remote and undamaged\n" in output
        output = call(clone, *RELEASE, "get", version)
        assert "384 triplets" in output and "all 6 files undamaged" in output
        assert version_in(clone / f"librachemqa-{version}") == version
    call(clone, *RELEASE, "get", "v1.0.0", str(tmp_path / "else/where"))
    assert version_in(tmp_path / "else/where") == "v1.0.0"


def test_get_never_overwrites_a_folder(origin, tmp_path):
    call(tmp_path, "git", "clone", "-q", "--no-tags", origin[0], "libra")
    error = call(tmp_path / "libra", *RELEASE, "get", "v1.0.0", "data", fails=True)
    assert error == "release: error: data already exists; name another folder or delete it first\n"


def test_get_leaves_no_folder_behind_if_an_object_is_damaged(origin, tmp_path):
    call(tmp_path, "git", "clone", "-q", "--no-tags", origin[0], "libra")
    clone = tmp_path / "libra"
    call(clone, "dvc", "remote", "modify", "--local", "release", "url", "data/released")
    for path in (clone / "data/released/files").rglob("*"):
        if path.is_file() and path.suffix != ".dir":
            flip_a_bit(path)
    assert "is damaged" in call(clone, *RELEASE, "get", "v1.0.0", "data/v1", fails=True)
    assert not [path for path in (clone / "data").iterdir() if "v1" in path.name]


@pytest.mark.parametrize("command", ["get", "verify"])
def test_an_unknown_version_is_an_error_that_lists_the_known_ones(origin, tmp_path, command):
    call(tmp_path, "git", "clone", "-q", "--branch", "librachemqa@v1.0.0", origin[0], "libra")
    error = call(tmp_path / "libra", *RELEASE, command, "v9.9.9", fails=True)
    assert error == (
        "release: error: v9.9.9 is not in data/released/versions.csv (released: v1.0.0); "
        "`git pull` fetches newer ones\n"
    )


@pytest.mark.parametrize("by", ["tag", "commit"])
def test_dvc_get_by_url(origin, tmp_path, by):
    """By the tag, and by the commit that `release list` prints in a clone without tags."""
    url, _ = origin
    revisions = {version: f"librachemqa@{version}" for version in ("v1.0.0", "v1.1.0")}
    if by == "commit":
        call(tmp_path, "git", "clone", "-q", "--no-tags", "--depth", "1", url, "libra")
        revisions = {version: cells[-1] for version, cells in listed(tmp_path / "libra").items()}
    get = ("dvc", "get", url, "data/librachemqa", "--rev")
    call(tmp_path, *get, revisions["v1.1.0"])
    assert version_in(tmp_path / "librachemqa") == "v1.1.0"

    shutil.rmtree(tmp_path / "librachemqa")
    folder = Path(url.removeprefix("file://")).parent / "checkout/data/released"
    remote = ("--remote", "release", "--remote-config", f"url={folder}")
    call(tmp_path, *get, revisions["v1.0.0"], *remote)
    assert version_in(tmp_path / "librachemqa") == "v1.0.0", (
        "released before the remote had an address: from the folder of a clone"
    )


def test_dvc_artifacts_get(origin, tmp_path):
    call(tmp_path, "dvc", "artifacts", "get", origin[0], "librachemqa", "--rev", "v1.1.0")
    assert version_in(next(tmp_path.rglob("SHA256SUMS")).parent) == "v1.1.0"


def test_dvc_import_and_update(origin, tmp_path):
    """Imported by the commit, updated by the tag."""
    url, push = origin
    call(tmp_path, "git", "clone", "-q", "--no-tags", url, "libra")
    commit = listed(tmp_path / "libra")["v1.1.0"][-1]
    project = tmp_path / "project"
    project.mkdir()
    call(project, "git", "init", "-q")
    call(project, "dvc", "init", "-q")
    call(project, "dvc", "import", url, "data/librachemqa", "--rev", commit)
    assert version_in(project / "librachemqa") == "v1.1.0"

    push()
    call(project, "dvc", "update", "librachemqa.dvc", "--rev", "librachemqa@v1.2.0")
    assert version_in(project / "librachemqa") == "v1.2.0"
    dep = yaml.safe_load((project / "librachemqa.dvc").read_text())["deps"][0]
    assert dep["repo"]["rev"] == "librachemqa@v1.2.0"


def test_a_fresh_clone_pulls_the_version_of_its_branch_from_git_itself(origin, tmp_path):
    """Two commands, no credentials, nothing but the clone."""
    url, _ = origin
    call(tmp_path, "git", "clone", "-q", "--branch", "librachemqa@v1.0.0", url, "libra")
    call(tmp_path / "libra", "dvc", "pull", "data/librachemqa")
    assert version_in(tmp_path / "libra/data/librachemqa") == "v1.0.0"
    assert call(tmp_path / "libra", "git", "status", "--porcelain") == ""

    call(tmp_path, "git", "clone", "-q", "--no-tags", "--depth", "1", url, "newest")
    newest = next(iter(listed(tmp_path / "newest")))
    call(tmp_path / "newest", "dvc", "pull", "--allow-missing")  # whatever the remotes have
    assert version_in(tmp_path / "newest/data/librachemqa") == newest
    missing = call(tmp_path / "newest", "dvc", "pull", fails=True)
    assert "models/dpo" in missing, "policies are in no remote here"


def test_every_version_of_this_repository_is_whole(tmp_path):
    """In a shallow clone of it, without tags."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a Git checkout")
    call(tmp_path, "git", "clone", "-q", "--no-tags", "--depth", "1", f"file://{ROOT}", "libra")
    versions = listed(tmp_path / "libra")
    assert versions["v1.0.0"] == [
        "2026-11-26",
        "66,400 triplets",
        "6c0ba6be97950e467534a8f07528b2b2.dir",
        "b81c040ee1859e6ef82e02521e1b84dc76e8c3f1",
    ]
    for version in versions:
        assert "undamaged" in call(tmp_path / "libra", *RELEASE, "get", version)


@pytest.fixture
def clone(origin, tmp_path):
    """A fresh clone at v1.0.0, and the path of train.parquet's object in it."""
    call(tmp_path, "git", "clone", "-q", "--branch", "librachemqa@v1.0.0", origin[0], "libra")
    objects = tmp_path / "libra/data/released/files/md5"
    (listing,) = objects.rglob("*.dir")
    files = {entry["relpath"]: entry["md5"] for entry in json.loads(listing.read_text())}
    md5 = files["train.parquet"]
    return tmp_path / "libra", objects / md5[:2] / md5[2:]


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (flip_a_bit, r"damaged \(\S+ bytes, MD5 [0-9a-f]{32}\)"),
        (
            lambda path: path.write_bytes(path.read_bytes()[:1000]),
            r"damaged \(1,000 bytes, MD5 [0-9a-f]{32}\)",
        ),
        (lambda path: path.unlink(), "missing"),
    ],
    ids=["flipped", "truncated", "missing"],
)
def test_damage_to_the_remote_is_an_error_that_names_the_file(clone, damage, fault):
    """`dvc pull` fails and leaves no file; `verify` says which one, before any pull."""
    folder, path = clone
    assert "all 7 files are in the remote and undamaged" in call(
        folder, *RELEASE, "verify", "v1.0.0"
    )
    damage(path)
    error = call(folder, *RELEASE, "verify", "v1.0.0", fails=True)
    address = f"object {path.parent.name}/{path.name} of remote `release`"
    assert re.search(rf"train.parquet: {address} is {fault}", error), error
    assert len(error.splitlines()) == 1
    call(folder, "dvc", "pull", "data/librachemqa", fails=True)
    assert not (folder / "data/librachemqa/train.parquet").exists()


def test_a_missing_file_list_is_an_error(clone):
    folder, path = clone
    next(path.parents[1].rglob("*.dir")).unlink()
    error = call(folder, *RELEASE, "verify", "v1.0.0", fails=True)
    assert re.search(r"its file list, object \S+\.dir of remote `release`, is missing", error)


def test_damage_to_a_pulled_folder_names_the_file(clone):
    folder, _ = clone
    call(folder, "dvc", "pull", "data/librachemqa")
    flip_a_bit(folder / "data/librachemqa/test.parquet")
    error = call(folder, *RELEASE, "verify", fails=True)
    assert "data/librachemqa: test.parquet is damaged. Delete the folder and" in error
    sums = call(folder / "data/librachemqa", "sha256sum", "-c", "SHA256SUMS", fails=True)
    assert "test.parquet: FAILED" in sums
