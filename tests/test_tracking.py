"""The MLflow record: what a run has, where it goes, and that its model loads back."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
import torch
import yaml

from helpers.dag import ROOT
from helpers.tiny_training import MODEL_PARAMS, table
from stages.core import tracking
from stages.core.errors import LibraError
from stages.training import adapters, pretrained
from stages.training.adapters import base_folder
from stages.training.model_params import LoraParams
from stages.training.scratch import new_model, train_tokenizer
from stages.training.trainer import save_policy

LOCK = {
    "stages": {
        "validate": {"outs": [{"path": "data/librachemqa", "md5": "0123.dir"}]},
        "sft": {"outs": [{"path": "models/sft", "md5": "4567.dir"}]},
    }
}
PARAMS = {"random_seed": 7, "dpo": {"beta": 0.1, "loss": "sigmoid"}}
CURVE = [{"step": 1, "loss": 0.5}]
# About its own type hints, whenever it logs a model.
MLFLOW_WARNS = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
SOURCES = (
    "stages/sft.py",
    "params.yaml",
    "dvc.yaml",
    "data/catalog/everyday.csv",
    "requirements.lock",
)


@pytest.fixture()
def folder(tmp_path, monkeypatch):
    """An empty project folder with a dvc.lock; MLflow's global state is put back afterwards."""
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "DVC_EXP_NAME", "DVC_ROOT"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "dvc.lock").write_text(yaml.safe_dump(LOCK))
    yield tmp_path
    mlflow.set_tracking_uri(None)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(table()["chosen"].unique().sort().to_list(), MODEL_PARAMS.vocab_size)


def git(*arguments):
    """The output of a git command, without the last line break."""
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    done = subprocess.run(
        ["git", *identity, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def recorded_runs(folder):
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    return client, client.search_runs([client.get_experiment_by_name("libra").experiment_id])


def test_a_run_has_params_metrics_curve_and_inputs(folder, monkeypatch):
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "a")
    monkeypatch.setenv("DVC_EXP_NAME", "warm-pine")
    (folder / "note.txt").write_text("small")
    with tracking.run("dpo", PARAMS, ["data/librachemqa", "models/sft", "data/unknown"]) as record:
        safety = {"candidates": {"dpo": {"safety": 0.9, "utility": None}}}
        record.metrics(safety | {"rows": 3, "name": "text", "flag": True})
        record.curve(
            [
                {"step": 1, "loss": 0.7},
                {"step": 2, "loss": 0.5, "eval_loss": 0.6, "rewards/margins": None},
            ]
        )
        record.files("note.txt")

    client, (run,) = recorded_runs(folder)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "dpo-warm-pine"
    assert run.data.params == {"random_seed": "7", "dpo.beta": "0.1", "dpo.loss": "sigmoid"}
    assert run.data.metrics == {
        "candidates.dpo.safety": 0.9,
        "rows": 3.0,
        "loss": 0.5,
        "eval_loss": 0.6,
    }
    points = client.get_metric_history(run.info.run_id, "loss")
    assert [(point.step, point.value) for point in points] == [(1, 0.7), (2, 0.5)]
    tags = {key: value for key, value in run.data.tags.items() if not key.startswith("mlflow.")}
    assert tags == {
        "stage": "dpo",
        "git_revision": git("rev-parse", "HEAD"),
        "dvc_experiment": "warm-pine",
        "input.data.librachemqa": "md5:0123.dir",
        "input.models.sft": "md5:4567.dir",
    }
    assert "note.txt" in [file.path for file in client.list_artifacts(run.info.run_id)]
    created = {path.name for path in folder.iterdir()} - {".git", "dvc.lock", "note.txt"}
    assert created == {".cache", "mlflow.db", "mlartifacts"}


@MLFLOW_WARNS
def test_a_recorded_model_loads_back(folder, tokenizer):
    model = new_model(MODEL_PARAMS, tokenizer)
    save_policy(model, tokenizer, CURVE, "models/dpo")
    with tracking.run("dpo", PARAMS, []) as record:
        record.model("models/dpo", "libra", base_folder)

    client, (run,) = recorded_runs(folder)
    (version,) = client.search_model_versions("name='libra'")
    assert version.run_id == run.info.run_id
    uri = f"models:/libra/{version.version}"
    loaded = mlflow.transformers.load_model(uri, return_type="components")
    state = loaded["model"].state_dict()
    assert all((state[name] == value).all() for name, value in model.state_dict().items())
    assert loaded["tokenizer"].chat_template == tokenizer.chat_template
    assert loaded["tokenizer"]("Keep it")["input_ids"] == tokenizer("Keep it")["input_ids"]


def test_processes_that_start_at_once_create_the_store_together(folder):
    """As two workers of `dvc queue start -j 2` do in a fresh clone.

    MLflow by itself fails there, because two processes create the same column.
    """
    code = (
        "from stages.core import tracking\n"
        "with tracking.run('score', {}, []) as run: run.metrics({'a': 1})"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        for _ in range(3)
    ]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], errors
    _, runs = recorded_runs(folder)
    assert [run.data.metrics for run in runs] == [{"a": 1.0}] * 3
    assert not any("lost" in text for text in errors)


def test_a_revision_is_dirty_if_sources_differ_from_it(folder):
    git("init", "-q")
    assert tracking._git_revision() == "none"  # nothing committed yet
    others = ("dvc.lock", "README.md", "data/eval/metrics.json")
    for path in (*SOURCES, *others):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("# as committed\n")
    git("add", ".")
    git("commit", "-qm", "a")
    clean = git("rev-parse", "HEAD")
    assert tracking._git_revision() == clean

    for path in others:
        (folder / path).write_text("# changed\n")
    (folder / "stages/note.py").write_text("not in Git\n")
    assert tracking._git_revision() == clean

    for path in SOURCES:
        (folder / path).write_text("# changed\n")
        assert tracking._git_revision() == f"{clean}-dirty", path
        (folder / path).write_text("# as committed\n")
        assert tracking._git_revision() == clean, "the same bytes again, though written later"
    git("rm", "-q", "stages/sft.py")
    assert tracking._git_revision() == f"{clean}-dirty"

    git("commit", "-qm", "b")
    assert tracking._tags("sft", [])["git_revision"] == git("rev-parse", "HEAD") != clean


@MLFLOW_WARNS
@pytest.mark.parametrize(
    "place", ["in its folder", "beside the adapter", "beside the adapter, copied"]
)
def test_an_adapter_is_recorded_with_its_base(folder, monkeypatch, tokenizer, place):
    """MLflow by itself keeps the base under names no model has, and loads fresh weights instead."""
    save_policy(new_model(MODEL_PARAMS, tokenizer), tokenizer, CURVE, "base")
    base = pretrained.load_weights("base", None, "float32", "sdpa", None)
    lora = LoraParams(r=2, alpha=4, dropout=0.0, target_modules=["q_proj"])
    model = adapters.with_adapter(base, lora, None)
    for name, weights in model.named_parameters():
        if "lora_B" in name:
            weights.data += 0.5
    save_policy(model, tokenizer, CURVE, "models/sft", with_base="beside" in place)

    if "beside" in place:
        shutil.rmtree("base")
    if "copied" in place:

        def no_link(*_):
            raise OSError(18, "Invalid cross-device link")

        monkeypatch.setattr(os, "link", no_link)
    with tracking.run("sft", PARAMS, []) as record:
        record.model("models/sft", "libra-sft", base_folder)
    if "beside" in place:
        shutil.rmtree("models/sft")  # the next policy takes its place
        (base_copy,) = Path(".cache/bases").iterdir()
        names = {"config.json", "generation_config.json", "model.safetensors"}
        assert {path.name for path in base_copy.iterdir()} == names

    components = mlflow.transformers.load_model("models:/libra-sft/1", return_type="components")
    token_ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        loaded_logits = components["model"](token_ids).logits
        logits = model(token_ids).logits
        with model.disable_adapter():
            base_logits = model(token_ids).logits
    assert torch.allclose(loaded_logits, logits, atol=1e-5)
    assert not torch.allclose(base_logits, logits, atol=1e-2)


def test_a_queued_experiment_records_into_the_real_project(folder, tmp_path_factory, monkeypatch):
    copy = tmp_path_factory.mktemp("queued")
    monkeypatch.setenv("DVC_ROOT", str(folder))
    monkeypatch.chdir(copy)
    artifacts = (folder / "mlartifacts").as_uri()
    assert tracking.tracking_uri() == (f"sqlite:///{folder}/mlflow.db", artifacts)
    monkeypatch.delenv("DVC_ROOT")
    assert tracking.tracking_uri()[0] == f"sqlite:///{copy}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert tracking.tracking_uri() == ("http://server:5000", None)


def test_a_failing_stage_fails_its_run(folder):
    with pytest.raises(KeyError), tracking.run("sft", PARAMS, []) as record:
        record.curve([{"step": 1, "loss": 0.7}])
        raise KeyError("bug")
    _, (run,) = recorded_runs(folder)
    assert run.info.status == "FAILED"
    assert run.info.run_name == "sft"
    assert run.data.metrics == {"loss": 0.7}
    assert run.data.tags["git_revision"] == "none"
    assert "dvc_experiment" not in run.data.tags


def test_a_failing_store_only_loses_the_record(folder, monkeypatch, capsys):
    def fail(numbers):
        raise ConnectionError("gone\nfor good")

    with tracking.run("score", PARAMS, []) as record:
        monkeypatch.setattr(mlflow, "log_metrics", fail)
        record.metrics({"rows": 3})
    assert capsys.readouterr().err.endswith("mlflow.db lost part of the record: gone\n")
    _, (run,) = recorded_runs(folder)
    assert run.info.status == "FINISHED"


@pytest.mark.parametrize("uri", ["http://127.0.0.1:1", "sqlite:////dev/null/mlflow.db"])
def test_an_unreachable_store_is_named_before_the_work_starts(folder, monkeypatch, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(LibraError) as error, tracking.run("sft", PARAMS, []):
        pytest.fail("the work was started")
    message = str(error.value)
    assert message.startswith(f"the MLflow store {uri} can't be used (")
    assert "\n" not in message
    fix = "start the server, or unset MLFLOW_TRACKING_URI to record into mlflow.db"
    assert message.endswith(fix)


def test_the_stages_that_record_name_real_outputs():
    """The inputs that a stage names are deps in dvc.yaml: dvc.lock then has their hashes.

    A folder whose files are deps counts: its hash is that of the version.
    """
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    for stage in ("sft", "dpo", "score"):
        tree = ast.parse((ROOT / f"stages/{stage}.py").read_text(encoding="utf-8"))
        (call,) = (
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
            and ast.unparse(node.func) in ("tracking.run", "processes.record")
        )
        keywords = {keyword.arg: keyword.value for keyword in call.keywords}
        inputs = ast.literal_eval(keywords.get("inputs") or call.args[2])
        assert ast.literal_eval(call.args[0]) == stage
        assert inputs
        for path in inputs:
            deps = stages[stage]["deps"]
            assert any(dep == path or dep.startswith(f"{path}/") for dep in deps), (stage, path)
