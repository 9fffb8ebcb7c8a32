"""The objects of the dataset in its remote: read, check and fetch them.

    fetch("6c0ba6be97950e467534a8f07528b2b2.dir", "v1.0.0", folder)
    # {"train.parquet": "d682fe0a63d82de9016f68919797e78b", ...}: file name, MD5 of its object

The remote is the one that .dvc/config of this checkout calls `release`. DVC names each object by
its MD5; the name of a folder's file list ends in `.dir`. Neither tags nor history are needed.
"""

import hashlib
import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from stages.core.errors import LibraError

DATASET = "data/librachemqa"
REMOTE = "release"
BUNDLE = Path("data/released")  # the remote in Git


def git(*words: str) -> str:
    """Output of `git WORDS` without the final newline. Raises LibraError with Git's message."""
    done = subprocess.run(["git", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise LibraError(f"git {words[0]}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.rstrip("\n")


def locked_stages() -> dict:
    """{stage: its entry} of dvc.lock. Raises LibraError if the file is missing or has no stages."""
    try:
        return yaml.safe_load(Path("dvc.lock").read_text(encoding="utf-8"))["stages"]
    except (FileNotFoundError, KeyError, TypeError):
        raise LibraError("no dvc.lock with stages here; run `dvc repro` and commit it") from None


def dataset_hash() -> str:
    """The MD5 of data/librachemqa in dvc.lock, which ends in `.dir`."""
    outs = [out for stage in locked_stages().values() for out in stage.get("outs", [])]
    hashes = {out["path"]: out["md5"] for out in outs}
    if DATASET not in hashes:
        raise LibraError(f"dvc.lock has no {DATASET}; run `dvc repro validate` and commit dvc.lock")
    return hashes[DATASET]


@contextmanager
def _reader(nearby: bool) -> Iterator[Callable[[str], bytes | None]]:
    """A function that returns the object with a given MD5, or None if it is missing.

    `nearby`: undamaged copies in this checkout's cache or bundle are used first. The function
    raises LibraError if the remote can't be reached.
    """
    from dvc.repo import Repo

    with Repo(".") as repo:
        folders = [Path(repo.cache.local.path), BUNDLE / "files/md5"] if nearby else []

        def read(md5: str) -> bytes | None:
            for folder in folders:
                path = folder / md5[:2] / md5[2:]
                if path.exists() and _fault(content := path.read_bytes(), md5) is None:
                    return content

            try:
                store = repo.cloud.get_remote_odb(name=REMOTE)
                with store.fs.open(store.oid_to_path(md5), "rb") as file:
                    return file.read()
            except FileNotFoundError:
                return None
            except Exception as error:  # DVC's own, or the backend's (botocore, aiohttp)
                message = " ".join(str(error).split())
                raise LibraError(f"remote `{REMOTE}` can't be read: {message}") from None

        yield read


def _fault(content: bytes | None, md5: str) -> str | None:
    if content is None:
        return "missing"
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if digest == md5.removesuffix(".dir"):
        return None
    return f"damaged ({len(content):,} bytes, MD5 {digest})"


def fetch(md5: str, label: str, folder: Path | None = None, nearby: bool = False) -> dict[str, str]:
    """Read and check every object of the dataset whose file list is `md5`; write them to `folder`.

    `label` is the dataset's name in error messages. With `nearby`, objects of this checkout are
    used where they are undamaged, and the remote only for the rest. Returns {file name: MD5}.
    Raises LibraError that names every damaged or missing file and its object.
    """
    title = f"{DATASET} of {label}"
    fix = f"Run `dvc push {DATASET}` on a machine that has this version"

    def address(md5: str) -> str:
        return f"object {md5[:2]}/{md5[2:]} of remote `{REMOTE}`"

    with _reader(nearby) as read:
        content = read(md5)
        if fault := _fault(content, md5):
            raise LibraError(f"{title}: its file list, {address(md5)}, is {fault}. {fix}")

        listing = {entry["relpath"]: entry["md5"] for entry in json.loads(content)}
        faults = []
        for name, file_md5 in listing.items():
            content = read(file_md5)
            if fault := _fault(content, file_md5):
                faults.append(f"{name}: {address(file_md5)} is {fault}")
            elif folder is not None:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)
    if faults:
        raise LibraError(f"{title}: {'; '.join(faults)}. {fix}")
    return listing
