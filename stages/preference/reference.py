"""Reference log-probabilities of DPO: once for every different (prompt, answer), before the first step, kept for the next run.

The table lies in `.cache/reference/` of the project's real folder, under a name that is a hash of all that decides it: the
reference's weights, the rows, where they are cut, how they are batched and held, the code and the libraries that compute them. So another
β, loss or learning rate computes none, and anything else computes all of them anew, in an order that doesn't depend on the
batches of training: the same bits either way.
"""

import hashlib
import json
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import torch

from stages.core.folders import cache_folder

KEPT = 32  # tables, one for each split and policy of a run; the oldest go
CODE = (
    "preference/grid.py",
    "preference/reference.py",
    "preference/shared_attention.py",
    "training/head.py",
)  # of stages/
LIBRARIES = ("peft", "torch", "transformers", "trl")
Answers = dict[tuple[int, ...], list[tuple[int, ...]]]  # of each prompt, as token ids


def unique_rows(prompts: Iterable[list[int]], *answers: Iterable[list[int]]) -> Answers:
    """The different answers of each different prompt, both in an order of their own: prompts by length."""
    found: dict[tuple[int, ...], set[tuple[int, ...]]] = {}
    for prompt, *given in zip(prompts, *answers, strict=True):
        found.setdefault(tuple(prompt), set()).update(map(tuple, given))
    return {
        prompt: sorted(found[prompt]) for prompt in sorted(found, key=lambda ids: (len(ids), ids))
    }


def address(rows: Answers, *decides: object) -> Path:
    """Where the table of `rows` lies; `decides` is what else decides its values, besides code and libraries."""
    code = [
        hashlib.sha256((Path(__file__).parents[1] / name).read_bytes()).hexdigest() for name in CODE
    ]
    digest = hashlib.sha256(json.dumps([decides, code, *map(version, LIBRARIES)]).encode())
    for prompt, answers in rows.items():
        digest.update(json.dumps([prompt, *answers], separators=(",", ":")).encode())
    return cache_folder() / "reference" / f"{digest.hexdigest()}.parquet"


def weights_hash(model) -> str:
    """SHA-256 over the names, types and bytes of all weights: what TRL's `hash_module` tells apart, on all cores and without a copy in fp32.

    That one took 41 s of an 8B model's start (tests/benchmarks/RESULTS.md).
    """

    def digest(item) -> bytes:
        name, values = item
        data = values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        return hashlib.sha256(
            f"{name} {values.dtype} {tuple(values.shape)} ".encode() + hashlib.sha256(data).digest()
        ).digest()

    with ThreadPoolExecutor() as threads:
        return hashlib.sha256(
            b"".join(threads.map(digest, sorted(model.state_dict().items())))
        ).hexdigest()


def two_by_two(rows: Answers) -> list[dict[str, list[int]]]:
    """`rows` as pairs for a preference collator: each answer once, the last of an odd number twice."""
    pairs = []
    for prompt, answers in rows.items():
        for i in range(0, len(answers), 2):
            one, other = answers[i], answers[min(i + 1, len(answers) - 1)]
            pairs.append(
                {"prompt_ids": list(prompt), "chosen_ids": list(one), "rejected_ids": list(other)}
            )
    return pairs


def write(path: Path, values: list[float]) -> None:
    """Keep the log-probabilities (nats, in the order of `two_by_two`'s answers), and the newest KEPT tables of the folder.

    A table that can't be written costs a warning: the values are in hand.
    """
    import polars as pl

    from stages.core.tables import write_atomically

    table = pl.DataFrame({"log_probability": pl.Series(values, dtype=pl.Float32)})
    try:
        write_atomically(path, table.write_parquet)
        for old in sorted(
            path.parent.glob("*.parquet"), key=lambda table: table.stat().st_mtime, reverse=True
        )[KEPT:]:
            old.unlink(missing_ok=True)
    except (OSError, pl.exceptions.PolarsError) as error:
        print(
            f"warning: {path} can't be kept ({error}); another run computes it again",
            file=sys.stderr,
        )


def read(path: Path, count: int) -> list[float] | None:
    """The `count` log-probabilities at `path`, None where there is no such table, or only a damaged one."""
    import polars as pl

    try:
        values = pl.read_parquet(path)["log_probability"]
        path.touch()  # used now: kept for longer
    except (OSError, pl.exceptions.PolarsError):
        return None
    return values.to_list() if len(values) == count and values.is_finite().all() else None
