"""Released triplets as what TRL's trainers take: token ids, in the order they are to be trained on."""

import random

import polars as pl

from stages.common.errors import LibraError
from stages.common.tables import read_table
from stages.training.encode import BpeDropout, encode_answers, encode_prompts, encode_rejected, length_grouped

COLUMNS = ["seed_id", "prompt_id", "chosen_id", "rejected_id", "prompt", "chosen", "rejected"]


def triplets(split: str) -> pl.DataFrame:
    """The released triplets of `split`. Raises LibraError when the file, a column or all rows are missing."""
    return read_table(f"data/librachemqa/{split}.parquet", COLUMNS)


def sft_rows(
    table: pl.DataFrame,
    tokenizer,
    epochs: int,
    batch_size: int,
    max_length: int,
    prompt_loss: float,
    bpe_dropout: float,
    random_seed: int,
):
    """A `datasets.Dataset` of `input_ids` and `labels`: every prompt once an epoch, each time with another chosen answer.

    Of the prompt's tokens a random share `prompt_loss` is labelled, which weighs its loss that low on average and leaves the
    trainer as it is; the answer's tokens are all labelled. With `bpe_dropout` a prompt is segmented anew each epoch. Rows
    stand in training order, batches of similar length.
    Raises LibraError when a prompt alone fills `max_length` tokens.
    """
    pairs = table.unique(["prompt_id", "chosen_id"]).sort("prompt_id", "chosen_id")
    prompts = pairs.unique("prompt_id").sort("prompt_id")
    prompt_ids = _Prompts(prompts, tokenizer, bpe_dropout, max_length)
    answers = pairs.unique("chosen_id").sort("chosen_id")
    answer_ids = dict(zip(answers["chosen_id"], encode_answers(tokenizer, answers["chosen"].to_list()), strict=True))
    options = pairs.group_by("prompt_id", maintain_order=True).agg("chosen_id").rows()
    rows = []
    for epoch in range(epochs):
        rng = random.Random(f"sft:{random_seed}:{epoch}")
        shown = []
        for number, (prompt, chosen) in enumerate(options):
            answer = answer_ids[chosen[(number + epoch) % len(chosen)]]
            shown.append((prompt_ids.ids(prompt, rng, len(answer)), answer))
        for i in length_grouped([len(asked) + len(answer) for asked, answer in shown], batch_size, rng):
            asked, answer = shown[i]
            labels = [token if rng.random() < prompt_loss else -100 for token in asked] + answer
            rows.append({"input_ids": asked + answer, "labels": labels})
    return _dataset(rows, max_length)


def dpo_rows(
    table: pl.DataFrame, tokenizer, epochs: int, batch_size: int, max_length: int, bpe_dropout: float, random_seed: int
):
    """A `datasets.Dataset` of `prompt_ids`, `chosen_ids`, `rejected_ids` in training order, batches of similar length.

    Every prompt once an epoch, each time with the next of its triplets (after the last the first again), so that chosen and
    rejected answers both vary. With `bpe_dropout` a prompt is segmented anew each epoch, alike for both answers and the
    reference. Raises LibraError when a prompt alone fills `max_length` tokens.
    """
    table = table.sort("prompt_id", "chosen_id", "rejected_id")
    text = {}
    prompts = _Prompts(table.unique("prompt_id").sort("prompt_id"), tokenizer, bpe_dropout, max_length)
    for role, encode in (("chosen", encode_answers), ("rejected", encode_rejected)):
        unique = table.unique(f"{role}_id").sort(f"{role}_id")
        text[role] = dict(zip(unique[f"{role}_id"], encode(tokenizer, unique[role].to_list()), strict=True))
    options = table.group_by("prompt_id", maintain_order=True).agg("chosen_id", "rejected_id").rows()
    rows = []
    for epoch in range(epochs):
        rng = random.Random(f"dpo:{random_seed}:{epoch}")
        shown = []
        for number, (prompt, chosen, rejected) in enumerate(options):
            i = (number + epoch) % len(chosen)
            answers = {"chosen_ids": text["chosen"][chosen[i]], "rejected_ids": text["rejected"][rejected[i]]}
            shown.append({"prompt_ids": prompts.ids(prompt, rng, max(map(len, answers.values()))), **answers})
        lengths = [sum(map(len, row.values())) for row in shown]  # the prompt stands once before both answers
        rows += [shown[i] for i in length_grouped(lengths, batch_size, rng)]
    return _dataset(rows, max_length)


class _Prompts:
    """Token ids of prompts by prompt_id. Raises LibraError when one alone fills `max_length` tokens."""

    def __init__(self, prompts: pl.DataFrame, tokenizer, bpe_dropout: float, max_length: int):
        texts, names = prompts["prompt"].to_list(), prompts["prompt_id"].to_list()
        self.texts, self.max_length = dict(zip(names, texts, strict=True)), max_length
        self.usual = dict(zip(names, encode_prompts(tokenizer, texts), strict=True))
        self.dropout = BpeDropout(tokenizer, bpe_dropout) if bpe_dropout else None
        longest = max(map(len, self.usual.values()))
        if longest >= max_length:
            raise LibraError(f"model.max_length is {max_length} tokens, but a prompt alone has {longest}; raise it")

    def ids(self, prompt_id: str, rng: random.Random, answer: int) -> list[int]:
        """Ids for use before an answer of `answer` tokens."""
        if self.dropout is None:
            return self.usual[prompt_id]
        return self.dropout.prompt(self.texts[prompt_id], rng, self.max_length - answer)


def _dataset(rows: list[dict], max_length: int):
    from datasets import Dataset

    over = sum(_length(row) > max_length for row in rows)
    if over:
        print(f"{over} of {len(rows)} rows are over model.max_length = {max_length} tokens and are cut at their end")
    return Dataset.from_list(rows)


def _length(row: dict) -> int:
    if "input_ids" in row:
        return len(row["input_ids"])
    return len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))
