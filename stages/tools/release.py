"""Released versions of the dataset: make one, list them, check one.

    python -m stages.tools release make v1.0.0     # check, push, describe, commit, register (also: make release VERSION=v1.0.0)
    python -m stages.tools release list            # versions with date, rows and hash
    python -m stages.tools release verify v1.0.0   # every object of a version in its remote: present and undamaged
    python -m stages.tools release verify FOLDER   # every file of a pulled folder (data/librachemqa unless named), by its SHA256SUMS

Reads data/librachemqa, dvc.yaml, dvc.lock, Git's tags `librachemqa@v*` and the remote `release`. `make` writes CHANGELOG.md,
data/released/, a commit and a tag, and needs a clean tree in which `dvc status` finds nothing to do.
"""

import argparse
from pathlib import Path

from stages.core import cli
from stages.core.errors import LibraError
from stages.dataset.checksums import check
from stages.tools.releasing.objects import DATASET, fetch, folder_hash, git


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m stages.tools release",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("make", help="release data/librachemqa").add_argument(
        "version", help="as in v1.0.0"
    )
    commands.add_parser("list", help="released versions")
    commands.add_parser(
        "verify", help="check a version in its remote, or a pulled folder"
    ).add_argument("what", nargs="?", default=DATASET, help="a version, or a folder")
    options = parser.parse_args(arguments)
    cli.guarded("release", lambda: _command(options))


def _command(options: argparse.Namespace) -> None:
    from stages.tools.releasing.make import ARTIFACT, is_version, release, versions

    if options.command == "make":
        release(options.version)
    elif options.command == "verify":
        if options.what in versions():
            print(
                f"{options.what}: all {len(fetch(f'{ARTIFACT}@{options.what}'))} files, SHA256SUMS with them, are in the remote, undamaged"
            )
        elif is_version(options.what):
            there = ", ".join(versions()) or "none"
            raise LibraError(
                f"{options.what} is not released here (there are: {there}); `git fetch --tags` gets those of the origin"
            )
        else:
            print(
                f"{options.what}: all {check(Path(options.what))} files that SHA256SUMS lists are as it says"
            )
    else:
        found = versions()
        if not found:
            print(
                "no version is released here; `git fetch --tags` gets those of the origin, `make release VERSION=v1.0.0` makes one"
            )
        for version in reversed(found):
            tag = f"{ARTIFACT}@{version}"
            told = git("tag", "--list", tag, "--format=%(creatordate:short)  %(contents:subject)")
            print(f"{version:<10} {told}  {folder_hash(tag)}")
