"""Greedy answers of a model in this process, cached: it isn't loaded again for the same prompts.

local = LocalModel(model="Qwen/Qwen3-0.6B", revision="c1899de", dtype="bfloat16", max_tokens=256)
setting = "respond.candidates.qwen.{}".format
local_answers(local, ["How is ethanol made?"], "respond: qwen", setting)
-> [("It is made by fermentation.", "stop")]

The tables are in `.cache/answers/`, under a hash of everything that decides the answers: the
model's files (or a hub model's commit), the prompts, dtype and the like, code and libraries.
"""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from stages.core.cache import (
    TableCache,
    code_digest,
    content_key,
    file_digest,
    files_in,
    package_versions,
)
from stages.core.errors import LibraError
from stages.core.params import Section

CACHE = TableCache("answers")
CODE = (
    "local/answers.py",
    "local/generate.py",
    "training/adapters.py",
    "training/encode.py",
    "training/model_params.py",
    "training/policies.py",
    "training/pretrained.py",
)
LIBRARIES = ("peft", "tokenizers", "torch", "transformers")
# The template of a tokenizer that has none: the prompt as it is, and a line break.
PLAIN = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
Answers = list[tuple[str, str]]  # (answer, finish_reason) of each prompt


class LocalModel(Section):
    """A model that answers in this process, from safetensors.

    `model` is a folder in hub layout, a folder with an adapter, or a hub id.
    """

    model: str = Field(min_length=1)
    revision: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    quantization: Literal["nf4"] | None = None
    max_tokens: int = Field(ge=1)
    batch_size: int = Field(default=16, ge=1)

    def __str__(self) -> str:
        return f"model {self.model}" + (f" at {self.revision}" if self.revision else "")

    def load_kwargs(self) -> dict[str, str | None]:
        """Keyword arguments of the functions that load weights."""
        return {"dtype": self.dtype, "attention": self.attention, "quantization": self.quantization}


def local_answers(
    local: LocalModel, prompts: list[str], label: str, setting: Callable[[str], str]
) -> Answers:
    """(answer, finish_reason) of each prompt, in order.

    `label` names the progress bar. Raises LibraError, in which `setting("dtype")` is what the user
    calls the field `dtype` of `local`.
    """
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # an unreachable hub is reported once, after the last try
    kwargs = {
        **local.load_kwargs(),
        "max_new_tokens": local.max_tokens,
        "batch_size": local.batch_size,
    }
    try:
        model_identity = identity(local.model, local.revision)
        return cached_answers(model_identity, lambda: _load(local), prompts, kwargs, label)
    except LibraError as error:
        message = re.sub(
            r"\bmodel\.(base|revision|dtype|attention|quantization)\b",
            lambda name: setting("model" if name[1] == "base" else name[1]),
            str(error),
        )
        raise LibraError(message) from None


def cached_answers(
    model_identity: object,
    load: Callable[[], tuple],
    prompts: list[str],
    kwargs: dict[str, Any],
    label: str,
) -> Answers:
    """The cached answers of the model that `model_identity` names, or new ones.

    `load()` returns (model, tokenizer) and is called for new ones only. `kwargs` holds
    max_new_tokens, batch_size, quantization, and whatever else decides the answers.
    """
    import polars as pl
    import torch

    from stages.local.generate import greedy

    on_gpu = torch.cuda.is_available()
    versions = package_versions(*LIBRARIES)
    key = content_key(model_identity, prompts, kwargs, on_gpu, code_digest(*CODE), versions)
    if (cached := _read(key, len(prompts))) is not None:
        print(f"{label}: {len(cached):,} answers from the cache ({key[:12]})", file=sys.stderr)
        return cached

    model, tokenizer = load()
    if on_gpu and not kwargs["quantization"]:  # quantized weights are loaded onto the GPU
        model.to("cuda")
    answers = greedy(
        model, tokenizer, prompts, kwargs["max_new_tokens"], kwargs["batch_size"], label
    )
    schema = {"answer": pl.String, "finish_reason": pl.String}
    CACHE.write(key, pl.DataFrame(answers, schema=schema, orient="row"))
    return answers


def identity(source: str | Path, revision: str | None = None) -> list:
    """What identifies a model: digests of a folder's files, or its name and commit on the hub.

    An adapter's base is part of it, unless the base's weights are in the adapter's folder.
    """
    from stages.training import adapters, pretrained

    folder = Path(source)
    if not (folder / adapters.ADAPTER).exists():
        commit = pretrained.commit_of(str(source), revision)
        return [str(source), commit] if commit else _digests(folder)
    if adapters.has_base(folder):
        return _digests(folder)
    config = json.loads((folder / adapters.ADAPTER).read_text(encoding="utf-8"))
    return [_digests(folder), identity(config["base_model_name_or_path"], config.get("revision"))]


def _digests(folder: Path) -> list[list[str]]:
    return [[str(path.relative_to(folder)), file_digest(path)] for path in files_in(folder)]


def _load(local: LocalModel) -> tuple:
    """(model, tokenizer); a tokenizer without a chat template gets PLAIN."""
    from transformers import AutoTokenizer

    from stages.training import adapters, pretrained

    folder = Path(local.model)
    if (folder / adapters.ADAPTER).exists():
        model = adapters.load_adapted(folder, trainable=False, **local.load_kwargs())
    else:
        model = pretrained.load_weights(local.model, local.revision, **local.load_kwargs())

    kwargs = {
        "revision": local.revision or "main",
        "trust_remote_code": False,
        "local_files_only": folder.is_dir(),
    }
    try:
        tokenizer = AutoTokenizer.from_pretrained(local.model, padding_side="left", **kwargs)
    except (OSError, ValueError, ImportError) as error:
        reason = " ".join(str(error).split())[:300]
        raise LibraError(f"the tokenizer of {local.model} can't be loaded: {reason}") from None
    if tokenizer.chat_template:
        return model, pretrained.load_tokenizer(local.model, local.revision)
    tokenizer.chat_template = PLAIN
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return model, tokenizer


def _read(key: str, count: int) -> Answers | None:
    """The `count` cached answers; None if there is no such table or it is damaged."""
    table = CACHE.read(key, count)
    if table is None or table.columns != ["answer", "finish_reason"]:
        return None
    return None if sum(table.null_count().row(0)) else table.rows()
