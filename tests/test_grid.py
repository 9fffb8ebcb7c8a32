"""The shared-prompt trainer against TRL's own: the same loss, metrics, gradients and weights, from fewer tokens."""

import copy

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer
from trl.trainer.utils import add_fused_lm_head

from stages.training import trainer
from stages.training.grid import GridTrainer, attention, packed
from stages.training.head import score_labelled_only
from stages.training.models import train_tokenizer

VOCABULARY = 300
GRID = [(p, c, r) for p in range(2) for c in range(3) for r in range(3)]  # 18 pairs of 2 prompts, 3 chosen and 3 rejected each
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
    made = [
        {"prompt_ids": ids("p", p, longest), "chosen_ids": ids("c", 10 * p + c, longest), "rejected_ids": ids("r", 10 * p + r, longest)}
        for p, c, r in cells
    ]
    return Dataset.from_list(made)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(["a few words"], VOCABULARY)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(3)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, initializer_range=0.2, pad_token_id=0, eos_token_id=1, **size))


def trained(kind, model, tokenizer, rows, folder, lora=False, max_length=64, batch_size=6, attention="sdpa", **losses):
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
    arguments = trainer.arguments(rows, learning_rate=1e-3, evaluations=1, folder=str(folder), **common) | {"logging_steps": 1}
    made = kind(
        model=policy,
        ref_model=reference,
        args=DPOConfig(beta=0.3, **losses, **arguments),
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False) if lora else None,
    )
    first = made.data_collator([rows[i] for i in range(min(batch_size, len(rows)))])
    made.model.train()
    made.compute_loss(made.model, first).backward()
    flat = lambda values: torch.cat([value.detach().flatten() for value in values])  # noqa: E731
    learnt = [weights for weights in made.model.parameters() if weights.requires_grad]
    gradients = flat(weights.grad for weights in learnt)
    made.model.zero_grad()
    made._metrics["train"].clear()
    made.train()
    log = [{k: v for k, v in row.items() if "runtime" not in k and "per_second" not in k} for row in made.state.log_history]
    return gradients, flat(learnt), log


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("losses", ["sigmoid", "ipo", "hinge", "robust", "sigmoid and sft"])
def test_every_loss_is_trl_s(model, tokenizer, tmp_path, losses):
    weights = {"loss_type": losses.split(" and "), "loss_weights": [1.0, 4.0][: 1 + (" and " in losses)]}
    if losses == "robust":
        weights["label_smoothing"] = 0.1
    same_as_trl(model, tokenizer, tmp_path, pairs(GRID), **weights)


@pytest.mark.parametrize("case", ["ragged", "truncated", "lora", "eager", "one pair a step", "prompts of one token"])
def test_every_shape_is_trl_s(model, tokenizer, tmp_path, case):
    rows = pairs(RAGGED, longest=1 if case == "prompts of one token" else 12)
    more = {
        "truncated": {"max_length": 9},
        "lora": {"lora": True},
        "eager": {"attention": "eager"},
        "one pair a step": {"batch_size": 1},
    }
    if case == "truncated":  # some answers in part, one whole
        left = [9 - len(row["prompt_ids"]) for row in rows for _ in range(2)]
        answers = [len(row[side]) for row in rows for side in ("chosen_ids", "rejected_ids")]
        assert any(0 < room < length for room, length in zip(left, answers, strict=True)) and min(left) <= 0
    same_as_trl(model, tokenizer, tmp_path, rows, **more.get(case, {}))


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
    shared = packed(batch["input_ids"], labels)
    answers = [(r["prompt_ids"], r[side]) for r in rows for side in ("chosen_ids", "rejected_ids")]
    once = {str(answer): len(answer[1]) for answer in answers}
    assert len(answers) == 36 and len(once) == 12
    assert int((shared["shift_labels"] != -100).sum()) == sum(once.values())
    assert shared["input_ids"].shape[0] == 2
    assert int((shared["part"] == 0).sum()) == sum(len(ids("p", p, 12)) - 1 for p in range(2))


def test_an_answer_sees_its_prompt_and_itself():
    part = torch.tensor([[0, 0, 1, 1, 2, -1]])
    rows = ["x.....", "xx....", "xxx...", "xxxx..", "xx..x.", "xx...x"]
    assert attention(part)[0, 0].tolist() == [[mark == "x" for mark in row] for row in rows]


def test_the_head_for_the_cpu_gives_what_trl_s_gives(model):
    outputs = ("log_probs", "entropy", "mean_logits", "is_top1")
    theirs, ours = copy.deepcopy(model), copy.deepcopy(model)
    for one in (theirs, ours):
        add_fused_lm_head(one, outputs=outputs)
    score_labelled_only(ours, outputs)
    tokens = torch.randint(6, VOCABULARY, (3, 9), generator=torch.Generator().manual_seed(1))
    labels = tokens.masked_fill(torch.rand(3, 9, generator=torch.Generator().manual_seed(2)) < 0.5, -100)
    labels[2] = -100
    for given in ({"labels": labels}, {"shift_labels": labels}, {"labels": labels, "num_items_in_batch": 4}):
        one, other = ours(tokens, fused_lm_head=True, **given), theirs(tokens, fused_lm_head=True, **given)
        for name in (*outputs, "loss", "label_mask"):
            assert torch.allclose(one[name].float(), other[name].float(), atol=1e-5), name
    with torch.no_grad():
        assert torch.equal(ours(tokens, labels=labels).loss, theirs(tokens, labels=labels).loss), "without it: the model's own"


def test_sft_with_the_head_for_the_cpu_is_trl_s(model, tokenizer, tmp_path):
    rows = Dataset.from_list([{"input_ids": ids("p", i, 12) + [7], "labels": [-100] * len(ids("p", i, 12)) + [7]} for i in range(12)])
    weights = []
    for ours in (False, True):
        arguments = trainer.arguments(rows, 4, 1e-3, 64, 1, 1, str(tmp_path)) | {"eval_strategy": "no"}
        made = SFTTrainer(model=copy.deepcopy(model), args=SFTConfig(**arguments), train_dataset=rows, processing_class=tokenizer)
        if ours:
            score_labelled_only(made.model, ("entropy", "is_top1"))
        made.train()
        weights.append(torch.cat([value.detach().flatten() for value in made.model.parameters()]))
    assert distance(weights[1], weights[0]) < 1e-6
