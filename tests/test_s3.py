"""Releases on a real S3 server (OpenStack Swift's s3api, started here).

Push, pull, refusals, damage, and a push that is killed.
"""

import json
import os
import re
import subprocess
import time

import botocore.session
import pytest
from botocore.config import Config

from helpers.dag import ROOT
from helpers.releasing import PATH, RELEASE, call, flip_a_bit, repository, version_in
from helpers.swift_server import KEY, KEYS, REGION, USER, free_ports
from helpers.venvs import venv_python

BUCKET = "libra"
NO_KEYS = dict.fromkeys(KEYS, "") | {
    "AWS_SHARED_CREDENTIALS_FILE": "/nowhere",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    """A client of the server, with an empty bucket."""
    python = venv_python("swift", "swift==2.38.3")
    port = free_ports(4)
    script, folder = ROOT / "tests/helpers/swift_server.py", tmp_path_factory.mktemp("swift")
    server = subprocess.Popen(
        [python, str(script), str(folder), str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        output = server.stdout.readline()
        if output != "ready\n":
            server.terminate()
            reason = (output + server.stdout.read()).strip().splitlines()[-1][:200]
            pytest.skip(f"swift: doesn't start here ({reason})")
        client = botocore.session.get_session().create_client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{port}",
            region_name=REGION,
            aws_access_key_id=USER,
            aws_secret_access_key=KEY,
            config=Config(s3={"addressing_style": "path"}),
        )
        location = {"LocationConstraint": REGION}
        client.create_bucket(Bucket=BUCKET, CreateBucketConfiguration=location)
        yield client
    finally:
        server.terminate()
        server.wait(20)
        server.stdout.close()


def objects(client, prefix: str) -> dict[str, int]:
    """{key: bytes} of the objects below `prefix`."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
    return {item["Key"]: item["Size"] for page in pages for item in page.get("Contents", [])}


@pytest.fixture(scope="module")
def released(s3, tmp_path_factory):
    """The URL of a bare repository whose v1.0.0 is on the server."""
    folder = tmp_path_factory.mktemp("s3")
    work = repository(folder / "work")
    call(work, "dvc", "remote", "modify", "release", "url", f"s3://{BUCKET}/first")
    call(work, "dvc", "remote", "modify", "release", "endpointurl", s3.meta.endpoint_url)
    call(work, "dvc", "remote", "modify", "release", "region", REGION)
    call(work, "git", "commit", "-qam", "remote")
    call(work, *RELEASE, "make", "v1.0.0", **KEYS)
    call(folder, "git", "clone", "-q", "--bare", str(work), "bare.git")
    return f"file://{folder}/bare.git"


@pytest.fixture
def clone(released, tmp_path):
    """A shallow clone without tags."""
    call(tmp_path, "git", "clone", "-q", "--depth", "1", "--no-tags", released, "libra")
    return tmp_path / "libra"


def test_a_bare_clone_pulls_all_of_a_release(s3, clone):
    """Dataset and policy; keys come from the environment and are nowhere in Git."""
    assert len(objects(s3, "first/")) == 7 + 1 + 1, "files, their list, the policy"
    call(clone, "dvc", "pull", "-r", "release", **KEYS)
    assert version_in(clone / "data/librachemqa") == "v1.0.0"
    assert (clone / "models/dpo").read_text() == "weights"
    assert "undamaged" in call(clone, *RELEASE, "verify", "v1.0.0", **KEYS)
    assert KEY not in (clone / ".dvc/config").read_text()
    metadata = json.loads((clone / "data/released/croissant.json").read_text())
    urls = [file["contentUrl"] for file in metadata["distribution"]]
    assert all(url.startswith(f"s3://{BUCKET}/first/files/md5/") for url in urls)


def test_a_version_is_fetched_by_its_name(clone):
    call(clone, *RELEASE, "get", "v1.0.0", "dataset", **KEYS)
    assert version_in(clone / "dataset") == "v1.0.0"


@pytest.mark.parametrize("by", ["tag", "commit"])
def test_dvc_get_by_url(released, clone, tmp_path, by):
    commit = call(clone, *RELEASE, "list").split()[-1]
    revision = commit if by == "commit" else "librachemqa@v1.0.0"
    call(tmp_path, "dvc", "get", released, "data/librachemqa", "--rev", revision, **KEYS)
    assert version_in(tmp_path / "librachemqa") == "v1.0.0"


def test_keys_in_the_local_config_are_used(clone):
    """.dvc/config.local, which Git ignores."""
    for name, value in (("access_key_id", USER), ("secret_access_key", KEY)):
        call(clone, "dvc", "remote", "modify", "--local", "release", name, value, **NO_KEYS)
    call(clone, "dvc", "pull", "data/librachemqa", **NO_KEYS)
    assert version_in(clone / "data/librachemqa") == "v1.0.0"
    assert call(clone, "git", "status", "--porcelain", "-uall") == ""


@pytest.mark.parametrize(
    "keys", [KEYS | {"AWS_SECRET_ACCESS_KEY": "wrong"}, NO_KEYS], ids=["wrong secret", "no keys"]
)
def test_a_wrong_secret_is_refused(clone, keys):
    output = call(clone, "dvc", "pull", "data/librachemqa", fails=True, **keys)
    assert not (clone / "data/librachemqa").exists() and "ERROR" in output
    error = call(clone, *RELEASE, "verify", "v1.0.0", fails=True, **keys)
    assert re.match(r"release: error: remote `release` can't be read: .+", error)
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "value"), [("region", "us-elsewhere-1"), ("endpointurl", "http://127.0.0.1:1")]
)
def test_endpoint_and_region_are_those_of_the_config(clone, name, value):
    """Requests go to the configured address; the server checks the region they are signed for."""
    call(clone, "dvc", "remote", "modify", "release", name, value)
    error = call(clone, *RELEASE, "verify", "v1.0.0", fails=True, **KEYS)
    assert error.startswith("release: error: remote `release` can't be read: ")


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing"])
def test_damage_is_an_error_that_names_the_file(s3, clone, tmp_path, damage):
    listing = next(key for key in objects(s3, "first/") if key.endswith(".dir"))
    entries = json.loads(s3.get_object(Bucket=BUCKET, Key=listing)["Body"].read())
    md5 = {entry["relpath"]: entry["md5"] for entry in entries}["train.parquet"]
    at = {"Bucket": BUCKET, "Key": f"first/files/md5/{md5[:2]}/{md5[2:]}"}
    content = s3.get_object(**at)["Body"].read()
    fault = "missing" if damage == "missing" else "damaged"
    try:
        if damage == "missing":
            s3.delete_object(**at)
        elif damage == "truncated":
            s3.put_object(**at, Body=content[:1000])
        else:
            (tmp_path / "object").write_bytes(content)
            flip_a_bit(tmp_path / "object")
            s3.put_object(**at, Body=(tmp_path / "object").read_bytes())

        error = call(clone, *RELEASE, "verify", "v1.0.0", fails=True, **KEYS)
        address = f"object {md5[:2]}/{md5[2:]} of remote `release`"
        assert f"train.parquet: {address} is {fault}" in error
        call(clone, "dvc", "pull", "data/librachemqa", fails=True, **KEYS)
        assert not (clone / "data/librachemqa/train.parquet").exists()
    finally:
        s3.put_object(**at, Body=content)


def test_a_killed_push_is_completed_by_the_next(s3, clone):
    """kill -9 once some of 200 objects are there; the next push sends the rest."""
    (clone / "many").mkdir()
    for i in range(200):
        (clone / f"many/{i}").write_text(f"file {i} " * 2000)
    call(clone, "dvc", "remote", "add", "-d", "storage", f"s3://{BUCKET}/killed")
    call(clone, "dvc", "remote", "modify", "storage", "endpointurl", s3.meta.endpoint_url)
    call(clone, "dvc", "remote", "modify", "storage", "region", REGION)
    call(clone, "dvc", "add", "-q", "many")

    command = ["dvc", "push", "-q", "-j", "1", "many.dvc"]
    push = subprocess.Popen(command, cwd=clone, env=os.environ | {"PATH": PATH} | KEYS)
    while push.poll() is None and len(objects(s3, "killed/")) < 20:
        time.sleep(0.05)
    push.kill()
    assert push.wait() == -9
    arrived = objects(s3, "killed/")
    assert 20 <= len(arrived) < 201
    assert not any(key.endswith(".dir") for key in arrived), "the file list goes last"
    call(clone, "dvc", "push", "many.dvc", **KEYS)
    assert len(objects(s3, "killed/")) == 201 and set(arrived) < set(objects(s3, "killed/"))

    author = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    call(clone, "git", "add", "-A")
    call(clone, "git", *author, "commit", "-qm", "many")
    call(clone.parent, "git", "clone", "-q", str(clone), "other")
    other = clone.parent / "other"
    call(other, "dvc", "pull", "-q", "many.dvc", **KEYS)
    for i in range(200):
        assert (other / f"many/{i}").read_text() == (clone / f"many/{i}").read_text()
