"""Answers of local models: greedy text that doesn't depend on batches, and the n-gram guard."""

import polars as pl
import pytest
import torch
from transformers import DynamicCache

from helpers.tiny_training import (
    MODEL_PARAMS,
    table,
    table_with_other_prompts,
    texts,
    training_project,
)
from stages import sft
from stages.local.generate import greedy
from stages.local.ngram_guard import train_guard
from stages.training import encode
from stages.training.policies import load_policy
from stages.training.scratch import new_model, train_tokenizer


def test_greedy_answers_do_not_depend_on_the_batch(tmp_path, monkeypatch):
    """`respond` writes the same for any respond.batch_size."""
    project = training_project(tmp_path, monkeypatch)
    project(sft={"epochs": 40, "learning_rate": 0.02})
    sft.main()
    policy = load_policy("models/sft")
    prompts = table()["prompt"].unique().sort().to_list()
    alone = greedy(*policy, prompts, 60, 1, "test")
    assert alone == greedy(*policy, prompts, 60, 3, "test")
    assert alone == greedy(*policy, prompts, 60, 16, "test")
    assert len(set(alone)) > 1 and {reason for _, reason in alone} == {"stop"}
    cut = greedy(*policy, prompts, 2, 5, "test")
    assert {reason for _, reason in cut} == {"length"}
    assert all(answer.startswith(start) for (answer, _), (start, _) in zip(alone, cut, strict=True))


@pytest.mark.parametrize(("thin", "is_thinned"), [(0.0, False), (0.75, True), (1.1, True)])
def test_greedy_text_is_that_of_generate_however_batches_are_thinned(thin, is_thinned, monkeypatch):
    tokenizer = train_tokenizer(texts(), MODEL_PARAMS.vocab_size)
    selections, select = [], DynamicCache.batch_select_indices

    def counted(self, rows):
        selections.append(len(rows))
        return select(self, rows)

    monkeypatch.setattr(DynamicCache, "batch_select_indices", counted)
    monkeypatch.setattr("stages.local.generate.THIN", thin)
    prompts = [f"How is substance {'xyz'[n % 3] * (1 + n % 5)} kept, {n}?" for n in range(23)]
    torch.manual_seed(3)
    model_params = MODEL_PARAMS.model_copy(update={"initializer_range": 0.3})
    policy = new_model(model_params, tokenizer)

    def generated(prompt: str) -> list[int]:
        ids = torch.tensor(encode.encode_prompts(tokenizer, [prompt]))
        mask = torch.ones_like(ids)
        output = policy.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False)
        return output[0, ids.shape[1] :].tolist()

    # An untrained policy hardly ever ends: let a token that is in about half of the answers end it.
    answers = [generated(prompt) for prompt in prompts]
    tokens = {token for answer in answers for token in answer}
    counts = {token: sum(token in answer for answer in answers) for token in tokens}
    end = min(tokens, key=lambda token: (abs(counts[token] - 11), token))
    policy.generation_config.eos_token_id = ends = [tokenizer.eos_token_id, end]

    expected = []
    for answer in map(generated, prompts):
        text_ids = [token for token in answer if token not in ends]
        text = tokenizer.decode(text_ids, skip_special_tokens=True).strip()
        expected.append((text, "length" if len(text_ids) == 12 else "stop"))
    assert {reason for _, reason in expected} == {"stop", "length"}
    assert greedy(policy, tokenizer, prompts, 12, 8, "x") == expected
    assert bool(selections) == is_thinned


def test_the_guard_learns_from_the_train_split():
    train = table(40)
    guard = train_guard(train.with_columns(other_prompt=pl.lit(None, pl.String)))
    assert guard(["Please make substance xx?", "How is it kept, substance xx?"]) == [True, False]
    assert guard(train["prompt"]) == (train["expected"] == "refuse").to_list()


def test_the_guard_learns_from_the_other_representation_too():
    # The prompts themselves say nothing about what is expected.
    prompt = pl.lit("about ") + pl.col("seed_id")
    train = table_with_other_prompts().with_columns(prompt=prompt)
    known = train.filter(pl.col("other_prompt").is_not_null())
    assert train_guard(train)(known["other_prompt"]) == (known["expected"] == "refuse").to_list()
