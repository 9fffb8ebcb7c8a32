"""Texts to token ids: templates, the tokenizer from scratch, BPE dropout, batches by length."""

import copy
import random

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from helpers.tiny_training import MODEL_PARAMS, table, texts
from stages.core.errors import LibraError
from stages.training import encode
from stages.training.scratch import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(texts(), MODEL_PARAMS.vocab_size)


def test_prompt_and_answer_are_the_template_s_text(tokenizer):
    question, reply = "What is 1,2-ethanediol °é?", "A glycol. Ünïcode too."
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
    (prompt,) = encode.encode_prompts(tokenizer, [question])
    (answer,) = encode.encode_answers(tokenizer, [reply])
    rendered = "<|user|>What is 1,2-ethanediol °é?<|end|><|assistant|>A glycol. Ünïcode too.<|end|>"
    assert tokenizer.apply_chat_template(turns, tokenize=False) == rendered
    assert tokenizer.decode(prompt + answer) == rendered
    assert tokenizer.decode(prompt) == "<|user|>What is 1,2-ethanediol °é?<|end|><|assistant|>"
    assert answer[-1] == tokenizer.eos_token_id
    assert prompt + answer == tokenizer.apply_chat_template(turns)["input_ids"]


def test_the_tokenizer_knows_every_byte_and_splits_digits(tokenizer):
    text = "C[C@@H](N)C(=O)O \u2603 \U0001f9ea \x00 12.50"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text and len(tokenizer) <= MODEL_PARAMS.vocab_size
    assert [tokenizer.decode([i]) for i in ids[-5:]] == ["1", "2", ".", "5", "0"]
    again = train_tokenizer(texts(), MODEL_PARAMS.vocab_size)
    assert again.get_vocab() == tokenizer.get_vocab()


def test_a_word_counts_once_for_the_tokenizer_however_frequent(tokenizer):
    repeated = texts() + texts()[:3] * 50
    vocabulary = train_tokenizer(repeated, MODEL_PARAMS.vocab_size).get_vocab()
    assert vocabulary == tokenizer.get_vocab()


def test_bpe_dropout_segments_a_prompt_differently_each_time(tokenizer):
    prompts = table()["prompt"].unique().sort().to_list() + ["12,5 °é <|end|>?", "x"]
    plain = encode.encode_prompts(tokenizer, prompts)
    rng = random.Random(1)
    no_dropout = encode.BpeDropout(tokenizer, 0.0)
    assert [no_dropout.prompt(text, rng, 999) for text in prompts] == plain

    half = encode.BpeDropout(tokenizer, 0.5)
    first, same, other = (
        [half.prompt(text, random.Random(seed), 999) for text in prompts] for seed in (1, 1, 2)
    )
    assert first == same != other
    assert [tokenizer.decode(ids) for ids in first] == [tokenizer.decode(ids) for ids in plain]
    longer = [len(ids) - len(before) for ids, before in zip(first, plain, strict=True)]
    assert min(longer) == 0 and max(longer) > 3

    letters = encode.BpeDropout(tokenizer, 0.999).prompt(prompts[0], random.Random(1), 999)
    assert len(letters) == len(prompts[0].encode()) + 3, "no merges at all: bytes"
    too_long = half.prompt(prompts[0], random.Random(1), len(plain[0]))
    assert too_long == plain[0], "without dropout if there is no room"


def test_bpe_dropout_needs_byte_level_bpe():
    words = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    )
    message = "bpe_dropout needs a byte-level BPE tokenizer.*; set it to 0"
    with pytest.raises(LibraError, match=message):
        encode.BpeDropout(words, 0.1)


def test_an_opener_ends_before_its_mark(tokenizer):
    answers = ["Sure. [details withheld]", "No.", "[details withheld] is a mark."]
    decoded = [tokenizer.decode(ids) for ids in encode.encode_rejected(tokenizer, answers)]
    assert decoded == ["Sure.", "No.<|end|>", "[details withheld] is a mark.<|end|>"]
    (ids,) = encode.encode_rejected(tokenizer, ["No."])
    assert tokenizer.decode(ids) == "No.<|end|>", "no opener at all"


def test_a_template_that_changes_the_prompt_is_refused(tokenizer):
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = (
        "{% if add_generation_prompt %}Q: {% endif %}"
        "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    )
    with pytest.raises(LibraError, match="renders a prompt differently once it is answered"):
        encode.encode_answers(changed, ["a"])


@pytest.mark.parametrize(("count", "batch"), [(0, 4), (1, 4), (1000, 4), (1003, 16)])
def test_length_grouping_is_a_seeded_permutation(count, batch):
    lengths = [random.Random(i).randint(1, 90) for i in range(count)]
    order = encode.length_grouped(lengths, batch, random.Random("a"))
    assert sorted(order) == list(range(count))
    assert order == encode.length_grouped(lengths, batch, random.Random("a"))
    if count > 1:
        assert order != encode.length_grouped(lengths, batch, random.Random("b"))
        starts = range(0, count - batch, batch)
        batches = [[lengths[j] for j in order[i : i + batch]] for i in starts]
        assert sum(max(part) - min(part) for part in batches) / len(batches) < 10
