"""Models in this process: what they are asked is cached, and what can't be loaded is an error."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from helpers.dag import ROOT
from helpers.measured_project import small_test_set
from stages.chat.protocol import ChatModel
from stages.core.errors import LibraError
from stages.core.tables import write_table
from stages.local import answers
from stages.respond import RespondParams
from stages.tools import benchmark

PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))


@pytest.fixture()
def project(tmp_path, monkeypatch):
    """A folder with the project's params and a small test set."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("DVC_EXP_NAME", "")
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    score = {"score": {"bootstrap": 100, "confidence": 0.95}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(PARAMS | score))
    test, seeds = small_test_set()
    write_table(test, "data/librachemqa/test.parquet", "prompt_id")
    write_table(seeds, "data/seeds.parquet", "seed_id")
    return tmp_path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny random model, as a hub has it."""
    from helpers.tiny_training import MODEL_PARAMS
    from stages.training.determinism import deterministic
    from stages.training.scratch import new_model, train_tokenizer

    deterministic(1)
    target = tmp_path_factory.mktemp("model") / "tiny"
    tokenizer = train_tokenizer(small_test_set()[0]["prompt"].to_list(), 320)
    new_model(MODEL_PARAMS, tokenizer).save_pretrained(target)
    tokenizer.save_pretrained(target)
    return target


@pytest.fixture()
def loads(monkeypatch):
    """The folders of the models that were loaded."""
    folders, load = [], answers._load
    monkeypatch.setattr(answers, "_load", lambda local: folders.append(local.model) or load(local))
    return folders


def local(folder, prompts=("make s0?", "keep s1 cool?"), **changes):
    """The answers of the model in `folder`."""
    model = answers.LocalModel(model=str(folder), **{"max_tokens": 6} | changes)
    setting = "respond.candidates.mine.{}".format
    return answers.local_answers(model, list(prompts), "respond: mine", setting)


def test_a_model_in_this_process_is_asked_once(project, folder, loads):
    first = local(folder)
    assert [finish for _, finish in first] == ["length", "length"] and len(loads) == 1
    assert local(folder) == first and len(loads) == 1, "cached"
    local(folder, max_tokens=5), local(folder, prompts=["make s0?"])
    assert len(loads) == 3, "another limit, other prompts"
    for path in (project / ".cache/answers").iterdir():
        path.write_bytes(b"damaged")
    assert local(folder) == first and len(loads) == 4
    other = project / "other"
    shutil.copytree(folder, other)
    assert local(other) == first and len(loads) == 4, "the same files elsewhere are the same model"
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rope_theta": 7.0}))
    local(other)
    assert len(loads) == 5, "another file"


def test_a_model_without_a_chat_template_gets_the_prompt_alone(project, folder):
    from transformers import AutoTokenizer

    plain = project / "plain"
    shutil.copytree(folder, plain)
    tokenizer = AutoTokenizer.from_pretrained(plain)
    tokenizer.chat_template = None
    (plain / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(plain)
    _, loaded = answers._load(answers.LocalModel(model=str(plain), max_tokens=4))
    messages = [{"role": "user", "content": "make s0?"}]
    text = loaded.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "make s0?\n" and loaded.padding_side == "left"
    assert len(local(plain)) == 2


def test_weights_that_are_not_safetensors_are_not_loaded(project, folder):
    import torch

    unsafe = project / "unsafe"
    shutil.copytree(folder, unsafe)
    (unsafe / "model.safetensors").unlink()
    torch.save({}, unsafe / "pytorch_model.bin")
    message = "can't be loaded as a causal language model in safetensors"
    with pytest.raises(LibraError, match=message):
        local(unsafe)


def test_errors_name_the_setting_and_the_missing_file(project, folder):
    message = "^respond.candidates.mine.model: there is no folder ./nothing"
    with pytest.raises(LibraError, match=message):
        local("./nothing")
    adapter = project / "adapter"
    shutil.copytree(folder, adapter)
    (adapter / "model.safetensors").rename(adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text("{}")
    index = json.dumps({"weight_map": {"a": "model.safetensors"}})
    (adapter / "model.safetensors.index.json").write_text(index)
    with pytest.raises(LibraError, match="/adapter lacks model.safetensors of the base model; "):
        local(adapter)


def test_a_local_model_goes_through_the_command(project, folder, loads, capsys):
    benchmark.main([str(folder), "--name", "tiny", "--max-tokens", "5", "--limit", "30"])
    output = capsys.readouterr().out
    assert "nothing is sent" in output and "> tiny" in output
    assert "30 of 96 test prompts, about 5 substances" in output
    assert (project / ".cache/benchmark/tiny/limit-30/metrics.json").exists()
    assert loads == [str(folder)]


def test_candidates_are_endpoints_or_models_in_this_process():
    teacher = {key: value for key, value in PARAMS["teacher"].items() if key != "base_url"}
    candidates = {
        "api": {"base_url": "http://h/v1", **teacher},
        "here": {"model": "a/b", "revision": "c", "max_tokens": 9},
    }
    section = RespondParams(**PARAMS["respond"] | {"candidates": candidates})
    assert section.candidates["api"] == ChatModel(**candidates["api"])
    assert section.candidates["here"] == answers.LocalModel(model="a/b", revision="c", max_tokens=9)
    assert Path(section.candidates["here"].model) == Path("a/b")
