"""Texts to token ids: one way to render a prompt and an answer for training, reference and generation alike."""

import random
from collections.abc import Sequence

from stages.common.errors import LibraError

WITHHELD = "[details withheld]"  # where an opener stops


def encode_prompts(tokenizer, prompts: Sequence[str]) -> list[list[int]]:
    """Token ids of each prompt as the user's turn, with the opening of the assistant's turn."""
    return _ids(tokenizer, [_prompt_text(tokenizer, prompt) for prompt in prompts])


def encode_answers(tokenizer, answers: Sequence[str]) -> list[list[int]]:
    """Token ids of each answer as the assistant's turn, its end-of-turn token included."""
    asked = _prompt_text(tokenizer, "x")
    texts = []
    for answer in answers:
        turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": answer}]
        whole = tokenizer.apply_chat_template(turns, tokenize=False)
        if not whole.startswith(asked):
            raise LibraError("the tokenizer's chat template renders a prompt differently once it is answered; use another template")
        texts.append(whole[len(asked):])
    return _ids(tokenizer, texts)


def encode_rejected(tokenizer, answers: Sequence[str]) -> list[list[int]]:
    """As `encode_answers`, but a compliance opener ends before its `[details withheld]`.

    The mark stands for text that is not there. Trained on, it would tell the rejected answer by itself, and the policy
    would learn to shun the mark instead of agreeing.
    """
    ids = encode_answers(tokenizer, answers)
    cut = [i for i, answer in enumerate(answers) if answer.endswith(WITHHELD)]
    openers = _ids(tokenizer, [answers[i].removesuffix(WITHHELD).rstrip() for i in cut])
    for i, opener in zip(cut, openers, strict=True):
        ids[i] = opener
    return ids


def length_grouped(lengths: Sequence[int], batch_size: int, rng: random.Random) -> list[int]:
    """A random order of `range(len(lengths))` in which each run of `batch_size` has similar lengths.

    Sorts inside large random chunks and shuffles the batches, so that little of a batch is padding.
    """
    order = list(range(len(lengths)))
    rng.shuffle(order)
    chunk = batch_size * 50
    batches = []
    for start in range(0, len(order), chunk):
        part = sorted(order[start : start + chunk], key=lambda i: (lengths[i], i))
        batches += [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
    full = [batch for batch in batches if len(batch) == batch_size]
    rest = [batch for batch in batches if len(batch) < batch_size]
    rng.shuffle(full)
    return [i for batch in full + rest for i in batch]


def _prompt_text(tokenizer, prompt: str) -> str:
    return tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True)


def _ids(tokenizer, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False)["input_ids"]
