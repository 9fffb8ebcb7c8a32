"""A training that was killed ends with the weights and the curve of one that was not; one of other data or params starts anew."""

import errno
import gc
import os
import resource
import shutil
import signal
from pathlib import Path

import polars as pl
import pytest
from test_training import project  # noqa: F401

from helpers.stage_process import stage as run
from stages import dpo, sft
from stages.core.errors import LibraError
from stages.training import checkpoints, trainer

MADE = ("model.safetensors", "training.csv")


@pytest.fixture()
def often(monkeypatch):
    """A checkpoint at every logged step: in these short runs each."""
    monkeypatch.setattr(checkpoints, "SECONDS", 0)
    monkeypatch.setattr(checkpoints, "SHARE", float("inf"))


class Stopped(Exception):
    pass


def stop_at(step: int, stage, monkeypatch) -> Path:
    """Run `stage` in this process up to the end of `step`; the folder of its checkpoints."""
    step_end = trainer.Report.on_step_end

    def on_step_end(self, args, state, control, **more):
        step_end(self, args, state, control, **more)
        if state.global_step == step:
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Report, "on_step_end", on_step_end)
        with pytest.raises(Stopped):
            stage.main()
    gc.collect()  # a process that ends lets the lock go; here the trainer holds it until it is collected
    return Path(checkpoints.run_folder(stage.__name__.removeprefix("stages.")))


def made(name: str) -> dict[str, bytes]:
    return {file: (Path("models") / name / file).read_bytes() for file in MADE}


def left() -> list[str]:
    return [path.name for path in Path(".cache/checkpoints").glob("*")]


def test_kill_9_and_again_gives_the_same_bytes(project, capfd):  # noqa: F811
    project(dpo={"epochs": 2, "sft_weight": 0.5})
    unbroken = {}
    for stage, name in ((sft, "sft"), (dpo, "dpo")):
        stage.main()
        unbroken[name] = made(name)
    assert left() == []
    for stage, name, fault, resumed in (
        (sft, "sft", "step 6", "5 of 8"),
        (dpo, "dpo", "writing 2", "1 of 8"),
    ):
        shutil.rmtree(f"models/{name}")
        killed = run(name, fault)
        assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
        assert not Path(f"models/{name}").exists() and len(left()) == 1
        capfd.readouterr()
        stage.main()
        said = capfd.readouterr().err
        assert (
            said.count(f"{name}: resumes at step {resumed}\n") == 1 and said.count("resumes") == 1
        )
        assert ("checkpoint-2 is damaged and isn't used" in said) == (fault == "writing 2")
        assert made(name) == unbroken[name]
        assert left() == [], "the checkpoints of a finished run are gone"


def test_a_policy_that_is_finished_is_not_trained_again(project, monkeypatch, capfd):  # noqa: F811
    """Of two: killed while the second trains, then while it is kept, and the first one's weights are damaged; at last both are there."""
    project(dpo={"soup": 2, "epochs": 2})
    sft.main()
    dpo.main()
    unbroken = made("dpo")
    assert left() == []

    def killed(fault: str) -> Path:
        shutil.rmtree("models/dpo", ignore_errors=True)
        ended = run("dpo", fault)
        assert ended.returncode == -signal.SIGKILL, ended.stderr[-2000:]
        assert not Path("models/dpo").exists()
        capfd.readouterr()
        return Path(checkpoints.run_folder("dpo"))

    def again() -> str:
        dpo.main()
        assert made("dpo") == unbroken and left() == []
        return capfd.readouterr().err

    folder = killed("step 6 of dpo 2/2")
    assert sorted(path.name for path in (folder / "member-1").iterdir()) == ["finished"], (
        "its checkpoints are gone"
    )
    said = again()
    assert (
        "dpo 1/2: was trained before" in said
        and "dpo 1/2: step" not in said
        and "dpo 2/2: resumes at step 5 of 8" in said
    )

    folder = killed("keeping 2")
    assert not (folder / "member-2/finished/whole.json").exists()
    os.truncate(folder / "member-1/finished/weights.safetensors", 5000)
    said = again()
    for member in (1, 2):
        assert (
            f"dpo {member}/2: {folder}/member-{member}/finished is damaged and isn't used" in said
        )
    assert (
        "dpo 1/2: step 8/8" in said
        and "dpo 2/2: resumes at step 8 of 8" in said
        and said.count("resumes") == 1
    )

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "keep", stop)
        with pytest.raises(Stopped):
            dpo.main()
    gc.collect()
    capfd.readouterr()
    said = again()
    assert said.count("was trained before") == 2 and "step" not in said


def test_a_policy_that_cannot_be_kept_costs_a_warning(project, often, monkeypatch, capfd):  # noqa: F811
    project(dpo={"soup": 2})
    sft.main()
    dpo.main()
    unbroken = made("dpo")
    monkeypatch.setattr("stages.preference.soup.save_file", full_disk)
    capfd.readouterr()
    dpo.main()
    said = capfd.readouterr().err
    for member in (1, 2):
        folder = Path(checkpoints.run_folder("dpo")) / f"member-{member}/finished"
        assert (
            f"dpo {member}/2: warning: {folder} can't be written ([Errno 28] No space left on device; is the disk full?)"
            in said
        )
    assert made("dpo") == unbroken and left() == []

    step_end = trainer.Report.on_step_end

    def stops(self, args, state, control, **more):
        step_end(self, args, state, control, **more)
        if self.what == "dpo 2/2":
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Report, "on_step_end", stops)
        with pytest.raises(Stopped):
            dpo.main()
    gc.collect()
    capfd.readouterr()
    dpo.main()
    assert (
        "dpo 1/2: resumes at step 4 of 4" in capfd.readouterr().err and made("dpo") == unbroken
    ), "its checkpoints stay"


def stop(*_):
    raise Stopped


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_the_last_whole_checkpoint_is_the_one_to_go_on_from(project, often, monkeypatch, capfd):  # noqa: F811
    project()
    sft.main()
    unbroken = made("sft")

    def resumed() -> str:
        capfd.readouterr()
        sft.main()
        assert made("sft") == unbroken and left() == []
        return capfd.readouterr().err

    folder = stop_at(7, sft, monkeypatch)
    newest = folder / "checkpoint-6"
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == [
        "checkpoint-5",
        newest.name,
    ]
    with (newest / "model.safetensors").open("r+b") as file:  # one bit in the midst of the weights
        file.seek(5000)
        byte = file.read(1)[0]
        file.seek(5000)
        file.write(bytes([byte ^ 1]))
    said = resumed()
    assert f"{newest} is damaged and isn't used" in said and "resumes at step 5 of 8" in said

    folder = stop_at(7, sft, monkeypatch)
    for checkpoint in folder.glob("checkpoint-*"):
        next(checkpoint.glob("scheduler*")).unlink()
    said = resumed()
    assert said.count("is damaged and isn't used") == 2 and "resumes" not in said


def test_another_run_s_checkpoint_is_never_resumed(project, often, monkeypatch, capfd):  # noqa: F811
    project()
    sft.main()
    project(dpo={"beta": 0.3})
    dpo.main()
    unbroken = made("dpo")
    project(dpo={"beta": 0.1})
    folder = stop_at(3, dpo, monkeypatch)
    capfd.readouterr()
    project(dpo={"beta": 0.3})
    dpo.main()
    assert made("dpo") == unbroken and "resumes" not in capfd.readouterr().err
    assert left() == [folder.name], "the other run can still go on"
    project(dpo={"beta": 0.1})
    dpo.main()
    assert "dpo: resumes at step 2 of 4" in capfd.readouterr().err and left() == []


def test_all_that_decides_a_run_is_in_its_key(project, monkeypatch):  # noqa: F811
    project()
    sft.main()
    key = checkpoints.run_folder("dpo")
    assert (
        key == checkpoints.run_folder("dpo")
        and Path(key).parent == Path(".cache/checkpoints").resolve()
    )
    keys = {
        key,
        checkpoints.run_folder("sft"),
        checkpoints.run_folder("sft", "a commit"),
        checkpoints.run_folder("sft", "another one"),
    }
    for changed in ({"random_seed": 8}, {"dpo": {"beta": 0.2}}, {"dpo": {"learning_rate": 0.02}}):
        project(**changed)
        keys.add(checkpoints.run_folder("dpo"))
    project(sft={"epochs": 3})
    assert checkpoints.run_folder("dpo") == key, "what dpo doesn't read"
    for path in (
        "models/sft/model.safetensors",
        "data/librachemqa/train.parquet",
        "data/librachemqa/validation.parquet",
    ):
        Path(path).write_bytes(Path(path).read_bytes() + b" ")
        keys.add(checkpoints.run_folder("dpo"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    keys.add(checkpoints.run_folder("dpo"))
    monkeypatch.setenv("DVC_ROOT", "/elsewhere")  # the real project, under `dvc exp run --queue`
    assert checkpoints.run_folder("dpo").startswith("/elsewhere/.cache/checkpoints/dpo-")
    assert len(keys) == 11


def test_a_full_disk_leaves_the_last_good_checkpoint(project, often, monkeypatch, capfd):  # noqa: F811
    """A limit on the size of files stands for the full disk: the same calls fail, with the errors of those who write."""
    project()
    sft.main()
    unbroken = made("sft")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    step_end = trainer.Report.on_step_end

    def fills(self, args, state, control, **more):
        if state.global_step == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        step_end(self, args, state, control, **more)

    capfd.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(trainer.Report, "on_step_end", fills)
        try:
            with pytest.raises(
                LibraError,
                match=r"^models/sft can't be written \(.*\); free the disk, then run again$",
            ):
                sft.main()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    gc.collect()
    said = capfd.readouterr().err
    assert said.count("warning: ") == 6 and "checkpoint-3 can't be written (" in said
    assert said.count("is the disk full?); training goes on, checkpoint-2 stays\n") == 6
    folder = Path(checkpoints.run_folder("sft"))
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-2"] and made(
        "sft"
    ) == unbroken, "the old policy stays"
    sft.main()
    assert "sft: resumes at step 2 of 8" in capfd.readouterr().err and made("sft") == unbroken


def test_a_second_process_keeps_no_checkpoints(project, often, monkeypatch, capfd):  # noqa: F811
    project()
    folder = stop_at(4, sft, monkeypatch)
    with (folder / "lock").open("w") as other:
        checkpoints.fcntl.flock(other, checkpoints.fcntl.LOCK_EX)
        capfd.readouterr()
        sft.main()
    said = capfd.readouterr().err
    assert (
        "sft: another process is in the same training; this one keeps no checkpoints" in said
        and "resumes" not in said
    )
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoint-2",
        "checkpoint-3",
        "lock",
    ]

    project(dpo={"soup": 2})
    folder = Path(checkpoints.run_folder("dpo"))
    folder.mkdir()
    with (folder / "lock").open("w") as other:
        checkpoints.fcntl.flock(other, checkpoints.fcntl.LOCK_EX)
        dpo.main()
    said = capfd.readouterr().err
    assert (
        said.count("dpo: another process is in the same training; this one keeps no checkpoints")
        == 1
    )
    assert [path.name for path in folder.rglob("*") if path.is_file()] == ["lock"]


def test_a_short_run_writes_none(project, monkeypatch):  # noqa: F811
    project()
    monkeypatch.setattr(checkpoints.Checkpoints, "_save", lambda *_: pytest.fail("a checkpoint"))
    sft.main()
    assert pl.read_csv("models/sft/training.csv").height == 8


def test_the_curve_goes_on_as_it_was_with_several_steps_a_log(project, often, monkeypatch, capfd):  # noqa: F811
    """Figures of a log are means over its steps, and the Trainer doesn't save them between two logs."""
    arguments = trainer.arguments
    monkeypatch.setattr(
        trainer,
        "arguments",
        lambda *rows, **more: arguments(*rows, **more) | {"logging_steps": 3, "eval_steps": 2},
    )
    project()
    sft.main()
    unbroken = made("sft")
    stop_at(6, sft, monkeypatch)
    capfd.readouterr()
    sft.main()
    assert "sft: resumes at step 3 of 8" in capfd.readouterr().err and made("sft") == unbroken
