"""SHA256SUMS of a released folder, in the format of `sha256sum -c SHA256SUMS`."""

from pathlib import Path

from stages.core.cache import file_digest
from stages.core.errors import LibraError

NAME = "SHA256SUMS"


def sums(folder: Path) -> str:
    """The lines of SHA256SUMS for all other files in `folder`, sorted by path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != NAME)
    return "".join(
        f"{file_digest(path)}  {path.relative_to(folder).as_posix()}\n" for path in files
    )


def check(folder: Path) -> int:
    """Compare `folder` with its SHA256SUMS and return the number of files listed there.

    Raises LibraError that names every damaged, missing and extra file.
    """
    path = folder / NAME
    try:
        listed = _parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LibraError(f"{path} is missing; pull the dataset or name its folder") from None
    except ValueError:
        raise LibraError(
            f"{path} is damaged: not in the format of sha256sum; pull the dataset again"
        ) from None

    actual = _parse(sums(folder))
    faults = [
        f"{name} is {'damaged' if name in actual else 'missing'}"
        for name in listed
        if listed[name] != actual.get(name)
    ]
    faults += [f"{name} isn't part of the release" for name in actual if name not in listed]
    if faults:
        raise LibraError(
            f"{folder}: {'; '.join(faults)}. Delete the folder and pull the dataset again"
        )
    return len(listed)


def _parse(text: str) -> dict[str, str]:
    """{file name: digest} of SHA256SUMS. Raises ValueError for a line in another format."""
    digests = {}
    for line in text.splitlines():
        digest, name = line.split("  ", 1)
        digests[name] = digest
    return digests
