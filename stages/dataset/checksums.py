"""SHA256SUMS of a released folder, in the form that `sha256sum -c SHA256SUMS` reads."""

import hashlib
from pathlib import Path

from stages.core.errors import LibraError

NAME = "SHA256SUMS"


def digest(path: Path, kind: str = "sha256") -> str:
    """SHA-256 of a file, or its MD5, as hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


def sums(folder: Path) -> str:
    """The lines of SHA256SUMS for all other files of `folder`, by name."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != NAME)
    return "".join(f"{digest(path)}  {path.relative_to(folder).as_posix()}\n" for path in files)


def check(folder: Path) -> int:
    """Number of files that SHA256SUMS of `folder` lists, all as it says. Raises LibraError that names each that isn't."""
    try:
        told = dict(
            reversed(line.split("  ", 1))
            for line in (folder / NAME).read_text(encoding="utf-8").splitlines()
        )
    except FileNotFoundError:
        raise LibraError(
            f"{folder / NAME} is not here; pull the dataset first, or name its folder"
        ) from None
    except ValueError:
        raise LibraError(
            f"{folder / NAME} is damaged: not in the form of sha256sum; pull the dataset again"
        ) from None
    here = dict(reversed(line.split("  ", 1)) for line in sums(folder).splitlines())
    faults = [
        f"{name} is {'damaged' if name in here else 'missing'}"
        for name in told
        if told[name] != here.get(name)
    ]
    faults += [f"{name} isn't part of the release" for name in here if name not in told]
    if faults:
        raise LibraError(
            f"{folder}: {'; '.join(faults)}. Delete the folder and pull the dataset again"
        )
    return len(told)
