"""Release the dataset in data/librachemqa as a version: check, push, describe, commit, register.

Refuses on a dirty tree, outputs that `dvc repro` would make anew, rows that break the contract, and a version there is. What it
writes to Git is one commit (CHANGELOG.md, data/released/, the list of the reply archive) and the tag librachemqa@VERSION.
Killed half-way it can be run again: what is pushed stays pushed, and an entry that is there is written once more.
"""

import datetime
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from stages.core.errors import LibraError
from stages.core.params import read_params
from stages.core.tables import write_json, write_text
from stages.tools.releasing.objects import BUNDLE, DATASET, REMOTE, fetch, folder_hash, git, locked

ARTIFACT = "librachemqa"
CHANGELOG = Path("CHANGELOG.md")
REPLIES = Path("data/replies")
_VERSION = re.compile(r"v(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)$")


def number(version: str) -> tuple[int, ...]:
    """(1, 0, 0) of `v1.0.0`. Raises LibraError for what isn't a version."""
    found = _VERSION.match(version)
    if not found:
        raise LibraError(
            f"`{version}` is no version; write it as v1.0.0: rows changed or gone, rows added, the rest"
        )
    return tuple(map(int, found.groups()))


def is_version(name: str) -> bool:
    return _VERSION.match(name) is not None


def versions() -> list[str]:
    """Released versions by Git's tags, oldest number first."""
    tags = git("tag", "--list", f"{ARTIFACT}@v*").splitlines()
    found = [tag.removeprefix(f"{ARTIFACT}@") for tag in tags]
    return sorted(filter(is_version, found), key=number)


def release(version: str) -> None:
    """Release `version`. Raises LibraError, with nothing committed and no tag made, when it can't."""
    _refuse(version)
    before = _before(version)
    objects = _push(version)
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    listing = fetch(None)  # from the remote: what others will get
    rows, text = _described(version, today, before)
    write_json(_metadata(version, today, listing, objects), BUNDLE / "croissant.json")
    write_text(text, CHANGELOG)
    git(
        "add",
        "--",
        str(BUNDLE),
        str(CHANGELOG),
        *([f"{REPLIES}.dvc"] if Path(f"{REPLIES}.dvc").exists() else []),
    )
    git("commit", "--quiet", "-m", f"Release {ARTIFACT} {version}")
    _register(version, f"{sum(rows.values()):,} triplets")
    print(
        f"{ARTIFACT}@{version} is released here. Publish it: git push origin HEAD {ARTIFACT}@{version}"
    )


def _before(version: str) -> str | None:
    """The released version that comes before `version` by number; None for the first."""
    earlier = [other for other in versions() if number(other) < number(version)]
    return earlier[-1] if earlier else None


def _refuse(version: str) -> None:
    """Raises LibraError that says why `version` can't be released now."""
    number(version)
    if version in versions():
        raise LibraError(
            f"{ARTIFACT} {version} exists (tag {ARTIFACT}@{version}); a version never changes: take the next number"
        )
    # Objects in the bundle are named by their hash; a release that was killed may have left some.
    dirty = [
        line[3:]
        for line in git("status", "--porcelain", "-uall").splitlines()
        if not line.startswith(f"?? {BUNDLE}/files/")
    ]
    if dirty:
        more = f" and {len(dirty) - 3} more" if len(dirty) > 3 else ""
        raise LibraError(
            f"the tree is dirty: {', '.join(dirty[:3])}{more}; commit or undo that first, a release is of a commit"
        )
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(".") as repo:
            stale = list(repo.status())
    except DvcException as error:
        raise LibraError(f"dvc status: {error}") from None
    if stale:
        raise LibraError(
            f"`dvc status` isn't clean ({', '.join(stale)}); run `dvc repro`, which also validates, and commit dvc.lock"
        )
    from stages.dataset.checksums import check
    from stages.validate import RELEASE, ValidateParams, checked, inputs

    try:
        checked(*inputs(), read_params("validate").section("validate", ValidateParams).probe_limit)
        check(RELEASE)
    except LibraError as error:
        raise LibraError(f"the dataset fails validation: {error}") from None
    if (before := _before(version)) and folder_hash(f"{ARTIFACT}@{before}") == folder_hash(None):
        raise LibraError(
            f"{DATASET} is what {before} released, to the byte; there is nothing to release"
        )


def _push(version: str) -> str:
    """Push the dataset to its remote, and policies, tables and replies to the default one (or to the dataset's, unless it is in Git).

    Returns where the dataset's objects lie now: a path within BUNDLE, or an address.
    """
    from dvc.repo import Repo

    try:
        with Repo(".") as repo:
            print(f"{repo.push([DATASET])} objects of {DATASET} pushed to remote `{REMOTE}`")
            url = repo.config["remote"][REMOTE]["url"]
            bundled = Path(url).resolve() == BUNDLE.resolve()
            elsewhere = repo.config["core"].get("remote") or (None if bundled else REMOTE)
            if elsewhere:
                if _archive(version):
                    repo.add([str(REPLIES)])
                print(
                    f"{repo.push(remote=elsewhere)} objects of models, tables and replies pushed to remote `{elsewhere}`"
                )
            else:
                print(
                    f"models, tables and replies stay here: {BUNDLE} is for the dataset; `dvc remote add -d NAME s3://...` adds a remote"
                )
    except Exception as error:  # DVC's own, and those of each kind of remote (botocore, aiohttp)
        told = " ".join(str(error).split())
        raise LibraError(
            f"nothing is released, the push failed: {told}; mend the remote and run it again"
        ) from None
    return "files/md5" if bundled else f"{url.rstrip('/')}/files/md5"


def _archive(version: str) -> bool:
    """Export the replies that the dataset and results rest on, where there are some that no archive has; whether there is an archive."""
    import polars as pl

    from stages.chat.store import Store, store_path

    if store_path().exists():
        held: set[str] = set()
        for archive in REPLIES.glob("*.parquet"):
            held |= set(pl.read_parquet(archive, columns=["key"])["key"])
        with Store(store_path()) as store:
            used = {row[0] for row in store.rows(used=True)}
        if used - held:
            export = [
                sys.executable,
                "-m",
                "stages.chat.store",
                "export",
                "--used",
                str(REPLIES / f"{version}.parquet"),
            ]
            subprocess.run(export, check=True)
    return REPLIES.is_dir()


def _described(version: str, today: str, before: str | None) -> tuple[dict[str, int], str]:
    """({split: rows}, CHANGELOG.md with the entry of `version`)."""
    import polars as pl

    from stages.tools.releasing.changelog import entry, with_entry
    from stages.tools.releasing.changes import changes

    with tempfile.TemporaryDirectory() as folder:
        if before:
            fetch(f"{ARTIFACT}@{before}", Path(folder), nearby=True)
        found = changes(Path(folder) if before else None, Path(DATASET))
    rows = dict(
        found.classes.group_by("split", maintain_order=True).agg(pl.col("after").sum()).iter_rows()
    )
    new = entry(
        version,
        today,
        rows,
        folder_hash(None),
        before,
        found,
        locked(None),
        git("rev-parse", "HEAD"),
    )
    return rows, with_entry(
        CHANGELOG.read_text(encoding="utf-8") if CHANGELOG.exists() else "", version, new
    )


def _metadata(version: str, today: str, listing: dict[str, str], objects: str) -> dict:
    """croissant.json of the folder with what a release adds: version, date, the repository's page, where the objects lie."""
    found = json.loads((Path(DATASET) / "croissant.json").read_text(encoding="utf-8"))
    origin = git("config", "--default", "", "--get", "remote.origin.url").removesuffix(".git")
    if origin.startswith("http"):
        found["url"] = re.sub(r"//[^/@]*@", "//", origin)
    for file in found["distribution"]:
        md5 = listing[file["name"]]
        file["contentUrl"] = f"{objects}/{md5[:2]}/{md5[2:]}"
    return found | {"version": version.removeprefix("v"), "datePublished": today}


def _register(version: str, message: str) -> None:
    import gto.api
    from gto.exceptions import GTOException

    try:
        gto.api.register(".", name=ARTIFACT, ref="HEAD", version=version, message=message)
    except GTOException as error:
        raise LibraError(
            f"the commit is made, the tag isn't ({error}); `gto register {ARTIFACT} --version {version}` makes it"
        ) from None
