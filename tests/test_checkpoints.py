"""A training that was killed ends with the weights and curve of one that wasn't.

One with other data or params starts over.
"""

import errno
import os
import resource
import shutil
import signal
from pathlib import Path

import polars as pl
import pytest

from helpers.interrupted import Stopped, checkpoint_every_step, release_lock, stop_at
from helpers.stage_process import run_stage
from helpers.tiny_training import training_project
from stages import dpo, sft
from stages.core.errors import LibraError
from stages.training import checkpoints, trainer


@pytest.fixture()
def project(tmp_path, monkeypatch):
    return training_project(tmp_path, monkeypatch)


@pytest.fixture()
def every_step(monkeypatch):
    checkpoint_every_step(monkeypatch)


def policy(name: str) -> dict[str, bytes]:
    """Weights and curve in models/NAME."""
    files = ("model.safetensors", "training.csv")
    return {file: Path("models", name, file).read_bytes() for file in files}


def runs_left() -> list[str]:
    """Folders of runs that aren't finished."""
    return [path.name for path in Path(".cache/checkpoints").glob("*")]


def damage(path: Path) -> None:
    """Flip a bit in the middle of the file."""
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("stage", "fault", "resumed"), [(sft, "step 6", "5 of 8"), (dpo, "writing 2", "1 of 8")]
)
def test_a_run_that_was_killed_ends_with_the_same_bytes(project, capfd, stage, fault, resumed):
    project(dpo={"epochs": 2, "sft_weight": 0.5})
    name = stage.__name__.removeprefix("stages.")
    if stage is dpo:
        sft.main()
    stage.main()
    unbroken = policy(name)
    assert runs_left() == []

    shutil.rmtree(f"models/{name}")
    killed = run_stage(name, fault)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    assert not Path(f"models/{name}").exists() and len(runs_left()) == 1
    capfd.readouterr()
    stage.main()
    printed = capfd.readouterr().err
    assert printed.count(f"{name}: resumes at step {resumed}\n") == 1
    assert printed.count("resumes") == 1
    assert ("checkpoint-2 is damaged and is ignored" in printed) == (fault == "writing 2")
    assert policy(name) == unbroken
    assert runs_left() == [], "the checkpoints of a finished run are gone"


@pytest.fixture()
def soup_of_two(project):
    """The weights and curve of an unbroken run of two policies."""
    project(dpo={"soup": 2, "epochs": 2})
    sft.main()
    dpo.main()
    assert runs_left() == []
    return policy("dpo")


def killed_dpo(fault: str, capfd) -> Path:
    """The folder of a run of `dpo` that was killed."""
    shutil.rmtree("models/dpo", ignore_errors=True)
    killed = run_stage("dpo", fault)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    assert not Path("models/dpo").exists()
    capfd.readouterr()
    return Path(checkpoints.run_folder("dpo"))


def test_a_finished_policy_of_a_soup_is_not_trained_again(soup_of_two, capfd):
    folder = killed_dpo("step 6 of dpo 2/2", capfd)
    first = [path.name for path in (folder / "member-1").iterdir()]
    assert first == ["finished"], "its checkpoints are gone"
    dpo.main()
    printed = capfd.readouterr().err
    assert "dpo 1/2: already trained" in printed and "dpo 1/2: step" not in printed
    assert "dpo 2/2: resumes at step 5 of 8" in printed
    assert policy("dpo") == soup_of_two and runs_left() == []


def test_a_damaged_policy_of_a_soup_is_trained_again(soup_of_two, capfd):
    folder = killed_dpo("keeping 2", capfd)
    assert not (folder / "member-2/finished" / checkpoints.SEAL).exists()
    os.truncate(folder / "member-1/finished/weights.safetensors", 5000)
    dpo.main()
    printed = capfd.readouterr().err
    for member in (1, 2):
        finished = folder / f"member-{member}/finished"
        assert f"dpo {member}/2: {finished} is damaged and is ignored" in printed
    assert "dpo 1/2: step 8/8" in printed
    assert "dpo 2/2: resumes at step 8 of 8" in printed and printed.count("resumes") == 1
    assert policy("dpo") == soup_of_two and runs_left() == []


def test_a_soup_whose_policies_are_all_finished_trains_none(soup_of_two, monkeypatch, capfd):
    def stop(*_):
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "save_and_record", stop)
        with pytest.raises(Stopped):
            dpo.main()
    release_lock()
    capfd.readouterr()
    dpo.main()
    printed = capfd.readouterr().err
    assert printed.count("already trained") == 2 and "step" not in printed
    assert policy("dpo") == soup_of_two and runs_left() == []


def test_a_policy_that_cannot_be_kept_costs_a_warning(project, every_step, monkeypatch, capfd):
    def full_disk(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    project(dpo={"soup": 2})
    sft.main()
    dpo.main()
    unbroken = policy("dpo")
    monkeypatch.setattr("stages.preference.soup.save_file", full_disk)
    capfd.readouterr()
    dpo.main()
    printed = capfd.readouterr().err
    run_folder = Path(checkpoints.run_folder("dpo"))
    for member in (1, 2):
        fault = "can't be written ([Errno 28] No space left on device; is the disk full?)"
        finished = run_folder / f"member-{member}/finished"
        assert f"dpo {member}/2: warning: {finished} {fault}" in printed
    assert policy("dpo") == unbroken and runs_left() == []

    stop_at(1, dpo, monkeypatch, label="dpo 2/2")
    capfd.readouterr()
    dpo.main()
    printed = capfd.readouterr().err
    assert "dpo 1/2: resumes at step 4 of 4" in printed, "its checkpoints stay"
    assert policy("dpo") == unbroken


def test_the_last_intact_checkpoint_is_resumed(project, every_step, monkeypatch, capfd):
    project()
    sft.main()
    unbroken = policy("sft")

    folder = stop_at(7, sft, monkeypatch)
    newest = folder / "checkpoint-6"
    names = sorted(path.name for path in folder.glob("checkpoint-*"))
    assert names == ["checkpoint-5", newest.name]
    damage(newest / "model.safetensors")
    capfd.readouterr()
    sft.main()
    printed = capfd.readouterr().err
    assert f"{newest} is damaged and is ignored" in printed
    assert "resumes at step 5 of 8" in printed
    assert policy("sft") == unbroken and runs_left() == []

    folder = stop_at(7, sft, monkeypatch)
    for checkpoint in folder.glob("checkpoint-*"):
        next(checkpoint.glob("scheduler*")).unlink()
    capfd.readouterr()
    sft.main()
    printed = capfd.readouterr().err
    assert printed.count("is damaged and is ignored") == 2 and "resumes" not in printed
    assert policy("sft") == unbroken and runs_left() == []


def test_another_run_s_checkpoint_is_never_resumed(project, every_step, monkeypatch, capfd):
    project()
    sft.main()
    project(dpo={"beta": 0.3})
    dpo.main()
    unbroken = policy("dpo")
    project(dpo={"beta": 0.1})
    folder = stop_at(3, dpo, monkeypatch)
    capfd.readouterr()
    project(dpo={"beta": 0.3})
    dpo.main()
    assert policy("dpo") == unbroken and "resumes" not in capfd.readouterr().err
    assert runs_left() == [folder.name], "the other run can still be resumed"
    project(dpo={"beta": 0.1})
    dpo.main()
    assert "dpo: resumes at step 2 of 4" in capfd.readouterr().err and runs_left() == []


def test_everything_that_decides_a_run_is_in_its_key(project, monkeypatch):
    project()
    sft.main()
    key = checkpoints.run_folder("dpo")
    assert key == checkpoints.run_folder("dpo")
    assert Path(key).parent == Path(".cache/checkpoints").resolve()
    commits = (None, "a commit", "another commit")
    keys = {key, *(checkpoints.run_folder("sft", commit) for commit in commits)}
    for changes in ({"random_seed": 8}, {"dpo": {"beta": 0.2}}, {"dpo": {"learning_rate": 0.02}}):
        project(**changes)
        keys.add(checkpoints.run_folder("dpo"))
    project(sft={"epochs": 3})
    assert checkpoints.run_folder("dpo") == key, "dpo doesn't read it"
    for path in (
        "models/sft/model.safetensors",
        "data/librachemqa/train.parquet",
        "data/librachemqa/validation.parquet",
    ):
        Path(path).write_bytes(Path(path).read_bytes() + b" ")
        keys.add(checkpoints.run_folder("dpo"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    keys.add(checkpoints.run_folder("dpo"))
    assert len(keys) == 11
    monkeypatch.setenv("DVC_ROOT", "/elsewhere")  # the real project, under `dvc exp run --queue`
    assert checkpoints.run_folder("dpo").startswith("/elsewhere/.cache/checkpoints/dpo-")


def test_compiled_code_is_not_in_the_key(project):
    project()
    key = checkpoints.run_folder("sft")
    compiled = Path("data/librachemqa/__pycache__/module.cpython-311.pyc")
    compiled.parent.mkdir()
    compiled.touch()
    assert checkpoints.run_folder("sft") == key


def test_a_full_disk_leaves_the_last_good_checkpoint(project, every_step, monkeypatch, capfd):
    """A limit on file sizes stands for the full disk: the same calls fail, with the same errors."""
    project()
    sft.main()
    unbroken = policy("sft")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    step_end = trainer.Report.on_step_end

    def fill_disk(self, args, state, control, **kwargs):
        if state.global_step == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        step_end(self, args, state, control, **kwargs)

    capfd.readouterr()
    message = r"^models/sft can't be written \(.*\); free some disk space, then run again$"
    with monkeypatch.context() as patch:
        patch.setattr(trainer.Report, "on_step_end", fill_disk)
        try:
            with pytest.raises(LibraError, match=message):
                sft.main()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    release_lock()
    printed = capfd.readouterr().err
    assert printed.count("warning: ") == 6 and "checkpoint-3 can't be written (" in printed
    assert printed.count("is the disk full?); training continues, checkpoint-2 stays\n") == 6
    folder = Path(checkpoints.run_folder("sft"))
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-2"]
    assert policy("sft") == unbroken, "the old policy stays"
    sft.main()
    assert "sft: resumes at step 2 of 8" in capfd.readouterr().err
    assert policy("sft") == unbroken


BUSY = "another process runs the same training; this one writes no checkpoints"


def test_a_second_process_writes_no_checkpoints(project, every_step, monkeypatch, capfd):
    project()
    folder = stop_at(4, sft, monkeypatch)
    with (folder / "lock").open("w") as other:
        checkpoints.fcntl.flock(other, checkpoints.fcntl.LOCK_EX)
        capfd.readouterr()
        sft.main()
    printed = capfd.readouterr().err
    assert f"sft: {BUSY}" in printed and "resumes" not in printed
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["checkpoint-2", "checkpoint-3", "lock"]

    project(dpo={"soup": 2})
    folder = Path(checkpoints.run_folder("dpo"))
    folder.mkdir()
    with (folder / "lock").open("w") as other:
        checkpoints.fcntl.flock(other, checkpoints.fcntl.LOCK_EX)
        dpo.main()
    assert capfd.readouterr().err.count(f"dpo: {BUSY}") == 1
    assert [path.name for path in folder.rglob("*") if path.is_file()] == ["lock"]


def test_a_short_run_writes_no_checkpoints(project, monkeypatch):
    project()
    monkeypatch.setattr(checkpoints.Checkpoints, "_save", lambda *_: pytest.fail("a checkpoint"))
    sft.main()
    assert pl.read_csv("models/sft/training.csv").height == 8


def test_the_curve_continues_with_several_steps_per_log(project, every_step, monkeypatch, capfd):
    """Logged figures are means over their steps, which the Trainer doesn't save between logs."""
    arguments = trainer.arguments

    def sparse(*args, **kwargs):
        return arguments(*args, **kwargs) | {"logging_steps": 3, "eval_steps": 2}

    monkeypatch.setattr(trainer, "arguments", sparse)
    project()
    sft.main()
    unbroken = policy("sft")
    stop_at(6, sft, monkeypatch)
    capfd.readouterr()
    sft.main()
    assert "sft: resumes at step 3 of 8" in capfd.readouterr().err
    assert policy("sft") == unbroken
