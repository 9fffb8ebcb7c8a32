"""First on PYTHONPATH of a stage that a test runs in a process of its own: no MLflow, a checkpoint at every step, and a FAULT.

FAULT, in the process of number FAULT_RANK, is `error`, or what SIGKILL ends: `step 6` (after it; `step 6 of dpo 2/2`: of the second
policy's steps), `writing 2` (half of the second checkpoint's optimizer is written), `keeping 2` (of the second finished policy only the
weights are written); nothing without it.
"""

import os
import signal
from contextlib import nullcontext

from stages.core.errors import LibraError
from stages.training import processes

what, _, when = os.environ.get("FAULT", "").partition(" ")


class Record(processes.NoRecord):
    def curve(self, rows):
        pass

    def model(self, folder, name, base_folder):
        pass


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def record(stage, params, inputs):
    import torch

    from stages.preference import soup
    from stages.training import checkpoints, trainer

    checkpoints.SECONDS, checkpoints.SHARE = 0, float("inf")
    step_end, save, keep, written = trainer.Report.on_step_end, torch.save, soup.save_file, []

    def on_step_end(self, args, state, control, **more):
        step_end(self, args, state, control, **more)
        step, _, whose = when.partition(" of ")
        if state.global_step == int(step) and whose in ("", self.what):
            kill()

    def half(thing, path):
        save(thing, path)
        written.append(path)
        if sum("optimizer" in str(path) for path in written) == int(when):
            os.truncate(path, os.path.getsize(path) // 2)
            kill()

    def kept(weights, path):
        keep(weights, path)
        if f"member-{when}" in str(path):
            kill()

    if os.environ.get("RANK", "0") == os.environ.get("FAULT_RANK", "0"):
        if what == "step":
            trainer.Report.on_step_end = on_step_end
        elif what == "writing":
            torch.save = half
        elif what == "keeping":
            soup.save_file = kept
        elif what == "error":
            raise LibraError("substance A is missing")
    return nullcontext(Record())


processes.record = record
