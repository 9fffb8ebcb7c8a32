"""Policies: the tokenizer and the small Llama trained from scratch, and loading any policy from a folder again.

Those that start from a real model come from stages.training.pretrained and adapters.
"""

import os
import re
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from stages.core.errors import LibraError
from stages.core.params import Section

# ChatML-like turns; `<|end|>` closes both the question and the answer.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SPECIAL_TOKENS = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
SCRATCH = "scratch"  # model.base of the small Llama


class LoraParams(Section):
    """Low-rank adapters (Hu et al. 2021): what is trained in place of the weights they are put on."""

    r: int = Field(ge=1)
    alpha: float = Field(gt=0)
    dropout: float = Field(ge=0, lt=1)
    target_modules: Literal["all-linear"] | list[str] = Field(min_length=1)


class ModelParams(Section):
    """What the policy starts from and how it is held in memory; the sizes are those of the Llama trained from scratch."""

    base: str = Field(min_length=1)
    revision: str | None
    dtype: Literal["float32", "bfloat16"]
    attention: Literal["sdpa", "eager", "flash_attention_2"]
    quantization: Literal["nf4"] | None
    lora: LoraParams | None
    checkpointing: bool
    save: Literal["with_base", "adapter", "merged"]
    vocab_size: int = Field(ge=300, le=65536)
    hidden_size: int = Field(ge=16)
    intermediate_size: int = Field(ge=16)
    layers: int = Field(ge=1)
    heads: int = Field(ge=1)
    initializer_range: float = Field(gt=0, le=1)
    max_length: int = Field(ge=64)

    @model_validator(mode="after")
    def _fits_together(self):
        if self.base == SCRATCH:
            for name in ("revision", "quantization", "lora"):
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"`{name}` is for a real model, and `base` is scratch; name a model in `base` or set `{name}` to null"
                    )
        if self.revision is not None and self.is_local:
            raise ValueError(
                f"`revision` is for a model on a hub, and `base` is the folder {self.base}; set `revision` to null"
            )
        if self.quantization and not self.lora:
            raise ValueError(
                "`quantization` freezes the weights, so something else must be trained; set `lora`, or `quantization` to null"
            )
        if self.save != "with_base" and not self.lora:
            raise ValueError(
                f"`save: {self.save}` is for adapters, and `lora` is null; set `lora`, or `save` to with_base"
            )
        if self.attention == "flash_attention_2" and self.dtype == "float32":
            raise ValueError(
                "`attention: flash_attention_2` doesn't compute in float32; set `dtype` to bfloat16 or `attention` to sdpa"
            )
        return self

    @property
    def is_local(self) -> bool:
        """Whether training needs no hub: from scratch, or from a folder."""
        return self.base == SCRATCH or Path(self.base).is_dir()

    def held(self, trained: bool) -> dict[str, str | None]:
        """Keyword arguments of `load_policy`.

        Weights that are `trained` themselves are held in float32 whatever `dtype` says: in bfloat16 an update of less than
        1/256 of a weight is lost. They are then computed with in `dtype` (autocast).
        """
        dtype = "float32" if trained and not self.lora else self.dtype
        return {"dtype": dtype, "attention": self.attention, "quantization": self.quantization}

    def training(self) -> dict[str, bool | float]:
        """Keyword arguments of `stages.training.trainer.arguments`; decay towards 0 is for weights that start near it."""
        return {
            "bf16": self.dtype == "bfloat16",
            "checkpointing": self.checkpointing,
            "weight_decay": 0.5 if self.base == SCRATCH else 0.0,
        }


def deterministic(random_seed: int, offline: bool = True) -> None:
    """Make torch repeat itself bit for bit: seeded, deterministic kernels, one instruction set, idle threads that soon sleep.

    On the CPU in fp32 the weights are the same bytes on one thread and on two, and on every x86-64 processor with AVX2.

    Call it before anything imports transformers: with `offline` nothing is looked up on a hub, and that is decided there. On a
    GPU an operation that has no deterministic kernel warns and goes on.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault(
        "GOMP_SPINCOUNT", "2000"
    )  # a few microseconds: between two kernels waking a thread costs more
    os.environ.setdefault(
        "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
    )  # what deterministic cuBLAS asks for
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    else:  # said for the processes this one starts
        os.environ.setdefault("HF_HUB_OFFLINE", os.environ.get("TRANSFORMERS_OFFLINE", "0"))
    same_instructions()
    _keep_freed_memory()
    import torch
    import transformers

    transformers.set_seed(random_seed)
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    torch.utils.deterministic.fill_uninitialized_memory = (
        False  # a pass over every buffer, to find who reads what was never written
    )
    torch.backends.cuda.enable_cudnn_sdp(
        False
    )  # it plans anew for every shape, and batches here have many; nor does it repeat itself
    transformers.logging.set_verbosity_error()


def same_instructions() -> None:
    """Let ATen, MKL and oneDNN use AVX2 where they would use more: wider registers add up in another order.

    Set, not proposed: whoever has one of these in the environment would otherwise get other weights.
    """
    import platform

    cpu = Path("/proc/cpuinfo")
    if platform.machine() in ("x86_64", "AMD64") and (
        not cpu.exists() or " avx2 " in cpu.read_text(encoding="utf-8")
    ):
        os.environ |= {
            "ATEN_CPU_CAPABILITY": "avx2",
            "MKL_CBWR": "AVX2",
            "ONEDNN_MAX_CPU_ISA": "AVX2",
        }


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
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
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
    """A freshly initialised fp32 `LlamaForCausalLM` of the given size, embeddings tied.

    Raises LibraError on a bad size, and when the hardware for `params.attention` is missing.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    from stages.training import pretrained

    pretrained.loading(params.dtype, params.attention, None)
    if params.hidden_size % params.heads:
        raise LibraError(
            f"params.yaml: model.hidden_size ({params.hidden_size}) must be a multiple of model.heads ({params.heads})"
        )
    return LlamaForCausalLM(
        LlamaConfig(
            attn_implementation=params.attention,
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


def load_policy(
    folder: str | Path,
    dtype: str = "float32",
    attention: str = "sdpa",
    quantization: str | None = None,
    trainable: bool = False,
):
    """(model, tokenizer) from a folder written by `sft` or `dpo`: safetensors only, no code from the folder is run.

    The folder holds whole weights, or an adapter with its base beside it or named; an adapter is frozen unless `trainable`. Quantised
    is a base alone: whole weights here are merged ones, which would be rounded anew. Raises LibraError when there is no model in it,
    or its base or the hardware that was asked for can't be had.
    """
    from stages.training import adapters, pretrained

    folder = Path(folder)
    how = {"dtype": dtype, "attention": attention, "quantization": quantization}
    if (folder / adapters.ADAPTER).exists():
        model = adapters.load_adapted(folder, trainable=trainable, **how)
    elif (folder / "config.json").exists():
        model = pretrained.load_weights(folder, None, **how | {"quantization": None})
    else:
        raise LibraError(f"{folder} holds no model; run `dvc repro {folder.name}` first")
    return model, pretrained.load_tokenizer(folder)


def base_to_train(params: ModelParams):
    """(model, tokenizer, commit) that `sft` trains: `params.base`, with fresh adapters where `params.lora` asks for them.

    The commit is that of a hub's model, and None for a folder. Raises LibraError when the model or the hardware that was asked for
    can't be had.
    """
    from stages.training import adapters, pretrained

    pretrained.loading(
        **params.held(trained=True)
    )  # hardware that isn't there shows before a download of many gigabytes
    revision = pretrained.find(params.base, params.revision)
    tokenizer = pretrained.load_tokenizer(params.base, revision)
    model = pretrained.load_weights(params.base, revision, **params.held(trained=True))
    if adapters.is_adapted(model):
        raise LibraError(
            f"model.base: {params.base} holds an adapter beside its base; merge the two (model.save: merged does) and name the whole weights"
        )
    if params.lora:
        model = adapters.with_adapter(model, params.lora, revision)
        adapters.check_base(model, params)
    return model, tokenizer, revision


def policy_to_train(folder: str | Path, params: ModelParams):
    """(model, tokenizer) from `folder`, as DPO is to go on training it.

    An adapter is loaded trainable on its own base: a new one would start from that base again, not from what SFT learnt. On
    merged weights a new one is put: at its start it changes nothing. Either way the policy that is loaded is the one in `folder`.
    Raises LibraError as `load_policy` does.
    """
    from stages.training import adapters

    model, tokenizer = load_policy(folder, **params.held(trained=True), trainable=True)
    if params.lora and not adapters.is_adapted(model):
        model = adapters.with_adapter(model, params.lora, None)
    adapters.check_base(model, params)
    return model, tokenizer
