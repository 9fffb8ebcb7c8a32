"""The grid trainer against TRL's own: the same loss, metrics, gradients and weights."""

import copy

import pytest
import torch
from trl import DPOConfig
from trl.trainer.dpo_trainer import DataCollatorForPreference

from helpers.grids import (
    CASES,
    END,
    GRID,
    RAGGED,
    PlainTrainer,
    assert_same_as_trl,
    new_model,
    new_tokenizer,
    pairs,
)
from stages.preference import reference
from stages.preference.grid import Collator, GridTrainer


@pytest.fixture(scope="module")
def tokenizer():
    return new_tokenizer()


@pytest.fixture(scope="module")
def model():
    return new_model()


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Reference tables go to a folder of the test's own."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))


@pytest.mark.parametrize("losses", ["sigmoid", "ipo", "hinge", "robust", "sigmoid and sft"])
def test_every_loss_is_trl_s(model, tokenizer, tmp_path, losses):
    kinds = losses.split(" and ")
    options = {"loss_type": kinds, "loss_weights": [1.0, 4.0][: len(kinds)]}
    if losses == "robust":
        options["label_smoothing"] = 0.1
    assert_same_as_trl(model, tokenizer, tmp_path, pairs(GRID), **options)


@pytest.mark.parametrize("case", CASES)
def test_every_shape_is_trl_s(model, tokenizer, tmp_path, case):
    rows, options = CASES[case]
    sides = ("chosen_ids", "rejected_ids")
    answers = [(9 - len(row["prompt_ids"]), row[side]) for row in rows for side in sides]
    if "truncated" in case:  # some answers are cut, one entirely
        assert any(0 < room < len(answer) for room, answer in answers) and min(answers)[0] <= 0
    assert {answer[-1] == END for _, answer in answers} == {True, False}
    assert_same_as_trl(model, tokenizer, tmp_path, rows, **options)


@pytest.mark.parametrize(
    "options",
    [{}, {"max_length": 9}, {"pad_to_multiple_of": 8}, {"max_length": 5, "pad_to_multiple_of": 4}],
)
def test_the_collator_gives_trl_s_tensors(options):
    rows = [
        row | {"ref_chosen_logps": -1.5, "ref_rejected_logps": -2.0 * i}
        for i, row in enumerate(pairs(RAGGED).to_list())
    ]
    ours = Collator(3, options.get("max_length"), options.get("pad_to_multiple_of", 1))
    theirs = DataCollatorForPreference(pad_token_id=3, **options)
    for batch in (rows, rows[:1], pairs(GRID).to_list()):
        tensors, expected = ours(batch), theirs(batch)
        assert tensors.keys() == expected.keys()
        for name, values in expected.items():
            assert torch.equal(tensors[name], values), name
            assert tensors[name].dtype == values.dtype, name


def dpo_trainer(kind, policy, tokenizer, rows, folder, **options):
    """A trainer whose reference is computed when it is made."""
    defaults = {"use_cpu": True, "bf16": False, "report_to": "none", "max_length": 64}
    args = DPOConfig(output_dir=str(folder), precompute_ref_log_probs=True, **defaults | options)
    return kind(
        model=copy.deepcopy(policy),
        args=args,
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=tokenizer,
    )


def test_the_reference_is_computed_once_per_answer_and_cached(
    model, tokenizer, tmp_path, monkeypatch, capsys
):
    rows_computed = []
    compute = GridTrainer.compute_ref_log_probs

    def counted(self, policy, batch):
        rows_computed.append(len(batch["input_ids"]))
        return compute(self, policy, batch)

    def tables():
        return list((tmp_path / ".cache/reference").glob("*.parquet"))

    def make(policy=model, rows=None, **options):
        rows = pairs(GRID) if rows is None else rows
        return dpo_trainer(GridTrainer, policy, tokenizer, rows, tmp_path, **options)

    monkeypatch.setattr(GridTrainer, "compute_ref_log_probs", counted)
    ours = make(beta=0.1)
    assert sum(rows_computed) == 12, "2 prompts x 6 answers; train and validation rows are equal"
    theirs = dpo_trainer(PlainTrainer, model, tokenizer, pairs(GRID), tmp_path)
    for split in ("train_dataset", "eval_dataset"):
        for column in ("ref_chosen_logps", "ref_rejected_logps"):
            expected = pytest.approx(getattr(theirs, split)[column], rel=1e-6, abs=1e-5)
            assert getattr(ours, split)[column] == expected
    assert ours.ref_model is None and len(tables()) == 1

    make(beta=0.9, loss_type="ipo", learning_rate=0.1)
    assert sum(rows_computed) == 12, "another beta computes nothing"
    assert "12 answers from the cache" in capsys.readouterr().out

    tables()[0].write_bytes(b"PAR1 half a table")
    make()
    assert sum(rows_computed) == 24, "a damaged table is computed again"

    changed = copy.deepcopy(model)
    next(changed.parameters()).data[0, 0] += 1e-3
    make(changed)
    make(max_length=9)
    make(rows=pairs(RAGGED))
    assert len(tables()) == 4, "other weights, another cut, other rows: another table each"


def test_a_cached_table_is_read_back_if_its_length_fits():
    key = "a" * 64
    reference.write(key, [-1.5, -2.0])
    assert reference.read(key, 2) == [-1.5, -2.0]
    assert reference.read(key, 3) is None
    assert reference.read("b" * 64, 2) is None
    reference.write(key, [-1.5, float("nan")])
    assert reference.read(key, 2) is None, "not finite: damaged"
