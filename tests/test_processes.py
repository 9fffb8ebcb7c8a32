"""Several processes train as one does: the same curve, one voice, one error; launcher files."""

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

from helpers.dag import ROOT
from helpers.stage_process import PYTHON, environment, run_stage
from helpers.tiny_training import table, training_project
from stages import dpo, sft
from stages.core.errors import LibraError
from stages.training import processes

TORCHRUN = [*PYTHON, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
LAUNCH = ROOT / "stages/training/launch"


@pytest.fixture()
def project(tmp_path, monkeypatch):
    return training_project(tmp_path, monkeypatch)


def curve(name: str) -> pl.DataFrame:
    return pl.read_csv(f"models/{name}/training.csv")


def assert_same(one: pl.DataFrame, two: pl.DataFrame) -> None:
    """Curves that are equal up to rounding."""
    assert one.columns == two.columns and one.height == two.height
    for column in one.columns:
        for step, (alone, shared) in enumerate(zip(one[column], two[column], strict=True), start=1):
            if alone is None:
                assert shared is None, f"{column} of step {step}"
            else:
                expected = pytest.approx(alone, rel=1e-4, abs=2e-5)
                assert shared == expected, f"{column} of step {step}"


def test_two_processes_give_the_curve_of_one(project):
    """`sft` by a launcher; `dpo` by train.processes: a soup, killed and resumed in its second half.

    Both end with half a batch, all of it on one process.
    """
    grid = {"pairs": "grid", "answers": 2, "batch_size": 4}
    changes = {
        "dpo": {"epochs": 3, "sft_weight": 4.0, "bpe_dropout": 0.2, "soup": 2} | grid,
        "sft": {"bpe_dropout": 0.2, "epochs": 1},
    }
    project(**changes)
    # 14 prompts: 4 + 4 + 4 + 2 rows of sft; 168 pairs of dpo, 16 a step.
    table(7).write_parquet("data/librachemqa/train.parquet")
    table(4, 1).write_parquet("data/librachemqa/validation.parquet")
    sft.main()
    dpo.main()
    alone = {name: curve(name) for name in ("sft", "dpo")}
    assert (alone["sft"].height, alone["dpo"].height) == (4, 11)
    weights = load_file("models/dpo/model.safetensors")
    Path("models/sft").rename("models/sft_alone")

    done = run_stage("sft", launcher=TORCHRUN)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("parameters") == 1, "one voice"
    assert done.stderr.count("sft: step 4/4") == 1
    assert_same(alone["sft"], curve("sft"))
    shutil.rmtree("models/sft")
    Path("models/sft_alone").rename("models/sft")

    project(**changes, train={"processes": 2})
    shutil.rmtree("models/dpo")
    killed = run_stage("dpo", "step 5 of dpo 2/2", rank=1)
    assert killed.returncode == 1 and not Path("models/dpo").exists()
    errors = [line for line in killed.stderr.splitlines() if "rror" in line]
    assert errors == [
        "dpo: error: process 1 of 2 was killed by SIGKILL (out of memory?); "
        "run again to resume from the last checkpoint"
    ]
    done = run_stage("dpo")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("dpo 1/2: ") == done.stderr.count("dpo 1/2: already trained") == 1
    assert "dpo 2/2: resumes at step 4 of 11" in done.stderr
    assert_same(alone["dpo"], curve("dpo"))
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


def test_processes_with_a_group_train_as_one_and_keep_the_group(project):
    """As in Ray Train's workers: torchrun's environment without torchrun, and a group of Ray's."""
    project(sft={"bpe_dropout": 0.2})
    sft.main()
    alone = curve("sft")
    shutil.rmtree("models/sft")
    shared = environment() | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_port(),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "NODE_RANK": "0",
    }
    ranks = [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    run_together([*PYTHON, "-c", WORKER], ranks)
    assert_same(alone, curve("sft"))


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return str(server.getsockname()[1])


def run_together(command: list[str], environments: list[dict[str, str]]) -> None:
    """The command once in each environment, at the same time, to its end."""
    started = [
        subprocess.Popen(command, env=variables, stderr=subprocess.PIPE, text=True)
        for variables in environments
    ]
    errors = [process.communicate(timeout=300)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], errors


def test_a_soup_needs_full_weights(project, monkeypatch):
    lora = {"r": 2, "alpha": 4, "dropout": 0.0, "target_modules": "all-linear"}
    project(model={"base": "org/model", "lora": lora}, dpo={"soup": 2})
    message = r"^dpo.soup is 2, but the mean of adapters \(model.lora\) .*; set dpo.soup to 1$"
    with pytest.raises(LibraError, match=message):
        dpo.main()
    project(dpo={"soup": 3})
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    message = r"^dpo.soup is 3, but with FSDP or DeepSpeed no process .*; set dpo.soup to 1$"
    with pytest.raises(LibraError, match=message):
        dpo.main()


def test_an_error_in_one_process_ends_all_with_one_message(project):
    project(train={"processes": 2})
    failed = run_stage("sft", "error", rank=1)
    assert failed.returncode == 1 and not Path("models").exists()
    assert failed.stderr.splitlines() == ["sft: error: substance A is missing"]


def test_a_step_is_shared_evenly_or_not_at_all(project, monkeypatch):
    project(train={"processes": 3})
    message = (
        r"^params.yaml: sft.batch_size makes 4 rows a step, .* "
        r"by the 3 processes of train.processes; change one of them$"
    )
    with pytest.raises(LibraError, match=message):
        sft.main()
    project(train={"processes": 2}, dpo={"pairs": "grid", "answers": 3, "batch_size": 1})
    message = r"^params.yaml: dpo.batch_size makes 9 rows a step, .* by the 2 processes of"
    with pytest.raises(LibraError, match=message):
        dpo.main()
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "5")
    with pytest.raises(LibraError, match=r"by the 5 processes started by the launcher; change"):
        sft.main()


def test_a_launcher_s_processes_are_not_launched_again(monkeypatch):
    calls = []
    monkeypatch.setattr(processes, "_launch", lambda stage, count: calls.append((stage, count)))
    monkeypatch.setattr(processes, "_train_as_rank", lambda train: train())
    processes.run("sft", 1, 16, lambda: calls.append("here"))
    processes.run("sft", 2, 16, lambda: calls.append("here"))
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    processes.run("sft", 2, 16, lambda: calls.append("one of four"))
    monkeypatch.setenv("WORLD_SIZE", "1")
    processes.run("sft", 2, 16, lambda: calls.append("alone"))
    assert calls == ["here", ("sft", 2), "one of four", "alone"]


SLURM = {
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_JOB_ID": "71234",
    "SLURM_STEP_ID": "2",
}
TORCH_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
SCONTROL = """#!/bin/sh
[ "$*" = "show hostnames gpu[07-08]" ] && echo gpu07 && echo gpu08 || echo localhost
"""


@pytest.fixture()
def scontrol(tmp_path, monkeypatch):
    """A stand-in for Slurm's reader of node lists."""
    program = tmp_path / "bin/scontrol"
    program.parent.mkdir()
    program.write_text(SCONTROL)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    for name in (*TORCH_VARIABLES, "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "")  # so that what the test sets is undone
        monkeypatch.delenv(name)


@pytest.mark.parametrize(("gpus", "local_rank"), [(None, "1"), ("0,1,2,3", "1"), ("0", "0")])
def test_tasks_of_srun_get_the_variables_of_torchrun(scontrol, monkeypatch, gpus, local_rank):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    if gpus:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    monkeypatch.setattr(processes, "_train_as_rank", lambda train: train())
    variables = []

    def train():
        variables.append({name: os.environ[name] for name in TORCH_VARIABLES})

    processes.run("sft", 1, 16, train)
    assert variables == [
        {
            "RANK": "5",
            "LOCAL_RANK": local_rank,
            "WORLD_SIZE": "8",
            "MASTER_ADDR": "gpu07",
            "MASTER_PORT": "28640",
        }
    ]
    monkeypatch.setenv("WORLD_SIZE", "6")
    processes.run("sft", 1, 12, train)
    assert variables[1]["WORLD_SIZE"] == "6", "a torchrun that srun started takes precedence"


@pytest.mark.parametrize(
    ("missing", "reason"),
    [("SLURM_LOCALID", ": SLURM_LOCALID is missing"), ("PATH", r" \(.*'scontrol'\)")],
)
def test_tasks_of_srun_that_cannot_find_each_other_are_refused(
    scontrol, monkeypatch, missing, reason
):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    if missing == "PATH":
        monkeypatch.setenv("PATH", "")
    else:
        monkeypatch.delenv(missing)
    fix = "let it start torchrun, one per node, as docs/training.md shows"
    message = f"^srun started processes that can't find each other{reason}; {fix}$"
    with pytest.raises(LibraError, match=message):
        processes.run("sft", 1, 16, lambda: pytest.fail("eight policies"))
    page = (ROOT / "docs/training.md").read_text(encoding="utf-8")
    assert "--ntasks-per-node 1 torchrun" in page


def test_two_tasks_of_srun_give_the_curve_of_one(project, scontrol):
    project(sft={"bpe_dropout": 0.2})
    sft.main()
    alone = curve("sft")
    shutil.rmtree("models/sft")
    step = environment() | SLURM
    step |= {
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NODELIST": "localhost",
        "MASTER_PORT": free_port(),
    }
    ranks = [step | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in range(2)]
    run_together([*PYTHON, "-m", "stages.sft"], ranks)
    assert_same(alone, curve("sft"))


def launched(file: str, monkeypatch):
    """How `accelerate launch --config_file FILE --num_processes 4 -m stages.dpo` is parsed."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    monkeypatch.chdir(ROOT)
    command = ["--config_file", str(LAUNCH / file), "--num_processes", "4", "-m", "stages.dpo"]
    options, *_ = _validate_launch_command(launch_command_parser().parse_args(command))
    assert options.num_processes == 4 and options.module
    assert options.training_script == "stages.dpo"
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
    assert plugin.reshard_after_forward and not plugin.cpu_ram_efficient_loading
    assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"
    assert "SHARDED" in str(plugin.state_dict_type)


def test_accelerate_reads_the_deepspeed_files(monkeypatch):
    """As far as it does without deepspeed, which isn't among the requirements."""
    from accelerate.utils.deepspeed import HfDeepSpeedConfig

    options = launched("deepspeed.yaml", monkeypatch)
    file = LAUNCH / "deepspeed_zero3.json"
    assert options.use_deepspeed
    assert Path(options.deepspeed_config_file) == file.relative_to(ROOT)
    config = HfDeepSpeedConfig(options.deepspeed_config_file)
    assert config.is_zero3() and not config.is_offload()
    settings = json.loads(file.read_text(encoding="utf-8"))
    gathers = settings["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"]
    assert gathers, "models/dpo holds full weights"
    filled_in_by_the_trainer = (
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
        "gradient_clipping",
    )
    assert all(settings[name] == "auto" for name in filled_in_by_the_trainer)
