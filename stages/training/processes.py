"""Several processes: `train.processes` on this machine, or as many as a launcher starts anywhere.

    python -m stages.dpo                                         # train.processes, by torchrun
    torchrun --nnodes 2 --nproc_per_node 8 ... -m stages.dpo     # as many as the launcher starts
    srun --nodes 2 --ntasks-per-node 8 ... python -m stages.dpo
    accelerate launch --config_file stages/training/launch/fsdp.yaml -m stages.dpo

Each process computes its part of every batch, and the loss is that of the whole batch
(stages.training.shared_loss): the curve is that of a single process up to rounding, except for the
validation loss if the last batch of that split is incomplete. Only rank 0 prints, records and
writes the policy.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import Field

from stages.core.errors import Interrupted, LibraError
from stages.core.params import Section

SRUN_FAULT = "srun started processes that can't find each other"
SRUN_FIX = "let it start torchrun, one per node, as docs/training.md shows"
EXIT_S = 5.0  # in which a launcher ends the other processes once one has failed


class TrainParams(Section):
    """How training is run; the policy is the same up to rounding."""

    processes: int = Field(ge=1)


def run(stage: str, processes: int, rows: int, train: Callable[[], None]) -> None:
    """Call `train` here, or in `processes` new processes unless a launcher started this one.

    The `rows` of a step are shared evenly. Raises LibraError if they can't be, and Interrupted.
    """
    if "RANK" not in os.environ and int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        _join_slurm()
    launched = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    count = world_size() if launched else processes
    if rows % count:
        source = "started by the launcher" if launched else "of train.processes"
        raise LibraError(
            f"params.yaml: {stage}.batch_size makes {rows} rows a step, which can't be shared "
            f"evenly by the {count} processes {source}; change one of them"
        )
    if count == 1:
        # One process drives one GPU: if it saw several, the trainers would split each batch over
        # threads, which TRL refuses.
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[0]
        train()
    elif launched:
        _train_as_rank(train)
    else:
        _launch(stage, processes)


def world_size() -> int:
    """Number of processes that train together."""
    return int(os.environ.get("WORLD_SIZE", 1))


def is_sharded() -> bool:
    """Whether a launcher set up FSDP or DeepSpeed: then no process has the whole model."""
    return any(
        os.environ.get(f"ACCELERATE_USE_{kind}", "false").lower() in ("1", "true")
        for kind in ("FSDP", "DEEPSPEED")
    )


def is_main() -> bool:
    """Whether this process prints, records and writes (rank 0)."""
    return os.environ.get("RANK", "0") == "0"


class NoRecord:
    """Stands in for `tracking.Record` on all ranks but 0."""

    def metrics(self, values):
        pass


def record(stage: str, params: Mapping[str, Any], inputs: Sequence[str]):
    """`tracking.run` on rank 0, a `NoRecord` elsewhere."""
    from stages.core import tracking

    if is_main():
        return tracking.run(stage, params, inputs=inputs)
    return contextlib.nullcontext(NoRecord())


def _join_slurm() -> None:
    """Set in a task of `srun` the environment that torchrun would.

    From srun's output variables (its manual, Slurm 20.11 and later); the first node of the step,
    which runs task 0, is the meeting point. Raises LibraError if the tasks can't find each other.
    """
    variables = ("PROCID", "LOCALID", "STEP_NUM_TASKS", "STEP_NODELIST")
    try:
        rank, local_rank, count, nodes = (os.environ[f"SLURM_{name}"] for name in variables)
        job, step = int(os.environ["SLURM_JOB_ID"]), int(os.environ["SLURM_STEP_ID"])
        port = 20000 + (job * 7 + step) % 10000  # below the ports that systems assign
        command = ["scontrol", "show", "hostnames", nodes]
        hosts = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        first = hosts[0]
    except KeyError as error:
        raise LibraError(f"{SRUN_FAULT}: {error.args[0]} is missing; {SRUN_FIX}") from None
    except (ValueError, IndexError, OSError, subprocess.CalledProcessError) as error:
        raise LibraError(f"{SRUN_FAULT} ({error}); {SRUN_FIX}") from None

    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if visible and "," not in visible:  # --gpus-per-task: each task sees only its own GPU
        local_rank = "0"
    os.environ |= {"RANK": rank, "LOCAL_RANK": local_rank, "WORLD_SIZE": count}
    os.environ.setdefault("MASTER_ADDR", first)
    os.environ.setdefault("MASTER_PORT", str(port))


def _launch(stage: str, processes: int) -> None:
    """What `torchrun --standalone` does, with errors in one line."""
    import logging
    import tempfile

    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    resume = "run again to resume from the last checkpoint"
    logging.disable(logging.CRITICAL)  # the launcher's: failures are reported below or by the rank
    with tempfile.TemporaryDirectory() as logs:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=f"{stage}-{os.getpid()}",
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=logs),
        )
        try:
            elastic_launch(config, sys.executable)("-m", f"stages.{stage}")
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            if failure.exitcode >= 0:
                sys.exit(1)  # the process has reported why
            name = signal.Signals(-failure.exitcode).name
            raise LibraError(
                f"process {rank} of {processes} was killed by {name} (out of memory?); {resume}"
            ) from None
        except SignalException as error:
            raise Interrupted(f"stopped by {error.sigval.name}; {resume}") from None
        finally:
            logging.disable(logging.NOTSET)


def _train_as_rank(train: Callable[[], None]) -> None:
    """Call `train` as one of several processes, so that one message reports a failure.

    If every process fails, rank 0 reports the error; a process that fails alone reports its own. So
    the other ranks wait before they raise, and so does one that only lost another: by then the
    launcher has ended them.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # torchrun gets the signal and passes it on
        if sys.platform == "linux":
            import ctypes

            # A torchrun that is killed takes its processes with it.
            set_parent_death_signal = 1
            ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    if not is_main():
        import warnings

        warnings.simplefilter("ignore")
        os.environ |= {
            "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "TQDM_DISABLE": "1",
        }
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  until the process ends
    had_group = _has_process_group()
    try:
        train()
    except Exception as error:
        if not is_main() or _is_lost_peer(error):
            time.sleep(EXIT_S)
        raise
    # A group made by someone else, as in Ray Train, is theirs to destroy.
    if _has_process_group() and not had_group:
        sys.modules["torch.distributed"].destroy_process_group()


def _has_process_group() -> bool:
    """Whether torch's group exists; doesn't import torch, since `deterministic` comes first."""
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_initialized()


def _is_lost_peer(error: Exception) -> bool:
    """Whether `error` only says that another process is gone."""
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and "gloo" in str(error)
    )
