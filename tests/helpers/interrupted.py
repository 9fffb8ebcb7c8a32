"""Training that is stopped in this process, with a checkpoint at every step."""

import gc
from pathlib import Path

import pytest

from stages.training import checkpoints, trainer


class Stopped(Exception):
    pass


def checkpoint_every_step(monkeypatch) -> None:
    """At every logged step, which in these short runs is each."""
    monkeypatch.setattr(checkpoints, "SECONDS", 0)
    monkeypatch.setattr(checkpoints, "SHARE", float("inf"))


def stop_at(step: int, stage, monkeypatch, label: str = "") -> Path:
    """Run `stage` to the end of `step` (of the policy `label`); the folder of its checkpoints."""
    step_end = trainer.Report.on_step_end

    def stop_after_step(self, args, state, control, **kwargs):
        step_end(self, args, state, control, **kwargs)
        if state.global_step == step and label in ("", self.label):
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Report, "on_step_end", stop_after_step)
        with pytest.raises(Stopped):
            stage.main()
    release_lock()
    return Path(checkpoints.run_folder(stage.__name__.removeprefix("stages.")))


def release_lock() -> None:
    """Collect the trainer of a failed run, which holds the lock that an ending process releases."""
    gc.collect()
