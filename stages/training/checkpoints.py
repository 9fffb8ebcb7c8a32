"""Checkpoints: a training that was killed at any moment, started again, ends with the weights of one that was not.

    .cache/checkpoints/dpo-9f2c4a01d3b7e655/checkpoint-1600/   model, optimizer, scheduler, generators, the curve so far, whole.json

The folder lies in the project's real folder, and its name holds a hash of all that decides the run, so that a run with another
param, other data or other code never goes on from it. Files are written by the transformers Trainer; `whole.json` comes last and
tells the hash of each, so that a checkpoint cut off by a kill, a full disk or a power cut is known as such and is not used.

Written at steps that are logged, when a minute has passed: what the Trainer adds up between two logs is then empty, so a run that
goes on has the curve of an unbroken one too. A kill costs a minute and a hundredth of the run, at most.
"""

import fcntl
import hashlib
import json
import os
import shutil
import sys
import time
from importlib.metadata import version
from pathlib import Path

from accelerate.utils import broadcast_object_list, gather_object
from safetensors import SafetensorError
from transformers import Trainer, TrainerCallback

from stages.core.folders import cache_folder
from stages.core.params import DVC_YAML, PARAMS, read_yaml
from stages.core.tables import write_json, write_text
from stages.training import processes

SECONDS = 60.0  # between two checkpoints, at least
SHARE = 0.02  # of the time that writing them may take, at most: those of a large model come at longer intervals
KEEP = 2  # a good one is left while the next is written
WHOLE, CURVE = "whole.json", "curve.json"
SPREAD = (
    "ACCELERATE_USE_FSDP",
    "ACCELERATE_USE_DEEPSPEED",
)  # checkpoints of each are of another kind
LIBRARIES = ("accelerate", "peft", "torch", "transformers", "trl")


def run_folder(stage: str, commit: str | None = None) -> str:
    """Where the run of `stage` that params.yaml and the files in place describe keeps its checkpoints; `commit`: of a hub's base model.

    All that dvc.yaml declares for the stage decides: values of its params, content of its deps (data, models, code); besides,
    the versions of the libraries and the number of processes. Of a base model in a local folder sizes and times decide.
    """
    declared, values = read_yaml(DVC_YAML)["stages"][stage], read_yaml(PARAMS)
    decides = {
        "params": {name: values.get(name) for name in declared["params"]},
        "files": {
            str(path): _digest(path) for dep in declared["deps"] for path in _files(Path(dep))
        },
        "libraries": {name: version(name) for name in LIBRARIES},
        "commit": commit,
        "processes": [
            os.environ.get("WORLD_SIZE", "1"),
            *(os.environ.get(name) for name in SPREAD),
        ],
    }
    base = Path((values.get("model") or {}).get("base", ""))
    if "model" in decides["params"] and base.name and base.is_dir():
        decides["base"] = [
            (file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in _files(base)
        ]
    key = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]
    return str(cache_folder() / "checkpoints" / f"{stage}-{key}")


class Run:
    """The `folder` of a run, locked by its main process: a second run of the same key at the same time keeps nothing there."""

    def __init__(self, folder: str | Path, what: str):
        self.folder, self._lock = Path(folder), None
        if processes.is_main():
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = (self.folder / "lock").open("w")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._lock = lock
            except BlockingIOError:
                say(what, "another process is in the same training; this one keeps no checkpoints")

    @property
    def keeps(self) -> bool:
        """Whether this process may use the folder."""
        return self._lock is not None

    def forget(self) -> None:
        """Remove the folder: the run's policy is written."""
        if self.keeps:
            shutil.rmtree(self.folder, ignore_errors=True)
            self._lock.close()


class Checkpoints(TrainerCallback):
    """Writes checkpoints of `trl_trainer` into its output folder, with the curve of `report`, and finds the last good one.

    The folder is that of `run`, or is in it. Of several processes the main one decides, and all take part. A
    checkpoint that can't be written costs a warning: the last good one stays, and training goes on.
    """

    def __init__(self, trl_trainer, report, run: Run):
        self._trainer, self._report, self._folder, self._run = (
            trl_trainer,
            report,
            Path(trl_trainer.args.output_dir),
            run,
        )
        self._main = trl_trainer.is_world_process_zero()
        self._written, self._took, self._last = time.monotonic(), 0.0, None
        trl_trainer._save_checkpoint = self._save
        trl_trainer.add_callback(self)

    def last_good(self) -> str | None:
        """The checkpoint to go on from, its curve given to the report; None to start from the beginning."""
        found = [self._find() if self._main else None]
        self._last = broadcast_object_list(found)[0]
        if self._last is not None:
            self._report.rows = json.loads((Path(self._last) / CURVE).read_text(encoding="utf-8"))
        return self._last

    def on_train_begin(self, args, state, control, **_):
        self._written = time.monotonic()

    def on_step_end(self, args, state, control, **_):
        if control.should_log:  # set before: the Trainer's own callback comes first
            waited = time.monotonic() - self._written
            due = [self._run.keeps and waited >= max(SECONDS, self._took / SHARE)]
            control.should_save = broadcast_object_list(due)[0]

    def _find(self) -> str | None:
        if not self._run.keeps:
            return None
        for checkpoint in sorted(self._folder.glob("checkpoint-*"), key=_step, reverse=True):
            if is_whole(checkpoint):
                steps = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))[
                    "max_steps"
                ]
                self._say(f"resumes at step {_step(checkpoint)} of {steps}")
                return str(checkpoint)
            self._say(f"{checkpoint} is damaged and isn't used")
            shutil.rmtree(checkpoint)
        return None

    def _save(self, model, trial) -> None:
        begun, checkpoint = (
            time.monotonic(),
            self._folder / f"checkpoint-{self._trainer.state.global_step}",
        )
        sharded = self._trainer.is_fsdp_enabled or self._trainer.is_deepspeed_enabled
        fault = None
        try:
            Trainer._save_checkpoint(
                self._trainer, model, trial
            )  # TRL's own writes a model card besides
        except (
            OSError,
            RuntimeError,
            SafetensorError,
        ) as error:  # a full disk is each of them, by who writes
            if sharded:  # the processes are out of step now
                raise
            fault = str(error).splitlines()[0]
        faults = [found for found in gather_object([fault]) if found]
        if self._main:
            try:
                if not faults:
                    write_text(
                        json.dumps(self._report.rows), checkpoint / CURVE
                    )  # columns in their order
                    seal(checkpoint)
            except OSError as error:
                faults = [error.strerror or str(error)]
            if faults:
                for other in self._folder.glob("checkpoint-*"):
                    if (
                        str(other) != self._last
                    ):  # what is left of this one, and an older one: room for the next
                        shutil.rmtree(other, ignore_errors=True)
                left = "without one" if self._last is None else f"{Path(self._last).name} stays"
                self._say(
                    f"warning: {checkpoint} can't be written ({faults[0]}; is the disk full?); training goes on, {left}"
                )
            else:
                self._last = str(checkpoint)
        self._written = time.monotonic()
        self._took = self._written - begun

    def _say(self, what: str) -> None:
        say(self._report.what, what)


def say(whose: str, what: str) -> None:
    """Tell on the error stream what became of `whose` training or checkpoints."""
    print(f"{whose}: {what}", file=sys.stderr, flush=True)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rsplit("-", 1)[1])


def seal(folder: Path) -> None:
    """Write the SHA-256 of all files in `folder` to its `whole.json`: nothing more is to be written there. Raises OSError."""
    write_json(
        {str(path.relative_to(folder)): _digest(path) for path in _files(folder)}, folder / WHOLE
    )


def is_whole(folder: Path) -> bool:
    """Whether `folder` was sealed and each file is there as it was then."""
    try:
        hashes = json.loads((folder / WHOLE).read_text(encoding="utf-8"))
        return all(_digest(folder / name) == digest for name, digest in hashes.items())
    except (OSError, ValueError):
        return False


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
