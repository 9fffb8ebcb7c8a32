"""Greedy answers of a policy to many prompts."""

import torch

from stages.common.progress import counter
from stages.training.encode import encode_prompts


@torch.inference_mode()
def greedy(model, tokenizer, prompts: list[str], max_new_tokens: int, batch_size: int, what: str) -> list[tuple[str, str]]:
    """(answer, finish_reason) of each prompt, in order; finish_reason is `stop`, or `length` at `max_new_tokens`.

    Batches hold prompts of similar length, padded on the left; fp32, so that a batch's make-up hardly matters.
    """
    model.eval()
    ids = encode_prompts(tokenizer, prompts)
    order = sorted(range(len(ids)), key=lambda i: (len(ids[i]), prompts[i]))
    answers: list[tuple[str, str]] = [("", "")] * len(ids)
    bar = counter(what, len(ids))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        padded = tokenizer.pad({"input_ids": [ids[i] for i in batch]}, padding_side="left", return_tensors="pt").to(model.device)
        written = model.generate(**padded, max_new_tokens=max_new_tokens, do_sample=False)[:, padded["input_ids"].shape[1] :]
        for i, tokens in zip(batch, written.tolist(), strict=True):
            ended = tokenizer.eos_token_id in tokens
            tokens = tokens[: tokens.index(tokenizer.eos_token_id)] if ended else tokens
            answers[i] = (tokenizer.decode(tokens, skip_special_tokens=True).strip(), "stop" if ended else "length")
        bar.update(len(batch))
    bar.close()
    return answers
