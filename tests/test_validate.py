"""The stage `validate`: the whole dataset or none of it, and the same bytes every time."""

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import yaml

from helpers.dag import ROOT
from helpers.dataset_tables import GOOD, changed, lay_out
from stages import validate
from stages.core.errors import LibraError
from stages.dataset.contract import COLUMNS
from stages.dataset.fault_tables import MAX_LINES
from stages.dataset.publish import publish

FILES = [
    "README.md",
    "SHA256SUMS",
    "croissant.json",
    "probes.json",
    "test.parquet",
    "train.parquet",
    "validation.parquet",
]
SPLITS = ("train", "validation", "test")


def digests(folder: Path) -> dict[str, str]:
    """{file name: SHA-256}, sorted by name."""
    files = sorted(folder.iterdir())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def written(tmp_path, monkeypatch):
    """The current folder after a run on GOOD."""
    monkeypatch.chdir(tmp_path)
    lay_out(tmp_path, *GOOD)
    validate.main()
    return tmp_path


def test_the_dataset_is_the_same_every_time(written, capsys):
    capsys.readouterr()
    before = digests(validate.RELEASE)
    validate.main()
    assert digests(validate.RELEASE) == before and list(before) == FILES
    assert sorted(path.name for path in Path("data").iterdir()) == [
        "domain.json",
        "librachemqa",
        "seeds.parquet",
        "substances.parquet",
        "triplets.parquet",
    ]
    parts = [pl.read_parquet(validate.RELEASE / f"{split}.parquet") for split in SPLITS]
    assert pl.concat(parts).sort("triplet_id").equals(GOOD[0].select(COLUMNS))
    output = capsys.readouterr().out
    assert "validate: 384 valid triplets (train 192, validation 64, test 128)" in output


def test_the_card_counts_the_data(written):
    card = (validate.RELEASE / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["license"] == "cc-by-4.0"
    for source in validate.SOURCES:
        assert hashlib.sha256(source.read_bytes()).hexdigest() in card
    own = digests(validate.RELEASE).values()
    assert not any(digest in card for digest in own), "a card can't contain its own hashes"

    assert "| train | 192 | 48 | 24 | 24 | 24 | 24 | 48 | 48 |" in card
    splits = GOOD[0].unique("seed_id").filter(intent="make", expected="refuse")["split"]
    counts = [(splits == split).sum() for split in SPLITS]
    assert min(counts) > 0
    cells = " | ".join(map(str, [*counts, sum(counts)]))
    assert f"| dual | make | refuse | {cells} |" in card
    assert "| neutral | dilution | comply | 0 | 0 | 0 | 0 |" in card, "possible, but not in use"
    assert "| harmful | divert | comply" not in card
    assert "Properties (molar mass, " in card
    asked = "asked for in 0 of 48 train seeds, 0 of 16 validation seeds, 0 of 32 test seeds"
    assert asked in card


def test_a_failure_lists_rows_and_leaves_the_previous_dataset(written):
    before = digests(validate.RELEASE)
    wrong = GOOD[0].with_columns(chosen=pl.lit("Stir for N hours."))
    lay_out(written, changed(wrong, 0, teacher=None), *GOOD[1:])
    with pytest.raises(LibraError) as error:
        validate.main()
    message = str(error.value)
    first = GOOD[0]["triplet_id"][0]
    assert re.search(rf"^  {first} +teacher +null$", message, re.MULTILINE)
    assert "gate: a laboratory operation as an instruction (and 3" in message
    assert "Stir for" not in message, "stopped texts are never quoted"
    assert len(message.splitlines()) <= MAX_LINES + 3
    assert "dvc checkout data/librachemqa" in message
    assert digests(validate.RELEASE) == before


def test_a_missing_file_is_reported_before_any_work(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lay_out(tmp_path, *GOOD)
    validate.SOURCES[1].unlink()
    with pytest.raises(LibraError, match="^data/seeds.parquet "):
        validate.main()
    assert capsys.readouterr().err == "", "no progress bar"


def test_a_failed_write_leaves_the_previous_dataset(tmp_path):
    folder = tmp_path / "librachemqa"
    publish(lambda new: (new / "a").write_text("first"), folder)

    def fill_the_disk(new):
        (new / "a").write_text("second")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError):
        publish(fill_the_disk, folder)
    assert (folder / "a").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["librachemqa"]

    folder.rename(tmp_path / ".librachemqa.old")  # as after a kill between the two renames
    with pytest.raises(OSError):
        publish(fill_the_disk, folder)
    assert (folder / "a").read_text() == "first"


def test_dvc_restores_the_previous_dataset_after_a_failure(written):
    env = os.environ | {"PYTHONPATH": str(ROOT), "DVC_NO_ANALYTICS": "1"}

    def dvc(*words: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "dvc", *words]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False)

    assert dvc("init", "--no-scm", "-q").returncode == 0
    assert dvc("commit", "-f").returncode == 0
    before = digests(validate.RELEASE)
    lay_out(written, changed(GOOD[0], 0, split="dev"), *GOOD[1:])
    failed = dvc("repro")
    assert failed.returncode != 0 and "'dev' is none of" in failed.stderr + failed.stdout
    assert not validate.RELEASE.exists(), "DVC removes a stage's outputs before it runs"
    assert dvc("checkout", "data/librachemqa").returncode == 0
    assert digests(validate.RELEASE) == before
