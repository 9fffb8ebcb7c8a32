"""Progress on stderr: a bar on a terminal, a line every few seconds in a log.

for substance in progress(substances, "facts"):
    ...
"""

import sys
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


def progress(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """`items`, counted as they pass."""
    from tqdm import tqdm

    return iter(tqdm(items, desc=label, total=total, **_options()))


def counter(label: str, total: int) -> Any:
    """A tqdm counter for work that finishes out of order: `.update()` per item, then `.close()`."""
    from tqdm import tqdm

    return tqdm(desc=label, total=total, **_options())


def _options() -> dict[str, Any]:
    interval = 0.2 if sys.stderr.isatty() else 3.0  # seconds
    return {"mininterval": interval, "dynamic_ncols": True, "file": sys.stderr}
