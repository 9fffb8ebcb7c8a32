"""Texts to token ids: one rendering of prompts and answers for training and generation.

prompt_ids = encode_prompts(tokenizer, ["How is ethanol stored?"])     # [[3, 75, ..., 1, 4]]
answer_ids = encode_answers(tokenizer, ["Cool and dry."])              # [[38, 260, ..., 1]]
"""

import json
import random
import re
from collections.abc import Sequence

from stages.core.errors import LibraError

WITHHELD = "[details withheld]"  # where a compliance opener stops


def encode_prompts(tokenizer, prompts: Sequence[str]) -> list[list[int]]:
    """Token ids of each prompt as the user's turn, with the opening of the assistant's turn."""
    return _ids(tokenizer, [_prompt_text(tokenizer, prompt) for prompt in prompts])


class BpeDropout:
    """Segments a prompt differently each time: every possible merge is skipped at random.

    Without it a small policy learns a substance by its one segmentation and reads nothing from the
    parts of new names. The `dropout` of the tokenizers library uses a generator that can't be
    seeded. Source: Provilkov et al. 2020.
    """

    def __init__(self, tokenizer, share: float):
        """`share` of merges skipped, 0 to 1. Raises LibraError unless it is byte-level BPE."""
        backend = json.loads(tokenizer.backend_tokenizer.to_str())
        model = backend["model"]
        if (
            model["type"] != "BPE"
            or model.get("byte_fallback")
            or "ByteLevel" not in json.dumps(backend["pre_tokenizer"])
        ):
            raise LibraError(
                "bpe_dropout needs a byte-level BPE tokenizer, and this model's is another kind; "
                "set it to 0"
            )
        self.tokenizer, self.share = tokenizer, share
        self.rank = {tuple(pair): rank for rank, pair in enumerate(model["merges"])}
        self.vocabulary = model["vocab"]
        self.added = {
            str(token): number for number, token in tokenizer.added_tokens_decoder.items()
        }
        longest_first = sorted(self.added, key=len, reverse=True)
        self.added_pattern = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
        # Of each prompt seen so far: its words, and the ids of added tokens.
        self.words: dict[str, list[int | str]] = {}

    def prompt(self, text: str, rng: random.Random, longest: int) -> list[int]:
        """Token ids as of `encode_prompts`, but segmented at random.

        Without dropout if they would be more than `longest`.
        """
        if text not in self.words:
            self.words[text] = self._split(_prompt_text(self.tokenizer, text))
        ids: list[int] = []
        for word in self.words[text]:
            if isinstance(word, int):
                ids.append(word)
            else:
                ids += [self.vocabulary[piece] for piece in self._merge(word, rng)]
        return ids if len(ids) <= longest else encode_prompts(self.tokenizer, [text])[0]

    def _split(self, rendered: str) -> list[int | str]:
        split = self.tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str
        words: list[int | str] = []
        for part in filter(None, self.added_pattern.split(rendered)):
            words += [self.added[part]] if part in self.added else [word for word, _ in split(part)]
        return words

    def _merge(self, word: str, rng: random.Random) -> list[str]:
        pieces = list(word)
        while len(pieces) > 1:
            pairs = enumerate(zip(pieces, pieces[1:], strict=False))
            merges = [
                (rank, i)
                for rank, i in ((self.rank.get(pair), i) for i, pair in pairs)
                if rank is not None and rng.random() >= self.share
            ]
            if not merges:
                break
            _, i = min(merges)
            pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
        return pieces


def encode_answers(tokenizer, answers: Sequence[str]) -> list[list[int]]:
    """Token ids of each answer as the assistant's turn, end-of-turn token included.

    They continue the prompt's ids. Raises LibraError if the template renders a prompt differently
    once it is answered.
    """
    return _ids_after_prompt(tokenizer, [_answer_text(tokenizer, answer) for answer in answers])


def encode_rejected(tokenizer, answers: Sequence[str]) -> list[list[int]]:
    """As `encode_answers`, but a compliance opener ends before its `[details withheld]`.

    The mark stands for text that isn't there. If it were trained on, it alone would identify the
    rejected answer, and the policy would learn to avoid the mark instead of the agreement. What a
    template puts before an answer (an empty chain of thought) stays: without it they would be
    identifiable too.
    """
    texts = [_answer_text(tokenizer, answer) for answer in answers]
    before = _answer_text(tokenizer, WITHHELD).partition(WITHHELD)[0]
    for i, answer in enumerate(answers):
        if answer.endswith(WITHHELD):
            texts[i] = before + answer.removesuffix(WITHHELD).rstrip()
    return _ids_after_prompt(tokenizer, texts)


def length_grouped(lengths: Sequence[int], batch_size: int, rng: random.Random) -> list[int]:
    """A random order of `range(len(lengths))` in which each batch has rows of similar length.

    Sorts within large random chunks and shuffles the batches, so that little of a batch is padding.
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
    return _render(tokenizer, [{"role": "user", "content": prompt}], add_generation_prompt=True)


def _answer_text(tokenizer, answer: str) -> str:
    """What the template adds to a prompt once `answer` is given."""
    prompt = _prompt_text(tokenizer, "x")
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": answer}]
    conversation = _render(tokenizer, turns)
    if not conversation.startswith(prompt):
        raise LibraError(
            "the tokenizer's chat template renders a prompt differently once it is answered; "
            "use another template"
        )
    return conversation[len(prompt) :]


def _render(tokenizer, turns: list[dict], add_generation_prompt: bool = False) -> str:
    return tokenizer.apply_chat_template(
        turns, tokenize=False, add_generation_prompt=add_generation_prompt
    )


def _ids_after_prompt(tokenizer, texts: list[str]) -> list[list[int]]:
    """Token ids of `texts` as they follow a prompt: alone, some tokenizers add a leading space.

    If a tokenizer merges the end of the prompt with the start of the text, the ids are those of the
    text alone, since the policy is given the whole prompt.
    """
    prompt = _prompt_text(tokenizer, "x")
    (prompt_ids,) = _ids(tokenizer, [prompt])
    alone, continued = _ids(tokenizer, texts), _ids(tokenizer, [prompt + text for text in texts])
    count = len(prompt_ids)
    return [
        ids[count:] if ids[:count] == prompt_ids else own
        for ids, own in zip(continued, alone, strict=True)
    ]


def _ids(tokenizer, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
