"""Progress for people: what, how many, how long still; on a terminal a bar, in a log a line every few seconds."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def progress(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """`items`, counted on stderr as they pass."""
    from tqdm import tqdm

    return iter(
        tqdm(
            items,
            desc=what,
            total=total,
            mininterval=_interval(),
            dynamic_ncols=True,
            file=sys.stderr,
        )
    )


def counter(what: str, total: int):
    """A tqdm counter for work that finishes out of order: call `.update()` once a piece, `.close()` at the end."""
    from tqdm import tqdm

    return tqdm(
        desc=what, total=total, mininterval=_interval(), dynamic_ncols=True, file=sys.stderr
    )


def _interval() -> float:
    return 0.2 if sys.stderr.isatty() else 3.0
