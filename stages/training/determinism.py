"""The same weights on every run: seeds, deterministic kernels and one instruction set.

deterministic(random_seed, offline=True)     # before anything imports torch or transformers
"""

import ctypes
import os
import platform
import sys
import warnings
from pathlib import Path


def deterministic(random_seed: int, offline: bool = True) -> None:
    """Make torch repeat itself bit for bit: seeds, deterministic kernels, one instruction set.

    On the CPU in fp32 the weights are the same bytes on one thread and on two, and on every x86-64
    processor with AVX2. On a GPU an operation without a deterministic kernel warns and goes on.

    Call it before anything imports transformers, which reads there whether it is `offline` (no
    look-up on a hub).
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # A few microseconds of spinning: waking a thread between two kernels costs more.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required by deterministic cuBLAS
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    else:  # set explicitly for child processes
        os.environ.setdefault("HF_HUB_OFFLINE", os.environ.get("TRANSFORMERS_OFFLINE", "0"))
    same_instructions()
    _keep_freed_memory()
    # peft 0.21 and trl 1.16 read an attribute that transformers 5 renamed.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)

    import torch
    import transformers

    transformers.set_seed(random_seed)
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    # A debugging aid: one pass over every buffer to expose reads of uninitialised memory.
    torch.utils.deterministic.fill_uninitialized_memory = False
    # cuDNN attention plans again for each shape, of which batches here have many, and isn't
    # deterministic.
    torch.backends.cuda.enable_cudnn_sdp(False)
    transformers.logging.set_verbosity_error()


def same_instructions() -> None:
    """Limit ATen, MKL and oneDNN to AVX2: wider registers add up in another order.

    Overrides the environment: with other values there the weights would differ.
    """
    cpu = Path("/proc/cpuinfo")
    if platform.machine() in ("x86_64", "AMD64") and (
        not cpu.exists() or " avx2 " in cpu.read_text(encoding="utf-8")
    ):
        os.environ |= {
            "ATEN_CPU_CAPABILITY": "avx2",
            "MKL_CBWR": "AVX2,STRICT",
            "ONEDNN_MAX_CPU_ISA": "AVX2",
        }


def _keep_freed_memory() -> None:
    """Let glibc keep freed blocks: mapping activations again took a third of a step's CPU time."""
    if sys.platform != "linux":
        return
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(mmap_threshold, 1 << 30)
        libc.mallopt(trim_threshold, (1 << 31) - 1)
        libc.mallopt(top_pad, 64 << 20)
