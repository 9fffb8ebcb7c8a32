"""The default policy is the same bytes whatever the processor and the number of threads: fp32, one instruction set."""

import hashlib
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from test_training import project  # noqa: F401

from helpers.dag import ROOT
from stages.training.models import same_instructions

PINNED = ("ATEN_CPU_CAPABILITY", "MKL_CBWR", "ONEDNN_MAX_CPU_ISA")
# What decides the order in which a sum is made: as a machine with other registers, and other settings, would have it.
MACHINES = {
    "as it is, one thread": {"OMP_NUM_THREADS": "1"},
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


def trained(machine: dict[str, str], before: str = "") -> dict[str, str]:
    """SHA-256 of the weights that `sft` and `dpo` write on such a machine, `before` run first."""
    environment = (
        {name: value for name, value in os.environ.items() if name not in PINNED}
        | machine
        | {"PYTHONPATH": str(ROOT)}
    )
    code = f"{before}\nfrom stages import dpo, sft\nsft.main()\ndpo.main()"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return {
        name: hashlib.sha256(Path(f"models/{name}/model.safetensors").read_bytes()).hexdigest()
        for name in ("sft", "dpo")
    }


@x86_64
def test_weights_do_not_depend_on_threads_or_registers(project):  # noqa: F811
    project(sft={"bpe_dropout": 0.2}, dpo={"sft_weight": 4.0})
    made = {name: trained(machine) for name, machine in MACHINES.items()}
    assert all(hashes == made["as it is, one thread"] for hashes in made.values()), made
    # Without the pin they do: the test above can fail.
    free = "import stages.training.models as m\nm.same_instructions = lambda: None"
    assert trained(MACHINES["narrow registers"], free) != made["as it is, one thread"]


@x86_64
def test_instructions_are_set_whatever_the_environment_says(monkeypatch):
    for name in PINNED:
        monkeypatch.setenv(name, "something else")
    same_instructions()
    assert {name: os.environ[name] for name in PINNED} == {
        "ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2",
    }  # fmt: skip
