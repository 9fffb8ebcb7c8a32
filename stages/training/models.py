"""Policies: the tokenizer and the small Llama trained from scratch, and loading either from a folder again."""

import os
import re
from pathlib import Path

from pydantic import Field

from stages.common.errors import LibraError
from stages.common.params import Section

# ChatML-like turns; `<|end|>` closes both the question and the answer.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SPECIAL_TOKENS = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]


class ModelParams(Section):
    """Size of the Llama that is trained from scratch."""

    vocab_size: int = Field(ge=300, le=65536)
    hidden_size: int = Field(ge=16)
    intermediate_size: int = Field(ge=16)
    layers: int = Field(ge=1)
    heads: int = Field(ge=1)
    initializer_range: float = Field(gt=0, le=1)
    max_length: int = Field(ge=64)


def deterministic(random_seed: int) -> None:
    """Make torch repeat itself bit for bit on this machine: seeded, deterministic kernels, idle threads that soon sleep.

    Nothing is looked up on a hub: what is trained from scratch needs none.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # a few microseconds: between two kernels waking a thread costs more
    os.environ["HF_HUB_OFFLINE"] = "1"
    _keep_freed_memory()
    import torch
    import transformers

    transformers.set_seed(random_seed)
    torch.use_deterministic_algorithms(True)
    transformers.logging.set_verbosity_error()


def _keep_freed_memory() -> None:
    """Let glibc keep freed blocks: mapping every activation anew cost a third of the CPU time of a training step."""
    import ctypes
    import sys

    if sys.platform == "linux":
        trim_threshold, top_pad, mmap_threshold = -1, -2, -3
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(mmap_threshold, 1 << 30)
            libc.mallopt(trim_threshold, (1 << 31) - 1)
            libc.mallopt(top_pad, 64 << 20)


def train_tokenizer(texts: list[str], vocab_size: int):
    """A byte-level BPE tokenizer of at most `vocab_size` tokens, trained on `texts` (the train split only).

    Every word counts once, however often it stands there: else the merges go to the few words of the requests, and a name
    that is new falls into letters. Digits are tokens of their own, and every byte is in the alphabet, so no text is unknown.
    Returns a transformers fast tokenizer with a chat template. Source of BPE: Sennrich et al. 2016.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words = {word for text in texts for word in re.findall(r" ?[^ ]+", text)}
    tokenizer.train_from_iterator(sorted(words), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def new_model(params: ModelParams, tokenizer):
    """A freshly initialised fp32 `LlamaForCausalLM` of the given size, embeddings tied. Raises LibraError on a bad size."""
    from transformers import LlamaConfig, LlamaForCausalLM

    if params.hidden_size % params.heads:
        raise LibraError(f"params.yaml: model.hidden_size ({params.hidden_size}) must be a multiple of model.heads ({params.heads})")
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=params.hidden_size,
            intermediate_size=params.intermediate_size,
            num_hidden_layers=params.layers,
            num_attention_heads=params.heads,
            num_key_value_heads=params.heads,
            max_position_embeddings=params.max_length,
            initializer_range=params.initializer_range,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )


def load_policy(folder: str | Path):
    """(model, tokenizer) from a folder written by `sft` or `dpo`: safetensors only, fp32, no code from the folder is run."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = Path(folder)
    if not (folder / "config.json").exists():
        raise LibraError(f"{folder} holds no model; run `dvc repro {folder.name}` (or `dvc pull`) first")
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, local_files_only=True
    )
    return model, AutoTokenizer.from_pretrained(folder, padding_side="left", local_files_only=True)
