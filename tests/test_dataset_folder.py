"""The released folder as it is: it loads with datasets, polars, TRL and mlcroissant."""

import json
import re
import subprocess

import polars as pl
import pytest
import yaml

from helpers.dag import ROOT
from helpers.dataset_tables import GOOD
from helpers.releasing import RELEASE, call, repository
from helpers.venvs import venv_python
from stages.core.errors import LibraError
from stages.dataset.checksums import check, sums
from stages.tools import release
from stages.training.model_params import ModelParams
from stages.training.scratch import new_model, train_tokenizer

TINY = {"hidden_size": 32, "intermediate_size": 64, "layers": 1, "heads": 2, "max_length": 128}
# Prints one JSON object about the Croissant file named on the command line.
READ_CROISSANT = """
import sys, json, mlcroissant
dataset = mlcroissant.Dataset(sys.argv[1])
metadata = dataset.metadata
issues = metadata.ctx.issues
print(json.dumps({
    "warnings": sorted(issues.warnings),
    "errors": sorted(issues.errors),
    "rows": {
        split: [row[f"{split}/triplet_id"].decode() for row in dataset.records(split)]
        for split in ("train", "validation", "test")
    },
    "conforms": metadata.ctx.conforms_to.value,
    "biases": metadata.data_biases,
    "limits": metadata.data_limitations,
    "uses": metadata.data_use_cases,
    "version": metadata.version,
}))
"""


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A repository after its v1.0.0."""
    folder = repository(tmp_path_factory.mktemp("folder") / "libra")
    call(folder, *RELEASE, "make", "v1.0.0")
    return folder


def test_it_loads_with_datasets_and_polars(released, tmp_path):
    from datasets import load_dataset

    loaded = load_dataset(str(released / "data/librachemqa"), cache_dir=str(tmp_path))
    counts = {split: rows.num_rows for split, rows in loaded.items()}
    assert counts == {"train": 192, "validation": 64, "test": 128}
    rows = pl.read_parquet(released / "data/librachemqa/train.parquet")
    assert rows.rows() == [tuple(row.values()) for row in loaded["train"]]


def test_trl_trains_on_it(released, tmp_path):
    from datasets import load_dataset
    from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

    folder = str(released / "data/librachemqa")
    rows = load_dataset(folder, cache_dir=str(tmp_path / "cache"))["train"]
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))["model"]
    model_params = ModelParams(**params | TINY | {"vocab_size": 320})
    tokenizer = train_tokenizer(rows["prompt"][:], model_params.vocab_size)
    policy = str(tmp_path / "policy")
    new_model(model_params, tokenizer).save_pretrained(policy)
    tokenizer.save_pretrained(policy)

    args = {
        "max_steps": 1,
        "per_device_train_batch_size": 2,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "max_length": 96,
        "activation_checkpointing": False,
        "disable_tqdm": True,
        "output_dir": str(tmp_path / "run"),
        "save_strategy": "no",
    }
    for trainer_class, config in ((DPOTrainer, DPOConfig), (RewardTrainer, RewardConfig)):
        trainer = trainer_class(
            model=policy, args=config(**args), train_dataset=rows, processing_class=tokenizer
        )
        trainer.train()
        assert trainer.state.global_step == 1


@pytest.mark.parametrize(
    "file", ["data/librachemqa/croissant.json", "data/released/croissant.json"]
)
def test_its_croissant_metadata_is_valid_and_loads(released, file):
    """The folder's own, and that of the repository, which a clone has without DVC."""
    python = venv_python("mlcroissant", "mlcroissant==1.1.1", "pyarrow")
    command = [python, "-c", READ_CROISSANT, str(released / file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    metadata = json.loads(done.stdout)
    assert metadata["errors"] == []
    assert metadata["conforms"] == "http://mlcommons.org/croissant/1.1"
    assert metadata["biases"] and metadata["limits"]
    assert any("Out of scope" in use for use in metadata["uses"])
    for split, ids in metadata["rows"].items():
        assert sorted(ids) == GOOD[0].filter(split=split)["triplet_id"].sort().to_list()

    if "released" in file:
        assert metadata["warnings"] == [] and metadata["version"] == "1.0.0"
    else:  # a folder doesn't know its version or date
        assert metadata["version"] is None and len(metadata["warnings"]) == 2


def test_its_checksums_name_every_fault(tmp_path, monkeypatch):
    for name in ("a.parquet", "b.parquet"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "SHA256SUMS").write_text(sums(tmp_path))
    assert check(tmp_path) == 2
    assert call(tmp_path, "sha256sum", "-c", "SHA256SUMS").count("OK") == 2

    (tmp_path / "a.parquet").write_bytes(b"A.parquet")
    (tmp_path / "b.parquet").unlink()
    (tmp_path / "c.txt").write_text("c")
    faults = "a.parquet is damaged; b.parquet is missing; c.txt isn't part of the release"
    with pytest.raises(LibraError, match=re.escape(faults)):
        check(tmp_path)

    (tmp_path / "SHA256SUMS").write_text("nonsense\n")
    with pytest.raises(SystemExit, match="SHA256SUMS is damaged"):
        release.main(["verify", str(tmp_path)])
