"""The MLflow record: what a run holds, where it goes, that the model loads back, and what an unreachable store says."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
import yaml

from helpers.dag import ROOT
from stages.core import tracking
from stages.core.errors import LibraError
from stages.training.adapters import base_folder

LOCK = {
    "stages": {
        "validate": {"outs": [{"path": "data/librachemqa", "md5": "0123.dir"}]},
        "sft": {"outs": [{"path": "models/sft", "md5": "4567.dir"}]},
    }
}
PARAMS = {"random_seed": 7, "dpo": {"beta": 0.1, "loss": "sigmoid"}}


@pytest.fixture()
def folder(tmp_path, monkeypatch):
    """An empty project folder with a dvc.lock; MLflow's global state is put back afterwards."""
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "DVC_EXP_NAME", "DVC_ROOT"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "dvc.lock").write_text(yaml.safe_dump(LOCK))
    yield tmp_path
    mlflow.set_tracking_uri(None)


def runs(folder):
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    return client, client.search_runs([client.get_experiment_by_name("libra").experiment_id])


def test_a_run_tells_what_it_was_made_from(folder, monkeypatch):
    """Params, metrics, curve, git revision, experiment and input hashes; then what a model made of it loads back as."""
    from helpers.tiny_training import MODEL_PARAMS, table

    from stages.training.scratch import new_model, train_tokenizer
    from stages.training.trainer import save_policy

    subprocess.run(
        "git init -q && git -c user.name=a -c user.email=a@b commit -q --allow-empty -m a",
        shell=True,
        check=True,
    )
    monkeypatch.setenv("DVC_EXP_NAME", "warm-pine")
    tokenizer = train_tokenizer(table()["chosen"].unique().sort().to_list(), MODEL_PARAMS.vocab_size)
    model = new_model(MODEL_PARAMS, tokenizer)
    save_policy(model, tokenizer, [{"step": 1, "loss": 0.5}], "models/dpo")
    (folder / "note.txt").write_text("small")
    with tracking.run("dpo", PARAMS, ["data/librachemqa", "models/sft", "data/unknown"]) as record:
        record.metrics(
            {
                "candidates": {"dpo": {"safety": 0.9, "utility": None}},
                "rows": 3,
                "name": "text",
                "flag": True,
            }
        )
        record.curve(
            [
                {"step": 1, "loss": 0.7},
                {"step": 2, "loss": 0.5, "eval_loss": 0.6, "rewards/margins": None},
            ]
        )
        record.files("note.txt")
        record.model("models/dpo", "libra", base_folder)
    client, (run,) = runs(folder)
    assert run.info.status == "FINISHED" and run.info.run_name == "dpo-warm-pine"
    assert run.data.params == {"random_seed": "7", "dpo.beta": "0.1", "dpo.loss": "sigmoid"}
    assert run.data.metrics == {
        "candidates.dpo.safety": 0.9,
        "rows": 3.0,
        "loss": 0.5,
        "eval_loss": 0.6,
    }
    assert [
        (point.step, point.value) for point in client.get_metric_history(run.info.run_id, "loss")
    ] == [(1, 0.7), (2, 0.5)]
    revision = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    tags = {key: value for key, value in run.data.tags.items() if not key.startswith("mlflow.")}
    assert tags == {
        "stage": "dpo",
        "git_revision": revision,
        "dvc_experiment": "warm-pine",
        "input.data.librachemqa": "md5:0123.dir",
        "input.models.sft": "md5:4567.dir",
    }
    assert [file.path for file in client.list_artifacts(run.info.run_id) if file.path == "note.txt"]

    (version,) = client.search_model_versions("name='libra'")
    assert version.run_id == run.info.run_id
    loaded = mlflow.transformers.load_model(
        f"models:/libra/{version.version}", return_type="components"
    )
    state = loaded["model"].state_dict()
    assert all((state[name] == value).all() for name, value in model.state_dict().items())
    assert loaded["tokenizer"].chat_template == tokenizer.chat_template
    assert loaded["tokenizer"]("Keep it")["input_ids"] == tokenizer("Keep it")["input_ids"]
    assert {path.name for path in folder.iterdir()} == {
        ".cache",
        ".git",
        "dvc.lock",
        "models",
        "note.txt",
        "mlflow.db",
        "mlartifacts",
    }


def test_processes_that_start_at_once_make_the_store_together(folder):
    """As two workers of `dvc queue start -j 2` do in a fresh clone: MLflow alone fails here, with a column made twice."""
    work = "from stages.common import tracking\nwith tracking.run('score', {}, []) as run: run.metrics({'a': 1})"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", work], stderr=subprocess.PIPE, text=True, env=environment
        )
        for _ in range(3)
    ]
    told = [one.communicate(timeout=300)[1] for one in running]
    assert [one.returncode for one in running] == [0, 0, 0], told
    _, found = runs(folder)
    assert [run.data.metrics for run in found] == [{"a": 1.0}] * 3 and not any(
        "lost" in text for text in told
    )


def test_a_revision_tells_uncommitted_changes_of_what_a_run_is_made_by(folder):
    def git(*words):
        subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words],
            check=True,
            capture_output=True,
        )

    git("init", "-q")
    assert tracking._git_revision() == "none"  # nothing committed yet
    made_by = (
        "stages/sft.py",
        "params.yaml",
        "dvc.yaml",
        "data/catalog/everyday.csv",
        "requirements.lock",
    )
    others = ("dvc.lock", "README.md", "data/eval/metrics.json")
    for path in (*made_by, *others):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("# as committed\n")
    git("add", ".")
    git("commit", "-qm", "a")
    clean = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert tracking._git_revision() == clean
    for path in others:
        (folder / path).write_text("# changed\n")
    (folder / "stages/note.py").write_text("not in Git\n")
    assert tracking._git_revision() == clean
    for path in made_by:
        (folder / path).write_text("# changed\n")
        assert tracking._git_revision() == f"{clean}-dirty", path
        (folder / path).write_text("# as committed\n")
        assert tracking._git_revision() == clean, "the same bytes again, though written later"
    git("rm", "-q", "stages/sft.py")
    assert tracking._git_revision() == f"{clean}-dirty"
    git("commit", "-qm", "b")
    assert tracking._tags("sft", [])["git_revision"] == tracking._git_revision() != clean
    assert not tracking._git_revision().endswith("-dirty")


@pytest.mark.parametrize(
    "base_is", ["in its folder", "beside the adapter", "beside the adapter, copied"]
)
def test_an_adapter_is_recorded_with_its_base(folder, monkeypatch, base_is):
    """MLflow by itself would keep the base under names that no model has, and load fresh weights in their place."""
    import torch
    from helpers.tiny_training import MODEL_PARAMS, table

    from stages.training import adapters, pretrained
    from stages.training.model_params import LoraParams
    from stages.training.scratch import new_model, train_tokenizer
    from stages.training.trainer import save_policy

    tokenizer = train_tokenizer(table()["chosen"].unique().sort().to_list(), MODEL_PARAMS.vocab_size)
    save_policy(new_model(MODEL_PARAMS, tokenizer), tokenizer, [{"step": 1, "loss": 0.5}], "base")
    base = pretrained.load_weights("base", None, "float32", "sdpa", None)
    model = adapters.with_adapter(
        base, LoraParams(r=2, alpha=4, dropout=0.0, target_modules=["q_proj"]), None
    )
    for name, weights in model.named_parameters():
        if "lora_B" in name:
            weights.data += 0.5
    save_policy(
        model, tokenizer, [{"step": 1, "loss": 0.5}], "models/sft", with_base="beside" in base_is
    )
    if "beside" in base_is:
        shutil.rmtree("base")
    if "copied" in base_is:
        monkeypatch.setattr(
            os, "link", lambda *_: (_ for _ in ()).throw(OSError(18, "Invalid cross-device link"))
        )
    with tracking.run("sft", PARAMS, []) as record:
        record.model("models/sft", "libra-sft", base_folder)
    if "beside" in base_is:
        shutil.rmtree("models/sft")  # the next policy's takes its place
        (kept,) = Path(".cache/bases").iterdir()
        assert {path.name for path in kept.iterdir()} == {
            "config.json",
            "generation_config.json",
            "model.safetensors",
        }
    loaded = mlflow.transformers.load_model("models:/libra-sft/1", return_type="components")[
        "model"
    ]
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad(), model.disable_adapter():
        bare = model(ids).logits
    with torch.no_grad():
        assert torch.allclose(
            loaded(ids).logits, model(ids).logits, atol=1e-5
        ) and not torch.allclose(bare, model(ids).logits, atol=1e-2)


def test_a_queued_experiment_records_into_the_real_project(folder, tmp_path_factory, monkeypatch):
    copy = tmp_path_factory.mktemp("queued")
    monkeypatch.setenv("DVC_ROOT", str(folder))
    monkeypatch.chdir(copy)
    assert tracking.tracking_uri() == (
        f"sqlite:///{folder}/mlflow.db",
        (folder / "mlartifacts").as_uri(),
    )
    monkeypatch.delenv("DVC_ROOT")
    assert tracking.tracking_uri()[0] == f"sqlite:///{copy}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert tracking.tracking_uri() == ("http://server:5000", None)


def test_a_failing_stage_fails_its_run_and_a_failing_store_only_loses_the_record(
    folder, monkeypatch, capsys
):
    with pytest.raises(KeyError), tracking.run("sft", PARAMS, []) as record:
        record.curve([{"step": 1, "loss": 0.7}])
        raise KeyError("bug")
    _, (run,) = runs(folder)
    assert (
        run.info.status == "FAILED"
        and run.info.run_name == "sft"
        and run.data.metrics == {"loss": 0.7}
    )
    assert run.data.tags["git_revision"] == "none" and "dvc_experiment" not in run.data.tags

    with tracking.run("score", PARAMS, []) as record:
        monkeypatch.setattr(
            mlflow,
            "log_metrics",
            lambda numbers: (_ for _ in ()).throw(ConnectionError("gone\nfor good")),
        )
        record.metrics({"rows": 3})
    assert capsys.readouterr().err.endswith("mlflow.db lost a part of the record: gone\n")
    assert {run.info.status for run in runs(folder)[1]} == {"FAILED", "FINISHED"}


@pytest.mark.parametrize("uri", ["http://127.0.0.1:1", "sqlite:////dev/null/mlflow.db"])
def test_an_unreachable_store_is_named_before_the_work_starts(folder, monkeypatch, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(LibraError) as error, tracking.run("sft", PARAMS, []):
        pytest.fail("the work was started")
    message = str(error.value)
    assert message.startswith(f"the MLflow store {uri} can't be used (") and "\n" not in message
    assert message.endswith(
        "start the server, or unset MLFLOW_TRACKING_URI to record into mlflow.db"
    )


def test_the_stages_that_record_name_real_outputs():
    """`inputs=` of tracking.run (processes.record) are outputs in dvc.yaml: their hashes are in dvc.lock once those stages have run."""
    import ast

    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    for stage in ("sft", "dpo", "score"):
        tree = ast.parse((ROOT / f"stages/{stage}.py").read_text(encoding="utf-8"))
        (call,) = (
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
            and ast.unparse(node.func) in ("tracking.run", "processes.record")
        )
        inputs = ast.literal_eval(
            ([word.value for word in call.keywords if word.arg == "inputs"] or call.args[2:])[0]
        )
        assert ast.literal_eval(call.args[0]) == stage and inputs
        # A folder whose files are deps counts: its hash is that of the version.
        assert all(
            any(dep == path or dep.startswith(f"{path}/") for dep in stages[stage]["deps"])
            for path in inputs
        )
