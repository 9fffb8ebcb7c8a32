"""Greedy answers of a policy to many prompts."""

import torch
from transformers import DynamicCache

from stages.core.progress import counter
from stages.training.encode import encode_prompts

THIN = 0.75  # a batch is thinned once fewer of its rows than this are still being written


@torch.inference_mode()
def greedy(
    model, tokenizer, prompts: list[str], max_new_tokens: int, batch_size: int, what: str
) -> list[tuple[str, str]]:
    """(answer, finish_reason) of each prompt, in order; finish_reason is `stop`, or `length` at `max_new_tokens`.

    Batches hold prompts of similar length, padded on the left, and lose rows as they end; in fp32 a batch's make-up hardly
    matters. The text is that of `model.generate(do_sample=False)`, which computes every row until the last has ended.
    """
    model.eval()
    ids = encode_prompts(tokenizer, prompts)
    order = sorted(range(len(ids)), key=lambda i: (len(ids[i]), prompts[i]))
    answers: list[tuple[str, str]] = [("", "")] * len(ids)
    bar = counter(what, len(ids))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        padded = tokenizer.pad(
            {"input_ids": [ids[i] for i in batch]}, padding_side="left", return_tensors="pt"
        ).to(model.device)
        for i, (tokens, ended) in zip(
            batch, _written(model, _ends(model, tokenizer), padded, max_new_tokens), strict=True
        ):
            answers[i] = (
                tokenizer.decode(tokens, skip_special_tokens=True).strip(),
                "stop" if ended else "length",
            )
        bar.update(len(batch))
    bar.close()
    return answers


def _written(
    model, ends: torch.Tensor, padded, max_new_tokens: int
) -> list[tuple[list[int], bool]]:
    """(tokens, whether it ended by itself) of each row of `padded`, one of `ends` closing an answer and left out."""
    rows = torch.arange(
        padded["input_ids"].shape[0], device=model.device
    )  # of `padded`, those that are still in the batch
    tokens: list[list[int]] = [[] for _ in rows]
    ended = torch.zeros(len(rows), dtype=torch.bool, device=model.device)
    mask, shown, cache = (
        padded["attention_mask"],
        padded["input_ids"],
        DynamicCache(config=model.config),
    )
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    for _ in range(max_new_tokens):
        outputs = model(
            input_ids=shown,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        chosen = outputs.logits[:, -1].argmax(-1)
        ended[rows] |= torch.isin(chosen, ends)
        for row, token, over in zip(
            rows.tolist(), chosen.tolist(), ended[rows].tolist(), strict=True
        ):
            if not over:
                tokens[row].append(token)
        going = ~ended[rows]
        if not going.any():
            break
        positions = positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        if going.sum() < THIN * len(rows):
            cache.batch_select_indices(going.nonzero().squeeze(1))
            rows, chosen, mask, positions = (
                rows[going],
                chosen[going],
                mask[going],
                positions[going],
            )
        shown = chosen.unsqueeze(1)
    return list(zip(tokens, ended.tolist(), strict=True))


def _ends(model, tokenizer) -> torch.Tensor:
    """Ids that close an answer: the tokenizer's, and what the model's generation config names."""
    named = model.generation_config.eos_token_id if model.generation_config else None
    named = named if isinstance(named, list) else [named]
    ends = {end for end in [tokenizer.eos_token_id, *named] if end is not None}
    return torch.tensor(sorted(ends), device=model.device)
