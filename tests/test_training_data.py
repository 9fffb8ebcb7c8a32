"""Rows for the trainers: which prompt is shown with which answers, in which order."""

import polars as pl
import pytest

from helpers.tiny_training import (
    HELP,
    MODEL_PARAMS,
    NO,
    substances,
    table,
    table_with_other_prompts,
    texts,
)
from stages.core.errors import LibraError
from stages.training import data
from stages.training.scratch import train_tokenizer

COMMON = {"batch_size": 4, "max_length": 128, "random_seed": 7}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(texts(), MODEL_PARAMS.vocab_size)


def decoded(tokenizer, rows) -> list[tuple[str, ...]]:
    """(prompt, chosen, rejected) of each DPO row, in training order."""
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    return [tuple(tokenizer.decode(row[name]) for name in names) for row in rows]


def test_sft_shows_each_prompt_once_an_epoch_with_another_answer(tokenizer):
    rows, counts = data.sft_rows(table(), tokenizer, 3, **COMMON)
    assert len(rows) == 3 * 16 and counts == {"rows": 48, "over_long": 0}
    pairs = [tuple(tokenizer.decode(ids).split("<|assistant|>")) for ids in rows["input_ids"]]
    for start in (0, 16, 32):
        assert len({prompt for prompt, _ in pairs[start : start + 16]}) == 16
    assert len(set(pairs)) == 48, "3 chosen answers in 3 epochs: no pair twice"
    assert {answer.removesuffix("<|end|>") for _, answer in pairs} == {*HELP, *NO}


def test_a_prompt_has_another_one_with_the_other_representation(tmp_path, monkeypatch):
    """SMILES for the name, name for the SMILES, no other change; none without a structure."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/librachemqa").mkdir(parents=True)
    by_smiles = pl.col("seed_id").is_in(["s3", "s4"])
    smiles = pl.when(pl.col("seed_id") == "s3").then(pl.lit("C")).otherwise(pl.lit("CCCCO"))
    question = pl.lit("Can the substance ") + smiles + pl.lit(" be sold?")
    train = table().with_columns(
        representation=pl.when(by_smiles).then(pl.lit("smiles")).otherwise("representation"),
        prompt=pl.when(by_smiles).then(question).otherwise("prompt"),
    )
    train.write_parquet("data/librachemqa/train.parquet")
    propanols = substances().slice(3).with_columns(name=pl.lit("propanol"))
    known = pl.concat([substances(3), propanols])
    known = known.with_columns(smiles=pl.col("smiles").replace("CCCO", "C"))
    known.write_parquet("data/substances.parquet")

    triplets = data.triplets("train")
    assert triplets.drop("other_prompt").equals(train.select(triplets.columns[:-1]))
    other = dict(triplets.select("prompt_id", "other_prompt").iter_rows())
    assert other["s0-p0"] is None
    assert other["s1-p1"] == "Please make CO yy?"
    assert other["s2-p0"] == "How is it kept, CCO xxx?"
    assert other["s3-p0"] == other["s4-p1"] == "Can the substance propanol be sold?"


@pytest.mark.parametrize("bpe_dropout", [0.0, 0.2])
@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_a_share_of_prompts_shows_the_other_representation(tokenizer, stage, bpe_dropout):
    triplets = table_with_other_prompts()

    def rendered(share: float) -> list[str]:
        options = {"bpe_dropout": bpe_dropout, "other_representation": share, **COMMON}
        if stage == "sft":
            rows, _ = data.sft_rows(triplets, tokenizer, 9, **options)
            return [tokenizer.decode(ids) for ids in rows["input_ids"]]
        rows, _ = data.dpo_rows(triplets, tokenizer, range(9), **options)
        return [tokenizer.decode(row["prompt_ids"] + row["chosen_ids"]) for row in rows]

    refuse = pl.col("expected") == "refuse"
    is_refused = dict(triplets.select("prompt", refuse).iter_rows())
    is_refused |= dict(triplets.select("other_prompt", refuse).drop_nulls().iter_rows())
    # An eighth of the seeds has no structure.
    for share, least, most in ((0.0, 0.0, 0.0), (0.5, 0.35, 0.55), (1.0, 7 / 8, 7 / 8)):
        conversations = rendered(share)
        assert len(conversations) == 9 * 16
        swapped = sum("substance" not in text for text in conversations) / len(conversations)
        assert least <= swapped <= most, share
        for text in conversations:
            prompt, answer = text.removeprefix("<|user|>").split("<|end|><|assistant|>")
            assert (answer.removesuffix("<|end|>") in NO) == is_refused[prompt]
    assert rendered(0.5) == rendered(0.5)


def test_sft_labels_the_answer_and_a_share_of_the_prompt(tokenizer):
    assistant = tokenizer.convert_tokens_to_ids("<|assistant|>")

    def labelled_share(prompt_loss: float) -> float:
        rows, _ = data.sft_rows(table(), tokenizer, 3, prompt_loss=prompt_loss, **COMMON)
        labelled = total = 0
        for row in rows:
            ids, labels = row["input_ids"], row["labels"]
            start = ids.index(assistant) + 1
            assert labels[start:] == ids[start:]
            assert all(label in (-100, token) for label, token in zip(labels, ids, strict=True))
            labelled += sum(label != -100 for label in labels[:start])
            total += start
        return labelled / total

    assert labelled_share(0.0) == 0 and labelled_share(1.0) == 1
    assert 0.2 < labelled_share(0.3) < 0.4


def test_dpo_pairs_vary_from_epoch_to_epoch(tokenizer):
    rows, counts = data.dpo_rows(table(), tokenizer, range(3), **COMMON)
    assert counts == {"pairs": 48, "over_long": 0, "equal_when_cut": 0}
    assert rows.column_names == ["prompt_ids", "chosen_ids", "rejected_ids"]
    pairs = decoded(tokenizer, rows)
    assert len(pairs) == len(set(pairs)) == 48
    for start in (0, 16, 32):
        assert len({prompt for prompt, _, _ in pairs[start : start + 16]}) == 16

    def rejected_text(row) -> str:
        if row["expected"] == "refuse":
            return row["rejected"].removesuffix(" [details withheld]")
        return row["rejected"] + "<|end|>"

    expected = {
        (
            f"<|user|>{row['prompt']}<|end|><|assistant|>",
            row["chosen"] + "<|end|>",
            rejected_text(row),
        )
        for row in table().iter_rows(named=True)
    }
    assert set(pairs) == expected


def paired(tokenizer, pairs, answers, epochs=1) -> list[tuple[str, ...]]:
    options = {"pairs": pairs, "answers": answers, **COMMON}
    rows, _ = data.dpo_rows(table(), tokenizer, range(epochs), **options)
    return decoded(tokenizer, rows)


def test_a_grid_pairs_every_chosen_answer_with_every_rejected_one(tokenizer):
    grid = paired(tokenizer, "grid", 3)
    assert len(grid) == len(set(grid)) == 16 * 9
    for start in range(0, len(grid), 9):  # prompt by prompt, so that a step holds whole grids
        prompts, chosen, rejected = map(set, zip(*grid[start : start + 9], strict=True))
        assert (len(prompts), len(chosen), len(rejected)) == (1, 3, 3)
    matched = paired(tokenizer, "matched", 3)
    assert sorted(matched) == sorted(paired(tokenizer, "matched", 1, epochs=3))
    assert set(matched) < set(grid)
    assert sorted(paired(tokenizer, "grid", 1)) == sorted(paired(tokenizer, "matched", 1))


def test_random_pairs_are_some_of_the_grid_matched_or_not(tokenizer):
    grid, matched = set(paired(tokenizer, "grid", 3)), set(paired(tokenizer, "matched", 3))
    pairs = paired(tokenizer, "random", 3)
    assert len(pairs) == 16 * 3 and set(pairs) < grid
    assert set(pairs) & matched and set(pairs) - matched


def test_more_answers_than_a_prompt_has_are_an_error(tokenizer):
    message = (
        r"^dpo.answers is 4, but a prompt has 3 triplets; "
        r"lower it, or raise combine.triplets_per_seed"
    )
    with pytest.raises(LibraError, match=message):
        paired(tokenizer, "grid", 4)


def test_pairs_that_are_equal_once_cut_are_counted_and_dropped(tokenizer, capsys):
    """Answers with a common start that is longer than the room are one and the same."""
    start = "The same long start of both answers, word for word, until there is no room left. "
    is_s0 = pl.col("seed_id") == "s0"
    long = table().with_columns(
        pl.when(is_s0).then(pl.lit(start) + pl.col(side)).otherwise(pl.col(side)).alias(side)
        for side in ("chosen", "rejected")
    )
    options = {"batch_size": 4, "random_seed": 7}
    rows, counts = data.dpo_rows(long, tokenizer, range(1), max_length=256, **options)
    assert counts == {"pairs": 16, "over_long": 0, "equal_when_cut": 0} and len(rows) == 16
    room = max(len(row["prompt_ids"]) for row in rows) + 20
    cut, counts = data.dpo_rows(long, tokenizer, range(1), max_length=room, **options)
    assert counts["equal_when_cut"] == 2 and counts["over_long"] >= 2 and len(cut) == 14
    printed = capsys.readouterr().out
    assert "2 of 16 pairs have equal answers once cut and are dropped" in printed
    assert "of 16 pairs are longer than model.max_length" in printed
    alike = long.filter(is_s0)
    with pytest.raises(LibraError, match="leaves no pair with two different answers; raise it"):
        data.dpo_rows(alike, tokenizer, range(1), max_length=room, **options)


def test_rows_depend_on_the_random_seed_and_not_on_the_table_s_order(tokenizer):
    shuffled = table().sample(fraction=1.0, shuffle=True, seed=3)
    options = {"batch_size": 4, "max_length": 128, "bpe_dropout": 0.2}

    def sft(triplets, seed):
        return data.sft_rows(triplets, tokenizer, 2, prompt_loss=0.1, random_seed=seed, **options)

    def dpo(triplets, seed):
        return data.dpo_rows(triplets, tokenizer, range(2), random_seed=seed, **options)

    for make in (sft, dpo):
        rows, same, other = (
            make(triplets, seed)[0].to_list()
            for triplets, seed in ((table(), 7), (shuffled, 7), (table(), 8))
        )
        assert rows == same != other


def test_more_epochs_than_pairs_start_over(tokenizer):
    """Of a prompt's three pairs each occurs once in three epochs; the fourth repeats the first."""
    prompts = table()["prompt_id"].n_unique()
    dataset, _ = data.dpo_rows(table(), tokenizer, range(4), **COMMON)
    rows = [str(row) for row in dataset]
    assert len(rows) == 4 * prompts and len(set(rows[: 3 * prompts])) == 3 * prompts
    assert sorted(rows[3 * prompts :]) == sorted(rows[:prompts])


def test_texts_that_are_too_long_are_reported(tokenizer, capsys):
    long = table().with_columns(prompt=pl.col("prompt") + " and so on" * 30)
    options = {"batch_size": 4, "random_seed": 7}
    message = r"^model.max_length is 64 tokens, but a prompt alone has \d+; raise it"
    with pytest.raises(LibraError, match=message):
        data.sft_rows(long, tokenizer, 1, max_length=64, **options)
    with pytest.raises(LibraError, match=message):
        data.dpo_rows(long, tokenizer, range(1), max_length=64, **options)
    wordy = table().with_columns(chosen=pl.col("chosen") + " and so on" * 30)
    _, counts = data.sft_rows(wordy, tokenizer, 1, max_length=96, **options)
    assert counts == {"rows": 16, "over_long": 16}
    printed = capsys.readouterr().out
    assert "16 of 16 rows are longer than model.max_length = 96 tokens and are cut" in printed


def test_missing_or_empty_tables_are_an_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LibraError, match="data/librachemqa/train.parquet"):
        data.triplets("train")
    (tmp_path / "data/librachemqa").mkdir(parents=True)
    table().clear().write_parquet("data/librachemqa/validation.parquet")
    with pytest.raises(LibraError, match="data/librachemqa/validation.parquet has no rows"):
        data.triplets("validation")
    table().write_parquet("data/librachemqa/train.parquet")
    with pytest.raises(LibraError, match="data/substances.parquet"):
        data.triplets("train")
