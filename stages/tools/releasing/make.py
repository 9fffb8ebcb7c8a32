"""Release data/librachemqa as a version: check, push, describe, commit, tag.

A release is refused on a dirty tree, stale outputs, rows that break the contract, and a version
that exists. It adds one commit (CHANGELOG.md, data/released/ with its versions.csv, the pointer to
the reply archive) and the tag librachemqa@VERSION. If it is killed, run it again: pushed objects
stay pushed, and an entry already written is replaced.
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
from stages.tools.releasing.objects import (
    BUNDLE,
    DATASET,
    REMOTE,
    dataset_hash,
    fetch,
    git,
    locked_stages,
)
from stages.tools.releasing.versions import VERSIONS, Version, add_version, number, read_versions

ARTIFACT = "librachemqa"
CHANGELOG = Path("CHANGELOG.md")
REPLIES = Path("data/replies")


def release(version: str) -> None:
    """Release `version`. Raises LibraError, with nothing committed, if it can't be released."""
    if _lacks_only_the_tag(version):
        return _finish(read_versions()[version])

    _refuse(version)
    previous = _previous(version)
    objects = _push(version)
    listing = fetch(dataset_hash(), "dvc.lock")  # from the remote: what others will get
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    row, changelog = _describe(version, today, previous)

    write_json(_metadata(version, today, listing, objects), BUNDLE / "croissant.json")
    add_version(row)
    write_text(changelog, CHANGELOG)
    archive = [f"{REPLIES}.dvc"] if Path(f"{REPLIES}.dvc").exists() else []
    git("add", "--", str(BUNDLE), str(CHANGELOG), *archive)
    git("commit", "--quiet", "-m", f"Release {ARTIFACT} {version}")
    _finish(row)


def _previous(version: str) -> Version | None:
    """The released version with the next lower number, None for the first one."""
    lower = [row for name, row in read_versions().items() if number(name) < number(version)]
    return lower[-1] if lower else None


def _lacks_only_the_tag(version: str) -> bool:
    """Whether a killed run has committed `version` here, unpublished, and not tagged it."""
    return (
        version in read_versions()
        and git("log", "-1", "--format=%s") == f"Release {ARTIFACT} {version}"
        and not git("tag", "--list", f"{ARTIFACT}@{version}")
        and not git("branch", "--remotes", "--contains", "HEAD")
    )


def _refuse(version: str) -> None:
    """Raise LibraError if `version` can't be released now."""
    number(version)
    if version in read_versions():
        raise LibraError(
            f"{ARTIFACT} {version} exists in {VERSIONS}; versions never change: use the next number"
        )

    # Objects in the bundle are named by their hash; a killed release may have left some.
    dirty = [
        line[3:]
        for line in git("status", "--porcelain", "-uall").splitlines()
        if not line.startswith(f"?? {BUNDLE}/files/")
    ]
    if dirty:
        more = f" and {len(dirty) - 3} more" if len(dirty) > 3 else ""
        raise LibraError(
            f"the tree is dirty: {', '.join(dirty[:3])}{more}; a release is made from a commit, "
            "so commit or undo these changes first"
        )
    _refuse_stale_outputs()
    _refuse_invalid_dataset()

    previous = _previous(version)
    if previous and previous.md5 == dataset_hash():
        raise LibraError(
            f"{DATASET} is identical to {previous.version}; there is nothing to release"
        )


def _refuse_stale_outputs() -> None:
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(".") as repo:
            stale = list(repo.status())
    except DvcException as error:
        raise LibraError(f"dvc status: {error}") from None
    if stale:
        raise LibraError(
            f"`dvc status` isn't clean ({', '.join(stale)}); "
            "run `dvc repro`, which also validates, and commit dvc.lock"
        )


def _refuse_invalid_dataset() -> None:
    from stages.dataset.checksums import check
    from stages.validate import RELEASE, ValidateParams, checked, inputs

    params = read_params("validate").section("validate", ValidateParams)
    try:
        checked(inputs(), params.probe_limit)
        check(RELEASE)
    except LibraError as error:
        raise LibraError(f"the dataset fails validation: {error}") from None


def _push(version: str) -> str:
    """Push the dataset to its remote; models, tables and replies go to the default remote.

    Without a default remote they go where the dataset goes, unless that is Git. Returns where the
    dataset's objects are: a path inside BUNDLE, or an address.
    """
    from dvc.repo import Repo

    try:
        with Repo(".") as repo:
            print(f"pushed {repo.push([DATASET])} objects of {DATASET} to remote `{REMOTE}`")
            url = repo.config["remote"][REMOTE]["url"]
            bundled = Path(url).resolve() == BUNDLE.resolve()
            storage = repo.config["core"].get("remote") or (None if bundled else REMOTE)
            if storage:
                if _archive(version):
                    repo.add([str(REPLIES)])
                count = repo.push(remote=storage)
                print(f"pushed {count} objects of models, tables and replies to `{storage}`")
            else:
                print(
                    f"models, tables and replies are not pushed: {BUNDLE} is for the dataset only; "
                    "`dvc remote add -d NAME s3://...` adds a remote for them"
                )
    except Exception as error:  # DVC's own, or the backend's (botocore, aiohttp)
        message = " ".join(str(error).split())
        raise LibraError(
            f"the push failed and nothing is released: {message}; fix the remote and run it again"
        ) from None
    return "files/md5" if bundled else f"{url.rstrip('/')}/files/md5"


def _archive(version: str) -> bool:
    """Export the replies in use that no archive holds yet. Returns whether there is an archive."""
    import polars as pl

    from stages.chat.store import Store, store_path

    if store_path().exists():
        archived: set[str] = set()
        for archive in REPLIES.glob("*.parquet"):
            archived |= set(pl.read_parquet(archive, columns=["key"])["key"])
        with Store(store_path()) as store:
            used = {row[0] for row in store.rows(used=True)}
        if used - archived:
            file = str(REPLIES / f"{version}.parquet")
            export = [sys.executable, "-m", "stages.tools", "store", "export", "--used", file]
            subprocess.run(export, check=True)
    return REPLIES.is_dir()


def _describe(version: str, today: str, previous: Version | None) -> tuple[Version, str]:
    """The row of `version`, and CHANGELOG.md with its entry."""
    import polars as pl

    from stages.tools.releasing.changelog import entry, with_entry
    from stages.tools.releasing.changes import changes

    with tempfile.TemporaryDirectory() as folder:
        if previous:
            fetch(previous.md5, previous.version, Path(folder), nearby=True)
        diff = changes(Path(folder) if previous else None, Path(DATASET))

    splits = diff.classes.group_by("split", maintain_order=True).agg(pl.col("after").sum())
    row = Version(version, git("rev-parse", "HEAD"), dataset_hash(), diff.total("after"), today)
    text = entry(row, dict(splits.iter_rows()), previous, diff, locked_stages())
    changelog = CHANGELOG.read_text(encoding="utf-8") if CHANGELOG.exists() else ""
    return row, with_entry(changelog, version, text)


def _metadata(version: str, today: str, listing: dict[str, str], objects: str) -> dict:
    """The dataset's croissant.json with version, date, repository and the objects' addresses."""
    metadata = json.loads((Path(DATASET) / "croissant.json").read_text(encoding="utf-8"))
    origin = git("config", "--default", "", "--get", "remote.origin.url").removesuffix(".git")
    if origin.startswith("http"):
        metadata["url"] = re.sub(r"//[^/@]*@", "//", origin)  # without user and password
    for file in metadata["distribution"]:
        md5 = listing[file["name"]]
        file["contentUrl"] = f"{objects}/{md5[:2]}/{md5[2:]}"
    return metadata | {"version": version.removeprefix("v"), "datePublished": today}


def _finish(row: Version) -> None:
    """Tag the release commit, if that works, and print how to publish it."""
    refs = f"HEAD {ARTIFACT}@{row.version}" if _tag(row) else "HEAD"
    print(f"{ARTIFACT} {row.version} is released here; publish it with `git push origin {refs}`")


def _tag(row: Version) -> bool:
    """Register the version with GTO, as a tag. A release is complete without one."""
    import gto.api
    from gto.exceptions import GTOException

    message = f"{row.rows:,} triplets"
    try:
        gto.api.register(".", ARTIFACT, ref="HEAD", version=row.version, message=message)
    except GTOException as error:
        print(f"no tag was made ({error}); the version is released without it")
        return False
    return True
