"""Checkpoints: a run that was killed ends, once restarted, with the weights of an unbroken one.

    .cache/checkpoints/dpo-9f2c4a01d3b7e655/checkpoint-1600/
        model, optimizer, scheduler, random generators, curve.json, seal.json

The folder is in the project's real folder, and its name holds a hash of everything that decides the
run: another param, other data or other code never resumes from it. The transformers Trainer writes
the files; `seal.json` comes last and holds the hash of each, so that a checkpoint cut off by a
kill, a full disk or a power cut is recognised and not used.

Checkpoints are written at logged steps, at least a minute apart: what the Trainer accumulates
between two logs is then empty, so a resumed run has the curve of an unbroken one too. A kill costs
the steps since the last checkpoint.
"""

import fcntl
import json
import os
import shutil
import sys
import time
import weakref
from pathlib import Path

from accelerate.utils import broadcast_object_list, gather_object
from safetensors import SafetensorError
from transformers import Trainer, TrainerCallback

from stages.core.cache import content_key, file_digest, files_in, package_versions
from stages.core.folders import cache_folder
from stages.core.params import DVC_YAML, PARAMS, read_yaml
from stages.core.tables import write_json, write_text
from stages.training import processes

SECONDS = 60.0  # between two checkpoints, at least
SHARE = 0.02  # of the time for writing them, at most: those of a large model are further apart
KEEP = 2  # the last good one stays while the next is written
SEAL, CURVE = "seal.json", "curve.json"
SHARDING = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")  # each has its own format
LIBRARIES = ("accelerate", "peft", "torch", "transformers", "trl")


def run_folder(stage: str, commit: str | None = None) -> str:
    """Where the run of `stage` that params.yaml and the present files describe has its checkpoints.

    Everything that dvc.yaml declares for the stage decides: values of its params, content of its
    deps (data, models, code); also the versions of the libraries, the number of processes and the
    `commit` of a base model on a hub. Of a base model in a local folder, sizes and times decide.
    """
    declared, values = read_yaml(DVC_YAML)["stages"][stage], read_yaml(PARAMS)
    deps = [file for dep in declared["deps"] for file in files_in(Path(dep))]
    decides = {
        "params": {name: values.get(name) for name in declared["params"]},
        "files": {str(file): file_digest(file) for file in deps},
        "libraries": package_versions(*LIBRARIES),
        "commit": commit,
        "processes": processes.world_size(),
        "sharding": [os.environ.get(name) for name in SHARDING],
    }
    base = Path((values.get("model") or {}).get("base", ""))
    if "model" in decides["params"] and base.name and base.is_dir():
        stats = [(file.name, file.stat()) for file in files_in(base)]
        decides["base"] = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    return str(cache_folder() / "checkpoints" / f"{stage}-{content_key(decides)[:16]}")


class Run:
    """The `folder` of a run, locked by its main process.

    A second run with the same key at the same time writes nothing there: its `is_locked` is False.
    """

    def __init__(self, folder: str | Path, label: str):
        self.folder, self.is_locked = Path(folder), False
        if not processes.is_main():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = (self.folder / "lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.is_locked = True
        except BlockingIOError:
            lock.close()
            log(label, "another process runs the same training; this one writes no checkpoints")
        # Closing the file releases the lock, also after an error.
        self._unlock = weakref.finalize(self, lock.close)

    def remove(self) -> None:
        """Remove the folder: the run's policy is written."""
        if self.is_locked:
            shutil.rmtree(self.folder, ignore_errors=True)
            self._unlock()


class Checkpoints(TrainerCallback):
    """Writes checkpoints of `trl_trainer` with the curve of `report`, and finds the last good one.

    They go to the trainer's output folder, which is that of `run` or in it. With several processes
    rank 0 decides and all take part. A checkpoint that can't be written costs a warning: the last
    good one stays, and training continues.
    """

    def __init__(self, trl_trainer, report, run: Run):
        self._trainer, self._report, self._run = trl_trainer, report, run
        self._folder = Path(trl_trainer.args.output_dir)
        self._is_main = trl_trainer.is_world_process_zero()
        self._written_at, self._write_s = time.monotonic(), 0.0
        self._last: str | None = None
        trl_trainer._save_checkpoint = self._save
        trl_trainer.add_callback(self)

    def last_good(self) -> str | None:
        """The checkpoint to resume from, its curve handed to the report; None to start over."""
        self._last = broadcast_object_list([self._find() if self._is_main else None])[0]
        if self._last is not None:
            self._report.rows = json.loads((Path(self._last) / CURVE).read_text(encoding="utf-8"))
        return self._last

    def on_train_begin(self, args, state, control, **_):
        self._written_at = time.monotonic()

    def on_step_end(self, args, state, control, **_):
        if control.should_log:  # already set: the Trainer's own callback runs first
            waited = time.monotonic() - self._written_at
            due = self._run.is_locked and waited >= max(SECONDS, self._write_s / SHARE)
            control.should_save = broadcast_object_list([due])[0]

    def _find(self) -> str | None:
        if not self._run.is_locked:
            return None
        for checkpoint in sorted(self._folder.glob("checkpoint-*"), key=_step, reverse=True):
            if is_intact(checkpoint):
                state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
                self._log(f"resumes at step {_step(checkpoint)} of {state['max_steps']}")
                return str(checkpoint)
            self._log(f"{checkpoint} is damaged and is ignored")
            shutil.rmtree(checkpoint)
        return None

    def _save(self, model, trial) -> None:
        started = time.monotonic()
        checkpoint = self._folder / f"checkpoint-{self._trainer.state.global_step}"
        fault = None
        try:
            Trainer._save_checkpoint(self._trainer, model, trial)  # TRL's adds a model card
        # A full disk is any of these, depending on who writes.
        except (OSError, RuntimeError, SafetensorError) as error:
            if self._trainer.is_fsdp_enabled or self._trainer.is_deepspeed_enabled:
                raise  # the processes are out of step now
            fault = str(error).splitlines()[0]
        faults = [fault for fault in gather_object([fault]) if fault]
        if self._is_main:
            self._finish(checkpoint, faults)
        self._written_at = time.monotonic()
        self._write_s = self._written_at - started

    def _finish(self, checkpoint: Path, faults: list[str]) -> None:
        """Seal the checkpoint, or report why it couldn't be written."""
        if not faults:
            try:
                # Not write_json: the order of the columns matters.
                write_text(json.dumps(self._report.rows), checkpoint / CURVE)
                seal(checkpoint)
            except OSError as error:
                faults = [error.strerror or str(error)]
        if not faults:
            self._last = str(checkpoint)
            return

        # Make room for the next one: remove what was written, and any checkpoint but the last good.
        for other in self._folder.glob("checkpoint-*"):
            if str(other) != self._last:
                shutil.rmtree(other, ignore_errors=True)
        previous = "without one" if self._last is None else f"{Path(self._last).name} stays"
        self._log(
            f"warning: {checkpoint} can't be written ({faults[0]}; is the disk full?); "
            f"training continues, {previous}"
        )

    def _log(self, message: str) -> None:
        log(self._report.label, message)


def log(label: str, message: str) -> None:
    """Print a line about the training or checkpoints of `label` to stderr."""
    print(f"{label}: {message}", file=sys.stderr, flush=True)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rsplit("-", 1)[1])


def seal(folder: Path) -> None:
    """Write the SHA-256 of all files in `folder` to its seal.json, as the last. Raises OSError."""
    hashes = {str(path.relative_to(folder)): file_digest(path) for path in files_in(folder)}
    write_json(hashes, folder / SEAL)


def is_intact(folder: Path) -> bool:
    """Whether `folder` was sealed and every file is as it was then."""
    try:
        hashes = json.loads((folder / SEAL).read_text(encoding="utf-8"))
        return all(file_digest(folder / name) == digest for name, digest in hashes.items())
    except (OSError, ValueError):
        return False
