"""Adapters through `sft` and `dpo`: what is written, who can load it, and its base."""

import json
import math
import shutil
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import peft
import pytest
import torch
import transformers
from openai import OpenAI
from safetensors.torch import load_file

from helpers.interrupted import checkpoint_every_step, release_lock, stop_at
from helpers.server_process import served
from helpers.tiny_hub import (
    COMMIT,
    LORA,
    TOKENIZERS,
    attention,
    cache_model,
    first_row,
    load_as_served,
    logits,
    policies_from,
    write_models,
)
from helpers.tiny_training import PARAMS, training_project
from stages import dpo, sft
from stages.core.errors import LibraError
from stages.local import answers
from stages.local.generate import greedy
from stages.training import adapters, checkpoints, pretrained
from stages.training.model_params import LoraParams, ModelParams
from stages.training.policies import base_to_train, load_policy

KINDS = pytest.mark.parametrize("kind", TOKENIZERS)
BASE = {"config.json", "generation_config.json", "model.safetensors"}
FILES = {
    "adapter_config.json",
    "adapter_model.safetensors",
    "chat_template.jinja",
    "tokenizer.json",
    "tokenizer_config.json",
    "training.csv",
}
MODULES = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    write_models(folder)
    return folder


@pytest.fixture()
def pretrained_project(tmp_path, monkeypatch, hub):
    return policies_from(hub, training_project(tmp_path, monkeypatch))


@pytest.fixture()
def cached(hub, tmp_path, monkeypatch):
    return cache_model(hub, tmp_path, monkeypatch)


@pytest.mark.parametrize("save", ["with_base", "adapter"])
@KINDS
def test_an_adapter_goes_through_sft_and_dpo_and_loads_as_written(
    pretrained_project, hub, kind, save
):
    folder = pretrained_project(kind, lora=LORA, save=save)
    sft.main()
    dpo.main()
    assert first_row(folder)["loss"] == pytest.approx(math.log(2), abs=1e-3)

    outputs = [logits(*load_policy(hub / kind, attention=attention(kind)))]
    for name in ("sft", "dpo"):
        where = folder / "models" / name
        files = {path.name for path in where.iterdir()}
        files -= {"special_tokens_map.json", "added_tokens.json"}
        assert files == (FILES | BASE if save == "with_base" else FILES)
        for file in files & BASE:
            assert (where / file).read_bytes() == (hub / kind / file).read_bytes()
        config = json.loads((where / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == str(hub / kind) and config["revision"] is None
        assert config["target_modules"] == MODULES

        model, tokenizer = load_policy(where, attention=attention(kind))
        assert not any(weights.requires_grad for weights in model.parameters())
        ours = logits(model, tokenizer)
        their_tokenizer = transformers.AutoTokenizer.from_pretrained(where)
        for auto in (peft.AutoPeftModelForCausalLM, transformers.AutoModelForCausalLM):
            theirs = auto.from_pretrained(where, dtype=torch.float32)
            assert torch.allclose(logits(theirs, their_tokenizer), ours, atol=1e-5), auto
        if save == "with_base":
            assert torch.allclose(logits(*load_as_served(where)), ours, atol=1e-5)
        outputs.append(ours)
    different = {tuple(values.flatten().tolist()) for values in outputs}
    assert len(different) == 3, "both stages learn"


def test_transformers_serve_answers_with_the_adapter_as_written(
    pretrained_project, hub, monkeypatch
):
    """The server itself; the base that it was trained on is gone."""
    base = shutil.copytree(hub / "llama", Path(pretrained_project("llama"), "base"))
    folder = pretrained_project("llama", base=str(base), lora=LORA)
    sft.main()
    dpo.main()
    shutil.rmtree(base)
    prompts = ["How is it kept, substance xx?", "Why?"]
    ours = [text for text, _ in greedy(*load_policy("models/dpo"), prompts, 8, 2, "test")]

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    program = str(Path(sys.executable).with_name("transformers"))
    options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with (
        served(folder, program, "serve", "models/dpo", *options) as url,
        OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as client,
    ):
        theirs = []
        for prompt in prompts:
            messages = [{"role": "user", "content": prompt}]
            reply = client.chat.completions.create(
                model="models/dpo", messages=messages, temperature=0.0, max_tokens=8
            )
            theirs.append(reply.choices[0].message.content)
    assert [text.strip() for text in theirs] == [text.strip() for text in ours]


def test_an_adapter_with_its_base_needs_neither_hub_nor_cache(pretrained_project, cached):
    """Pulled to a machine that has never seen the base, it answers, and DPO continues from it."""
    folder = pretrained_project("llama", base="org/tiny", lora=LORA)
    sft.main()
    before = logits(*load_policy("models/sft"))
    identity = answers.identity("models/sft")
    shutil.rmtree(cached)
    model, tokenizer = load_policy("models/sft")
    assert torch.equal(logits(model, tokenizer), before)
    assert answers.identity("models/sft") == identity
    assert model.get_base_model().name_or_path == "models/sft"
    dpo.main()
    config = json.loads((folder / "models/dpo/adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/tiny", COMMIT)
    for name in BASE:
        assert Path("models/dpo", name).read_bytes() == Path("models/sft", name).read_bytes()
    assert not torch.equal(logits(*load_policy("models/dpo")), before)


def test_a_disk_that_the_base_fills_up_loses_no_training(pretrained_project, monkeypatch, capfd):
    def full_disk(*_):
        raise OSError(28, "No space left on device", "x")

    pretrained_project("llama", lora=LORA)
    checkpoint_every_step(monkeypatch)
    message = (
        r"^the base \(0.0 GB\) can't be copied to the adapter \(No space left on device: x\); fix"
    )
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", full_disk)
        with pytest.raises(LibraError, match=message):
            sft.main()
    assert not list(Path("models").iterdir())
    release_lock()
    capfd.readouterr()
    sft.main()
    assert "sft: resumes at step " in capfd.readouterr().err
    assert Path("models/sft/model.safetensors").exists()


def test_a_sharded_base_is_copied_whole(pretrained_project, hub):
    shards = Path(pretrained_project("llama"), "shards")
    model = transformers.AutoModelForCausalLM.from_pretrained(hub / "llama")
    model.save_pretrained(shards, max_shard_size="40KB")
    for path in [*(hub / "llama").glob("*token*"), hub / "llama/chat_template.jinja"]:
        shutil.copyfile(path, shards / path.name)
    parts = {path.name for path in shards.glob("model-*.safetensors")}
    pretrained_project("llama", base=str(shards), lora=LORA)
    sft.main()
    copied = {path.name for path in Path("models/sft").glob("model*")}
    assert len(parts) > 1 and copied == parts | {"model.safetensors.index.json"}
    as_served = logits(*load_as_served(Path("models/sft").resolve()))
    assert torch.allclose(as_served, logits(*load_policy("models/sft")), atol=1e-5)

    part = sorted(parts)[0]
    Path("models/sft", part).unlink()
    message = f"^models/sft lacks {part} of the base model; write or pull the folder again$"
    with pytest.raises(LibraError, match=message):
        dpo.main()
    assert not Path("models/dpo").exists()


def test_a_base_that_cannot_be_copied_is_an_error_before_training(hub, monkeypatch):
    model_params = ModelParams(**PARAMS["model"] | {"base": str(hub / "llama"), "lora": LORA})
    model, _, commit = base_to_train(model_params)
    assert commit is None
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1e5))
        message = (
            r"^model.save: with_base copies the base \(0.0 GB\) beside the adapter, "
            r"and only 0.0 GB of the disk are free; free some, or"
        )
        with pytest.raises(LibraError, match=message):
            base_to_train(model_params)
        base_to_train(model_params.model_copy(update={"save": "adapter"}))

    weights = hub / "llama/model.safetensors"
    moved = weights.rename(hub / "llama/elsewhere")
    message = (
        "/llama lacks model.safetensors of the base model; "
        "restore it, or set model.save to adapter$"
    )
    try:
        with pytest.raises(LibraError, match=message):
            adapters.check_base(model, model_params)
    finally:
        moved.rename(weights)


def test_an_adapter_of_ours_is_refused_as_a_base(pretrained_project):
    """Training would start from both and write only what is new."""
    folder = pretrained_project("llama", lora=LORA)
    sft.main()
    adapter = shutil.move("models/sft", "adapter")
    message = "^model.base: .*/adapter holds an adapter beside its base; merge them .* the whole"
    for lora in (LORA, LORA | {"target_modules": ["v_proj"]}, None):
        pretrained_project("llama", base=str(folder / adapter), lora=lora)
        with pytest.raises(LibraError, match=message):
            sft.main()


def test_an_interrupted_adapter_in_bfloat16_ends_with_the_same_bytes(
    pretrained_project, monkeypatch, capfd
):
    pretrained_project("llama", lora=LORA, dtype="bfloat16")
    checkpoint_every_step(monkeypatch)
    for stage, name in ((sft, "sft"), (dpo, "dpo")):
        files = [
            Path("models", name, file) for file in ("adapter_model.safetensors", "training.csv")
        ]
        stage.main()
        unbroken = [file.read_bytes() for file in files]
        shutil.rmtree(Path("models", name))
        stop_at(3, stage, monkeypatch)
        capfd.readouterr()
        stage.main()
        assert f"{name}: resumes at step 2" in capfd.readouterr().err
        assert [file.read_bytes() for file in files] == unbroken


def test_merged_weights_give_the_output_of_the_adapter(pretrained_project):
    outputs = []
    for save in ("adapter", "merged"):
        folder = pretrained_project("qwen3", lora=LORA, save=save)
        sft.main()
        outputs.append(logits(*load_policy(folder / "models/sft")))
    assert torch.allclose(outputs[0], outputs[1], atol=1e-4)
    merged = load_file(folder / "models/sft/model.safetensors")
    assert not (folder / "models/sft/adapter_config.json").exists()
    dpo.main()
    assert first_row(folder)["loss"] == pytest.approx(math.log(2), abs=1e-3)
    weights = load_file(folder / "models/dpo/model.safetensors")
    assert set(weights) == set(merged) and not any("lora" in name for name in weights)


def test_an_adapter_trained_on_four_bits_is_merged_into_the_full_base(pretrained_project, hub):
    """Without a GPU: an adapter on full weights, beside the reference's, takes the same path."""
    pretrained_project("qwen3", lora=LORA)
    sft.main()
    changes = {"base": str(hub / "qwen3"), "lora": LORA, "save": "merged"}
    full = ModelParams(**PARAMS["model"] | changes)
    merged = []
    for model_params in (full, full.model_copy(update={"quantization": "nf4"})):
        model, tokenizer = load_policy("models/sft", trainable=True)
        model.add_adapter("ref", model.peft_config["default"])
        merged.append(adapters.final_model(model, model_params))
    assert not any("lora" in name for model in merged for name in model.state_dict())
    outputs = [logits(model, tokenizer) for model in merged]
    assert torch.allclose(outputs[0], outputs[1], atol=1e-5)
    assert torch.allclose(outputs[0], logits(*load_policy("models/sft")), atol=1e-4)


def test_an_adapter_is_the_same_bytes_twice(pretrained_project):
    runs = []
    for _ in range(2):
        folder = pretrained_project("llama", lora=LORA | {"dropout": 0.1})
        sft.main()
        runs.append({path.name: path.read_bytes() for path in (folder / "models/sft").iterdir()})
    assert runs[0] == runs[1]


@pytest.mark.parametrize(
    ("targets", "unknown"),
    [
        (["q_proj", "k_proj", "out_proj", "fc_in"], "out_proj, fc_in"),
        (["lm_head"], "lm_head"),
        (["j_proj"], "j_proj"),
    ],
)
def test_an_unknown_target_module_is_named_with_the_known_ones(hub, targets, unknown):
    model = pretrained.load_weights(hub / "llama", None, "float32", "sdpa", None)
    message = (
        rf"^model.lora.target_modules: {unknown}: not a linear module of .*; "
        rf"it has {', '.join(MODULES)}$"
    )
    with pytest.raises(LibraError, match=message):
        adapters.with_adapter(model, LoraParams(**LORA | {"target_modules": targets}), None)


def test_target_modules_may_be_named_by_their_path(hub):
    model = pretrained.load_weights(hub / "llama", None, "float32", "sdpa", None)
    lora = LoraParams(**LORA | {"target_modules": ["q_proj", "mlp.down_proj"]})
    adapted = adapters.with_adapter(model, lora, None)
    trained = [name for name, weights in adapted.named_parameters() if weights.requires_grad]
    assert {name.split(".")[-4] for name in trained} == {"q_proj", "down_proj"}


def test_an_adapter_names_the_commit_of_its_base(pretrained_project, cached, monkeypatch):
    folder = pretrained_project("llama", base="org/tiny", lora=LORA, save="adapter")
    keys, run_folder = [], checkpoints.run_folder

    def recorded(*args):
        keys.append(args)
        return run_folder(*args)

    monkeypatch.setattr(checkpoints, "run_folder", recorded)
    sft.main()
    dpo.main()
    assert keys == [("sft", COMMIT), ("dpo",)], "another commit's checkpoints aren't resumed"
    for name in ("sft", "dpo"):
        config = json.loads((folder / f"models/{name}/adapter_config.json").read_text())
        assert (config["base_model_name_or_path"], config["revision"]) == ("org/tiny", COMMIT)
    (cached / "models--org--tiny/refs/main").write_text("f" * 40)  # the branch has moved on
    model, tokenizer = load_policy(folder / "models/dpo")
    auto = peft.AutoPeftModelForCausalLM
    theirs = auto.from_pretrained(folder / "models/dpo", dtype=torch.float32)
    assert torch.allclose(logits(model, tokenizer), logits(theirs, tokenizer), atol=1e-6)
