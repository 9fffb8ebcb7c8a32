"""The default policy is the same bytes whatever the processor and the number of threads."""

import hashlib
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.dag import ROOT
from helpers.tiny_training import training_project
from stages.training.determinism import same_instructions

PINNED = ("ATEN_CPU_CAPABILITY", "MKL_CBWR", "ONEDNN_MAX_CPU_ISA")
# What decides the order of a sum: as on machines with narrower and wider registers.
MACHINES = {
    "this one, one thread": {"OMP_NUM_THREADS": "1"},
    "narrow registers": {
        "OMP_NUM_THREADS": "2",
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_CBWR": "COMPATIBLE",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
    },
    "wide registers": {
        "OMP_NUM_THREADS": "2",
        "ATEN_CPU_CAPABILITY": "avx512",
        "MKL_CBWR": "AVX512",
        "ONEDNN_MAX_CPU_ISA": "ALL",
    },
}
x86_64 = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="the instruction sets of x86-64"
)


def weight_hashes(machine: dict[str, str], preamble: str = "") -> dict[str, str]:
    """SHA-256 of the weights that `sft` and `dpo` write on such a machine, after `preamble`."""
    inherited = {name: value for name, value in os.environ.items() if name not in PINNED}
    code = f"{preamble}\nfrom stages import dpo, sft\nsft.main()\ndpo.main()"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=inherited | machine | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    files = {name: Path(f"models/{name}/model.safetensors") for name in ("sft", "dpo")}
    return {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()}


@x86_64
def test_weights_do_not_depend_on_threads_or_registers(tmp_path, monkeypatch):
    project = training_project(tmp_path, monkeypatch)
    project(sft={"bpe_dropout": 0.2}, dpo={"sft_weight": 4.0})
    hashes = {name: weight_hashes(machine) for name, machine in MACHINES.items()}
    expected = hashes["this one, one thread"]
    assert all(weights == expected for weights in hashes.values()), hashes
    # Without the pin they do: the assertion above can fail.
    unpin = "import stages.training.determinism as d\nd.same_instructions = lambda: None"
    assert weight_hashes(MACHINES["narrow registers"], unpin) != expected


@x86_64
def test_instructions_are_set_whatever_the_environment_says(monkeypatch):
    for name in PINNED:
        monkeypatch.setenv(name, "something else")
    same_instructions()
    assert {name: os.environ[name] for name in PINNED} == {
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_CBWR": "AVX2,STRICT",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
    }
