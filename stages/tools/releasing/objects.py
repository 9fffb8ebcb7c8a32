"""The objects of a released version in its remote: which there are, whether they are whole, and fetching them.

    listing("librachemqa@v1.0.0")       # {"train.parquet": "d682fe0a...", ...}: name in the folder, MD5 of its object
    fetch("librachemqa@v1.0.0", folder) # writes them; raises LibraError that names each damaged or missing file

Reads dvc.lock of a Git revision and the remote that data/librachemqa has in dvc.yaml, as this checkout's .dvc/config names it.
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
    """What `git ...` prints, without the final line end. Raises LibraError with its own words."""
    done = subprocess.run(["git", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise LibraError(f"git {words[0]}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.rstrip("\n")


def locked(revision: str | None) -> dict:
    """dvc.lock of a Git `revision`, of the working tree where it is None."""
    try:
        text = (
            git("show", f"{revision}:dvc.lock")
            if revision
            else Path("dvc.lock").read_text(encoding="utf-8")
        )
        return yaml.safe_load(text)["stages"]
    except (LibraError, FileNotFoundError, KeyError, TypeError):
        raise LibraError(
            f"{revision or 'this folder'} has no dvc.lock with stages; run `dvc repro` and commit dvc.lock"
        ) from None


def folder_hash(revision: str | None) -> str:
    """The MD5 by which DVC knows data/librachemqa at `revision` (it ends in `.dir`)."""
    outs = {
        out["path"]: out["md5"]
        for stage in locked(revision).values()
        for out in stage.get("outs", [])
    }
    if DATASET not in outs:
        raise LibraError(
            f"dvc.lock of {revision or 'this folder'} has no {DATASET}; run `dvc repro validate` and commit dvc.lock"
        )
    return outs[DATASET]


@contextmanager
def _remote(nearby: bool) -> Iterator[Callable[[str], bytes | None]]:
    """A function that reads the object of an MD5: None where it is missing. Raises LibraError when the remote can't be reached.

    `nearby`: what lies undamaged in this checkout's cache or bundle isn't asked for.
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
            except (
                Exception
            ) as error:  # DVC's own, and those of each kind of remote (botocore, aiohttp)
                raise LibraError(
                    f"remote `{REMOTE}` can't be read: {' '.join(str(error).split())}"
                ) from None

        yield read


def _fault(content: bytes | None, md5: str) -> str | None:
    if content is None:
        return "missing"
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    return (
        None
        if found == md5.removesuffix(".dir")
        else f"damaged ({len(content):,} bytes, MD5 {found})"
    )


def fetch(revision: str | None, folder: Path | None = None, nearby: bool = False) -> dict[str, str]:
    """Read every object of `revision` from the remote, check it, and write it to `folder` (None: check only).

    `nearby`: take what this checkout has, the rest from the remote. Returns {name: MD5}. Raises LibraError that names every damaged
    or missing file and its object.
    """
    called = f"{DATASET} of {revision or 'dvc.lock'}"
    mend = f"`dvc push {DATASET}` from a machine that has the version sends it again"

    def place(md5: str) -> str:
        return f"object {md5[:2]}/{md5[2:]} of remote `{REMOTE}`"

    with _remote(nearby) as read:
        whole = folder_hash(revision)
        content = read(whole)
        if fault := _fault(content, whole):
            raise LibraError(f"{called}: its list of files, {place(whole)}, is {fault}. {mend}")
        listing = {entry["relpath"]: entry["md5"] for entry in json.loads(content)}
        faults = []
        for name, md5 in listing.items():
            content = read(md5)
            if fault := _fault(content, md5):
                faults.append(f"{name}: {place(md5)} is {fault}")
            elif folder is not None:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)
    if faults:
        raise LibraError(f"{called}: {'; '.join(faults)}. {mend}")
    return listing
