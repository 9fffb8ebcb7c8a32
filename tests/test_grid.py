"""The shared-prompt trainer against TRL's own: the same loss, metrics, gradients and weights, from fewer tokens."""

import copy
import os
from random import Random

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import add_fused_lm_head

from stages.preference import reference
from stages.preference.grid import (
    Collator,
    GridTrainer,
    attention,
    equal_rows,
    layout,
    packed,
    row_cost,
    takes_mask,
)
from stages.training import trainer
from stages.training.head import score_labelled_only
from stages.training.models import train_tokenizer

VOCABULARY, END = 300, 1
AttentionInterface.register(
    "another", sdpa_attention_forward
)  # one that isn't known to take a mask of four dimensions
AttentionMaskInterface.register("another", sdpa_mask)
GRID = [
    (p, c, r) for p in range(2) for c in range(3) for r in range(3)
]  # 18 pairs of 2 prompts, 3 chosen and 3 rejected each
RAGGED = [(0, 0, 0), (1, 2, 0), (0, 1, 2), (2, 0, 0), (1, 2, 1), (3, 1, 1), (0, 0, 1)]


class PlainTrainer(DPOTrainer):
    """TRL's on rows of token ids."""

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        return dataset


def ids(kind: str, number: int, longest: int) -> list[int]:
    """1 to `longest` token ids, other ones for each kind and number."""
    draw = torch.Generator().manual_seed(1000 * "pcr".index(kind) + number)
    length = 1 + int(torch.randint(longest, (), generator=draw))
    return torch.randint(6, VOCABULARY, (length,), generator=draw).tolist()


def pairs(cells, longest=12) -> Dataset:
    """Most answers end with the token that ends a text; some are cut before it."""

    def answer(kind: str, number: int) -> list[int]:
        return ids(kind, number, longest) + [END] * (number % 3 > 0)

    made = [
        {
            "prompt_ids": ids("p", p, longest),
            "chosen_ids": answer("c", 10 * p + c),
            "rejected_ids": answer("r", 10 * p + r),
        }
        for p, c, r in cells
    ]
    return Dataset.from_list(made)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(["a few words"], VOCABULARY)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(3)
    size = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, initializer_range=0.2, pad_token_id=0, eos_token_id=END, **size
        )
    )


def trained(
    kind,
    model,
    tokenizer,
    rows,
    folder,
    lora=False,
    max_length=64,
    batch_size=6,
    attention="sdpa",
    **losses,
):
    """(trainer, gradients of the first batch, weights after an epoch, log of that epoch)."""
    policy = copy.deepcopy(model)
    policy.set_attn_implementation(attention)
    reference = None if lora else copy.deepcopy(policy)
    if reference is not None:  # another policy, so that the first step has a margin
        torch.manual_seed(4)
        for weights in reference.parameters():
            weights.data += 0.02 * torch.randn_like(weights)
    torch.manual_seed(5)
    common = {"batch_size": batch_size, "max_length": max_length, "random_seed": 1}
    arguments = trainer.arguments(
        rows,
        learning_rate=1e-3,
        evaluations=1,
        evaluation_size=batch_size,
        folder=str(folder),
        **common,
    )
    # Adam divides by a gradient's size: of one that is nothing but rounding it would make a whole step.
    arguments |= {"logging_steps": 1, "adam_epsilon": 1e-5}
    made = kind(
        model=policy,
        ref_model=reference,
        args=DPOConfig(beta=0.3, **losses, **arguments),
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
        if lora
        else None,
    )
    first = made.data_collator([made.train_dataset[i] for i in range(min(batch_size, len(rows)))])
    made.model.train()
    made.compute_loss(made.model, made._prepare_inputs(first)).backward()
    flat = lambda values: torch.cat([value.detach().flatten() for value in values])  # noqa: E731
    learnt = [weights for weights in made.model.parameters() if weights.requires_grad]
    gradients = flat(weights.grad for weights in learnt)
    made.model.zero_grad()
    made._metrics["train"].clear()
    made.train()
    log = [
        {k: v for k, v in row.items() if "runtime" not in k and "per_second" not in k}
        for row in made.state.log_history
    ]
    return gradients, flat(learnt), log


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("losses", ["sigmoid", "ipo", "hinge", "robust", "sigmoid and sft"])
def test_every_loss_is_trl_s(model, tokenizer, tmp_path, losses):
    weights = {
        "loss_type": losses.split(" and "),
        "loss_weights": [1.0, 4.0][: 1 + (" and " in losses)],
    }
    if losses == "robust":
        weights["label_smoothing"] = 0.1
    same_as_trl(model, tokenizer, tmp_path, pairs(GRID), **weights)


CASES = {  # rows, options
    "grid": (pairs(GRID), {}),
    "grid, lora": (pairs(GRID), {"lora": True}),
    "ragged": (pairs(RAGGED), {}),
    "truncated": (pairs(RAGGED), {"max_length": 9}),
    "lora": (pairs(RAGGED), {"lora": True}),
    "truncated, lora": (pairs(RAGGED), {"max_length": 9, "lora": True}),
    "eager": (pairs(RAGGED), {"attention": "eager"}),
    "another attention": (pairs(RAGGED), {"attention": "another"}),
    "one pair a step": (pairs(RAGGED), {"batch_size": 1}),
    "prompts of one token": (pairs(RAGGED, longest=1), {}),
    "before": (pairs(RAGGED), {"precompute_ref_log_probs": True}),
    "before, lora": (pairs(RAGGED), {"precompute_ref_log_probs": True, "lora": True}),
}


@pytest.mark.parametrize("case", CASES)
def test_every_shape_is_trl_s(model, tokenizer, tmp_path, case):
    rows, options = CASES[case]
    answers = [
        (9 - len(row["prompt_ids"]), row[side])
        for row in rows
        for side in ("chosen_ids", "rejected_ids")
    ]
    if "truncated" in case:  # some answers in part, one whole
        assert any(0 < room < len(answer) for room, answer in answers) and min(answers)[0] <= 0
    assert {answer[-1] == END for _, answer in answers} == {True, False}
    same_as_trl(model, tokenizer, tmp_path, rows, **options)


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    """Reference tables go to a folder of the test's."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))


def same_as_trl(model, tokenizer, folder, rows, **options):
    theirs = trained(PlainTrainer, model, tokenizer, rows, folder, **options)
    ours = trained(GridTrainer, model, tokenizer, rows, folder, **options)
    assert theirs[0].norm() > 0
    assert distance(ours[0], theirs[0]) < 1e-5, "gradients of the first batch"
    assert distance(ours[1], theirs[1]) < 1e-5, "weights after an epoch"
    assert len(ours[2]) == len(theirs[2]) and "eval_rewards/margins" in str(theirs[2])
    for mine, other in zip(ours[2], theirs[2], strict=True):
        assert set(mine) == set(other)
        for name, value in mine.items():
            if name in ("loss", "eval_loss"):
                assert value == pytest.approx(other[name], rel=1e-5, abs=1e-6), name
            else:  # differences of log-probabilities, some near 0
                assert value == pytest.approx(other[name], rel=1e-4, abs=1e-5), name


def test_a_grid_is_computed_once(model, tokenizer, tmp_path):
    """2 prompts x 3 chosen x 3 rejected: 36 rows of TRL are 12 answers, each once, and 2 prompts."""
    rows = pairs(GRID)
    made = GridTrainer(
        model=copy.deepcopy(model),
        ref_model=copy.deepcopy(model),
        args=DPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none"),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    batch = made.data_collator([rows[i] for i in range(len(rows))])
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    shared = packed(batch["input_ids"], labels, per_token=1e6)
    answers = [(r["prompt_ids"], r[side]) for r in rows for side in ("chosen_ids", "rejected_ids")]
    once = {str(answer): len(answer[1]) for answer in answers}
    assert len(answers) == 36 and len(once) == 12
    assert int((shared["shift_labels"] != -100).sum()) == sum(once.values())
    of_prompts = [
        sum(length for text, length in once.items() if text.startswith(f"({ids('p', p, 12)}, "))
        for p in range(2)
    ]
    one_a_row = 2 * max(length + len(ids("p", p, 12)) - 1 for p, length in enumerate(of_prompts))
    assert (
        sum(of_prompts) == sum(once.values())
        and shared["input_ids"].numel() <= one_a_row < batch["input_ids"].numel() / 2
    )


@pytest.mark.parametrize(
    "options",
    [{}, {"max_length": 9}, {"pad_to_multiple_of": 8}, {"max_length": 5, "pad_to_multiple_of": 4}],
)
def test_the_collator_gives_what_trl_s_gives(options):
    rows = [
        row | {"ref_chosen_logps": -1.5, "ref_rejected_logps": -2.0 * i}
        for i, row in enumerate(pairs(RAGGED).to_list())
    ]
    mine = Collator(3, options.get("max_length"), options.get("pad_to_multiple_of", 1))
    for batch in (rows, rows[:1], pairs(GRID).to_list()):
        other = DataCollatorForPreference(pad_token_id=3, **options)(batch)
        found = mine(batch)
        assert found.keys() == other.keys() and all(
            torch.equal(found[name], other[name]) for name in other
        )
        assert all(found[name].dtype == other[name].dtype for name in other)


def dpo(kind, policy, tokenizer, rows, folder, reference=None, **options):
    arguments = {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "max_length": 64,
    } | options
    args = DPOConfig(precompute_ref_log_probs=True, **arguments)
    return kind(
        model=policy,
        ref_model=reference,
        args=args,
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=tokenizer,
    )


def test_the_reference_is_computed_once_for_each_answer_and_kept(
    model, tokenizer, tmp_path, monkeypatch, capsys
):
    forwarded = []
    usual = GridTrainer.compute_ref_log_probs
    monkeypatch.setattr(
        GridTrainer, "compute_ref_log_probs",
        lambda self, model, batch: forwarded.append(len(batch["input_ids"])) or usual(self, model, batch),
    )  # fmt: skip
    tables = lambda: list((tmp_path / ".cache/reference").glob("*.parquet"))  # noqa: E731
    rows = pairs(GRID)
    made = dpo(GridTrainer, copy.deepcopy(model), tokenizer, rows, tmp_path, beta=0.1)
    assert sum(forwarded) == 12, (
        "2 prompts x 6 answers; train and validation rows are the same here"
    )
    theirs = dpo(PlainTrainer, copy.deepcopy(model), tokenizer, rows, tmp_path)
    for split in ("train_dataset", "eval_dataset"):
        for side in ("ref_chosen_logps", "ref_rejected_logps"):
            assert getattr(made, split)[side] == pytest.approx(
                getattr(theirs, split)[side], rel=1e-6, abs=1e-5
            )
    assert made.ref_model is None and len(tables()) == 1

    dpo(
        GridTrainer,
        copy.deepcopy(model),
        tokenizer,
        rows,
        tmp_path,
        beta=0.9,
        loss_type="ipo",
        learning_rate=0.1,
    )
    assert sum(forwarded) == 12, "another beta computes none"
    assert "12 answers were computed before" in capsys.readouterr().out
    tables()[0].write_bytes(b"PAR1 half a table")
    dpo(GridTrainer, copy.deepcopy(model), tokenizer, rows, tmp_path)
    assert sum(forwarded) == 24, "a damaged table is computed anew"
    other = copy.deepcopy(model)
    next(other.parameters()).data[0, 0] += 1e-3
    dpo(GridTrainer, other, tokenizer, rows, tmp_path)
    dpo(GridTrainer, copy.deepcopy(model), tokenizer, rows, tmp_path, max_length=9)
    dpo(GridTrainer, copy.deepcopy(model), tokenizer, pairs(RAGGED), tmp_path)
    assert len(tables()) == 4, "other weights, another cut, other rows: another table each"


def test_only_the_newest_reference_tables_are_kept(tmp_path):
    paths = [tmp_path / f"{i}.parquet" for i in range(reference.KEPT + 3)]
    for age, path in enumerate(paths):
        reference.write(path, [float(age)])
        os.utime(path, (age, age))
    reference.write(paths[0], [7.0])
    assert sorted(tmp_path.glob("*.parquet")) == sorted([paths[0], *paths[-reference.KEPT + 1 :]])
    assert (
        reference.read(paths[0], 1) == [7.0]
        and reference.read(paths[0], 2) is None
        and reference.read(paths[1], 1) is None
    )


def test_a_table_that_cannot_be_kept_costs_a_warning(tmp_path, capsys):
    (tmp_path / "reference").write_text("a file where the folder should be")
    reference.write(tmp_path / "reference/a.parquet", [1.0])
    assert (
        "warning: " in capsys.readouterr().err
        and reference.read(tmp_path / "reference/a.parquet", 1) is None
    )


def test_masks_of_four_dimensions_are_for_what_is_no_wider_than_a_window(model):
    small = {
        "vocab_size": 32,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 6,
        "num_attention_heads": 2,
        "head_dim": 4,
    }
    small |= {"num_key_value_heads": 1, "pad_token_id": 0, "sliding_window": 8}
    made = {
        config: AutoModelForCausalLM.from_config(config(**small))
        for config in (Qwen3Config, Gemma3TextConfig, MistralConfig)
    }
    takes = {config: (takes_mask(one, 8), takes_mask(one, 9)) for config, one in made.items()}
    assert takes == {
        Qwen3Config: (True, True),
        Gemma3TextConfig: (True, False),
        MistralConfig: (True, False),
    }
    assert takes_mask(model, 10_000)
    model = copy.deepcopy(model)
    model.config.layer_types = ["full_attention", "linear_attention"]
    assert not takes_mask(model, 8)


def test_equal_rows_are_equal_in_ids_and_labels():
    ids_of, labels = (
        torch.tensor([[1, 2], [1, 3], [1, 2], [1, 2]]),
        torch.tensor([[-100, 2], [-100, 3], [-100, 2], [1, 2]]),
    )
    assert [part.tolist() for part in equal_rows(ids_of, labels)] == [[0, 1, 3], [0, 1, 0, 2]]


def test_an_answer_sees_its_prompt_and_itself():
    prompt, answer = (
        torch.tensor([[1, 1, 1, 1, 1, 2, 2, 0]]),
        torch.tensor([[0, 0, 1, 1, 2, 0, 1, 0]]),
    )
    rows = [
        "x.......",
        "xx......",
        "xxx.....",
        "xxxx....",
        "xx..x...",
        ".....x..",
        ".....xx.",
        ".......x",
    ]
    assert attention(prompt, answer)[0, 0].tolist() == [
        [mark == "x" for mark in row] for row in rows
    ]


def test_a_layout_holds_each_answer_once_behind_its_prompt_and_is_the_cheapest():
    random = Random(3)
    for _ in range(50):
        lengths = [
            (random.randint(0, 30), [random.randint(1, 60) for _ in range(random.randint(1, 8))])
            for _ in range(random.randint(1, 9))
        ]
        for per_token in (0, 50, 1e6):
            rows = layout(lengths, per_token)
            assert sorted((p, a) for row in rows for p, of in row.items() for a in of) == [
                (p, a) for p, (_, answers) in enumerate(lengths) for a in range(len(answers))
            ]
            one_a_prompt = [
                {p: list(range(len(answers)))} for p, (_, answers) in enumerate(lengths)
            ]
            one_an_answer = [
                {p: [a]} for p, (_, answers) in enumerate(lengths) for a in range(len(answers))
            ]
            cost = row_cost(lengths, rows, per_token)
            assert cost <= min(
                row_cost(lengths, one_a_prompt, per_token),
                row_cost(lengths, one_an_answer, per_token),
            ) * (1 + 1e-9)


def test_dear_tokens_are_not_repeated_and_dear_looks_are_not_taken():
    lengths = [(20, [30] * 10)]
    assert len(layout(lengths, 1e6)) == 1 and len(layout(lengths, 0)) > 3
    apart = [(20, [10]), (20, [70])] * 4
    assert sum(map(len, layout(apart, 1e6))) == 8 and len(layout(apart, 1e6)) < 8, (
        "short ones share a row"
    )


def test_the_head_for_the_cpu_gives_what_trl_s_gives(model):
    outputs = ("log_probs", "entropy", "mean_logits", "is_top1")
    theirs, ours = copy.deepcopy(model), copy.deepcopy(model)
    for one in (theirs, ours):
        add_fused_lm_head(one, outputs=outputs)
    score_labelled_only(ours, outputs)
    tokens = torch.randint(6, VOCABULARY, (3, 9), generator=torch.Generator().manual_seed(1))
    labels = tokens.masked_fill(
        torch.rand(3, 9, generator=torch.Generator().manual_seed(2)) < 0.5, -100
    )
    labels[2] = -100
    for given in (
        {"labels": labels},
        {"shift_labels": labels},
        {"labels": labels, "num_items_in_batch": 4},
    ):
        one, other = (
            ours(tokens, fused_lm_head=True, **given),
            theirs(tokens, fused_lm_head=True, **given),
        )
        for name in (*outputs, "loss", "label_mask"):
            assert torch.allclose(one[name].float(), other[name].float(), atol=1e-5), name
    with torch.no_grad():
        assert torch.equal(ours(tokens, labels=labels).loss, theirs(tokens, labels=labels).loss), (
            "without it: the model's own"
        )


def test_sft_with_the_head_for_the_cpu_is_trl_s(model, tokenizer, tmp_path):
    rows = Dataset.from_list(
        [
            {"input_ids": ids("p", i, 12) + [7], "labels": [-100] * len(ids("p", i, 12)) + [7]}
            for i in range(12)
        ]
    )
    weights = []
    for ours in (False, True):
        arguments = trainer.arguments(rows, 4, 1e-3, 64, 1, 1, 4, str(tmp_path)) | {
            "eval_strategy": "no"
        }
        made = SFTTrainer(
            model=copy.deepcopy(model),
            args=SFTConfig(**arguments),
            train_dataset=rows,
            processing_class=tokenizer,
        )
        if ours:
            score_labelled_only(made.model, ("entropy", "is_top1"))
        made.train()
        weights.append(torch.cat([value.detach().flatten() for value in made.model.parameters()]))
    assert distance(weights[1], weights[0]) < 1e-6
