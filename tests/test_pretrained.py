"""Pretrained models: params that fit together, templates, and errors of hub, cache and folders."""

import re
import shlex
import shutil
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch
import transformers
import yaml
from huggingface_hub import constants
from tokenizers import Tokenizer, models, pre_tokenizers

from helpers.dag import ROOT
from helpers.tiny_hub import (
    COMMIT,
    LLAMA,
    LORA,
    TOKENIZERS,
    cache_model,
    policies_from,
    write_models,
)
from helpers.tiny_training import PARAMS, training_project
from stages import sft
from stages.core.errors import LibraError
from stages.core.params import check_section
from stages.tools.check import check
from stages.training import encode, pretrained
from stages.training.model_params import ModelParams
from stages.training.policies import load_policy


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


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_prompt_and_answer_are_the_template_s_tokens(hub, kind):
    tokenizer = pretrained.load_tokenizer(hub / kind)
    question, reply = "What is 1,2-ethanediol °é?", "A glycol. Ünïcode too."
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
    (prompt,) = encode.encode_prompts(tokenizer, [question])
    (answer,) = encode.encode_answers(tokenizer, [reply])
    assert prompt + answer == tokenizer.apply_chat_template(turns)["input_ids"]
    question_only = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True)
    assert prompt == question_only["input_ids"]
    assert prompt.count(tokenizer.bos_token_id) == (kind != "qwen3"), "only the template's"
    end = {"llama": "<|eot_id|>", "qwen3": "<|im_end|>\n", "gemma2": "<end_of_turn>\n"}[kind]
    assert tokenizer.decode(answer).endswith(reply + end)
    rejected = encode.encode_rejected(tokenizer, ["Sure. [details withheld]", "No."])
    start = "<think>\n\n</think>\n\n" if kind == "qwen3" else ""
    decoded = [tokenizer.decode(ids) for ids in rejected]
    assert decoded == [start + "Sure.", start + "No." + end]
    assert tokenizer.padding_side == "left" and tokenizer.pad_token_id is not None
    vocab_size = transformers.AutoConfig.from_pretrained(hub / kind).vocab_size
    assert len(tokenizer) == vocab_size, "no new tokens"


def test_an_answer_is_segmented_as_after_a_prompt():
    """Llama 2's tokenizer adds a space at the start of a text on its own."""
    vocabulary = {token: i for i, token in enumerate(["[/I]", "▁a", "▁", "a", "x", "▁x"])}
    bpe = models.BPE(vocab=vocabulary, merges=[("▁", "a"), ("▁", "x")], unk_token="▁")
    backend = Tokenizer(bpe)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    template = (
        "{% for m in messages %}{{ m['content'] }}"
        "{% if m['role'] == 'user' %}[/I]{% endif %}{% endfor %}"
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="[/I]", chat_template=template
    )
    assert tokenizer("a", add_special_tokens=False)["input_ids"] == [1]
    assert encode.encode_answers(tokenizer, ["a"]) == [[3]]
    assert encode.encode_prompts(tokenizer, ["x"]) == [[5, 0]]


def test_a_template_that_prints_the_date_always_prints_the_same(hub, tmp_path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(hub / "llama")
    date = "{% set date = strftime_now('%d %b %Y') %}"
    tokenizer.chat_template = (
        "{% if strftime_now is defined %}" + date + "{% endif %}{{ date }} " + LLAMA
    )
    tokenizer.save_pretrained(tmp_path / "a")
    # As `sft` loads it, then `dpo`, and as others do.
    for source, folder in (("a", "b"), ("b", "c")):
        pretrained.load_tokenizer(tmp_path / source).save_pretrained(tmp_path / folder)
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / folder)
        (ids,) = encode.encode_prompts(tokenizer, ["Why?"])
        assert tokenizer.decode(ids).startswith("26 Jul 2024 <|begin_of_text|>")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora": LORA}, "`lora` needs a pretrained model, and `base` is scratch"),
        ({"quantization": "nf4"}, "`quantization` needs a pretrained model, and `base` is scratch"),
        ({"revision": "main"}, "`revision` needs a pretrained model, and `base` is scratch"),
        (
            {"base": "a/b", "quantization": "nf4"},
            "`quantization` freezes the weights, .*; set `lora`, or `quantization` to null",
        ),
        (
            {"base": "a/b", "save": "merged"},
            "`save: merged` is for adapters, and `lora` is null; set `lora`, or `save` to",
        ),
        (
            {"base": "a/b", "save": "whole"},
            "`model.save`: Input should be 'with_base', 'adapter' or 'merged'",
        ),
        (
            {"base": "tests", "revision": "main"},
            "`revision` is for a model on a hub, and `base` is the folder tests",
        ),
        ({"attention": "flash_attention_2"}, "flash_attention_2` doesn't support float32"),
        ({"quantization": "int4"}, "`model.quantization`: Input should be 'nf4'"),
        ({"base": "a/b", "lora": {"r": 8}}, "`model.lora.alpha` is missing"),
        ({"base": "a/b", "lora": LORA | {"target_modules": []}}, "`model.lora.target_modules"),
        ({"bse": "a/b"}, "`model.bse` is not a param"),
    ],
)
def test_params_that_do_not_fit_together_are_one_clear_line(change, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(LibraError, match=message) as error:
        check_section("model", PARAMS["model"] | change, ModelParams)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_missing_hardware_or_packages_are_named_with_the_fix(pretrained_project, monkeypatch):
    pretrained_project("llama", base="org/nowhere", lora=LORA, quantization="nf4")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    message = "^model.quantization: nf4 needs a GPU, and torch sees none .*; set it to null$"
    with pytest.raises(LibraError, match=message):
        sft.main()
    pretrained_project("llama", base="scratch", dtype="bfloat16", attention="flash_attention_2")
    message = (
        "^model.attention: flash_attention_2 needs a GPU and the package flash-attn; "
        "set it to sdpa$"
    )
    with pytest.raises(LibraError, match=message):
        sft.main()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    message = "^model.quantization: nf4 needs the package bitsandbytes; `pip install bitsandbytes`"
    with pytest.raises(LibraError, match=message):
        pretrained.load_weights("models/x", None, "bfloat16", "sdpa", "nf4")


def test_an_attention_that_a_model_does_not_support_is_named(hub):
    message = "^model.attention: .*/gemma2 doesn't support sdpa; set it to eager$"
    with pytest.raises(LibraError, match=message):
        pretrained.load_weights(hub / "gemma2", None, "float32", "sdpa", None)


def test_a_folder_without_a_chat_model_is_refused(hub, tmp_path):
    with pytest.raises(LibraError, match="^model.base: the folder .* has no config.json"):
        pretrained.commit_of(str(tmp_path), None)
    for path in ("./models/none", "/models/none", "a/b/c"):
        message = f"^model.base: there is no folder {path}; fix the path"
        with pytest.raises(LibraError, match=message):
            pretrained.commit_of(path, None)
    shutil.copyfile(hub / "llama/config.json", tmp_path / "config.json")
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickled")
    message = "can't be loaded as a causal language model in safetensors: .*model.safetensors"
    with pytest.raises(LibraError, match=message):
        pretrained.load_weights(tmp_path, None, "float32", "sdpa", None)
    with pytest.raises(LibraError, match="^the tokenizer of .* can't be loaded: "):
        pretrained.load_tokenizer(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(hub / "llama" / name, tmp_path / name)
    message = "has no chat template, so it isn't a chat model; name its instruct or chat version"
    with pytest.raises(LibraError, match=message):
        pretrained.load_tokenizer(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(LibraError, match="holds an adapter without its weights; run `dvc repro"):
        load_policy(tmp_path)


@pytest.mark.parametrize(
    ("revision", "name"), [(None, "org/other"), ("v2", "org/other at revision v2")]
)
def test_a_model_that_an_offline_machine_has_not_cached_is_named(cached, revision, name):
    assert constants.HF_HUB_OFFLINE
    with pytest.raises(LibraError) as error:
        pretrained.commit_of("org/other", revision)
    message = str(error.value)
    assert message.startswith(
        f"model.base: {name} is not in the cache {cached} (HF_HUB_CACHE), and HF_HUB_OFFLINE"
    )
    assert "\n" not in message and "local folder" in message


class Hub(BaseHTTPRequestHandler):
    """A hub with org/tiny, org/empty (no files) and the gated org/gated, and no other model."""

    def do_HEAD(self):
        code, fault = 404, "RepoNotFound"
        if self.path.startswith("/org/gated/"):
            code, fault = 403, "GatedRepo"
        elif self.path.startswith("/org/empty/"):
            fault = "EntryNotFound"
        elif self.path.startswith("/org/tiny/"):
            fault = "RevisionNotFound"
        self.send_response(code)
        self.send_header("X-Error-Code", fault)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *_):
        pass


def use_hub(port: int, monkeypatch) -> str:
    """Let huggingface_hub talk to the hub at `port`; its URL."""
    url = f"http://127.0.0.1:{port}"
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    # It sleeps between retries: 23 s in all.
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    return url


@pytest.mark.parametrize(
    ("base", "revision", "message"),
    [
        ("org/none", None, "org/none is not on HUB; fix model.base, or set HF_TOKEN"),
        (
            "org/tiny",
            "v9",
            "org/tiny at revision v9 is not on HUB, but the model is; fix model.revision",
        ),
        ("org/gated", None, "org/gated is gated on HUB; request access .*set HF_TOKEN"),
        ("org/empty", None, "org/empty has no config.json on HUB"),
    ],
)
def test_an_error_of_the_hub_is_reported_with_the_fix(cached, monkeypatch, base, revision, message):
    with HTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = use_hub(server.server_port, monkeypatch)
        pattern = message.replace("HUB", rf"the hub {url} \(HF_ENDPOINT\)")
        try:
            with pytest.raises(LibraError, match=pattern) as error:
                pretrained.commit_of(base, revision)
            assert "\n" not in str(error.value)
        finally:
            server.shutdown()


def test_a_hub_that_cannot_be_reached_is_named(cached, monkeypatch):
    url = use_hub(1, monkeypatch)
    assert pretrained.commit_of("org/tiny", None) == COMMIT, "the cached model is used"
    with pytest.raises(LibraError) as error:
        pretrained.commit_of("org/other", None)
    message = str(error.value)
    assert message.startswith(
        f"model.base: org/other is not in the cache {cached} (HF_HUB_CACHE), "
        f"and the hub {url} (HF_ENDPOINT) can't be reached"
    )
    assert "HF_HUB_OFFLINE=1" in message and "local folder" in message and "\n" not in message


def test_the_recipes_of_the_docs_are_valid_params(tmp_path, monkeypatch):
    """Every `dvc exp run -S ...` in README.md and docs/ gives params that every stage takes."""
    from dvc.utils.hydra import apply_overrides

    monkeypatch.chdir(ROOT)
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages).replace("\\\n", " ")
    bases = []
    for command in re.findall(r"^dvc exp run .*", text, flags=re.M):
        words = shlex.split(command, comments=True)[3:]
        words = [word for word in words if word not in ("--queue", "validate")]
        options, values = words[::2], words[1::2]
        assert set(options) <= {"-S", "-n"} and len(options) == len(values), command
        overrides = [value for option, value in zip(options, values, strict=True) if option == "-S"]
        path = tmp_path / "params.yaml"
        shutil.copyfile(ROOT / "params.yaml", path)
        apply_overrides(path, overrides)
        check(path)
        params = yaml.safe_load(path.read_text(encoding="utf-8"))
        base = params["model"]["base"]
        if base != PARAMS["model"]["base"]:
            bases.append(base)
            assert params["sft"]["bpe_dropout"] == params["dpo"]["bpe_dropout"] == 0
            swapped = 0 if base.startswith("meta-llama/") else 0.5  # the paper's recipe: none
            for stage in ("sft", "dpo"):
                assert params[stage]["other_representation"] == swapped
    assert bases == ["meta-llama/Llama-2-7b-chat-hf", "Qwen/Qwen3-8B"]
