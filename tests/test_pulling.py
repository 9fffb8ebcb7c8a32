"""Pulling a released version the ways README tells, each from a bare clone with no cache in common, and what damage to a remote says.

v1.0.0 is pulled from the remote in Git, as a fresh clone has it. The versions after it were released with the address at which a
Git host serves that folder, so that `dvc get URL` finds it: here a server of files on a checkout.
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
from test_validate import GOOD

from helpers.releasing import call, made, repository
from stages.dataset.checksums import check

TEACHERS = {"v1.0.0": "teacher-a", "v1.1.0": "teacher-b", "v1.2.0": "teacher-c"}


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    """A bare repository with three versions, the last of them not pushed yet: (its URL, push it)."""
    folder = tmp_path_factory.mktemp("origin")
    work = repository(folder / "work")
    call(work, "python", "-m", "stages.tools", "release", "make", "v1.0.0")
    call(folder, "git", "clone", "-q", "--bare", str(work), "bare.git")
    url = f"file://{folder}/bare.git"
    call(work, "git", "remote", "add", "origin", url)
    call(folder, "git", "clone", "-q", url, "checkout")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder / "checkout"))
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def publish() -> None:
        call(work, "git", "push", "-q", "origin", "main", "--tags")
        call(folder / "checkout", "git", "pull", "-q")

    address = f"http://127.0.0.1:{server.server_port}/data/released"
    call(work, "dvc", "remote", "modify", "release", "url", address)
    call(work, "dvc", "remote", "modify", "--local", "release", "url", "data/released")
    for version in ("v1.1.0", "v1.2.0"):
        made(work, GOOD[0].with_columns(teacher=pl.lit(TEACHERS[version])))
        call(work, "python", "-m", "stages.tools", "release", "make", version)
        if version == "v1.1.0":
            publish()
    yield url, publish
    server.shutdown()
    server.server_close()


def pulled(folder: Path) -> str:
    """The version that the whole, undamaged `folder` holds."""
    assert check(folder) == 6
    rows = pl.concat(
        pl.read_parquet(folder / f"{split}.parquet") for split in ("train", "validation", "test")
    )
    assert rows.height == GOOD[0].height
    (teacher,) = rows["teacher"].unique()
    return next(version for version, name in TEACHERS.items() if name == teacher)


def test_a_fresh_clone_pulls_the_version_it_is_at_from_git_itself(origin, tmp_path):
    """Two commands, no credentials, nothing but the clone."""
    url, _ = origin
    call(tmp_path, "git", "clone", "-q", "--branch", "librachemqa@v1.0.0", url, "libra")
    call(tmp_path / "libra", "dvc", "pull", "data/librachemqa")
    assert pulled(tmp_path / "libra/data/librachemqa") == "v1.0.0"
    assert call(tmp_path / "libra", "git", "status", "--porcelain") == ""
    call(tmp_path, "git", "clone", "-q", url, "newest")
    call(tmp_path / "newest", "dvc", "pull", "--allow-missing")  # all there is
    assert pulled(tmp_path / "newest/data/librachemqa") == "v1.1.0"
    assert "models/dpo" in call(tmp_path / "newest", "dvc", "pull", fails=True), (
        "policies are in no remote here"
    )
    said = call(tmp_path / "newest", "python", "-m", "stages.tools", "release", "list")
    assert re.findall(r"^(v\S+) +(\S+)  (.*)  ([0-9a-f]{32}\.dir)$", said, re.MULTILINE)[0][
        ::2
    ] == ("v1.1.0", "384 triplets")


def test_get_by_url(origin, tmp_path):
    url, _ = origin
    call(tmp_path, "dvc", "get", url, "data/librachemqa", "--rev", "librachemqa@v1.1.0")
    assert pulled(tmp_path / "librachemqa") == "v1.1.0"
    shutil.rmtree(tmp_path / "librachemqa")
    at = Path(url.removeprefix("file://")).parent / "checkout/data/released"
    remote = ("--remote", "release", "--remote-config", f"url={at}")
    call(tmp_path, "dvc", "get", url, "data/librachemqa", "--rev", "librachemqa@v1.0.0", *remote)
    assert pulled(tmp_path / "librachemqa") == "v1.0.0", (
        "released before the repository had an address: from a clone's folder"
    )


def test_get_the_artifact(origin, tmp_path):
    call(tmp_path, "dvc", "artifacts", "get", origin[0], "librachemqa", "--rev", "v1.1.0")
    assert pulled(next(tmp_path.rglob("SHA256SUMS")).parent) == "v1.1.0"


def test_import_and_update(origin, tmp_path):
    url, publish = origin
    call(tmp_path, "git", "init", "-q")
    call(tmp_path, "dvc", "init", "-q")
    call(tmp_path, "dvc", "import", url, "data/librachemqa", "--rev", "librachemqa@v1.1.0")
    assert pulled(tmp_path / "librachemqa") == "v1.1.0"
    publish()
    call(tmp_path, "dvc", "update", "librachemqa.dvc", "--rev", "librachemqa@v1.2.0")
    assert pulled(tmp_path / "librachemqa") == "v1.2.0"
    assert (
        yaml.safe_load((tmp_path / "librachemqa.dvc").read_text())["deps"][0]["repo"]["rev"]
        == "librachemqa@v1.2.0"
    )


@pytest.fixture
def clone(origin, tmp_path):
    """A fresh clone at v1.0.0, and the path of train.parquet's object in it."""
    call(tmp_path, "git", "clone", "-q", "--branch", "librachemqa@v1.0.0", origin[0], "libra")
    objects = tmp_path / "libra/data/released/files/md5"
    (listing,) = objects.rglob("*.dir")
    md5 = {entry["relpath"]: entry["md5"] for entry in json.loads(listing.read_text())}[
        "train.parquet"
    ]
    return tmp_path / "libra", objects / md5[:2] / md5[2:]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (flip, r"damaged \(\S+ bytes, MD5 [0-9a-f]{32}\)"),
        (
            lambda path: path.write_bytes(path.read_bytes()[:1000]),
            r"damaged \(1,000 bytes, MD5 [0-9a-f]{32}\)",
        ),
        (lambda path: path.unlink(), "missing"),
    ],
    ids=["flipped", "truncated", "missing"],
)
def test_damage_to_the_remote_is_an_error_that_names_the_file(clone, damage, fault):
    """`dvc pull` fails and leaves no file; `verify` says which, and does so before and after."""
    folder, path = clone
    verify = ("python", "-m", "stages.tools", "release", "verify", "v1.0.0")
    assert "all 7 files, SHA256SUMS with them, are in the remote, undamaged" in call(
        folder, *verify
    )
    damage(path)
    said = call(folder, *verify, fails=True)
    assert re.search(
        rf"train.parquet: object {path.parent.name}/{path.name} of remote `release` is {fault}",
        said,
    ), said
    assert len(said.splitlines()) == 1
    call(folder, "dvc", "pull", "data/librachemqa", fails=True)
    assert not (folder / "data/librachemqa/train.parquet").exists()


def test_a_missing_list_of_files_is_told(clone):
    folder, path = clone
    next(path.parents[1].rglob("*.dir")).unlink()
    said = call(folder, "python", "-m", "stages.tools", "release", "verify", "v1.0.0", fails=True)
    assert re.search(r"its list of files, object \S+\.dir of remote `release`, is missing", said)


def test_damage_to_a_pulled_folder_names_the_file(clone):
    folder, _ = clone
    call(folder, "dvc", "pull", "data/librachemqa")
    flip(folder / "data/librachemqa/test.parquet")
    said = call(folder, "python", "-m", "stages.tools", "release", "verify", fails=True)
    assert (
        "data/librachemqa: test.parquet is damaged. Delete the folder and pull the dataset again"
        in said
    )
    assert "test.parquet: FAILED" in call(
        folder / "data/librachemqa", "sha256sum", "-c", "SHA256SUMS", fails=True
    )
