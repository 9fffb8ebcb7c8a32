"""The MLflow record of a stage: params, metrics, curves, input hashes and the model.

    with tracking.run("score", {"score": {...}}, ["data/librachemqa"]) as record:
        record.metrics({"dpo": {"safety": 0.9}})

Runs go to `mlflow.db` in the project's folder, or to the server in MLFLOW_TRACKING_URI. Run ids and
times stay in MLflow, so a stage's outputs are the same bytes whether it is recorded or not.
"""

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from stages.core.errors import LibraError
from stages.core.folders import cache_folder, project_folder

EXPERIMENT = "libra"
# What decides a run; not dvc.lock and results, which a run changes.
SOURCES = (
    "stages",
    "params.yaml",
    "dvc.yaml",
    "data/catalog",
    "data/labels",
    "requirements.lock",
)


def tracking_uri() -> tuple[str, str | None]:
    """(tracking URI, artifact location) of the server, or of SQLite in the project's folder."""
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return uri, None
    root = project_folder()
    return f"sqlite:///{root / 'mlflow.db'}", (root / "mlartifacts").as_uri()


@contextmanager
def run(stage: str, params: Mapping[str, Any], inputs: Sequence[str]) -> Iterator["Record"]:
    """An MLflow run of `stage` with `params`, git revision, DVC experiment and input hashes.

    `inputs` are paths of DVC outputs; their hashes come from dvc.lock.

    Raises LibraError if the store can't be reached: before the work starts, so nothing is lost.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault(
        "HF_HUB_OFFLINE", "1" if os.environ.get("MLFLOW_TRACKING_URI") is None else "0"
    )
    import logging

    logging.getLogger("alembic").setLevel(logging.WARNING)
    import mlflow

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    uri, artifacts = tracking_uri()
    try:
        mlflow.set_tracking_uri(uri)
        with _one_at_a_time():
            client = mlflow.MlflowClient()
            experiment = client.get_experiment_by_name(EXPERIMENT)
            if experiment:
                experiment_id = experiment.experiment_id
            else:
                experiment_id = client.create_experiment(EXPERIMENT, artifact_location=artifacts)
        active_run = mlflow.start_run(
            experiment_id=experiment_id, run_name=_run_name(stage), tags=_tags(stage, inputs)
        )
    except Exception as error:  # MLflow's own, SQLAlchemy's, or requests'
        raise LibraError(
            f"the MLflow store {uri} can't be used ({_first_line(error)}); "
            "start the server, or unset MLFLOW_TRACKING_URI to record into mlflow.db"
        ) from None
    with active_run:
        mlflow.log_params(_flat(params))
        yield Record(uri)


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Other processes of the project wait: two can't create an SQLite store of MLflow at once."""
    cache_folder().mkdir(exist_ok=True)
    with (cache_folder() / "mlflow.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class Record:
    """An open MLflow run. If its store fails, a warning is printed and the stage goes on."""

    def __init__(self, uri: str):
        self._uri = uri

    def metrics(self, values: Mapping[str, Any]) -> None:
        """Log the numbers in `values` in one batch; nested dicts become `a.b` keys."""
        import mlflow

        numbers = {
            key: float(value)
            for key, value in _flat(values).items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        }
        with self._loss_is_a_warning():
            mlflow.log_metrics(numbers)

    def curve(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Log a training curve: dicts with a `step` and numbers, in batches of a thousand."""
        import mlflow
        from mlflow.entities import Metric

        points = [
            Metric(key.replace("@", "_"), float(value), 0, int(row["step"]))
            for row in rows
            for key, value in row.items()
            if key != "step" and value is not None
        ]
        active_run = mlflow.active_run()
        assert active_run is not None  # a Record exists inside of `run` only
        with self._loss_is_a_warning():
            client = mlflow.MlflowClient()
            for i in range(0, len(points), 1000):
                client.log_batch(active_run.info.run_id, metrics=points[i : i + 1000])

    def model(
        self, folder: str | Path, name: str, base_folder: Callable[[Path], str | None]
    ) -> None:
        """Log the policy in `folder` and register it, for `mlflow.transformers.load_model`.

        Of an adapter, only its own weights are logged, with the folder of its base on this machine.
        `base_folder` returns that, or None for full weights. By itself MLflow would save a local
        base's weights under the names they have inside the adapter.
        """
        import mlflow
        from peft import PeftModel
        from transformers import AutoModelForCausalLM, AutoTokenizer

        with self._loss_is_a_warning():
            base = base_folder(Path(folder))
            model: Any = AutoModelForCausalLM.from_pretrained(base or folder, local_files_only=True)
            if base:
                model = PeftModel.from_pretrained(model, folder)
            mlflow.transformers.log_model(
                transformers_model={
                    "model": model,
                    "tokenizer": AutoTokenizer.from_pretrained(folder, local_files_only=True),
                },
                name=name,
                task="text-generation",
                registered_model_name=name,
                base_model_path=base,
                pip_requirements=["torch", "transformers", "accelerate"] + ["peft"] * bool(base),
            )

    def files(self, *paths: str | Path) -> None:
        """Log small files as artifacts."""
        import mlflow

        with self._loss_is_a_warning():
            for path in paths:
                mlflow.log_artifact(str(path))

    @contextmanager
    def _loss_is_a_warning(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # as in `run`: any error of the store
            problem = f"lost part of the record: {_first_line(error)}"
            print(f"warning: MLflow store {self._uri} {problem}", file=sys.stderr)


def _run_name(stage: str) -> str:
    experiment = os.environ.get("DVC_EXP_NAME")
    return f"{stage}-{experiment}" if experiment else stage


def _tags(stage: str, inputs: Sequence[str]) -> dict[str, str]:
    tags = {"stage": stage, "git_revision": _git_revision()}
    if experiment := os.environ.get("DVC_EXP_NAME"):
        tags["dvc_experiment"] = experiment
    lock = Path("dvc.lock")
    locked = yaml.safe_load(lock.read_text(encoding="utf-8")) if lock.exists() else {}
    outs = {
        out["path"]: out
        for entry in (locked or {}).get("stages", {}).values()
        for out in entry.get("outs", [])
    }
    for path in inputs:
        if path in outs:
            tags[f"input.{path.replace('/', '.')}"] = f"md5:{outs[path]['md5']}"
    return tags


def _git_revision() -> str:
    """HEAD, with `-dirty` appended if SOURCES differ from it; `none` outside of Git."""

    def git(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=False)

    revision = git("rev-parse", "--verify", "HEAD").stdout.strip()
    if not revision:
        return "none"
    differs = git("diff", "--quiet", "HEAD", "--", *SOURCES).returncode != 0
    return f"{revision}-dirty" if differs else revision


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
