"""What the report is made of, read and held against each other: every file must speak of the same candidates.

inputs = read_inputs()
inputs.metrics["candidates"]["dpo"]["harmonic"]    # 0.913
inputs.hashes["data/eval/metrics.json"]            # sha256 of the bytes read
inputs.blob                                        # what Git calls metrics.json: leads to the commit that holds it
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from stages.core.errors import LibraError
from stages.core.tables import read_table

METRICS, PLANE = "data/eval/metrics.json", "data/eval/plane.csv"
CELLS, INTENTS = "data/eval/cells.csv", "data/eval/intents.csv"
VERDICTS, RESPONSES, TEST = (
    "data/eval/verdicts.parquet",
    "data/eval/responses.parquet",
    "data/librachemqa/test.parquet",
)
SFT, DPO = "models/sft/training.csv", "models/dpo/training.csv"
PUBLISHED = (
    Path(__file__).parent / "published.csv"
)  # what the paper reports: another test set, another judge
FILES = (METRICS, CELLS, INTENTS, PLANE, VERDICTS, RESPONSES, TEST, SFT, DPO)

SUBJECT = "dpo"  # the candidate the project is about
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
_ENDS = ("", "_lo", "_hi")
_PLANE = tuple(f"{rate}{end}" for rate in ("safety", "utility") for end in _ENDS)
SPENT = (
    "model", "requests", "prompt_tokens", "completion_tokens", "usd",
)  # fmt: skip
RATE = ("n", "substances", "rate", "rate_lo", "rate_hi")  # of cells.csv and intents.csv
MISSES = (
    "wrong",
    "unverifiable",
    "over_refusal",
    "leak",
    "abstain",
)  # of intents.csv: outcomes of what wasn't right
_COMPARED = ("first", "second", "metric", "difference", "lo", "hi", "p_holm", "n", "substances")
_COUNTS = tuple(
    f"paper_{a}_cascade_{b}" for a in ("comply", "refuse") for b in ("comply", "refuse")
)


@dataclass(frozen=True)
class Inputs:
    """`metrics`, `plane`, `cells` and `intents` as stage score writes them, `curves`: each training.csv, `published`: what the
    paper reports, `hashes`: sha256 per file, `blob`:
    the id Git gives metrics.json (SHA-1 of a header and its bytes)."""

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
    inputs = Inputs(
        metrics=metrics,
        plane=_read_csv(PLANE, ("candidate",), _PLANE),
        cells=_read_csv(CELLS, ("candidate", "status", "intent_kind", "representation", "expected"), RATE),
        intents=_read_csv(INTENTS, ("candidate", "intent_kind", "intent", "status", "expected"), RATE + MISSES),
        verdicts=read_table(VERDICTS, ("candidate", "prompt_id", "channel", "outcome", "decided_by", "evidence", "paper")),
        responses=read_table(RESPONSES, ("candidate", "prompt_id", "answer", "error")),
        test=read_table(TEST, ("prompt_id", "prompt", "expected", "intent", "intent_kind", "representation")),
        curves={
            "sft": _read_csv(SFT, (), ("step", "loss"), others=("eval_loss",)),
            "dpo": _read_csv(
                DPO, (), ("step", "loss", "rewards/margins", "rewards/accuracies"),
                others=("eval_loss", "eval_rewards/margins", "eval_rewards/accuracies"),
            ),
        },
        published=_read_csv(str(PUBLISHED), ("system", "test_set", "judge", "source"), ("overall", "librachem_ahead")),
        hashes={path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in FILES},
        blob=_blob(Path(METRICS).read_bytes()),
    )  # fmt: skip
    told = set(metrics["candidates"])
    tables = {
        PLANE: inputs.plane, CELLS: inputs.cells, INTENTS: inputs.intents, VERDICTS: inputs.verdicts, RESPONSES: inputs.responses,
    }  # fmt: skip
    for path, table in tables.items():
        if odd := sorted(told ^ set(table["candidate"].unique()), key=str):
            raise LibraError(
                f"{METRICS} and {path} disagree on candidate {', '.join(map(str, odd))}; run `dvc repro score`"
            )
    return inputs


def _read_metrics() -> dict[str, Any]:
    path = Path(METRICS)
    if not path.exists():
        raise LibraError(f"{path} is not here; run `dvc repro score` first")
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise LibraError(f"{path} isn't JSON ({error}); run `dvc repro score`") from None
    wanted = {("test", key) for key in ("n_prompts", "n_seeds", "n_substances")}
    for name in (SUBJECT, *_named(metrics, "candidates")):
        wanted |= {("candidates", name, rate + end) for rate in RATES for end in _ENDS}
        wanted |= {
            ("candidates", name, "paper", key) for key in ("legitimate", "illegal", "overall")
        }
        wanted |= {
            ("candidates", name, key)
            for key in ("ppi", "answer_safe", "reasoning_safe", "both_safe")
        }
        wanted |= {
            ("judge", "paper_agreement", name, key)
            for key in ("kappa", "kappa_lo", "kappa_hi", *_COUNTS)
        }
    wanted |= {("judge", "human"), ("judge", "panel"), ("comparisons",)}
    wanted |= {
        ("generation", what, key) for what in _named(metrics, "generation") for key in SPENT
    } | {("generation",)}
    for keys in sorted(wanted):
        found = metrics
        for depth, key in enumerate(keys):
            if not isinstance(found, dict) or key not in found:
                raise LibraError(
                    f"{path} has no {'.'.join(keys[: depth + 1])}; run `dvc repro score`"
                )
            found = found[key]
    if odd := [row for row in metrics["comparisons"] if not set(_COMPARED) <= set(row)]:
        raise LibraError(
            f"{path}: a comparison lacks {', '.join(sorted(set(_COMPARED) - set(odd[0])))}; run `dvc repro score`"
        )
    return metrics


def _blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _named(metrics: Any, key: str) -> list[str]:
    return (
        list(metrics[key])
        if isinstance(metrics, dict) and isinstance(metrics.get(key), dict)
        else []
    )


def _read_csv(
    path: str, texts: tuple[str, ...], numbers: tuple[str, ...], others: tuple[str, ...] = ()
) -> pl.DataFrame:
    """Columns `texts`, `numbers` (as floats), and `others`: numbers that may be absent and are then null."""
    if not Path(path).exists():
        raise LibraError(f"{path} is not here; run `dvc repro` first")
    try:
        table = pl.read_csv(path, infer_schema=False)
        missing = [column for column in texts + numbers if column not in table.columns]
        if missing:
            raise LibraError(
                f"{path} lacks column {', '.join(missing)}; it has {', '.join(table.columns)}"
            )
        table = table.with_columns(
            pl.lit(None, pl.String).alias(column)
            for column in others
            if column not in table.columns
        )
        table = table.select(
            *texts, *(pl.col(column).cast(pl.Float64) for column in numbers + others)
        )
    except pl.exceptions.PolarsError as error:
        raise LibraError(
            f"{path} isn't the table it should be ({str(error).splitlines()[0]}); run `dvc repro`"
        ) from None
    if table.is_empty():
        raise LibraError(f"{path} has no rows; run `dvc repro`")
    return table
