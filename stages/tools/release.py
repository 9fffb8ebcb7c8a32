"""Released versions of the dataset: make, list, get and verify them.

    python -m stages.tools release make v1.0.0        # check, push, describe, commit, tag
    python -m stages.tools release list               # version, date, rows, hash and commit
    python -m stages.tools release get v1.0.0 FOLDER  # download a version (librachemqa-v1.0.0/)
    python -m stages.tools release verify v1.0.0      # check the objects of a version in its remote
    python -m stages.tools release verify FOLDER      # check a folder against its SHA256SUMS

Versions are in data/released/versions.csv, which all but `make` read, so a clone of the branch is
enough: no tags and no history are needed. `make` (also: make release VERSION=v1.0.0) needs a clean
tree and a clean `dvc status`; it writes CHANGELOG.md, data/released/, a commit and the tag
librachemqa@v1.0.0.

With DVC alone, use the commit that `list` prints (the options are for a remote without an address
of its own, like the one in Git):

    dvc get URL data/librachemqa --rev COMMIT \\
        --remote release --remote-config url=/path/of/a/clone/data/released
"""

import argparse
from pathlib import Path

from stages.core import cli
from stages.core.errors import LibraError
from stages.dataset.checksums import check
from stages.tools.releasing.objects import DATASET, fetch
from stages.tools.releasing.versions import VERSIONS, find_version, is_version, read_versions


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m stages.tools release",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)

    make = commands.add_parser("make", help=f"release {DATASET}")
    make.add_argument("version", help="a new version, like v1.0.0")

    commands.add_parser("list", help="list released versions")

    get = commands.add_parser("get", help="download a version")
    get.add_argument("version", help="a released version, like v1.0.0")
    get.add_argument("folder", nargs="?", type=Path, help="default: librachemqa-VERSION")

    verify = commands.add_parser("verify", help="check a version in its remote, or a folder")
    verify.add_argument("target", nargs="?", default=DATASET, help=f"default: {DATASET}")

    options = parser.parse_args(arguments)
    cli.guarded("release", lambda: _command(options))


def _command(options: argparse.Namespace) -> None:
    if options.command == "make":
        from stages.tools.releasing.make import release

        release(options.version)
    elif options.command == "list":
        _list()
    elif options.command == "get":
        _get(options.version, options.folder or Path(f"librachemqa-{options.version}"))
    elif is_version(options.target):
        files = fetch(find_version(options.target).md5, options.target)
        print(f"{options.target}: all {len(files)} files are in the remote and undamaged")
    else:
        count = check(Path(options.target))
        print(f"{options.target}: all {count} files match SHA256SUMS")


def _list() -> None:
    """Print a line for each version, newest first."""
    versions = read_versions()
    if not versions:
        print(f"no released versions in {VERSIONS}; `make release VERSION=v1.0.0` makes the first")
    for row in reversed(versions.values()):
        print(f"{row.version:<8}  {row.date}  {row.rows:,} triplets  {row.md5}  {row.commit}")


def _get(version: str, folder: Path) -> None:
    """Download `version` to `folder`, which must not exist; nothing is left there on failure."""
    from stages.dataset.publish import publish

    row = find_version(version)
    if folder.exists():
        raise LibraError(f"{folder} already exists; name another folder or delete it first")
    publish(lambda new: fetch(row.md5, version, new, nearby=True), folder)
    print(f"{version}: {row.rows:,} triplets in {folder}, all {check(folder)} files undamaged")
