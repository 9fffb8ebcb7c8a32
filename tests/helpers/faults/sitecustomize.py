"""First on PYTHONPATH of a stage that a test runs in its own process: no MLflow, and a FAULT.

Checkpoints are written at every step. FAULT, in the process of rank FAULT_RANK, is one of:

    error                  a LibraError before training
    step 6                 SIGKILL after step 6
    step 6 of dpo 2/2      SIGKILL after step 6 of the second policy
    writing 2              SIGKILL when half of the second checkpoint's optimizer is written
    keeping 2              SIGKILL when only the weights of the second finished policy are written
"""

import os
import signal
from contextlib import nullcontext

from stages.core.errors import LibraError
from stages.training import processes

fault, _, argument = os.environ.get("FAULT", "").partition(" ")


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
    step_end, save, save_member = trainer.Report.on_step_end, torch.save, soup.save_file
    saved = []

    def kill_after_step(self, args, state, control, **kwargs):
        step_end(self, args, state, control, **kwargs)
        step, _, label = argument.partition(" of ")
        if state.global_step == int(step) and label in ("", self.label):
            kill()

    def kill_while_saving(state, path):
        save(state, path)
        saved.append(path)
        if sum("optimizer" in str(path) for path in saved) == int(argument):
            os.truncate(path, os.path.getsize(path) // 2)
            kill()

    def kill_after_weights(weights, path):
        save_member(weights, path)
        if f"member-{argument}" in str(path):
            kill()

    if os.environ.get("RANK", "0") == os.environ.get("FAULT_RANK", "0"):
        if fault == "step":
            trainer.Report.on_step_end = kill_after_step
        elif fault == "writing":
            torch.save = kill_while_saving
        elif fault == "keeping":
            soup.save_file = kill_after_weights
        elif fault == "error":
            raise LibraError("substance A is missing")
    return nullcontext(Record())


processes.record = record
