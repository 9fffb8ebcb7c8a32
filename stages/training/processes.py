"""More than one process: `train.processes` of them on this machine, or as many as a launcher has started, on any number.

    python -m stages.dpo                                                  # train.processes, through torchrun
    torchrun --nnodes 2 --nproc_per_node 8 ... -m stages.dpo              # a launcher's own number
    srun --nodes 2 --ntasks-per-node 8 ... python -m stages.dpo
    accelerate launch --config_file stages/training/launch/fsdp.yaml -m stages.dpo

Each process computes its part of every batch, and the loss is that of the whole batch (stages.training.shared_loss): the curve is
the one of a single process but for rounding, and for the validation loss where the last batch of that split isn't full. The main process
alone prints, records and writes the policy.
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

MEND = "let it start torchrun, one a node, as README.md shows"
WAIT = 5.0  # seconds in which a launcher ends the other processes once one has failed


class TrainParams(Section):
    """How training is run; the policy is the same but for rounding."""

    processes: int = Field(ge=1)


def run(stage: str, processes: int, rows: int, train: Callable[[], None]) -> None:
    """Call `train` in this process, or in `processes` new ones that run the same stage where no launcher has started this one.

    A step's `rows` are shared evenly. Raises LibraError where that can't be, and Interrupted.
    """
    if "RANK" not in os.environ and int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        _join_slurm()
    of_launcher = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    count = world_size() if of_launcher else processes
    if rows % count:
        whose = "that the launcher has started" if of_launcher else "of train.processes"
        raise LibraError(
            f"params.yaml: {stage}.batch_size makes {rows} rows a step, which can't be shared evenly by the {count} processes {whose}"
        )
    if count == 1:
        # One process drives one GPU; with several in sight the trainers would split each batch over threads, which TRL refuses.
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[
            0
        ]
        train()
    elif of_launcher:
        _one_of_many(train)
    else:
        _launch(stage, processes)


def world_size() -> int:
    """Number of processes that train together."""
    return int(os.environ.get("WORLD_SIZE", 1))


def is_sharded() -> bool:
    """Whether a launcher has asked for FSDP or DeepSpeed: no process holds the whole model then."""
    return any(
        os.environ.get(f"ACCELERATE_USE_{kind}", "false").lower() in ("1", "true")
        for kind in ("FSDP", "DEEPSPEED")
    )


def is_main() -> bool:
    """Whether this process prints, records and writes."""
    return os.environ.get("RANK", "0") == "0"


class NoRecord:
    """What takes the place of `tracking.Record` in a process that isn't the main one."""

    def metrics(self, values):
        pass


def record(stage: str, params: Mapping[str, Any], inputs: Sequence[str]):
    """`tracking.run` in the main process."""
    from stages.core import tracking

    return (
        tracking.run(stage, params, inputs=inputs)
        if is_main()
        else contextlib.nullcontext(NoRecord())
    )


def _join_slurm() -> None:
    """Set in the environment of a task of `srun` what torchrun would (the output variables of srun's manual, Slurm 20.11 and later).

    The first node of the step, which has task 0, is where all meet. Raises LibraError when they can't find each other.
    """
    try:
        rank, local, count, nodes = (
            os.environ[f"SLURM_{name}"]
            for name in ("PROCID", "LOCALID", "STEP_NUM_TASKS", "STEP_NODELIST")
        )
        port = (
            20000 + (int(os.environ["SLURM_JOB_ID"]) * 7 + int(os.environ["SLURM_STEP_ID"])) % 10000
        )  # below those that systems give out
        first = subprocess.run(
            ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True
        ).stdout.split()[0]
    except KeyError as error:
        raise LibraError(
            f"srun has started processes that can't find each other: {error.args[0]} is missing; {MEND}"
        ) from None
    except (ValueError, IndexError, OSError, subprocess.CalledProcessError) as error:
        raise LibraError(
            f"srun has started processes that can't find each other ({error}); {MEND}"
        ) from None
    only = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if only and "," not in only:  # --gpus-per-task: each task sees its own GPU alone
        local = "0"
    os.environ |= {"RANK": rank, "LOCAL_RANK": local, "WORLD_SIZE": count}
    os.environ.setdefault("MASTER_ADDR", first)
    os.environ.setdefault("MASTER_PORT", str(port))


def _launch(stage: str, processes: int) -> None:
    """What `torchrun --standalone` does, with an error told in one line."""
    import logging
    import tempfile

    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    logging.disable(
        logging.CRITICAL
    )  # of the launcher: what failed is told below, or by the process
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
                sys.exit(1)  # the process has said why
            name = signal.Signals(-failure.exitcode).name
            raise LibraError(
                f"process {rank} of {processes} was ended by {name} (out of memory?); run again to go on from the last checkpoint"
            ) from None
        except SignalException as error:
            raise Interrupted(
                f"stopped by {error.sigval.name}; run again to go on from the last checkpoint"
            ) from None
        finally:
            logging.disable(logging.NOTSET)


def _one_of_many(train: Callable[[], None]) -> None:
    """Call `train`. Of errors that all processes meet the main one tells, of one's own it tells itself.

    So others wait before they tell: by then the launcher has ended them. So does one that only lost another.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # torchrun is told, and tells
        if sys.platform == "linux":
            import ctypes

            set_parent_death_signal = 1
            ctypes.CDLL(None).prctl(
                set_parent_death_signal, signal.SIGKILL
            )  # a torchrun that is killed leaves none behind
    if not is_main():
        import warnings

        warnings.simplefilter("ignore")
        os.environ |= {
            "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "TQDM_DISABLE": "1",
        }
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  until the process ends
    joined = _is_joined()
    try:
        train()
    except Exception as error:
        if not is_main() or _lost_another(error):
            time.sleep(WAIT)
        raise
    if (
        _is_joined() and not joined
    ):  # else whoever joined the processes, as Ray Train does, parts them
        sys.modules["torch.distributed"].destroy_process_group()


def _is_joined() -> bool:
    """Whether this process is in torch's group; torch isn't imported for that, as `deterministic` has to come first."""
    return "torch.distributed" in sys.modules and sys.modules["torch.distributed"].is_initialized()


def _lost_another(error: Exception) -> bool:
    """Whether `error` only says that another process is gone."""
    import torch.distributed as dist

    return (
        isinstance(error, dist.DistError)
        or isinstance(error, RuntimeError)
        and "gloo" in str(error)
    )
