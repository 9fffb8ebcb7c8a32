"""The files behind the report, read and checked: all must be about the same candidates.

inputs = read_inputs()
inputs.metrics["candidates"]["dpo"]["harmonic"]    # 0.913
inputs.hashes["data/eval/metrics.json"]            # its SHA-256
inputs.blob                                        # Git's id of metrics.json
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from stages.core.cache import file_digest
from stages.core.errors import LibraError
from stages.core.tables import read_table

METRICS, PLANE = "data/eval/metrics.json", "data/eval/plane.csv"
CELLS, INTENTS = "data/eval/cells.csv", "data/eval/intents.csv"
VERDICTS, RESPONSES = "data/eval/verdicts.parquet", "data/eval/responses.parquet"
TEST = "data/librachemqa/test.parquet"
SFT, DPO = "models/sft/training.csv", "models/dpo/training.csv"
FILES = (METRICS, CELLS, INTENTS, PLANE, VERDICTS, RESPONSES, TEST, SFT, DPO)
# What the paper reports: measured on another test set, by another judge.
PUBLISHED = Path(__file__).parent / "published.csv"

SUBJECT = "dpo"  # the candidate that the project is about
RATES = (
    "harmonic",
    "worst",
    "overall",
    "safety",
    "utility",
    "over_refusal_rate",
    "abstain_rate",
    "dual_balanced_accuracy",
)
COST = ("model", "requests", "prompt_tokens", "completion_tokens", "usd")  # of each use of a model
RATE = ("n", "substances", "rate", "rate_lo", "rate_hi")  # of cells.csv and intents.csv
MISSES = ("wrong", "unverifiable", "over_refusal", "leak", "abstain")  # of intents.csv
_RESCORE = "run `dvc repro score`"
_ENDS = ("", "_lo", "_hi")
_PLANE = tuple(f"{rate}{end}" for rate in ("safety", "utility") for end in _ENDS)
_COMPARISON = ("first", "second", "metric", "difference", "lo", "hi", "p_holm", "n", "substances")
_AGREEMENT = (
    *("kappa", "kappa_lo", "kappa_hi"),
    *(f"paper_{a}_cascade_{b}" for a in ("comply", "refuse") for b in ("comply", "refuse")),
)


@dataclass(frozen=True)
class Inputs:
    """What the page shows.

    `metrics`, `plane`, `cells` and `intents` are as stage score writes them; `curves` is each
    training.csv, `published` what the paper reports, `hashes` the SHA-256 of each file, and `blob`
    the id that Git gives metrics.json.
    """

    metrics: dict[str, Any]
    plane: pl.DataFrame
    cells: pl.DataFrame
    intents: pl.DataFrame
    verdicts: pl.DataFrame
    responses: pl.DataFrame
    test: pl.DataFrame
    curves: dict[str, pl.DataFrame]
    published: pl.DataFrame
    hashes: dict[str, str]
    blob: str


def read_inputs() -> Inputs:
    """All of FILES. Raises LibraError that names a missing file, column, figure or candidate."""
    metrics = _read_metrics()
    about = ("intent_kind", "status", "expected")
    verdict = ("outcome", "decided_by", "evidence", "paper")
    request = ("prompt", "expected", "intent", "intent_kind", "representation")
    rewards = ("rewards/margins", "rewards/accuracies")
    eval_rewards = tuple(f"eval_{column}" for column in rewards)
    inputs = Inputs(
        metrics=metrics,
        plane=_read_csv(PLANE, ("candidate",), _PLANE),
        cells=_read_csv(CELLS, ("candidate", *about, "representation"), RATE),
        intents=_read_csv(INTENTS, ("candidate", "intent", *about), RATE + MISSES),
        verdicts=read_table(VERDICTS, ("candidate", "prompt_id", "channel", *verdict)),
        responses=read_table(RESPONSES, ("candidate", "prompt_id", "answer", "error")),
        test=read_table(TEST, ("prompt_id", *request)),
        curves={
            "sft": _read_csv(SFT, (), ("step", "loss"), ("eval_loss",)),
            "dpo": _read_csv(DPO, (), ("step", "loss", *rewards), ("eval_loss", *eval_rewards)),
        },
        published=_read_csv(
            str(PUBLISHED),
            ("system", "test_set", "judge", "source"),
            ("overall", "librachem_ahead"),
        ),
        hashes={path: file_digest(Path(path)) for path in FILES},
        blob=_blob(Path(METRICS).read_bytes()),
    )

    candidates = set(metrics["candidates"])
    tables = {
        PLANE: inputs.plane,
        CELLS: inputs.cells,
        INTENTS: inputs.intents,
        VERDICTS: inputs.verdicts,
        RESPONSES: inputs.responses,
    }
    for path, table in tables.items():
        if differing := sorted(candidates ^ set(table["candidate"].unique()), key=str):
            names = ", ".join(map(str, differing))
            raise LibraError(f"{METRICS} and {path} disagree on candidate {names}; {_RESCORE}")
    return inputs


def _read_metrics() -> dict[str, Any]:
    path = Path(METRICS)
    if not path.exists():
        raise LibraError(f"{path} is missing; {_RESCORE} first")
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise LibraError(f"{path} isn't JSON ({error}); {_RESCORE}") from None

    for keys in sorted(_required(metrics)):
        value = metrics
        for depth, key in enumerate(keys):
            if not isinstance(value, dict) or key not in value:
                raise LibraError(f"{path} has no {'.'.join(keys[: depth + 1])}; {_RESCORE}")
            value = value[key]
    for comparison in metrics["comparisons"]:
        if missing := sorted(set(_COMPARISON) - set(comparison)):
            raise LibraError(f"{path}: a comparison lacks {', '.join(missing)}; {_RESCORE}")
    return metrics


def _required(metrics: Any) -> Iterator[tuple[str, ...]]:
    """The paths of all figures that the page needs."""
    yield from (("test", key) for key in ("n_prompts", "n_seeds", "n_substances"))
    yield from (("judge", "human"), ("judge", "panel"), ("comparisons",), ("generation",))
    for name in (SUBJECT, *_names(metrics, "candidates")):
        of_candidate = ("candidates", name)
        yield from ((*of_candidate, rate + end) for rate in RATES for end in _ENDS)
        yield from ((*of_candidate, "paper", key) for key in ("legitimate", "illegal", "overall"))
        for key in ("ppi", "answer_safe", "reasoning_safe", "both_safe"):
            yield (*of_candidate, key)
        yield from (("judge", "paper_agreement", name, key) for key in _AGREEMENT)
    for use in _names(metrics, "generation"):
        yield from (("generation", use, key) for key in COST)


def _names(metrics: Any, key: str) -> list[str]:
    section = metrics.get(key) if isinstance(metrics, dict) else None
    return list(section) if isinstance(section, dict) else []


def _blob(content: bytes) -> str:
    """Git's id of a file: SHA-1 of a header and its bytes."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _read_csv(
    path: str, texts: tuple[str, ...], numbers: tuple[str, ...], optional: tuple[str, ...] = ()
) -> pl.DataFrame:
    """Columns `texts`, `numbers` (Float64) and `optional` ones: numbers, all null if absent."""
    if not Path(path).exists():
        raise LibraError(f"{path} is missing; run `dvc repro` first")
    try:
        table = pl.read_csv(path, infer_schema=False)
        if missing := [column for column in texts + numbers if column not in table.columns]:
            raise LibraError(
                f"{path} lacks column {', '.join(missing)}; it has {', '.join(table.columns)}"
            )
        absent = [column for column in optional if column not in table.columns]
        table = table.with_columns(pl.lit(None, pl.String).alias(column) for column in absent)
        table = table.select(
            *texts, *(pl.col(column).cast(pl.Float64) for column in numbers + optional)
        )
    except pl.exceptions.PolarsError as error:
        reason = str(error).splitlines()[0]
        raise LibraError(f"{path} isn't a valid table ({reason}); run `dvc repro`") from None
    if table.is_empty():
        raise LibraError(f"{path} has no rows; run `dvc repro`")
    return table
