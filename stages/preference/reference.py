"""DPO's reference log-probabilities: once per distinct (prompt, answer) before the first step.

    rows = unique_rows(prompt_ids, chosen_ids, rejected_ids)
    key = cache_key(rows, weights_hash(model), "sdpa")
    values = read(key, count=2 * len(as_pairs(rows)))
    if values is None: ...     # compute them, then write(key, values)

The tables are in `.cache/reference/`, under a hash of everything that decides them: the reference's
weights, the rows, where they are cut, how they are batched, code and libraries. So another β, loss
or learning rate computes nothing, and anything else computes all of them again, in an order that
doesn't depend on the training batches: the same bits either way.
"""

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import torch

from stages.core.cache import TableCache, code_digest, content_key, package_versions

CACHE = TableCache("reference", keep=32)  # a table for each split and policy of a run
CODE = ("preference", "training/head.py")
LIBRARIES = ("peft", "torch", "transformers", "trl")
Answers = dict[tuple[int, ...], list[tuple[int, ...]]]  # prompt -> its answers, as token ids


def unique_rows(prompts: Iterable[list[int]], *answers: Iterable[list[int]]) -> Answers:
    """The distinct answers of each distinct prompt, sorted, prompts by length."""
    by_prompt: dict[tuple[int, ...], set[tuple[int, ...]]] = {}
    for prompt, *texts in zip(prompts, *answers, strict=True):
        by_prompt.setdefault(tuple(prompt), set()).update(map(tuple, texts))
    by_length = sorted(by_prompt, key=lambda ids: (len(ids), ids))
    return {prompt: sorted(by_prompt[prompt]) for prompt in by_length}


def cache_key(rows: Answers, *decides: object) -> str:
    """The key of the values of `rows`; `decides` are all that matters but code and libraries."""
    texts = [content_key(prompt, answers) for prompt, answers in rows.items()]
    return content_key(texts, decides, code_digest(*CODE), package_versions(*LIBRARIES))


def weights_hash(model) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of all weights, on all cores.

    It distinguishes what TRL's `hash_module` does, which needs a copy in fp32 and took 41 s of an
    8B model's start (tests/benchmarks/RESULTS.md).
    """

    def digest(item) -> bytes:
        name, values = item
        data = values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        header = f"{name} {values.dtype} {tuple(values.shape)} ".encode()
        return hashlib.sha256(header + hashlib.sha256(data).digest()).digest()

    with ThreadPoolExecutor() as threads:
        digests = threads.map(digest, sorted(model.state_dict().items()))
        return hashlib.sha256(b"".join(digests)).hexdigest()


def as_pairs(rows: Answers) -> list[dict[str, list[int]]]:
    """`rows` for a preference collator: each answer once, the last of an odd number twice."""
    pairs = []
    for prompt, answers in rows.items():
        for i in range(0, len(answers), 2):
            first, second = answers[i], answers[min(i + 1, len(answers) - 1)]
            pairs.append(
                {
                    "prompt_ids": list(prompt),
                    "chosen_ids": list(first),
                    "rejected_ids": list(second),
                }
            )
    return pairs


def write(key: str, values: list[float]) -> None:
    """Cache log-probabilities (nats, in the order of the answers of `as_pairs`)."""
    import polars as pl

    CACHE.write(key, pl.DataFrame({"log_probability": pl.Series(values, dtype=pl.Float32)}))


def read(key: str, count: int) -> list[float] | None:
    """The `count` cached log-probabilities; None if there is no such table or it is damaged."""
    table = CACHE.read(key, count)
    if table is None or not table["log_probability"].is_finite().all():
        return None
    return table["log_probability"].to_list()
