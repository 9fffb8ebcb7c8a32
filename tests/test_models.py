"""Policies that start from a real model: three architectures through `sft` and `dpo`, what is written, the reference, the errors."""

import gc
import json
import math
import re
import shlex
import shutil
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import peft
import polars as pl
import pytest
import torch
import transformers
import yaml
from huggingface_hub import constants
from openai import OpenAI
from safetensors.torch import load_file
from test_checkpoints import often, stop_at  # noqa: F401
from test_training import HELP, OPENER, PARAMS, TINY, project, table, texts  # noqa: F401

from helpers import server_process
from helpers.dag import ROOT
from stages import dpo, sft
from stages.core.errors import LibraError
from stages.core.params import check_section
from stages.local import answers
from stages.local.generate import greedy
from stages.respond import RespondParams, policy_answers
from stages.tools.check import check
from stages.training import adapters, checkpoints, encode, pretrained
from stages.training.models import LoraParams, ModelParams, base_to_train, load_policy

LORA = {"r": 4, "alpha": 8, "dropout": 0.0, "target_modules": "all-linear"}
LLAMA = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
QWEN = (  # as Qwen 3: a system turn of its own, an empty chain of thought before the last answer
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"  # Llama 3's
# kind: template, special tokens, which of them are bos, eos and pad; whether its BPE is byte-level
TOKENIZERS = {
    "llama": (
        LLAMA,
        ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        (0, 3, None),
        True,
    ),
    "qwen3": (QWEN, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], (None, 2, 0), True),
    "gemma2": (
        GEMMA,
        ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"],
        (2, 1, 0),
        False,
    ),
}
KINDS = pytest.mark.parametrize("kind", TOKENIZERS)
SIZE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
SIZE |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}


def make_tokenizer(kind):
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    template, special, (bos, eos, pad), byte_level = TOKENIZERS[kind]
    tokenizer = Tokenizer(models.BPE(byte_fallback=not byte_level))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if byte_level:
        parts = [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
        tokenizer.pre_tokenizer, tokenizer.decoder = (
            pre_tokenizers.Sequence(parts),
            decoders.ByteLevel(),
        )
    else:  # as Gemma's: blanks are marks, what is unknown is bytes
        special = special + [f"<0x{byte:02X}>" for byte in range(256)]
        alphabet = ["\n", "▁"]
        tokenizer.normalizer, tokenizer.pre_tokenizer = (
            normalizers.Replace(" ", "▁"),
            pre_tokenizers.Split("▁", "merged_with_next"),
        )
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
    marks = special if byte_level else special[:5]
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(
        texts() + ["user\n\nassistant\n\nmodel\n<think>\n\n</think>\n\n"], trainer
    )
    named = {"bos_token": bos, "eos_token": eos, "pad_token": pad}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=template,
        **{name: marks[at] for name, at in named.items() if at is not None},
    )


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A folder with a tiny random model of each kind, as a hub holds them."""
    folder = tmp_path_factory.mktemp("hub")
    for kind in TOKENIZERS:
        tokenizer = make_tokenizer(kind)
        torch.manual_seed(1)
        odd = (
            {"final_logit_softcapping": 2.0, "sliding_window": 22} if kind == "gemma2" else {}
        )  # low enough to matter
        config = transformers.AutoConfig.for_model(
            kind, vocab_size=len(tokenizer), initializer_range=0.2, eos_token_id=tokenizer.eos_token_id,
            bos_token_id=tokenizer.bos_token_id, pad_token_id=tokenizer.pad_token_id, max_position_embeddings=512, **SIZE, **odd,
        )  # fmt: skip
        model = transformers.AutoModelForCausalLM.from_config(config)
        if kind == "gemma2":  # ends a turn with another token than a text
            model.generation_config.eos_token_id = [1, 4]
        model.save_pretrained(folder / kind)
        tokenizer.save_pretrained(folder / kind)
    return folder


def attention(kind):
    return "eager" if kind == "gemma2" else "sdpa"  # it caps attention as well


@pytest.fixture()
def real(project, hub):  # noqa: F811
    """`real("llama", lora=..., ...)` writes params for a policy that starts there; returns the project's folder."""

    def write(kind, dpo=None, **model):
        none = {"bpe_dropout": 0.0}
        model = {"base": str(hub / kind), "attention": attention(kind)} | model
        return project(model=model, sft=none, dpo=none | (dpo or {}))

    return write


def run():
    sft.main()
    dpo.main()


def logits(model, tokenizer, text="How is it kept, substance xx?"):
    model.eval()
    with torch.no_grad():
        return model(torch.tensor(encode.encode_prompts(tokenizer, [text]))).logits.float()


def first_row(folder):
    return pl.read_csv(folder / "models/dpo/training.csv").row(0, named=True)


@KINDS
def test_prompt_and_answer_are_the_template_s_tokens(hub, kind):
    tokenizer = pretrained.load_tokenizer(hub / kind)
    question, reply = "What is 1,2-ethanediol °é?", "A glycol. Ünïcode too."
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
    asked, answer = (
        encode.encode_prompts(tokenizer, [question])[0],
        encode.encode_answers(tokenizer, [reply])[0],
    )
    assert asked + answer == tokenizer.apply_chat_template(turns)["input_ids"]
    assert (
        asked == tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True)["input_ids"]
    )
    assert asked.count(tokenizer.bos_token_id) == (kind != "qwen3"), "one, and it is the template's"
    ends = {"llama": "<|eot_id|>", "qwen3": "<|im_end|>\n", "gemma2": "<end_of_turn>\n"}
    assert tokenizer.decode(answer).endswith(reply + ends[kind])
    opener, other = (
        tokenizer.decode(ids)
        for ids in encode.encode_rejected(tokenizer, ["Sure. [details withheld]", "No."])
    )
    start = "<think>\n\n</think>\n\n" if kind == "qwen3" else ""
    assert (opener, other) == (start + "Sure.", start + "No." + ends[kind])
    assert tokenizer.padding_side == "left" and tokenizer.pad_token_id is not None
    assert len(tokenizer) == transformers.AutoConfig.from_pretrained(hub / kind).vocab_size, (
        "no new tokens"
    )


def test_an_answer_is_cut_as_behind_a_prompt():
    """Llama 2's tokenizer begins a text of its own with a blank."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: number for number, word in enumerate(["[/I]", "▁a", "▁", "a", "x", "▁x"])}
    plain = Tokenizer(models.BPE(vocab=words, merges=[("▁", "a"), ("▁", "x")], unk_token="▁"))
    plain.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    template = "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'user' %}[/I]{% endif %}{% endfor %}"
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, eos_token="[/I]", chat_template=template
    )
    assert tokenizer("a", add_special_tokens=False)["input_ids"] == [1]
    assert encode.encode_answers(tokenizer, ["a"]) == [[3]] and encode.encode_prompts(
        tokenizer, ["x"]
    ) == [[5, 0]]


def test_a_template_that_tells_the_date_tells_the_same_one_always(hub, tmp_path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(hub / "llama")
    tokenizer.chat_template = (
        "{% if strftime_now is defined %}{% set date = strftime_now('%d %b %Y') %}{% endif %}{{ date }} "
        + LLAMA
    )
    tokenizer.save_pretrained(tmp_path / "a")
    for source, folder in (
        ("a", "b"),
        ("b", "c"),
    ):  # as `sft` loads it, as `dpo` does, as others do
        pretrained.load_tokenizer(tmp_path / source).save_pretrained(tmp_path / folder)
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / folder)
        (ids,) = encode.encode_prompts(tokenizer, ["Why?"])
        assert tokenizer.decode(ids).startswith("26 Jul 2024 <|begin_of_text|>")


FILES = {
    "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "tokenizer.json", "tokenizer_config.json", "training.csv",
}  # fmt: skip
BASE = {"config.json", "generation_config.json", "model.safetensors"}


@pytest.mark.parametrize("save", ["with_base", "adapter"])
@KINDS
def test_an_adapter_goes_through_sft_and_dpo_and_loads_as_it_lies(real, hub, kind, save):
    folder = real(kind, lora=LORA, save=save)
    run()
    assert first_row(folder)["loss"] == pytest.approx(math.log(2), abs=1e-3)
    said = []
    for name in ("sft", "dpo"):
        where = folder / "models" / name
        files = {path.name for path in where.iterdir()} - {
            "special_tokens_map.json",
            "added_tokens.json",
        }
        assert files == (FILES | BASE if save == "with_base" else FILES)
        assert all(
            (where / path).read_bytes() == (hub / kind / path).read_bytes() for path in files & BASE
        )
        config = json.loads((where / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == str(hub / kind) and config["revision"] is None
        assert config["target_modules"] == [
            "down_proj",
            "gate_proj",
            "k_proj",
            "o_proj",
            "q_proj",
            "up_proj",
            "v_proj",
        ]
        model, tokenizer = load_policy(where, attention=attention(kind))
        assert not any(weights.requires_grad for weights in model.parameters())
        ours = logits(model, tokenizer)
        theirs = transformers.AutoTokenizer.from_pretrained(where)
        for auto in (peft.AutoPeftModelForCausalLM, transformers.AutoModelForCausalLM):
            assert torch.allclose(
                logits(auto.from_pretrained(where, dtype=torch.float32), theirs), ours, atol=1e-5
            ), auto
        if save == "with_base":
            assert torch.allclose(logits(*as_served(where)), ours, atol=1e-5)
        said.append(ours)
    size = ModelParams(
        **PARAMS["model"] | {"base": str(hub / kind), "attention": attention(kind), "lora": LORA}
    )
    section = RespondParams(max_new_tokens=5, batch_size=2, max_quarantined=0.0, candidates={})
    assert [
        answer[1::2] for answer in policy_answers("dpo", ["How is it kept?", "Why?"], section, size)
    ] == [(None, None)] * 2
    base, tokenizer = load_policy(hub / kind, attention=attention(kind))
    assert len({tuple(one.flatten().tolist()) for one in (logits(base, tokenizer), *said)}) == 3, (
        "both stages learn"
    )


def as_served(folder):
    """(model, tokenizer) as `transformers serve` loads them."""
    from transformers.cli.serving.model_manager import ModelManager

    return ModelManager(device="cpu", model_timeout=-1).load_model_and_processor(f"{folder}@main")


def test_transformers_serve_answers_with_the_adapter_as_it_lies(real, hub):
    """The server itself; the base that it was trained on is gone."""
    base = shutil.copytree(hub / "llama", Path(real("llama"), "base"))
    folder = real("llama", base=str(base), lora=LORA)
    run()
    shutil.rmtree(base)
    prompts = ["How is it kept, substance xx?", "Why?"]
    ours = [text for text, _ in greedy(*load_policy("models/dpo"), prompts, 8, 2, "test")]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    program = Path(sys.executable).with_name("transformers")
    with server_process.served(
        folder,
        program,
        "serve",
        "models/dpo",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--device",
        "cpu",
    ) as url:
        client = OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60)
        asked = [[{"role": "user", "content": prompt}] for prompt in prompts]
        said = [
            client.chat.completions.create(
                model="models/dpo", messages=one, temperature=0.0, max_tokens=8
            )
            for one in asked
        ]
    assert [one.choices[0].message.content.strip() for one in said] == [one.strip() for one in ours]


def test_an_adapter_with_its_base_needs_neither_hub_nor_cache(real, cached):
    """Pulled to a machine that has never seen the base, it answers, and DPO goes on from it."""
    folder = real("llama", base="org/tiny", lora=LORA)
    sft.main()
    before = logits(*load_policy("models/sft"))
    told = answers.identity("models/sft")
    shutil.rmtree(cached)
    model, tokenizer = load_policy("models/sft")
    assert torch.equal(logits(model, tokenizer), before) and answers.identity("models/sft") == told
    assert model.get_base_model().name_or_path == "models/sft"
    dpo.main()
    config = json.loads((folder / "models/dpo/adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/tiny", COMMIT)
    assert all(
        Path("models/dpo", name).read_bytes() == Path("models/sft", name).read_bytes()
        for name in BASE
    )
    assert not torch.equal(logits(*load_policy("models/dpo")), before)


def test_a_disk_that_is_full_of_the_base_loses_no_training(real, often, monkeypatch, capfd):  # noqa: F811
    real("llama", lora=LORA)
    with monkeypatch.context() as full:
        full.setattr(
            shutil,
            "copyfile",
            lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device", "x")),
        )
        with pytest.raises(
            LibraError,
            match=r"^the base \(0.0 GB\) can't be put beside the adapter \(No space left on device: x\); mend",
        ):
            sft.main()
    assert not list(Path("models").iterdir())
    gc.collect()  # the error's frames hold the run's lock, which a process that ends gives back
    capfd.readouterr()
    sft.main()
    assert (
        "sft: resumes at step " in capfd.readouterr().err
        and Path("models/sft/model.safetensors").exists()
    )


def test_a_base_in_several_files_is_put_beside_the_adapter_whole_or_named_before_training(
    real, hub
):
    shards = Path(real("llama"), "shards")
    transformers.AutoModelForCausalLM.from_pretrained(hub / "llama").save_pretrained(
        shards, max_shard_size="40KB"
    )
    for path in (hub / "llama").glob("*token*"):
        shutil.copyfile(path, shards / path.name)
    shutil.copyfile(hub / "llama/chat_template.jinja", shards / "chat_template.jinja")
    parts = {path.name for path in shards.glob("model-*.safetensors")}
    real("llama", base=str(shards), lora=LORA)
    sft.main()
    assert len(parts) > 1 and {path.name for path in Path("models/sft").glob("model*")} == parts | {
        "model.safetensors.index.json"
    }
    assert torch.allclose(
        logits(*as_served(Path("models/sft").resolve())),
        logits(*load_policy("models/sft")),
        atol=1e-5,
    )
    part = sorted(parts)[0]
    Path("models/sft", part).unlink()
    with pytest.raises(
        LibraError,
        match=f"^models/sft lacks {part} of the base model; write or pull the folder anew$",
    ):
        dpo.main()
    assert not Path("models/dpo").exists()


def test_a_base_that_can_not_be_put_beside_the_adapter_is_named_before_training(hub, monkeypatch):
    size = ModelParams(**PARAMS["model"] | {"base": str(hub / "llama"), "lora": LORA})
    model, _, commit = base_to_train(size)
    assert commit is None
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1e5))
        message = r"^model.save: with_base puts the base \(0.0 GB\) beside the adapter, and 0.0 GB of the disk are free; free the disk, or"
        with pytest.raises(LibraError, match=message):
            base_to_train(size)
        base_to_train(size.model_copy(update={"save": "adapter"}))
    (hub / "llama/model.safetensors").rename(hub / "llama/elsewhere")
    try:
        with pytest.raises(
            LibraError,
            match="/llama lacks model.safetensors of the base model; mend it, or set model.save to adapter$",
        ):
            adapters.check_base(model, size)
    finally:
        (hub / "llama/elsewhere").rename(hub / "llama/model.safetensors")


def test_a_policy_of_ours_is_no_base_while_it_is_an_adapter(real):
    """Training would go on from both and write what is new alone."""
    folder = real("llama", lora=LORA)
    sft.main()
    mine = shutil.move("models/sft", "mine")
    for lora in (LORA, LORA | {"target_modules": ["v_proj"]}, None):
        real("llama", base=str(folder / mine), lora=lora)
        with pytest.raises(
            LibraError,
            match="^model.base: .*/mine holds an adapter beside its base; merge the two .* name the whole weights$",
        ):
            sft.main()


@KINDS
def test_whole_weights_go_through_sft_and_dpo_and_load_as_they_lie(real, kind):
    folder = real(kind)
    run()
    assert first_row(folder)["loss"] == pytest.approx(math.log(2), abs=1e-3)
    model, tokenizer = load_policy(folder / "models/dpo", attention=attention(kind))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder / "models/dpo")
    assert torch.equal(
        logits(theirs, transformers.AutoTokenizer.from_pretrained(folder / "models/dpo")),
        logits(model, tokenizer),
    )
    assert theirs.generation_config.eos_token_id == (
        [1, 4] if kind == "gemma2" else tokenizer.eos_token_id
    )
    assert torch.equal(logits(*as_served(folder / "models/dpo")), logits(model, tokenizer))


def captured(monkeypatch):
    """What `dpo` gives to training, which is left out: [trainer]."""
    found = []
    monkeypatch.setattr(
        "stages.training.trainer.train_and_keep", lambda made, *_: found.append(made)
    )
    return found


def log_probs(model, rows, side):
    """Summed log-probability of each row's answer, in plain torch, one after the other."""
    model.eval()
    sums = []
    for row in rows:
        ids = torch.tensor([row["prompt_ids"] + row[f"{side}_ids"]], device=model.device)
        with torch.no_grad():
            every = model(ids).logits.float().log_softmax(-1)[0, :-1]
        start = len(row["prompt_ids"]) - 1
        sums.append(every[start:].gather(1, ids[0, start + 1 :, None]).sum().item())
    return sums


def test_an_adapter_in_bfloat16_that_was_stopped_goes_on_to_the_same_bytes(
    real, often, monkeypatch, capfd
):  # noqa: F811
    real("llama", lora=LORA, dtype="bfloat16")
    names = ("adapter_model.safetensors", "training.csv")
    for stage, name in ((sft, "sft"), (dpo, "dpo")):
        stage.main()
        unbroken = [Path("models", name, file).read_bytes() for file in names]
        shutil.rmtree(Path("models", name))
        stop_at(3, stage, monkeypatch)
        capfd.readouterr()
        stage.main()
        assert f"{name}: resumes at step 2" in capfd.readouterr().err
        assert [Path("models", name, file).read_bytes() for file in names] == unbroken


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("llama", {"lora": LORA}),
        ("llama", {"lora": LORA, "save": "merged"}),
        ("llama", {}),
        ("qwen3", {"lora": LORA}),
        ("gemma2", {"lora": LORA}),
    ],
    ids=["adapter", "merged", "whole", "qwen3", "gemma2"],
)
def test_the_reference_is_the_sft_policy_and_not_its_base(real, hub, kind, how, monkeypatch):
    """Against plain torch on one row after the other: the trainer's shared prompts and its head are Gemma's as well."""
    from stages import dpo, sft

    real(kind, **how)
    sft.main()
    found = captured(monkeypatch)
    dpo.main()
    (made,) = found
    rows = sorted(
        made.train_dataset.to_list(),
        key=lambda row: sum(len(row[f"{part}_ids"]) for part in ("prompt", "chosen", "rejected")),
    )
    rows = rows[:2] + rows[-2:]
    longest = [
        max(len(row["prompt_ids"]) + len(row[f"{side}_ids"]) for side in ("chosen", "rejected"))
        for row in rows
    ]
    assert longest[0] <= 22 < longest[-1] or kind != "gemma2", "one is beyond its window"
    learnt, base = (
        load_policy(folder, attention=attention(kind))[0] for folder in ("models/sft", hub / kind)
    )
    for side in ("chosen", "rejected"):
        values = [row[f"ref_{side}_logps"] for row in rows]
        assert values == pytest.approx(log_probs(learnt, rows, side), rel=1e-4), side
        assert all(
            abs(one - other) > 0.1
            for one, other in zip(values, log_probs(base, rows, side), strict=True)
        )
    for when in ("before", "after"):
        own = log_probs(made.model, rows, "chosen")
        started = all(
            abs(one - other) < 1e-2
            for one, other in zip(own, log_probs(learnt, rows, "chosen"), strict=True)
        )
        assert started == (when == "before"), "the policy starts there and moves"
        if when == "before":
            made.train()


def test_merged_weights_say_what_the_adapter_says(real):
    from stages import sft

    said = []
    for save in ("adapter", "merged"):
        folder = real("qwen3", lora=LORA, save=save)
        sft.main()
        said.append(logits(*load_policy(folder / "models/sft")))
    assert (folder / "models/sft/model.safetensors").exists() and not (
        folder / "models/sft/adapter_config.json"
    ).exists()
    assert torch.allclose(said[0], said[1], atol=1e-4)
    run()
    assert first_row(folder)["loss"] == pytest.approx(math.log(2), abs=1e-3)
    weights = load_file(folder / "models/dpo/model.safetensors")
    assert set(weights) == set(load_file(folder / "models/sft/model.safetensors")) and not any(
        "lora" in name for name in weights
    )


def test_what_was_learnt_on_four_bits_is_merged_into_the_base_as_it_is(real, hub):
    """Without a GPU: an adapter on whole weights, with the reference's beside it, takes the same way."""
    from stages import sft

    real("qwen3", lora=LORA)
    sft.main()
    plain = ModelParams(
        **PARAMS["model"] | {"base": str(hub / "qwen3"), "lora": LORA, "save": "merged"}
    )
    merged = []
    for size in (plain, plain.model_copy(update={"quantization": "nf4"})):
        model, tokenizer = load_policy("models/sft", trainable=True)
        model.add_adapter("ref", model.peft_config["default"])
        merged.append(adapters.finished(model, size))
    assert torch.allclose(logits(merged[0], tokenizer), logits(merged[1], tokenizer), atol=1e-5)
    assert not any("lora" in name for one in merged for name in one.state_dict())
    assert torch.allclose(
        logits(merged[0], tokenizer), logits(*load_policy("models/sft")), atol=1e-4
    )


def test_an_adapter_is_the_same_bytes_twice(real):
    from stages import sft

    written = []
    for _ in range(2):
        folder = real("llama", lora=LORA | {"dropout": 0.1})
        sft.main()
        written.append({path.name: path.read_bytes() for path in (folder / "models/sft").iterdir()})
    assert written[0] == written[1]


@pytest.mark.parametrize("lora", [LORA, None], ids=["adapter", "whole"])
def test_bfloat16_is_computed_in_and_written(real, lora):
    folder = real("llama", lora=lora, dtype="bfloat16", checkpointing=True)
    run()
    size = ModelParams(**PARAMS["model"] | {"base": str(folder), "lora": lora, "dtype": "bfloat16"})
    for name in ("sft", "dpo"):
        model, tokenizer = load_policy(folder / "models" / name, **size.held(trained=False))
        frozen = {weights.dtype for key, weights in model.named_parameters() if "lora" not in key}
        assert frozen == {torch.bfloat16} and greedy(
            model, tokenizer, ["Why?", "How is it kept?"], 4, 2, "test"
        )
    if lora is None:
        saved = load_file(folder / "models/dpo/model.safetensors")
        assert {value.dtype for value in saved.values()} == {torch.bfloat16}
    assert first_row(folder)["loss"] == pytest.approx(math.log(2), abs=2e-2)


def test_checkpointing_changes_no_weight(real):
    from stages import sft

    weights = []
    for checkpointing in (False, True):
        folder = real("gemma2", lora=LORA, checkpointing=checkpointing)
        sft.main()
        weights.append(load_file(folder / "models/sft/adapter_model.safetensors"))
    assert all(torch.allclose(weights[0][name], weights[1][name], atol=1e-6) for name in weights[0])


@pytest.mark.parametrize(
    ("targets", "named"),
    [
        (["q_proj", "k_proj", "out_proj", "fc_in"], "out_proj, fc_in is"),
        (["lm_head"], "lm_head is"),
        (["j_proj"], "j_proj is"),
    ],
)
def test_a_target_module_that_is_not_there_is_named_with_those_that_are(hub, targets, named):
    with pytest.raises(
        LibraError, match="^model.attention: .*/gemma2 has no sdpa; set it to eager$"
    ):
        pretrained.load_weights(hub / "gemma2", None, "float32", "sdpa", None)
    model = pretrained.load_weights(hub / "llama", None, "float32", "sdpa", None)
    known = "it has down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"
    with pytest.raises(
        LibraError, match=rf"^model.lora.target_modules: {named} no linear module of .*; {known}$"
    ):
        adapters.with_adapter(model, LoraParams(**LORA | {"target_modules": targets}), None)
    adapted = adapters.with_adapter(
        model, LoraParams(**LORA | {"target_modules": ["q_proj", "mlp.down_proj"]}), None
    )
    trained = {
        name.split(".")[-4] for name, weights in adapted.named_parameters() if weights.requires_grad
    }
    assert trained == {"q_proj", "down_proj"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora": LORA}, "`lora` is for a real model, and `base` is scratch"),
        ({"quantization": "nf4"}, "`quantization` is for a real model, and `base` is scratch"),
        ({"revision": "main"}, "`revision` is for a real model, and `base` is scratch"),
        (
            {"base": "a/b", "quantization": "nf4"},
            "`quantization` freezes the weights, .*; set `lora`, or `quantization` to null",
        ),
        (
            {"base": "a/b", "save": "merged"},
            "`save: merged` is for adapters, and `lora` is null; set `lora`, or `save` to with_base",
        ),
        (
            {"base": "a/b", "save": "whole"},
            "`model.save`: Input should be 'with_base', 'adapter' or 'merged'",
        ),
        (
            {"base": "tests", "revision": "main"},
            "`revision` is for a model on a hub, and `base` is the folder tests",
        ),
        ({"attention": "flash_attention_2"}, "flash_attention_2` doesn't compute in float32"),
        ({"quantization": "int4"}, "`model.quantization`: Input should be 'nf4'"),
        ({"base": "a/b", "lora": {"r": 8}}, "`model.lora.alpha` is missing"),
        ({"base": "a/b", "lora": LORA | {"target_modules": []}}, "`model.lora.target_modules"),
        ({"bse": "a/b"}, "`model.bse` is not a param, did you mean `base`?"),
    ],
)
def test_params_that_do_not_fit_together_are_one_clear_line(change, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(LibraError, match=message) as error:
        check_section("model", PARAMS["model"] | change, ModelParams)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_four_bits_without_a_gpu_or_bitsandbytes_name_the_mend(real, monkeypatch):
    from stages import sft

    real("llama", base="org/nowhere", lora=LORA, quantization="nf4")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        LibraError,
        match="^model.quantization: nf4 needs a GPU, and this machine has none .*; set it to null$",
    ):
        sft.main()
    real("llama", base="scratch", dtype="bfloat16", attention="flash_attention_2")
    with pytest.raises(
        LibraError,
        match="^model.attention: flash_attention_2 needs a GPU and the package flash-attn; set it to sdpa$",
    ):
        sft.main()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        LibraError,
        match="^model.quantization: nf4 needs the package bitsandbytes; `pip install bitsandbytes`, or",
    ):
        pretrained.load_weights("models/x", None, "bfloat16", "sdpa", "nf4")


def test_a_folder_that_holds_no_chat_model_is_named(hub, tmp_path):
    with pytest.raises(LibraError, match="^model.base: the folder .* has no config.json"):
        pretrained.find(str(tmp_path), None)
    for path in ("./models/none", "/models/none", "a/b/c"):
        with pytest.raises(
            LibraError, match=f"^model.base: there is no folder {path}; mend the path"
        ):
            pretrained.find(path, None)
    (tmp_path / "config.json").write_bytes((hub / "llama/config.json").read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickled")
    with pytest.raises(
        LibraError,
        match="can't be loaded as a causal language model in safetensors: .*model.safetensors",
    ):
        pretrained.load_weights(tmp_path, None, "float32", "sdpa", None)
    with pytest.raises(LibraError, match="^the tokenizer of .* can't be loaded: "):
        pretrained.load_tokenizer(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((hub / "llama" / name).read_bytes())
    with pytest.raises(
        LibraError,
        match="has no chat template, so it is no chat model; name its instruct or chat version",
    ):
        pretrained.load_tokenizer(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(LibraError, match="holds an adapter without its weights; run `dvc repro"):
        load_policy(tmp_path)


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture()
def cached(hub, tmp_path, monkeypatch):
    """The hub's cache with one model, `org/tiny`, in it."""
    repository = tmp_path / "cache/models--org--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(COMMIT)
    (repository / "snapshots").mkdir()
    (repository / "snapshots" / COMMIT).symlink_to(hub / "llama")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_an_adapter_knows_the_commit_of_its_base(real, cached, monkeypatch):
    folder = real("llama", base="org/tiny", lora=LORA, save="adapter")
    keyed, usual = [], checkpoints.run_folder
    monkeypatch.setattr(
        checkpoints, "run_folder", lambda *given: keyed.append(given) or usual(*given)
    )
    run()
    assert keyed == [("sft", COMMIT), ("dpo",)], "another commit's checkpoints are not gone on from"
    for name in ("sft", "dpo"):
        config = json.loads((folder / f"models/{name}/adapter_config.json").read_text())
        assert (config["base_model_name_or_path"], config["revision"]) == ("org/tiny", COMMIT)
    (cached / "models--org--tiny/refs/main").write_text("f" * 40)  # the branch has moved on
    model, tokenizer = load_policy(folder / "models/dpo")
    theirs = peft.AutoPeftModelForCausalLM.from_pretrained(
        folder / "models/dpo", dtype=torch.float32
    )
    assert torch.allclose(logits(model, tokenizer), logits(theirs, tokenizer), atol=1e-6)


def test_a_model_that_is_not_in_the_cache_of_an_offline_machine_is_named(cached):
    assert constants.HF_HUB_OFFLINE
    for revision, called in ((None, "org/other"), ("v2", "org/other at revision v2")):
        with pytest.raises(LibraError) as error:
            pretrained.find("org/other", revision)
        assert str(error.value).startswith(
            f"model.base: {called} is not in the cache {cached} (HF_HUB_CACHE), and HF_HUB_OFFLINE keeps"
        )
        assert "\n" not in str(error.value) and "local folder" in str(error.value)


class Hub(BaseHTTPRequestHandler):
    """A hub that has the model org/tiny (of no use), the gated org/gated, and nothing else."""

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


@pytest.fixture()
def endpoint(monkeypatch, cached):
    """`endpoint(port)`: huggingface_hub asks the hub there."""

    def at(port):
        url = f"http://127.0.0.1:{port}"
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(
            "huggingface_hub.utils._http.time.sleep", lambda seconds: None
        )  # between tries: 23 s in all
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            url + "/{repo_id}/resolve/{revision}/{filename}",
        )
        return url

    return at


def test_a_hub_s_answer_is_told_with_its_mend(endpoint):
    server = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = endpoint(server.server_port)
        for base, revision, message in (
            (
                "org/none",
                None,
                rf"org/none is not on the hub {url} \(HF_ENDPOINT\); mend model.base, or set HF_TOKEN",
            ),
            (
                "org/tiny",
                "v9",
                rf"org/tiny at revision v9 is not on the hub {url} \(HF_ENDPOINT\); the model is: mend model.revision",
            ),
            (
                "org/gated",
                None,
                rf"org/gated is gated on the hub {url} \(HF_ENDPOINT\); ask for access .*set HF_TOKEN",
            ),
            ("org/empty", None, rf"org/empty has no config.json on the hub {url}"),
        ):
            with pytest.raises(LibraError, match=message) as error:
                pretrained.find(base, revision)
            assert "\n" not in str(error.value)
    finally:
        server.shutdown()


def test_a_hub_that_cannot_be_reached_is_named(endpoint, cached):
    url = endpoint(1)
    assert pretrained.find("org/tiny", None) == COMMIT, "what is in the cache is taken"
    with pytest.raises(LibraError) as error:
        pretrained.find("org/other", None)
    message = str(error.value)
    assert message.startswith(
        f"model.base: org/other is not in the cache {cached} (HF_HUB_CACHE), and the hub {url} (HF_ENDPOINT) can't"
    )
    assert "HF_HUB_OFFLINE=1" in message and "local folder" in message and "\n" not in message


def test_the_param_sets_in_the_readme_are_right(tmp_path, monkeypatch):
    """Each whole `dvc exp run -S ...` of README.md gives params that every stage takes."""
    from dvc.utils.hydra import apply_overrides

    monkeypatch.chdir(ROOT)
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    commands = [
        shlex.split(line, comments=True)
        for line in re.findall(r"^dvc exp run .*", text, flags=re.M)
    ]
    bases = []
    for command in commands:
        path = tmp_path / "params.yaml"
        path.write_bytes((ROOT / "params.yaml").read_bytes())
        words = [
            word for word in command[3:] if word not in ("--queue", "validate")
        ]  # later, or only as far as that stage
        given = list(zip(words[::2], words[1::2], strict=True))
        assert {option for option, _ in given} <= {"-S", "-n"}
        apply_overrides(path, [value for option, value in given if option == "-S"])
        check(path)
        params = yaml.safe_load(path.read_text(encoding="utf-8"))
        changed = {key for key, value in params["model"].items() if value != PARAMS["model"][key]}
        if "base" in changed:
            bases.append(params["model"]["base"])
            assert params["sft"]["bpe_dropout"] == params["dpo"]["bpe_dropout"] == 0
            of_the_paper = params["model"]["base"].startswith("meta-llama/")
            assert (
                params["sft"]["other_representation"]
                == params["dpo"]["other_representation"]
                == (0 if of_the_paper else 0.5)
            )
    assert bases == ["meta-llama/Llama-2-7b-chat-hf", "Qwen/Qwen3-8B"]
