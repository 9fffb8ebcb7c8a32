"""Preference grids of random token ids, and the grid trainer compared with TRL's own."""

import copy

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AttentionInterface, AttentionMaskInterface, LlamaConfig, LlamaForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from trl import DPOConfig, DPOTrainer

from stages.preference.grid import GridTrainer
from stages.training import trainer
from stages.training.scratch import train_tokenizer

VOCABULARY, END = 300, 1
# An attention that isn't known to take a mask of four dimensions.
AttentionInterface.register("another", sdpa_attention_forward)
AttentionMaskInterface.register("another", sdpa_mask)
# (prompt, chosen, rejected) of each pair: 18 pairs of 2 prompts with 3 x 3 answers, and an
# irregular set.
GRID = [(p, c, r) for p in range(2) for c in range(3) for r in range(3)]
RAGGED = [(0, 0, 0), (1, 2, 0), (0, 1, 2), (2, 0, 0), (1, 2, 1), (3, 1, 1), (0, 0, 1)]


class PlainTrainer(DPOTrainer):
    """TRL's trainer on rows of token ids."""

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        return dataset


def ids(role: str, number: int, longest: int) -> list[int]:
    """1 to `longest` random token ids, different ones for each role and number."""
    rng = torch.Generator().manual_seed(1000 * "pcr".index(role) + number)
    length = 1 + int(torch.randint(longest, (), generator=rng))
    return torch.randint(6, VOCABULARY, (length,), generator=rng).tolist()


def pairs(cells, longest=12) -> Dataset:
    """Most answers end with the token that ends a text; some are cut before it."""

    def answer(role: str, number: int) -> list[int]:
        return ids(role, number, longest) + [END] * (number % 3 > 0)

    rows = [
        {
            "prompt_ids": ids("p", p, longest),
            "chosen_ids": answer("c", 10 * p + c),
            "rejected_ids": answer("r", 10 * p + r),
        }
        for p, c, r in cells
    ]
    return Dataset.from_list(rows)


CASES = {  # name: rows, options of `train`
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
    "reference first": (pairs(RAGGED), {"precompute_ref_log_probs": True}),
    "reference first, lora": (pairs(RAGGED), {"precompute_ref_log_probs": True, "lora": True}),
}


def new_tokenizer():
    return train_tokenizer(["a few words"], VOCABULARY)


def new_model() -> LlamaForCausalLM:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        initializer_range=0.2,
        pad_token_id=0,
        eos_token_id=END,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM(config)


def flat(tensors) -> torch.Tensor:
    return torch.cat([values.detach().flatten() for values in tensors])


def train(
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
    """(gradients of the first batch, weights after an epoch, log of that epoch)."""
    policy = copy.deepcopy(model)
    policy.set_attn_implementation(attention)
    reference = None if lora else copy.deepcopy(policy)
    if reference is not None:  # another policy, so that the first step has a margin
        torch.manual_seed(4)
        for weights in reference.parameters():
            weights.data += 0.02 * torch.randn_like(weights)
    torch.manual_seed(5)
    arguments = trainer.arguments(
        rows,
        batch_size=batch_size,
        learning_rate=1e-3,
        max_length=max_length,
        random_seed=1,
        evaluations=1,
        evaluation_size=batch_size,
        folder=str(folder),
    )
    # Adam divides by the size of a gradient: one of pure rounding would make a full step.
    arguments |= {"logging_steps": 1, "adam_epsilon": 1e-5}
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    trl_trainer = kind(
        model=policy,
        ref_model=reference,
        args=DPOConfig(beta=0.3, **losses, **arguments),
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=tokenizer,
        peft_config=config if lora else None,
    )
    count = min(batch_size, len(rows))
    first = trl_trainer.data_collator([trl_trainer.train_dataset[i] for i in range(count)])
    trl_trainer.model.train()
    batch = trl_trainer._prepare_inputs(first)
    trl_trainer.compute_loss(trl_trainer.model, batch).backward()
    trained = [weights for weights in trl_trainer.model.parameters() if weights.requires_grad]
    gradients = flat(weights.grad for weights in trained)

    trl_trainer.model.zero_grad()
    trl_trainer._metrics["train"].clear()
    trl_trainer.train()
    log = [
        {k: v for k, v in row.items() if "runtime" not in k and "per_second" not in k}
        for row in trl_trainer.state.log_history
    ]
    return gradients, flat(trained), log


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Relative to the norm of `other`."""
    return float((one - other).norm() / other.norm())


def assert_same_as_trl(model, tokenizer, folder, rows, **options) -> None:
    """Gradients, weights and log of the grid trainer are those of TRL's, up to rounding."""
    theirs = train(PlainTrainer, model, tokenizer, rows, folder, **options)
    ours = train(GridTrainer, model, tokenizer, rows, folder, **options)
    assert theirs[0].norm() > 0
    assert distance(ours[0], theirs[0]) < 1e-5, "gradients of the first batch"
    assert distance(ours[1], theirs[1]) < 1e-5, "weights after an epoch"
    assert len(ours[2]) == len(theirs[2]) and "eval_rewards/margins" in str(theirs[2])
    for our_row, their_row in zip(ours[2], theirs[2], strict=True):
        assert set(our_row) == set(their_row)
        for name, value in our_row.items():
            if name in ("loss", "eval_loss"):
                expected = pytest.approx(their_row[name], rel=1e-5, abs=1e-6)
            else:  # differences of log-probabilities, some close to 0
                expected = pytest.approx(their_row[name], rel=1e-4, abs=1e-5)
            assert value == expected, name
