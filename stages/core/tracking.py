"""The MLflow record of a stage: params, metrics, curves, what it was made from, and the model, one run a stage.

Runs go to `mlflow.db` in the project's folder, or to the server in MLFLOW_TRACKING_URI. The record is a by-product: run ids and
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
MADE_BY = (
    "stages",
    "params.yaml",
    "dvc.yaml",
    "data/catalog",
    "data/labels",
    "requirements.lock",
)  # not dvc.lock and results: a run changes them


def tracking_uri() -> tuple[str, str | None]:
    """(tracking URI, artifact location): the server in MLFLOW_TRACKING_URI, else SQLite in the project's real folder."""
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return uri, None
    root = project_folder()
    return f"sqlite:///{root / 'mlflow.db'}", (root / "mlartifacts").as_uri()


@contextmanager
def run(stage: str, params: Mapping[str, Any], inputs: Sequence[str]) -> Iterator["Record"]:
    """An MLflow run named after `stage` with `params`, the git revision, the DVC experiment and the hashes of `inputs`.

    `inputs` are paths of DVC outputs; their hashes come from dvc.lock. Raises LibraError when the store can't be reached:
    before the work starts, so that nothing is lost.
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
            found = client.get_experiment_by_name(EXPERIMENT)
            experiment = (
                found.experiment_id
                if found
                else client.create_experiment(EXPERIMENT, artifact_location=artifacts)
            )
        started = mlflow.start_run(
            experiment_id=experiment, run_name=_run_name(stage), tags=_tags(stage, inputs)
        )
    except Exception as error:  # MLflow raises its own, SQLAlchemy's and requests' errors alike
        raise LibraError(
            f"the MLflow store {uri} can't be used ({str(error).splitlines()[0][:200]}); "
            "start the server, or unset MLFLOW_TRACKING_URI to record into mlflow.db"
        ) from None
    with started:
        mlflow.log_params(_flat(params))
        yield Record(uri)


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Keeps other processes of the project waiting: MLflow makes a new SQLite store in steps that two can't take at once."""
    cache_folder().mkdir(exist_ok=True)
    with (cache_folder() / "mlflow.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class Record:
    """An open MLflow run. A store that dies while it is written to costs the record, never the stage's work."""

    def __init__(self, uri: str):
        self._uri = uri

    def metrics(self, values: Mapping[str, Any]) -> None:
        """Log the numbers of `values` (nested dicts become `a.b` keys) in one batch; nulls are left out."""
        import mlflow

        numbers = {
            key: float(value)
            for key, value in _flat(values).items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        }
        self._guarded(lambda: mlflow.log_metrics(numbers))

    def curve(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Log a training curve: dicts with a `step` and numbers, all in one batch a thousand."""
        import mlflow
        from mlflow.entities import Metric

        points = [
            Metric(key.replace("@", "_"), float(value), 0, int(row["step"]))
            for row in rows
            for key, value in row.items()
            if key != "step" and value is not None
        ]
        run_id = mlflow.active_run().info.run_id
        client = mlflow.MlflowClient()
        self._guarded(
            lambda: [
                client.log_batch(run_id, metrics=points[i : i + 1000])
                for i in range(0, len(points), 1000)
            ]
        )

    def model(
        self, folder: str | Path, name: str, base_folder: Callable[[Path], str | None]
    ) -> None:
        """Log the policy in `folder` and register it as `name`, so that `mlflow.transformers.load_model` loads it back.

        Of an adapted policy the adapter is logged, with the folder its base is in on this machine, which `base_folder` tells (None for
        whole weights): left alone MLflow would write a local base's weights under the names they have beneath the adapter.
        """
        import mlflow
        from peft import PeftModel
        from transformers import AutoModelForCausalLM, AutoTokenizer

        def log() -> None:
            base = base_folder(Path(folder))
            model = AutoModelForCausalLM.from_pretrained(base or folder, local_files_only=True)
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

        self._guarded(log)

    def files(self, *paths: str | Path) -> None:
        """Log small files as artifacts."""
        import mlflow

        self._guarded(lambda: [mlflow.log_artifact(str(path)) for path in paths])

    def _guarded(self, log) -> None:
        try:
            log()
        except Exception as error:  # as above: any store error
            print(
                f"warning: MLflow store {self._uri} lost a part of the record: {str(error).splitlines()[0][:200]}",
                file=sys.stderr,
            )


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
    """HEAD, with `-dirty` behind it (as `git describe --dirty` says it) where MADE_BY differs from it; `none` outside of Git."""

    def git(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=False)

    revision = git("rev-parse", "--verify", "HEAD").stdout.strip()
    if not revision:
        return "none"
    # 1 says that something differs; 0 that nothing does.
    return (
        f"{revision}-dirty"
        if git("diff", "--quiet", "HEAD", "--", *MADE_BY).returncode
        else revision
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= (
            _flat(value, f"{prefix}{key}.")
            if isinstance(value, Mapping)
            else {f"{prefix}{key}": value}
        )
    return flat
