"""Tiny random models of three architectures in hub layout, and policies that start from them."""

from pathlib import Path

import polars as pl
import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from helpers.tiny_training import texts
from stages.training import encode

LORA = {"r": 4, "alpha": 8, "dropout": 0.0, "target_modules": "all-linear"}
COMMIT = "0123456789abcdef0123456789abcdef01234567"
LLAMA = (
    "{{ bos_token }}{% for m in messages %}"
    "<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
# As Qwen 3: a system turn of its own, and an empty chain of thought before the last answer.
QWEN = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}"
    "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
WORDS = (  # Llama 3's
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# kind: template, special tokens, indices of bos, eos and pad, whether its BPE is byte-level
TOKENIZERS = {
    "llama": (
        LLAMA,
        ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        (0, 3, None),
        True,
    ),
    "qwen3": (QWEN, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], (None, 2, 0), True),
    "gemma2": (
        GEMMA,
        ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"],
        (2, 1, 0),
        False,
    ),
}
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


def make_tokenizer(kind: str):
    template, special, (bos, eos, pad), is_byte_level = TOKENIZERS[kind]
    tokenizer = Tokenizer(models.BPE(byte_fallback=not is_byte_level))
    if is_byte_level:
        alphabet, added = pre_tokenizers.ByteLevel.alphabet(), special
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(WORDS), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
    else:  # as Gemma's: spaces are marks, unknown characters are bytes
        alphabet = ["\n", "▁"]
        added = special + [f"<0x{byte:02X}>" for byte in range(256)]
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=added, initial_alphabet=alphabet, show_progress=False
    )
    markup = "user\n\nassistant\n\nmodel\n<think>\n\n</think>\n\n"
    tokenizer.train_from_iterator([*texts(), markup], trainer)
    named = {"bos_token": bos, "eos_token": eos, "pad_token": pad}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=template,
        **{name: special[i] for name, i in named.items() if i is not None},
    )


def write_models(folder: Path) -> None:
    """A tiny random model of each kind in `folder`, as a hub holds them."""
    for kind in TOKENIZERS:
        tokenizer = make_tokenizer(kind)
        torch.manual_seed(1)
        # Low enough to matter.
        limits = {"final_logit_softcapping": 2.0, "sliding_window": 22} if kind == "gemma2" else {}
        config = transformers.AutoConfig.for_model(
            kind,
            vocab_size=len(tokenizer),
            initializer_range=0.2,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=tokenizer.bos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            max_position_embeddings=512,
            **SIZES,
            **limits,
        )
        model = transformers.AutoModelForCausalLM.from_config(config)
        if kind == "gemma2":  # ends a turn and a text with different tokens
            model.generation_config.eos_token_id = [1, 4]
        model.save_pretrained(folder / kind)
        tokenizer.save_pretrained(folder / kind)


def attention(kind: str) -> str:
    """Gemma 2 caps its attention scores too, which sdpa doesn't support."""
    return "eager" if kind == "gemma2" else "sdpa"


def policies_from(hub: Path, project):
    """`write("llama", lora=..., ...)`: params of a policy that starts from that model."""

    def write(kind, dpo=None, **model):
        no_dropout = {"bpe_dropout": 0.0}
        model = {"base": str(hub / kind), "attention": attention(kind)} | model
        return project(model=model, sft=no_dropout, dpo=no_dropout | (dpo or {}))

    return write


def cache_model(hub: Path, tmp_path: Path, monkeypatch) -> Path:
    """A cache of the hub that holds one model, `org/tiny`."""
    from huggingface_hub import constants

    repository = tmp_path / "cache/models--org--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(COMMIT)
    (repository / "snapshots").mkdir()
    (repository / "snapshots" / COMMIT).symlink_to(hub / "llama")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def logits(model, tokenizer, text="How is it kept, substance xx?"):
    model.eval()
    with torch.no_grad():
        return model(torch.tensor(encode.encode_prompts(tokenizer, [text]))).logits.float()


def load_as_served(folder: Path):
    """(model, tokenizer) as `transformers serve` loads them."""
    from transformers.cli.serving.model_manager import ModelManager

    return ModelManager(device="cpu", model_timeout=-1).load_model_and_processor(f"{folder}@main")


def first_row(folder: Path) -> dict:
    """The first row of DPO's curve."""
    return pl.read_csv(folder / "models/dpo/training.csv").row(0, named=True)
