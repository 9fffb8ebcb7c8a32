"""Packed rows: each answer once after its prompt, seeing nothing else, in the cheapest layout."""

import copy
from random import Random

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, MistralConfig, Qwen3Config
from trl import DPOConfig

from helpers.grids import GRID, ids, new_model, new_tokenizer, pairs
from stages.preference.grid import GridTrainer, takes_mask
from stages.preference.packing import attention_mask, equal_rows, layout, layout_cost, pack


def test_a_grid_is_computed_once(tmp_path):
    """2 prompts x 3 chosen x 3 rejected: 36 rows of TRL are 12 answers and 2 prompts, each once."""
    rows = pairs(GRID)
    trl_trainer = GridTrainer(
        model=new_model(),
        ref_model=new_model(),
        args=DPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none"),
        train_dataset=rows,
        processing_class=new_tokenizer(),
    )
    batch = trl_trainer.data_collator([rows[i] for i in range(len(rows))])
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    packed = pack(batch["input_ids"], labels, per_token=1e6)

    sides = ("chosen_ids", "rejected_ids")
    answers = [(tuple(row["prompt_ids"]), tuple(row[side])) for row in rows for side in sides]
    assert len(answers) == 36 and len(set(answers)) == 12
    answer_tokens = sum(len(answer) for _, answer in set(answers))
    assert int((packed["shift_labels"] != -100).sum()) == answer_tokens

    prompts = [ids("p", p, 12) for p in range(2)]
    row_lengths = [
        len(prompt) - 1 + sum(len(text) for of, text in set(answers) if of == tuple(prompt))
        for prompt in prompts
    ]
    size = packed["input_ids"].numel()
    assert size <= 2 * max(row_lengths) < batch["input_ids"].numel() / 2


SMALL = {
    "vocab_size": 32,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 6,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "pad_token_id": 0,
    "sliding_window": 8,
}


@pytest.mark.parametrize(
    ("config", "beyond_window"),
    [(Qwen3Config, True), (Gemma3TextConfig, False), (MistralConfig, False)],
)
def test_a_mask_is_used_up_to_the_width_of_a_sliding_window(config, beyond_window):
    model = AutoModelForCausalLM.from_config(config(**SMALL))
    assert takes_mask(model, 8)
    assert takes_mask(model, 9) == beyond_window


def test_a_mask_is_not_used_with_other_kinds_of_layers():
    model = new_model()
    assert takes_mask(model, 10_000)
    model = copy.deepcopy(model)
    model.config.layer_types = ["full_attention", "linear_attention"]
    assert not takes_mask(model, 8)


def test_equal_rows_are_equal_in_ids_and_labels():
    input_ids = torch.tensor([[1, 2], [1, 3], [1, 2], [1, 2]])
    labels = torch.tensor([[-100, 2], [-100, 3], [-100, 2], [1, 2]])
    first, numbers = equal_rows(input_ids, labels)
    assert first.tolist() == [0, 1, 3] and numbers.tolist() == [0, 1, 0, 2]


def test_an_answer_sees_its_prompt_and_itself():
    prompt = torch.tensor([[1, 1, 1, 1, 1, 2, 2, 0]])
    answer = torch.tensor([[0, 0, 1, 1, 2, 0, 1, 0]])
    expected = [
        "x.......",
        "xx......",
        "xxx.....",
        "xxxx....",
        "xx..x...",
        ".....x..",
        ".....xx.",
        ".......x",
    ]
    mask = attention_mask(prompt, answer)[0, 0].tolist()
    assert ["".join("x" if seen else "." for seen in row) for row in mask] == expected


@pytest.mark.parametrize("per_token", [0, 50, 1e6])
def test_a_layout_holds_each_answer_once_and_is_the_cheapest(per_token):
    rng = Random(3)
    for _ in range(50):
        lengths = [
            (rng.randint(0, 30), [rng.randint(1, 60) for _ in range(rng.randint(1, 8))])
            for _ in range(rng.randint(1, 9))
        ]
        cells = [(p, a) for p, (_, answers) in enumerate(lengths) for a in range(len(answers))]
        rows = layout(lengths, per_token)
        assert sorted((p, a) for row in rows for p, of in row.items() for a in of) == cells
        row_per_prompt = [{p: list(range(len(of)))} for p, (_, of) in enumerate(lengths)]
        row_per_answer = [{p: [a]} for p, a in cells]
        others = (
            layout_cost(lengths, rows, per_token) for rows in (row_per_prompt, row_per_answer)
        )
        assert layout_cost(lengths, rows, per_token) <= min(others) * (1 + 1e-9)


def test_expensive_tokens_are_not_repeated_and_expensive_scores_are_avoided():
    lengths = [(20, [30] * 10)]
    assert len(layout(lengths, 1e6)) == 1 and len(layout(lengths, 0)) > 3
    mixed = layout([(20, [10]), (20, [70])] * 4, 1e6)
    assert sum(map(len, mixed)) == 8 and len(mixed) < 8, "short ones share a row"
