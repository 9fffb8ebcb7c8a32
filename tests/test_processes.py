"""Several processes train as one does: the same curve, one voice, one error; and the files for a cluster's launcher."""

import json
import os
import shutil
import socket
import subprocess
from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from test_training import project, table  # noqa: F401

from helpers.dag import ROOT
from helpers.stage_process import PYTHON, environment, stage
from stages import dpo, sft
from stages.core.errors import LibraError
from stages.training import processes

TORCHRUN = [*PYTHON, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
LAUNCH = ROOT / "stages/training/launch"


def curve(name: str) -> pl.DataFrame:
    return pl.read_csv(f"models/{name}/training.csv")


def same(one: pl.DataFrame, two: pl.DataFrame) -> None:
    assert one.columns == two.columns and one.height == two.height
    for column in one.columns:
        for step, (alone, shared) in enumerate(zip(one[column], two[column], strict=True), start=1):
            assert shared == (
                None if alone is None else pytest.approx(alone, rel=1e-4, abs=2e-5)
            ), f"{column} of step {step}"


def test_two_processes_give_the_curve_of_one(project):  # noqa: F811
    """`sft` by a launcher, `dpo` by train.processes, two policies, killed and resumed in the second. Both end with half a batch, all of it one process's."""
    grid = {"pairs": "grid", "answers": 2, "batch_size": 4}
    changes = {
        "dpo": {"epochs": 3, "sft_weight": 4.0, "bpe_dropout": 0.2, "soup": 2} | grid,
        "sft": {"bpe_dropout": 0.2, "epochs": 1},
    }
    project(**changes)
    table(7).write_parquet(
        "data/librachemqa/train.parquet"
    )  # 14 prompts: 4 + 4 + 4 + 2 of sft; 168 pairs of dpo, 16 a step
    table(4, 1).write_parquet("data/librachemqa/validation.parquet")
    sft.main()
    dpo.main()
    alone = {name: curve(name) for name in ("sft", "dpo")}
    assert (alone["sft"].height, alone["dpo"].height) == (4, 11)
    weights = load_file("models/dpo/model.safetensors")
    Path("models/sft").rename("models/kept")

    done = stage("sft", command=TORCHRUN)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("parameters") == 1 and done.stderr.count("sft: step 4/4") == 1, (
        "one voice"
    )
    same(alone["sft"], curve("sft"))
    shutil.rmtree("models/sft")
    Path("models/kept").rename("models/sft")

    project(**changes, train={"processes": 2})
    shutil.rmtree("models/dpo")
    killed = stage("dpo", "step 5 of dpo 2/2", rank=1)
    assert killed.returncode == 1 and not Path("models/dpo").exists()
    told = "dpo: error: process 1 of 2 was ended by SIGKILL (out of memory?); run again to go on from the last checkpoint"
    assert [line for line in killed.stderr.splitlines() if "rror" in line] == [told]
    done = stage("dpo")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("dpo 1/2: ") == done.stderr.count("dpo 1/2: was trained before") == 1
    assert "dpo 2/2: resumes at step 4 of 11" in done.stderr
    same(alone["dpo"], curve("dpo"))
    shared = load_file("models/dpo/model.safetensors")
    assert all(torch.allclose(shared[name], values, atol=1e-4) for name, values in weights.items())
    assert list(Path(".cache/checkpoints").iterdir()) == []


WORKER = """
import torch.distributed as dist
from stages import sft
dist.init_process_group("gloo")
sft.main()
assert dist.is_initialized()
dist.destroy_process_group()
"""


def test_processes_that_were_joined_before_train_as_one_and_stay_joined(project):  # noqa: F811
    """As in Ray Train's workers: the environment of torchrun without torchrun, and a group that Ray has made and will part."""
    project(sft={"bpe_dropout": 0.2})
    sft.main()
    alone = curve("sft")
    shutil.rmtree("models/sft")
    address = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_port(),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
    }
    both(
        [*PYTHON, "-c", WORKER],
        [
            environment() | address | {"RANK": str(rank), "LOCAL_RANK": str(rank), "NODE_RANK": "0"}
            for rank in range(2)
        ],
    )
    same(alone, curve("sft"))


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return str(free.getsockname()[1])


def both(command: list[str], environments: list[dict[str, str]]) -> None:
    """The command once in each environment, at the same time, to its end."""
    started = [
        subprocess.Popen(command, env=of, stderr=subprocess.PIPE, text=True) for of in environments
    ]
    said = [process.communicate(timeout=300)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], said


def test_several_policies_are_for_whole_weights(project, monkeypatch):  # noqa: F811
    adapted = {
        "base": "org/model",
        "lora": {"r": 2, "alpha": 4, "dropout": 0.0, "target_modules": "all-linear"},
    }
    project(model=adapted, dpo={"soup": 2})
    with pytest.raises(
        LibraError,
        match=r"^dpo.soup is 2, and the mean of adapters \(model.lora\) isn't .*; set dpo.soup to 1$",
    ):
        dpo.main()
    project(dpo={"soup": 3})
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(
        LibraError,
        match=r"^dpo.soup is 3, and FSDP or DeepSpeed leaves no process whole weights; set dpo.soup to 1$",
    ):
        dpo.main()


def test_an_error_in_one_process_ends_all_with_one_message(project):  # noqa: F811
    project(train={"processes": 2})
    failed = stage("sft", "error", rank=1)
    assert failed.returncode == 1 and not Path("models").exists()
    assert failed.stderr.splitlines() == ["sft: error: substance A is missing"]


def test_a_step_is_shared_evenly_or_not_at_all(project, monkeypatch):  # noqa: F811
    project(train={"processes": 3})
    with pytest.raises(
        LibraError,
        match=r"^params.yaml: sft.batch_size makes 4 rows a step, .* by the 3 processes of train.processes$",
    ):
        sft.main()
    project(train={"processes": 2}, dpo={"pairs": "grid", "answers": 3, "batch_size": 1})
    with pytest.raises(
        LibraError,
        match=r"^params.yaml: dpo.batch_size makes 9 rows a step, .* by the 2 processes of train.processes$",
    ):
        dpo.main()
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "5")
    with pytest.raises(LibraError, match=r"by the 5 processes that the launcher has started$"):
        sft.main()


def test_a_launcher_s_processes_are_not_launched_again(monkeypatch):
    done = []
    monkeypatch.setattr(processes, "_launch", lambda stage, count: done.append((stage, count)))
    monkeypatch.setattr(processes, "_one_of_many", lambda train: train())
    processes.run("sft", 1, 16, lambda: done.append("here"))
    processes.run("sft", 2, 16, lambda: done.append("here"))
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    processes.run("sft", 2, 16, lambda: done.append("one of four"))
    monkeypatch.setenv("WORLD_SIZE", "1")
    processes.run("sft", 2, 16, lambda: done.append("alone"))
    assert done == ["here", ("sft", 2), "one of four", "alone"]


SLURM = {"SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NODELIST": "gpu[07-08]", "SLURM_JOB_ID": "71234",
         "SLURM_STEP_ID": "2"}  # fmt: skip


@pytest.fixture()
def scontrol(tmp_path, monkeypatch):
    """Slurm's own reader of node lists, in short."""
    program = tmp_path / "bin/scontrol"
    program.parent.mkdir()
    program.write_text(
        '#!/bin/sh\n[ "$*" = "show hostnames gpu[07-08]" ] && echo gpu07 && echo gpu08 || echo localhost\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    for name in (
        "RANK",
        "LOCAL_RANK",
        "WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
        "CUDA_VISIBLE_DEVICES",
    ):
        monkeypatch.setenv(name, "")  # so that what is set is put back
        monkeypatch.delenv(name)


@pytest.mark.parametrize(("gpus", "local"), [(None, "1"), ("0,1,2,3", "1"), ("0", "0")])
def test_tasks_of_srun_are_told_what_torchrun_tells(scontrol, monkeypatch, gpus, local):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    if gpus:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    monkeypatch.setattr(processes, "_one_of_many", lambda train: train())
    seen = []
    processes.run(
        "sft",
        1,
        16,
        lambda: seen.append(
            {
                name: os.environ[name]
                for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
            }
        ),
    )
    assert seen == [
        {
            "RANK": "5",
            "LOCAL_RANK": local,
            "WORLD_SIZE": "8",
            "MASTER_ADDR": "gpu07",
            "MASTER_PORT": "28640",
        }
    ]
    monkeypatch.setenv("WORLD_SIZE", "6")
    processes.run("sft", 1, 12, lambda: seen.append(os.environ["WORLD_SIZE"]))
    assert seen[1] == "6", "a torchrun that srun has started comes first"


@pytest.mark.parametrize(
    ("gone", "told"),
    [("SLURM_LOCALID", ": SLURM_LOCALID is missing"), ("PATH", r" \(.*'scontrol'\)")],
)
def test_tasks_of_srun_that_can_not_find_each_other_are_refused(scontrol, monkeypatch, gone, told):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", "") if gone == "PATH" else monkeypatch.delenv(gone)
    with pytest.raises(
        LibraError,
        match=f"^srun has started processes that can't find each other{told}; let it start torchrun, one a node",
    ):
        processes.run("sft", 1, 16, lambda: pytest.fail("eight policies"))
    assert "--ntasks-per-node 1 torchrun" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_two_tasks_of_srun_give_the_curve_of_one(project, scontrol):  # noqa: F811
    project(sft={"bpe_dropout": 0.2})
    sft.main()
    alone = curve("sft")
    shutil.rmtree("models/sft")
    step = SLURM | {
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NODELIST": "localhost",
        "MASTER_PORT": free_port(),
    }
    tasks = [
        environment() | step | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}
        for rank in range(2)
    ]
    both([*PYTHON, "-m", "stages.sft"], tasks)
    same(alone, curve("sft"))


def launched(file: str, monkeypatch):
    """What `accelerate launch --config_file FILE --num_processes 4 -m stages.dpo` makes of its command line."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    monkeypatch.chdir(ROOT)
    command = ["--config_file", str(LAUNCH / file), "--num_processes", "4", "-m", "stages.dpo"]
    options, *_ = _validate_launch_command(launch_command_parser().parse_args(command))
    assert options.num_processes == 4 and options.module and options.training_script == "stages.dpo"
    return options


def test_accelerate_reads_the_fsdp_file(monkeypatch):
    from accelerate import FullyShardedDataParallelPlugin
    from accelerate.utils.launch import prepare_multi_gpu_env

    options = launched("fsdp.yaml", monkeypatch)
    assert options.use_fsdp
    for name, value in prepare_multi_gpu_env(options).items():
        monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert os.environ["ACCELERATE_USE_FSDP"] == "true" and plugin.fsdp_version == 2
    assert (
        plugin.reshard_after_forward
        and plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"
    )
    assert "SHARDED" in str(plugin.state_dict_type) and not plugin.cpu_ram_efficient_loading


def test_accelerate_reads_the_deepspeed_files(monkeypatch):
    """As far as it does without deepspeed, which isn't among the requirements."""
    from accelerate.utils.deepspeed import HfDeepSpeedConfig

    options = launched("deepspeed.yaml", monkeypatch)
    assert options.use_deepspeed and Path(options.deepspeed_config_file) == (
        LAUNCH / "deepspeed_zero3.json"
    ).relative_to(ROOT)
    settings = json.loads(Path(options.deepspeed_config_file).read_text(encoding="utf-8"))
    config = HfDeepSpeedConfig(options.deepspeed_config_file)
    assert config.is_zero3() and not config.is_offload()
    assert settings["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"], (
        "models/dpo is whole weights"
    )
    filled = (
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
        "gradient_clipping",
    )
    assert all(settings[name] == "auto" for name in filled), "the Trainer fills these in"
