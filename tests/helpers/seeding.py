"""The stage `seed` in a process of its own, on the real catalog."""

import os
import subprocess
import sys

import polars as pl
import yaml

from helpers.dag import ROOT

PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))["seed"]


def run_seed(folder, hash_seed="0", **seeds) -> subprocess.CompletedProcess:
    """Run it in `folder` with the project's params; `seeds` are other numbers of seeds by split."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    (folder / "data/catalog").symlink_to(ROOT / "data/catalog")
    changed = {split: PARAMS[split] | {"seeds": count} for split, count in seeds.items()}
    params = {"random_seed": 2025, "seed": PARAMS | changed}
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    (folder / "dvc.yaml").write_text("stages: {seed: {params: [random_seed, seed]}}\n")
    return subprocess.run(
        [sys.executable, "-m", "stages.seed"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=False,
    )


def default_tables(folder) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Seeds and substances at default size."""
    done = run_seed(folder)
    assert done.returncode == 0, done.stderr
    paths = (folder / "data/seeds.parquet", folder / "data/substances.parquet")
    return tuple(pl.read_parquet(path) for path in paths)
