"""Greedy answers of a causal language model to many prompts.

greedy(model, tokenizer, ["How is ethanol made?"], 64, batch_size=16, label="respond: dpo")
-> [("It is made by fermentation.", "stop")]
"""

import torch
from transformers import DynamicCache

from stages.core.progress import counter
from stages.training.encode import encode_prompts

THIN = 0.75  # a batch is thinned once less than this share of its rows is unfinished


@torch.inference_mode()
def greedy(
    model, tokenizer, prompts: list[str], max_new_tokens: int, batch_size: int, label: str
) -> list[tuple[str, str]]:
    """(answer, finish_reason) of each prompt, in order.

    finish_reason is `stop`, or `length` at `max_new_tokens`. Batches hold prompts of similar
    length, padded on the left, and lose rows as they end; in fp32 a batch's composition hardly
    matters. The text is that of `model.generate(do_sample=False)`, which computes every row until
    the last has ended.
    """
    model.eval()
    prompt_ids = encode_prompts(tokenizer, prompts)
    order = sorted(range(len(prompts)), key=lambda i: (len(prompt_ids[i]), prompts[i]))
    answers: list[tuple[str, str]] = [("", "")] * len(prompts)
    end_ids = _end_ids(model, tokenizer)
    bar = counter(label, len(prompts))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        inputs = tokenizer.pad(
            {"input_ids": [prompt_ids[i] for i in batch]}, padding_side="left", return_tensors="pt"
        ).to(model.device)
        rows = _generate(model, end_ids, inputs, max_new_tokens)
        for i, (token_ids, ended) in zip(batch, rows, strict=True):
            text = tokenizer.decode(token_ids, skip_special_tokens=True).strip()
            answers[i] = (text, "stop" if ended else "length")
        bar.update(len(batch))
    bar.close()
    return answers


def _generate(
    model, end_ids: torch.Tensor, inputs, max_new_tokens: int
) -> list[tuple[list[int], bool]]:
    """(token ids without the end token, whether it ended) of each row of `inputs`."""
    rows = torch.arange(inputs["input_ids"].shape[0], device=model.device)  # still in the batch
    token_ids: list[list[int]] = [[] for _ in rows]
    ended = torch.zeros(len(rows), dtype=torch.bool, device=model.device)

    mask, input_ids = inputs["attention_mask"], inputs["input_ids"]
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    for _ in range(max_new_tokens):
        outputs = model(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        next_ids = outputs.logits[:, -1].argmax(-1)
        ended[rows] |= torch.isin(next_ids, end_ids)
        steps = zip(rows.tolist(), next_ids.tolist(), ended[rows].tolist(), strict=True)
        for row, next_id, row_ended in steps:
            if not row_ended:
                token_ids[row].append(next_id)

        unfinished = ~ended[rows]
        if not unfinished.any():
            break
        positions = positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        # Ended rows are still computed; dropping them copies the cache, so only many at once.
        if unfinished.sum() < THIN * len(rows):
            cache.batch_select_indices(unfinished.nonzero().squeeze(1))
            rows, next_ids = rows[unfinished], next_ids[unfinished]
            mask, positions = mask[unfinished], positions[unfinished]
        input_ids = next_ids.unsqueeze(1)
    return list(zip(token_ids, ended.tolist(), strict=True))


def _end_ids(model, tokenizer) -> torch.Tensor:
    """Ids that end an answer: the tokenizer's, and those of the model's generation config."""
    configured = model.generation_config.eos_token_id if model.generation_config else None
    configured = configured if isinstance(configured, list) else [configured]
    ids = {token_id for token_id in [tokenizer.eos_token_id, *configured] if token_id is not None}
    return torch.tensor(sorted(ids), device=model.device)
