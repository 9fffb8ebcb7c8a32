"""First on PYTHONPATH of a stage that a test runs in a process of its own: no MLflow, a checkpoint at every step, and a FAULT.

FAULT is `step 6` (SIGKILL after it), `writing 2` (SIGKILL with half of the second checkpoint's optimizer written) or `error`, in
the process of number FAULT_RANK; nothing without it.
"""

import os
import signal
from contextlib import nullcontext

from stages.common.errors import LibraError
from stages.training import processes

what, _, when = os.environ.get("FAULT", "").partition(" ")


class Record(processes.NoRecord):
    def curve(self, rows):
        pass

    def model(self, folder, name):
        pass


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def record(stage, params, inputs):
    import torch

    from stages.training import checkpoints, trainer

    checkpoints.SECONDS, checkpoints.SHARE = 0, float("inf")
    step_end, save, written = trainer.Report.on_step_end, torch.save, []

    def on_step_end(self, args, state, control, **more):
        step_end(self, args, state, control, **more)
        if state.global_step == int(when):
            kill()

    def half(thing, path):
        save(thing, path)
        written.append(path)
        if sum("optimizer" in str(path) for path in written) == int(when):
            os.truncate(path, os.path.getsize(path) // 2)
            kill()

    if os.environ.get("RANK", "0") == os.environ.get("FAULT_RANK", "0"):
        if what == "step":
            trainer.Report.on_step_end = on_step_end
        elif what == "writing":
            torch.save = half
        elif what == "error":
            raise LibraError("substance A is missing")
    return nullcontext(Record())


processes.record = record
