"""Texts to token ids: one way to render a prompt and an answer for training, reference and generation alike."""

import json
import random
import re
from collections.abc import Sequence

from stages.core.errors import LibraError

WITHHELD = "[details withheld]"  # where an opener stops


def encode_prompts(tokenizer, prompts: Sequence[str]) -> list[list[int]]:
    """Token ids of each prompt as the user's turn, with the opening of the assistant's turn."""
    return _ids(tokenizer, [_prompt_text(tokenizer, prompt) for prompt in prompts])


class BpeDropout:
    """Segments a prompt another way each time: at every step a share of the possible merges is left out.

    A small policy otherwise learns a substance by the one way it is cut, and reads nothing from the parts of new names.
    The `dropout` of the tokenizers library draws from a generator that can't be seeded. Source: Provilkov et al. 2020.
    """

    def __init__(self, tokenizer, share: float):
        """`share` of merges left out, 0 (none) to 1 (all). Raises LibraError for a tokenizer that isn't byte-level BPE."""
        backend = json.loads(tokenizer.backend_tokenizer.to_str())
        model = backend["model"]
        if (
            model["type"] != "BPE"
            or model.get("byte_fallback")
            or "ByteLevel" not in json.dumps(backend["pre_tokenizer"])
        ):
            raise LibraError(
                "bpe_dropout is for byte-level BPE tokenizers, which this model's is not; set it to 0"
            )
        self.tokenizer, self.share = tokenizer, share
        self.rank = {tuple(pair): rank for rank, pair in enumerate(model["merges"])}
        self.vocabulary = model["vocab"]
        self.added = {
            str(token): number for number, token in tokenizer.added_tokens_decoder.items()
        }
        self.mark = re.compile(
            "(" + "|".join(map(re.escape, sorted(self.added, key=len, reverse=True))) + ")"
        )
        self.words: dict[
            str, list[int | str]
        ] = {}  # of each prompt seen: words, and ids of added tokens

    def prompt(self, text: str, rng: random.Random, longest: int) -> list[int]:
        """Token ids as `encode_prompts` gives them, cut at random; as usual where they would be more than `longest`."""
        if text not in self.words:
            self.words[text] = self._split(_prompt_text(self.tokenizer, text))
        ids: list[int] = []
        for word in self.words[text]:
            ids += (
                [word]
                if isinstance(word, int)
                else [self.vocabulary[piece] for piece in self._merged(word, rng)]
            )
        return ids if len(ids) <= longest else encode_prompts(self.tokenizer, [text])[0]

    def _split(self, rendered: str) -> list[int | str]:
        split = self.tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str
        words: list[int | str] = []
        for part in filter(None, self.mark.split(rendered)):
            words += [self.added[part]] if part in self.added else [word for word, _ in split(part)]
        return words

    def _merged(self, word: str, rng: random.Random) -> list[str]:
        pieces = list(word)
        while len(pieces) > 1:
            pairs = (
                (self.rank.get(pair), at)
                for at, pair in enumerate(zip(pieces, pieces[1:], strict=False))
            )
            open_ = [
                (rank, at) for rank, at in pairs if rank is not None and rng.random() >= self.share
            ]
            if not open_:
                break
            _, at = min(open_)
            pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
        return pieces


def encode_answers(tokenizer, answers: Sequence[str]) -> list[list[int]]:
    """Token ids of each answer as the assistant's turn, its end-of-turn token included: what follows the prompt's ids.

    Raises LibraError when the template renders a prompt differently once it is answered.
    """
    return _after_a_prompt(tokenizer, [_answer_text(tokenizer, answer) for answer in answers])


def encode_rejected(tokenizer, answers: Sequence[str]) -> list[list[int]]:
    """As `encode_answers`, but a compliance opener ends before its `[details withheld]`.

    The mark stands for text that is not there. Trained on, it would tell the rejected answer by itself, and the policy
    would learn to shun the mark instead of agreeing. What a template writes before an answer (an empty chain of thought)
    stays, for it would tell them apart as well.
    """
    texts = [_answer_text(tokenizer, answer) for answer in answers]
    before = _answer_text(tokenizer, WITHHELD).partition(WITHHELD)[0]
    for i, answer in enumerate(answers):
        if answer.endswith(WITHHELD):
            texts[i] = before + answer.removesuffix(WITHHELD).rstrip()
    return _after_a_prompt(tokenizer, texts)


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
    return _rendered(tokenizer, [{"role": "user", "content": prompt}], add_generation_prompt=True)


def _answer_text(tokenizer, answer: str) -> str:
    """What the template adds to a prompt once `answer` is given."""
    asked = _prompt_text(tokenizer, "x")
    whole = _rendered(
        tokenizer, [{"role": "user", "content": "x"}, {"role": "assistant", "content": answer}]
    )
    if not whole.startswith(asked):
        raise LibraError(
            "the tokenizer's chat template renders a prompt differently once it is answered; use another template"
        )
    return whole[len(asked) :]


def _rendered(tokenizer, turns: list[dict], add_generation_prompt: bool = False) -> str:
    return tokenizer.apply_chat_template(
        turns, tokenize=False, add_generation_prompt=add_generation_prompt
    )


def _after_a_prompt(tokenizer, texts: list[str]) -> list[list[int]]:
    """Token ids of `texts` where they follow a prompt: some tokenizers begin a text of its own with a blank.

    A tokenizer that merges the end of a prompt with the start of a text gives those of the text alone, for the policy is asked
    with the whole prompt.
    """
    asked = _prompt_text(tokenizer, "x")
    (prompt,) = _ids(tokenizer, [asked])
    alone, whole = _ids(tokenizer, texts), _ids(tokenizer, [asked + text for text in texts])
    return [
        ids[len(prompt) :] if ids[: len(prompt)] == prompt else own
        for ids, own in zip(whole, alone, strict=True)
    ]


def _ids(tokenizer, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
