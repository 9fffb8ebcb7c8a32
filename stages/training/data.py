"""Released triplets as token ids for TRL's trainers, in training order.

train = triplets("train")
rows, counts = sft_rows(train, tokenizer, 3, batch_size=16, max_length=256, random_seed=7)
rows[0]      # {"input_ids": [3, 75, ..., 1], "labels": [-100, -100, ..., 1]}
"""

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
    "seed_id", "substance_id", "expected", "representation", "prompt_id", "chosen_id",
    "rejected_id", "prompt", "chosen", "rejected",
]  # fmt: skip
SUBSTANCES = "data/substances.parquet"


def triplets(split: str) -> pl.DataFrame:
    """The released triplets of `split`, plus `other_prompt`.

    That is the prompt with the substance's other representation: SMILES for the name, or the name
    for the SMILES; null if the substance has no SMILES. An answer to one answers the other too.
    Raises LibraError if a file, a column or all rows are missing.
    """
    table = read_table(f"data/librachemqa/{split}.parquet", COLUMNS)
    columns = ["substance_id", "name", "smiles"]
    names = read_table(SUBSTANCES, columns).select(columns)
    prompts = table.unique("prompt_id").join(names, on="substance_id", how="left")

    other_prompts = {}
    columns = ["prompt_id", "prompt", "representation", "name", "smiles"]
    for prompt_id, prompt, representation, name, smiles in prompts.select(columns).iter_rows():
        if name and smiles:
            own, other = (smiles, name) if representation == "smiles" else (name, smiles)
            whole_word = rf"(?<!\w){re.escape(own)}(?!\w)"
            other_prompts[prompt_id] = re.sub(whole_word, lambda _, other=other: other, prompt)
    return table.with_columns(
        other_prompt=pl.col("prompt_id").replace_strict(
            other_prompts, default=None, return_dtype=pl.String
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
    """(dataset, counts): `input_ids` and `labels` in training order, batches of similar length.

    Every prompt occurs once an epoch, each time with its next chosen answer. Answer tokens are all
    labelled; of the prompt's tokens a random share `prompt_loss` is, which on average gives them
    that weight in the loss and leaves the trainer as it is. With `bpe_dropout` a prompt is
    segmented again in each epoch, and a random share `other_representation` of the prompts shows
    the substance's other representation.

    The counts: `rows`, and `over_long`, rows of more than `max_length` tokens, which are cut.
    Raises LibraError if a prompt alone fills `max_length` tokens.
    """
    pairs = table.unique(["prompt_id", "chosen_id"]).sort("prompt_id", "chosen_id")
    prompts = pairs.unique("prompt_id").sort("prompt_id")
    encoded = _Prompts(prompts, tokenizer, bpe_dropout, other_representation, max_length)
    answer_ids = _encode_by_id(pairs, "chosen", tokenizer, encode_answers)
    options = pairs.group_by("prompt_id", maintain_order=True).agg("chosen_id").rows()

    rows = []
    for epoch in range(epochs):
        rng = random.Random(f"sft:{random_seed}:{epoch}")
        examples = []
        for number, (prompt_id, chosen_ids) in enumerate(options):
            answer = answer_ids[chosen_ids[(number + epoch) % len(chosen_ids)]]
            examples.append((encoded.ids(prompt_id, rng, len(answer)), answer))
        lengths = [len(prompt) + len(answer) for prompt, answer in examples]
        for i in length_grouped(lengths, batch_size, rng):
            prompt, answer = examples[i]
            labels = [token if rng.random() < prompt_loss else -100 for token in prompt] + answer
            rows.append({"input_ids": prompt + answer, "labels": labels})

    over_long = sum(len(row["input_ids"]) > max_length for row in rows)
    counts = {"rows": len(rows), "over_long": over_long}
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
    """(dataset, counts): `prompt_ids`, `chosen_ids`, `rejected_ids` in training order.

    Every prompt occurs once in each of `epochs`, each time with the next `answers` of its triplets
    (after the last one the first again), so that both answers vary; the number of the epoch decides
    which, and their order. How they are paired:

    - `matched`: as in the triplets
    - `grid`: every chosen with every rejected
    - `random`: `answers` pairs of any chosen with any rejected of the prompt

    Batches have `batch_size` prompts of similar length. `bpe_dropout` and `other_representation`
    are as in `sft_rows`; all answers of a prompt, and the reference, see the same ids. Pairs that
    are equal once cut to `max_length` teach nothing and are dropped.

    The counts: `pairs`, `over_long` (cut) and `equal_when_cut` (dropped). Raises LibraError if a
    prompt alone fills `max_length` tokens or has fewer than `answers` triplets, or no pair is left.
    """
    table = table.sort("prompt_id", "chosen_id", "rejected_id")
    prompts = table.unique("prompt_id").sort("prompt_id")
    encoded = _Prompts(prompts, tokenizer, bpe_dropout, other_representation, max_length)
    chosen_text = _encode_by_id(table, "chosen", tokenizer, encode_answers)
    rejected_text = _encode_by_id(table, "rejected", tokenizer, encode_rejected)
    by_prompt = table.group_by("prompt_id", maintain_order=True)
    options = by_prompt.agg("chosen_id", "rejected_id").rows()
    if (fewest := min(len(chosen) for _, chosen, _ in options)) < answers:
        raise LibraError(
            f"dpo.answers is {answers}, but a prompt has {fewest} triplets; lower it, or raise "
            "combine.triplets_per_seed"
        )

    rows, counts = [], {"pairs": 0, "over_long": 0, "equal_when_cut": 0}
    for epoch in epochs:
        rng = random.Random(f"dpo:{random_seed}:{epoch}")
        examples, lengths = [], []
        for number, (prompt_id, chosen, rejected) in enumerate(options):
            cells = _cells(pairs, answers, number + epoch * answers, len(chosen), rng)
            texts = [(chosen_text[chosen[c]], rejected_text[rejected[r]]) for c, r in cells]
            longest = max(len(answer) for pair in texts for answer in pair)
            prompt = encoded.ids(prompt_id, rng, longest)
            examples.append(
                [{"prompt_ids": prompt, "chosen_ids": c, "rejected_ids": r} for c, r in texts]
            )
            # The prompt and each different answer count once, as in the grid trainer.
            different = {tuple(answer) for pair in texts for answer in pair}
            lengths.append(len(prompt) + sum(map(len, different)))

        for i in length_grouped(lengths, batch_size, rng):
            for row in examples[i]:
                room = max_length - len(row["prompt_ids"])
                counts["pairs"] += 1
                counts["over_long"] += max(len(row["chosen_ids"]), len(row["rejected_ids"])) > room
                if row["chosen_ids"][:room] == row["rejected_ids"][:room]:
                    counts["equal_when_cut"] += 1
                else:
                    rows.append(row)
    return _dataset(rows, counts, "pairs", max_length), counts


def _encode_by_id(table: pl.DataFrame, role: str, tokenizer, encode) -> dict[str, list[int]]:
    """Token ids of the `chosen` or `rejected` answers by their id."""
    unique = table.unique(f"{role}_id").sort(f"{role}_id")
    ids = encode(tokenizer, unique[role].to_list())
    return dict(zip(unique[f"{role}_id"], ids, strict=True))


def _cells(
    pairs: str, answers: int, first: int, triplets: int, rng: random.Random
) -> list[tuple[int, int]]:
    """Of each pair: the triplet of the chosen and the triplet of the rejected answer."""
    window = [(first + i) % triplets for i in range(answers)]
    if pairs == "grid":
        return [(c, r) for c in window for r in window]
    if pairs == "random":
        return [(rng.randrange(triplets), rng.randrange(triplets)) for _ in window]
    return [(i, i) for i in window]


class _Prompts:
    """Token ids of prompts. Raises LibraError if a prompt alone fills `max_length` tokens."""

    def __init__(
        self,
        prompts: pl.DataFrame,
        tokenizer,
        bpe_dropout: float,
        other_representation: float,
        max_length: int,
    ):
        self.max_length, self.other_representation = max_length, other_representation
        self.texts = dict(prompts.select("prompt_id", "prompt").iter_rows())
        self.others = {}
        if other_representation:
            others = prompts.select("prompt_id", "other_prompt").drop_nulls()
            self.others = dict(others.iter_rows())
        texts = [*self.texts.values(), *self.others.values()]
        self.encoded = dict(zip(texts, encode_prompts(tokenizer, texts), strict=True))
        self.dropout = BpeDropout(tokenizer, bpe_dropout) if bpe_dropout else None
        longest = max(map(len, self.encoded.values()))
        if longest >= max_length:
            raise LibraError(
                f"model.max_length is {max_length} tokens, but a prompt alone has {longest}; "
                "raise it"
            )

    def ids(self, prompt_id: str, rng: random.Random, answer_length: int) -> list[int]:
        """Ids of the prompt before an answer of `answer_length` tokens."""
        text = self.texts[prompt_id]
        if self.other_representation and rng.random() < self.other_representation:
            text = self.others.get(prompt_id, text)
        if self.dropout is None:
            return self.encoded[text]
        return self.dropout.prompt(text, rng, self.max_length - answer_length)


def _dataset(rows: list[dict], counts: dict[str, int], unit: str, max_length: int):
    from datasets import Dataset

    if over := counts["over_long"]:
        print(
            f"{over:,} of {counts[unit]:,} {unit} are longer than model.max_length = {max_length} "
            "tokens and are cut at the end"
        )
    if equal := counts.get("equal_when_cut"):
        print(f"{equal:,} of {counts[unit]:,} {unit} have equal answers once cut and are dropped")
    if not rows:
        raise LibraError(
            f"model.max_length = {max_length} tokens leaves no pair with two different answers; "
            "raise it"
        )
    return Dataset.from_list(rows)
