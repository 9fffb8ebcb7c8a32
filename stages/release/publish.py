"""A released folder is swapped in whole or not at all."""

import shutil
from collections.abc import Callable
from pathlib import Path


def publish(write: Callable[[Path], None], folder: Path) -> None:
    """Let `write(new_folder)` fill a folder beside `folder`, then swap it in; a failure leaves `folder` as it was."""
    new, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    if old.exists() and not folder.exists():  # a run was killed between the two renames below
        old.rename(folder)
    for left_over in (new, old):
        shutil.rmtree(left_over, ignore_errors=True)
    try:
        new.mkdir(parents=True)
        write(new)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    except BaseException:
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
