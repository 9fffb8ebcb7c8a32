"""Released triplets as what TRL's trainers take: token ids, in the order they are to be trained on."""

import random
import re

import polars as pl

from stages.core.errors import LibraError
from stages.core.tables import read_table
from stages.training.encode import (
    BpeDropout,
    encode_answers,
    encode_prompts,
    encode_rejected,
    length_grouped,
)

COLUMNS = [
    "seed_id", "substance_id", "expected", "representation", "prompt_id", "chosen_id", "rejected_id", "prompt", "chosen", "rejected",
]  # fmt: skip
SUBSTANCES = "data/substances.parquet"


def triplets(split: str) -> pl.DataFrame:
    """The released triplets of `split`, and in `other_prompt` the prompt as it is with the substance's other representation.

    That is the SMILES for the name and the name for the SMILES; null where the substance has no SMILES. What answers a prompt answers the
    other one as well. Raises LibraError when a file, a column or all rows are missing.
    """
    table = read_table(f"data/librachemqa/{split}.parquet", COLUMNS)
    names = read_table(SUBSTANCES, ["substance_id", "name", "smiles"]).select(
        "substance_id", "name", "smiles"
    )
    prompts = table.unique("prompt_id").join(names, on="substance_id", how="left")
    others = {}
    for prompt_id, prompt, shown_as, name, smiles in prompts.select(
        "prompt_id", "prompt", "representation", "name", "smiles"
    ).iter_rows():
        if name and smiles:
            shown, other = (smiles, name) if shown_as == "smiles" else (name, smiles)
            others[prompt_id] = re.sub(
                rf"(?<!\w){re.escape(shown)}(?!\w)", lambda _, other=other: other, prompt
            )
    return table.with_columns(
        other_prompt=pl.col("prompt_id").replace_strict(
            others, default=None, return_dtype=pl.String
        )
    )


def sft_rows(
    table: pl.DataFrame,
    tokenizer,
    epochs: int,
    batch_size: int,
    max_length: int,
    random_seed: int,
    prompt_loss: float = 0.0,
    bpe_dropout: float = 0.0,
    other_representation: float = 0.0,
):
    """A `datasets.Dataset` of `input_ids` and `labels`, every prompt once an epoch, each time with another chosen answer; counts.

    Of the prompt's tokens a random share `prompt_loss` is labelled, which weighs its loss that low on average and leaves the
    trainer as it is; the answer's tokens are all labelled. With `bpe_dropout` a prompt is segmented anew each epoch, and a share
    `other_representation` of them, drawn anew as well, is asked with the substance's other representation. Rows stand in training
    order, batches of similar length. The counts: `rows`, `over_long` (more than `max_length` tokens: cut).
    Raises LibraError when a prompt alone fills `max_length` tokens.
    """
    pairs = table.unique(["prompt_id", "chosen_id"]).sort("prompt_id", "chosen_id")
    prompts = pairs.unique("prompt_id").sort("prompt_id")
    prompt_ids = _Prompts(prompts, tokenizer, bpe_dropout, other_representation, max_length)
    answers = pairs.unique("chosen_id").sort("chosen_id")
    answer_ids = dict(
        zip(
            answers["chosen_id"],
            encode_answers(tokenizer, answers["chosen"].to_list()),
            strict=True,
        )
    )
    options = pairs.group_by("prompt_id", maintain_order=True).agg("chosen_id").rows()
    rows = []
    for epoch in range(epochs):
        rng = random.Random(f"sft:{random_seed}:{epoch}")
        shown = []
        for number, (prompt, chosen) in enumerate(options):
            answer = answer_ids[chosen[(number + epoch) % len(chosen)]]
            shown.append((prompt_ids.ids(prompt, rng, len(answer)), answer))
        for i in length_grouped(
            [len(asked) + len(answer) for asked, answer in shown], batch_size, rng
        ):
            asked, answer = shown[i]
            labels = [token if rng.random() < prompt_loss else -100 for token in asked] + answer
            rows.append({"input_ids": asked + answer, "labels": labels})
    counts = {
        "rows": len(rows),
        "over_long": sum(len(row["input_ids"]) > max_length for row in rows),
    }
    return _dataset(rows, counts, "rows", max_length), counts


def dpo_rows(
    table: pl.DataFrame,
    tokenizer,
    epochs: range,
    batch_size: int,
    max_length: int,
    random_seed: int,
    bpe_dropout: float = 0.0,
    other_representation: float = 0.0,
    pairs: str = "matched",
    answers: int = 1,
):
    """A `datasets.Dataset` of `prompt_ids`, `chosen_ids`, `rejected_ids` in training order, and how many pairs were cut.

    Every prompt once in each of `epochs`, each time with the next `answers` of its triplets (after the last the first again), so that
    chosen and rejected answers both vary; an epoch's number decides which, and in what order. Their pairs: `matched`, as in the triplets; `grid`, every chosen with every rejected of them;
    `random`, `answers` pairs of any chosen with any rejected of the prompt. `batch_size` prompts of similar length follow each other. With
    `bpe_dropout` and `other_representation` a prompt is written anew each epoch (see `sft_rows`), alike for all answers and the reference. Pairs that are equal once cut at
    `max_length` teach nothing and are left out. The counts: `pairs`, `over_long` (tokens), `equal_when_cut`.
    Raises LibraError when a prompt alone fills `max_length` tokens, has fewer than `answers` triplets, or no pair is left.
    """
    table = table.sort("prompt_id", "chosen_id", "rejected_id")
    text = {}
    prompts = _Prompts(
        table.unique("prompt_id").sort("prompt_id"),
        tokenizer,
        bpe_dropout,
        other_representation,
        max_length,
    )
    for role, encode in (("chosen", encode_answers), ("rejected", encode_rejected)):
        unique = table.unique(f"{role}_id").sort(f"{role}_id")
        text[role] = dict(
            zip(unique[f"{role}_id"], encode(tokenizer, unique[role].to_list()), strict=True)
        )
    options = (
        table.group_by("prompt_id", maintain_order=True).agg("chosen_id", "rejected_id").rows()
    )
    if (few := min(len(chosen) for _, chosen, _ in options)) < answers:
        raise LibraError(
            f"dpo.answers is {answers}, but a prompt has {few} triplets; lower it, or raise combine.triplets_per_seed"
        )
    rows, counts = [], {"pairs": 0, "over_long": 0, "equal_when_cut": 0}
    for epoch in epochs:
        rng = random.Random(f"dpo:{random_seed}:{epoch}")
        shown, lengths = [], []
        for number, (prompt, chosen, rejected) in enumerate(options):
            cells = _cells(pairs, answers, number + epoch * answers, len(chosen), rng)
            told = [(text["chosen"][chosen[c]], text["rejected"][rejected[r]]) for c, r in cells]
            longest = max(len(answer) for pair in told for answer in pair)
            asked = prompts.ids(prompt, rng, longest)
            shown.append(
                [
                    {"prompt_ids": asked, "chosen_ids": good, "rejected_ids": bad}
                    for good, bad in told
                ]
            )
            lengths.append(
                len(asked) + sum(map(len, {tuple(answer) for pair in told for answer in pair}))
            )  # the prompt stands once
        for i in length_grouped(lengths, batch_size, rng):
            for row in shown[i]:
                room = max_length - len(row["prompt_ids"])
                counts["pairs"] += 1
                counts["over_long"] += max(len(row["chosen_ids"]), len(row["rejected_ids"])) > room
                if row["chosen_ids"][:room] == row["rejected_ids"][:room]:
                    counts["equal_when_cut"] += 1
                else:
                    rows.append(row)
    return _dataset(rows, counts, "pairs", max_length), counts


def _cells(
    pairs: str, answers: int, first: int, triplets: int, rng: random.Random
) -> list[tuple[int, int]]:
    """Which of a prompt's triplets give the chosen and which the rejected answer of each pair."""
    next_ones = [(first + i) % triplets for i in range(answers)]
    if pairs == "grid":
        return [(c, r) for c in next_ones for r in next_ones]
    if pairs == "random":
        return [(rng.randrange(triplets), rng.randrange(triplets)) for _ in next_ones]
    return [(i, i) for i in next_ones]


class _Prompts:
    """Token ids of prompts by prompt_id. Raises LibraError when one alone fills `max_length` tokens."""

    def __init__(
        self,
        prompts: pl.DataFrame,
        tokenizer,
        bpe_dropout: float,
        other_representation: float,
        max_length: int,
    ):
        self.max_length, self.swapped = max_length, other_representation
        self.texts = dict(prompts.select("prompt_id", "prompt").iter_rows())
        self.others = (
            dict(prompts.select("prompt_id", "other_prompt").drop_nulls().iter_rows())
            if other_representation
            else {}
        )
        texts = [*self.texts.values(), *self.others.values()]
        self.usual = dict(zip(texts, encode_prompts(tokenizer, texts), strict=True))
        self.dropout = BpeDropout(tokenizer, bpe_dropout) if bpe_dropout else None
        longest = max(map(len, self.usual.values()))
        if longest >= max_length:
            raise LibraError(
                f"model.max_length is {max_length} tokens, but a prompt alone has {longest}; raise it"
            )

    def ids(self, prompt_id: str, rng: random.Random, answer: int) -> list[int]:
        """Ids for use before an answer of `answer` tokens."""
        text = self.texts[prompt_id]
        if self.swapped and rng.random() < self.swapped:
            text = self.others.get(prompt_id, text)
        if self.dropout is None:
            return self.usual[text]
        return self.dropout.prompt(text, rng, self.max_length - answer)


def _dataset(rows: list[dict], counts: dict[str, int], what: str, max_length: int):
    from datasets import Dataset

    if over := counts["over_long"]:
        print(
            f"{over:,} of {counts[what]:,} {what} are over model.max_length = {max_length} tokens and are cut at their end"
        )
    if equal := counts.get("equal_when_cut"):
        print(f"{equal:,} of {counts[what]:,} {what} have equal answers once cut, and are left out")
    if not rows:
        raise LibraError(
            f"model.max_length = {max_length} tokens leaves no pair with two different answers; raise it"
        )
    return Dataset.from_list(rows)
