"""Releases on a real S3 server (OpenStack Swift's s3api, started here): push, pull, refusals, damage, and a push that is killed."""

import json
import os
import re
import socket
import subprocess
import time

import botocore.session
import pytest
from botocore.config import Config
from test_pulling import flip, pulled

from helpers.dag import ROOT
from helpers.releasing import PATH, call, repository
from helpers.swift_server import KEY, REGION, USER
from helpers.venvs import venv_python

BUCKET = "libra"
KEYS = {
    "AWS_ACCESS_KEY_ID": USER,
    "AWS_SECRET_ACCESS_KEY": KEY,
    "AWS_EC2_METADATA_DISABLED": "true",
}
NO_KEYS = dict.fromkeys(KEYS, "") | {
    "AWS_SHARED_CREDENTIALS_FILE": "/nowhere",
    "AWS_EC2_METADATA_DISABLED": "true",
}


def free_ports(count: int) -> int:
    """The first of `count` free ports in a row."""
    for _ in range(100):
        with socket.create_server(("127.0.0.1", 0)) as found:
            first = found.getsockname()[1]
        try:
            taken = [socket.create_server(("127.0.0.1", first + i)) for i in range(count)]
        except OSError:
            continue
        for each in taken:
            each.close()
        return first
    raise AssertionError("no free ports")


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    """A client of the server with an empty bucket."""
    python = venv_python("swift", "swift==2.38.3")
    port = free_ports(4)
    command = [
        python,
        str(ROOT / "tests/helpers/swift_server.py"),
        str(tmp_path_factory.mktemp("swift")),
        str(port),
    ]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        said = server.stdout.readline()
        if said != "ready\n":
            server.terminate()
            pytest.skip(
                f"swift: doesn't start here ({(said + server.stdout.read()).strip().splitlines()[-1][:200]})"
            )
        client = botocore.session.get_session().create_client(
            "s3", endpoint_url=f"http://127.0.0.1:{port}", region_name=REGION, aws_access_key_id=USER, aws_secret_access_key=KEY,
            config=Config(s3={"addressing_style": "path"}),
        )  # fmt: skip
        client.create_bucket(
            Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION}
        )
        yield client
    finally:
        server.terminate()
        server.wait(20)


def objects(client, prefix: str) -> dict[str, int]:
    """{key: bytes} below `prefix`."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
    return {found["Key"]: found["Size"] for page in pages for found in page.get("Contents", [])}


@pytest.fixture(scope="module")
def released(s3, tmp_path_factory):
    """The URL of a bare repository whose v1.0.0 is on the server: the one line that moves it there, and the server's place."""
    folder = tmp_path_factory.mktemp("s3")
    work = repository(folder / "work")
    call(work, "dvc", "remote", "modify", "release", "url", f"s3://{BUCKET}/first")
    call(work, "dvc", "remote", "modify", "release", "endpointurl", s3.meta.endpoint_url)
    call(work, "dvc", "remote", "modify", "release", "region", REGION)
    call(work, "git", "commit", "-qam", "remote")
    call(work, "python", "-m", "stages.tools", "release", "make", "v1.0.0", **KEYS)
    call(folder, "git", "clone", "-q", "--bare", str(work), "bare.git")
    return f"file://{folder}/bare.git"


@pytest.fixture
def clone(released, tmp_path):
    call(tmp_path, "git", "clone", "-q", released, "libra")
    return tmp_path / "libra"


def test_a_bare_clone_pulls_all_of_a_release(s3, clone):
    """Dataset and policy; keys come from the environment and are nowhere in Git."""
    assert len(objects(s3, "first/")) == 7 + 1 + 1, "files, their list, the policy"
    call(clone, "dvc", "pull", "-r", "release", **KEYS)
    assert (
        pulled(clone / "data/librachemqa") == "v1.0.0"
        and (clone / "models/dpo").read_text() == "weights"
    )
    assert "undamaged" in call(
        clone, "python", "-m", "stages.tools", "release", "verify", "v1.0.0", **KEYS
    )
    assert KEY not in (clone / ".dvc/config").read_text()
    metadata = json.loads((clone / "data/released/croissant.json").read_text())
    assert all(
        file["contentUrl"].startswith(f"s3://{BUCKET}/first/files/md5/")
        for file in metadata["distribution"]
    )


def test_get_by_url(released, tmp_path):
    call(
        tmp_path, "dvc", "get", released, "data/librachemqa", "--rev", "librachemqa@v1.0.0", **KEYS
    )
    assert pulled(tmp_path / "librachemqa") == "v1.0.0"


def test_keys_in_the_local_config_do(clone):
    """.dvc/config.local, which Git ignores."""
    for name, value in (("access_key_id", USER), ("secret_access_key", KEY)):
        call(clone, "dvc", "remote", "modify", "--local", "release", name, value, **NO_KEYS)
    call(clone, "dvc", "pull", "data/librachemqa", **NO_KEYS)
    assert pulled(clone / "data/librachemqa") == "v1.0.0"
    assert call(clone, "git", "status", "--porcelain", "-uall") == ""


@pytest.mark.parametrize(
    "keys", [KEYS | {"AWS_SECRET_ACCESS_KEY": "wrong"}, NO_KEYS], ids=["wrong secret", "no keys"]
)
def test_a_wrong_secret_is_refused(clone, keys):
    said = call(clone, "dvc", "pull", "data/librachemqa", fails=True, **keys)
    assert not (clone / "data/librachemqa").exists() and "ERROR" in said
    told = call(
        clone, "python", "-m", "stages.tools", "release", "verify", "v1.0.0", fails=True, **keys
    )
    assert (
        re.match(r"release: error: remote `release` can't be read: .+", told)
        and len(told.splitlines()) == 1
    )


@pytest.mark.parametrize(
    ("name", "value"), [("region", "us-elsewhere-1"), ("endpointurl", "http://127.0.0.1:1")]
)
def test_endpoint_and_region_are_those_of_the_config(clone, name, value):
    """The server is asked at the configured address and checks the region that a request is signed for."""
    call(clone, "dvc", "remote", "modify", "release", name, value)
    told = call(
        clone, "python", "-m", "stages.tools", "release", "verify", "v1.0.0", fails=True, **KEYS
    )
    assert told.startswith("release: error: remote `release` can't be read: ")


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing"])
def test_damage_is_an_error_that_names_the_file(s3, clone, tmp_path, damage):
    listing = next(key for key in objects(s3, "first/") if key.endswith(".dir"))
    entries = json.loads(s3.get_object(Bucket=BUCKET, Key=listing)["Body"].read())
    md5 = {entry["relpath"]: entry["md5"] for entry in entries}["train.parquet"]
    where = {"Bucket": BUCKET, "Key": f"first/files/md5/{md5[:2]}/{md5[2:]}"}
    whole = s3.get_object(**where)["Body"].read()
    try:
        if damage == "missing":
            s3.delete_object(**where)
        else:
            (tmp_path / "object").write_bytes(whole if damage == "flipped" else whole[:1000])
            if damage == "flipped":
                flip(tmp_path / "object")
            s3.put_object(**where, Body=(tmp_path / "object").read_bytes())
        told = call(
            clone, "python", "-m", "stages.tools", "release", "verify", "v1.0.0", fails=True, **KEYS
        )
        assert (
            f"train.parquet: object {md5[:2]}/{md5[2:]} of remote `release` is {'missing' if damage == 'missing' else 'damaged'}"
            in told
        )
        call(clone, "dvc", "pull", "data/librachemqa", fails=True, **KEYS)
        assert not (clone / "data/librachemqa/train.parquet").exists()
    finally:
        s3.put_object(**where, Body=whole)


def test_a_push_that_is_killed_is_repeated(s3, clone):
    """kill -9 once some of 200 objects have arrived; the next push sends the rest, and a clone pulls all."""
    (clone / "many").mkdir()
    for i in range(200):
        (clone / f"many/{i}").write_text(f"file {i} " * 2000)
    call(clone, "dvc", "remote", "add", "-d", "storage", f"s3://{BUCKET}/killed")
    call(clone, "dvc", "remote", "modify", "storage", "endpointurl", s3.meta.endpoint_url)
    call(clone, "dvc", "remote", "modify", "storage", "region", REGION)
    call(clone, "dvc", "add", "-q", "many")
    push = subprocess.Popen(
        ["dvc", "push", "-q", "-j", "1", "many.dvc"],
        cwd=clone,
        env=os.environ | {"PATH": PATH} | KEYS,
    )
    while push.poll() is None and len(objects(s3, "killed/")) < 20:
        time.sleep(0.05)
    push.kill()
    assert push.wait() == -9
    arrived = objects(s3, "killed/")
    assert 20 <= len(arrived) < 201 and not any(key.endswith(".dir") for key in arrived), (
        "the list of files goes last"
    )
    call(clone, "dvc", "push", "many.dvc", **KEYS)
    assert len(objects(s3, "killed/")) == 201 and set(arrived) < set(objects(s3, "killed/"))
    call(clone, "git", "add", "-A")
    call(
        clone,
        "git",
        "-c",
        "user.name=test",
        "-c",
        "user.email=test@localhost",
        "commit",
        "-qm",
        "many",
    )
    call(clone.parent, "git", "clone", "-q", str(clone), "other")
    call(clone.parent / "other", "dvc", "pull", "-q", "many.dvc", **KEYS)
    assert [
        (clone.parent / f"other/many/{i}").read_text() == (clone / f"many/{i}").read_text()
        for i in range(200)
    ] == [True] * 200
