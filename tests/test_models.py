"""Policies from three architectures through `sft` and `dpo`: weights, reference, precision."""

import math
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from helpers.tiny_hub import (
    LORA,
    TOKENIZERS,
    attention,
    first_row,
    load_as_served,
    logits,
    policies_from,
    write_models,
)
from helpers.tiny_training import PARAMS, training_project
from stages import dpo, sft
from stages.local.generate import greedy
from stages.respond import RespondParams, policy_answers
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


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_whole_weights_go_through_sft_and_dpo_and_load_as_written(pretrained_project, kind):
    folder = pretrained_project(kind)
    sft.main()
    dpo.main()
    assert first_row(folder)["loss"] == pytest.approx(math.log(2), abs=1e-3)
    policy = folder / "models/dpo"
    model, tokenizer = load_policy(policy, attention=attention(kind))
    ours = logits(model, tokenizer)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(policy)
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(policy)
    assert torch.equal(logits(theirs, their_tokenizer), ours)
    assert torch.equal(logits(*load_as_served(policy)), ours)
    ends = [1, 4] if kind == "gemma2" else tokenizer.eos_token_id
    assert theirs.generation_config.eos_token_id == ends


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_respond_asks_a_policy_with_an_adapter(pretrained_project, hub, kind):
    pretrained_project(kind, lora=LORA)
    sft.main()
    changes = {"base": str(hub / kind), "attention": attention(kind), "lora": LORA}
    model_params = ModelParams(**PARAMS["model"] | changes)
    section = RespondParams(max_new_tokens=5, batch_size=2, max_quarantined=0.0, candidates={})
    rows = policy_answers("sft", ["How is it kept?", "Why?"], section, model_params)
    assert len(rows) == 2
    for answer, reasoning, finish_reason, error in rows:
        assert isinstance(answer, str) and finish_reason in ("stop", "length")
        assert reasoning is error is None


def log_probs(model, rows, side: str) -> list[float]:
    """Summed log-probability of each row's answer, in plain torch, one after the other."""
    model.eval()
    sums = []
    for row in rows:
        ids = torch.tensor([row["prompt_ids"] + row[f"{side}_ids"]], device=model.device)
        with torch.no_grad():
            log_softmax = model(ids).logits.float().log_softmax(-1)[0, :-1]
        start = len(row["prompt_ids"]) - 1
        of_answer = log_softmax[start:].gather(1, ids[0, start + 1 :, None])
        sums.append(of_answer.sum().item())
    return sums


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("llama", {"lora": LORA}),
        ("llama", {"lora": LORA, "save": "merged"}),
        ("llama", {}),
        ("qwen3", {"lora": LORA}),
        ("gemma2", {"lora": LORA}),
    ],
    ids=["adapter", "merged", "whole", "qwen3", "gemma2"],
)
def test_the_reference_is_the_sft_policy_and_not_its_base(
    pretrained_project, hub, kind, options, monkeypatch
):
    """Compared with plain torch on one row after the other.

    The trainer's packed prompts and its head must be right for Gemma too.
    """
    pretrained_project(kind, **options)
    sft.main()
    trainers = []
    monkeypatch.setattr(
        "stages.training.trainer.train_and_save", lambda trainer, *_: trainers.append(trainer)
    )
    dpo.main()
    (trainer,) = trainers

    def length(row, *parts):
        return sum(len(row[f"{part}_ids"]) for part in ("prompt", *parts))

    rows = trainer.train_dataset.to_list()
    rows = sorted(rows, key=lambda row: length(row, "chosen", "rejected"))
    rows = rows[:2] + rows[-2:]
    longest = [max(length(row, "chosen"), length(row, "rejected")) for row in rows]
    if kind == "gemma2":
        assert longest[0] <= 22 < longest[-1], "one is beyond its window"

    learnt, base = (
        load_policy(folder, attention=attention(kind))[0] for folder in ("models/sft", hub / kind)
    )
    for side in ("chosen", "rejected"):
        values = [row[f"ref_{side}_logps"] for row in rows]
        assert values == pytest.approx(log_probs(learnt, rows, side), rel=1e-4), side
        of_base = zip(values, log_probs(base, rows, side), strict=True)
        assert all(abs(value - other) > 0.1 for value, other in of_base)

    start = pytest.approx(log_probs(learnt, rows, "chosen"), abs=1e-2)
    assert log_probs(trainer.model, rows, "chosen") == start
    trainer.train()
    assert log_probs(trainer.model, rows, "chosen") != start, "the policy moves"


@pytest.mark.parametrize("lora", [LORA, None], ids=["adapter", "whole"])
def test_bfloat16_is_computed_in_and_written(pretrained_project, lora):
    folder = pretrained_project("llama", lora=lora, dtype="bfloat16", checkpointing=True)
    sft.main()
    dpo.main()
    changes = {"base": str(folder), "lora": lora, "dtype": "bfloat16"}
    model_params = ModelParams(**PARAMS["model"] | changes)
    for name in ("sft", "dpo"):
        load_kwargs = model_params.load_kwargs(trained=False)
        model, tokenizer = load_policy(folder / "models" / name, **load_kwargs)
        dtypes = {values.dtype for key, values in model.named_parameters() if "lora" not in key}
        assert dtypes == {torch.bfloat16}
        assert greedy(model, tokenizer, ["Why?", "How is it kept?"], 4, 2, "test")
    if lora is None:
        saved = load_file(folder / "models/dpo/model.safetensors")
        assert {values.dtype for values in saved.values()} == {torch.bfloat16}
    assert first_row(folder)["loss"] == pytest.approx(math.log(2), abs=2e-2)


def test_activation_checkpointing_changes_no_weight(pretrained_project):
    weights = []
    for checkpointing in (False, True):
        folder = Path(pretrained_project("gemma2", lora=LORA, checkpointing=checkpointing))
        sft.main()
        weights.append(load_file(folder / "models/sft/adapter_model.safetensors"))
    plain, checkpointed = weights
    for name, values in plain.items():
        assert torch.allclose(values, checkpointed[name], atol=1e-6), name
