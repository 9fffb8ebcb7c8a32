"""Greedy answers of a model in this process; a model that has answered the same prompts before isn't loaded again.

    local = LocalModel(model="Qwen/Qwen3-0.6B", revision="c1899de", dtype="bfloat16", max_tokens=256)
    local_answers(local, ["How is ethanol made?"], "respond: qwen", "respond.candidates.qwen.{}".format)
    -> [("It is made by fermentation.", "stop")]

The answers lie in `.cache/answers/` of the project's real folder, under a name that is a hash of all that decides them: the model's
files (a hub model's commit), the prompts, how it is held and asked, the code and the libraries that compute them.
"""

import hashlib
import json
import re
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from pydantic import Field

from stages.core.errors import LibraError
from stages.core.folders import cache_folder
from stages.core.params import Section

CODE = (
    "local/answers.py",
    "local/generate.py",
    "training/adapters.py",
    "training/encode.py",
    "training/models.py",
    "training/pretrained.py",
)
LIBRARIES = ("peft", "tokenizers", "torch", "transformers")
PLAIN = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"  # of a tokenizer without a chat template
Written = list[tuple[str, str]]  # (answer, finish_reason) of each prompt


class LocalModel(Section):
    """A model that answers in this process: a folder in hub layout, an adapter folder, or a hub id. Safetensors only."""

    model: str = Field(min_length=1)
    revision: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    quantization: Literal["nf4"] | None = None
    max_tokens: int = Field(ge=1)
    batch_size: int = Field(default=16, ge=1)

    def __str__(self) -> str:
        return f"model {self.model}" + (f" at {self.revision}" if self.revision else "")

    def held(self) -> dict[str, str | None]:
        """How the weights are held, as the loading functions take it."""
        return {"dtype": self.dtype, "attention": self.attention, "quantization": self.quantization}


def local_answers(
    local: LocalModel, prompts: list[str], what: str, called: Callable[[str], str]
) -> Written:
    """(answer, finish_reason) of each prompt, in order. Raises LibraError that calls a setting of `local` as `called` does."""
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # a hub that can't be reached is told in one line, at the end of all tries
    how = {**local.held(), "max_new_tokens": local.max_tokens, "batch_size": local.batch_size}
    try:
        return kept_answers(
            identity(local.model, local.revision), lambda: _load(local), prompts, how, what
        )
    except LibraError as error:
        words = re.sub(
            r"\bmodel\.(base|revision|dtype|attention|quantization)\b",
            lambda found: called("model" if found[1] == "base" else found[1]),
            str(error),
        )
        raise LibraError(words) from None


def kept_answers(
    model_is: object, load: Callable[[], tuple], prompts: list[str], how: dict, what: str
) -> Written:
    """The kept answers of the model that `model_is` identifies, or those that the (model, tokenizer) of `load` writes now.

    `how`: max_new_tokens and batch_size, and what else decides the answers.
    """
    import polars as pl
    import torch

    from stages.core.tables import write_atomically
    from stages.local.generate import greedy

    code = [
        hashlib.sha256((Path(__file__).parents[1] / name).read_bytes()).hexdigest() for name in CODE
    ]
    decides = [model_is, prompts, how, torch.cuda.is_available(), code, *map(version, LIBRARIES)]
    key = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
    path = cache_folder() / "answers" / f"{key}.parquet"
    if (known := _read(path, len(prompts))) is not None:
        print(
            f"{what}: its {len(known):,} answers were kept before ({path.name[:12]})",
            file=sys.stderr,
        )
        return known
    model, tokenizer = load()
    if torch.cuda.is_available() and not how["quantization"]:  # what is quantized is there already
        model.to("cuda")
    written = greedy(model, tokenizer, prompts, how["max_new_tokens"], how["batch_size"], what)
    table = pl.DataFrame(
        written, schema={"answer": pl.String, "finish_reason": pl.String}, orient="row"
    )
    try:
        write_atomically(path, table.write_parquet)
    except OSError as error:
        print(
            f"warning: {path} can't be kept ({error}); another run asks the model again",
            file=sys.stderr,
        )
    return written


def identity(source: str | Path, revision: str | None = None) -> list:
    """What tells the model in a folder or on the hub from every other: digests of its files, or its commit; its base's as well."""
    from stages.training import adapters, pretrained

    folder = Path(source)
    if not (folder / adapters.ADAPTER).exists():
        commit = pretrained.find(str(source), revision)
        return [str(source), commit] if commit else _digests(folder)
    if adapters.has_base(folder):
        return _digests(folder)
    config = json.loads((folder / adapters.ADAPTER).read_text(encoding="utf-8"))
    return [_digests(folder), identity(config["base_model_name_or_path"], config.get("revision"))]


def _digests(folder: Path) -> list[list[str]]:
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            found.append(
                [str(path.relative_to(folder)), hashlib.file_digest(file, "sha256").hexdigest()]
            )
    return found


def _load(local: LocalModel) -> tuple:
    """(model, tokenizer); one without a chat template shows the prompt as it is, with a new line behind it."""
    from transformers import AutoTokenizer

    from stages.training import adapters, pretrained

    folder = Path(local.model)
    if (folder / adapters.ADAPTER).exists():
        model = adapters.load_adapted(folder, trainable=False, **local.held())
    else:
        model = pretrained.load_weights(local.model, local.revision, **local.held())
    where = {
        "revision": local.revision or "main",
        "trust_remote_code": False,
        "local_files_only": folder.is_dir(),
    }
    try:
        tokenizer = AutoTokenizer.from_pretrained(local.model, padding_side="left", **where)
    except (OSError, ValueError, ImportError) as error:
        raise LibraError(
            f"the tokenizer of {local.model} can't be loaded: {' '.join(str(error).split())[:300]}"
        ) from None
    if tokenizer.chat_template:
        return model, pretrained.load_tokenizer(local.model, local.revision)
    tokenizer.chat_template = PLAIN
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return model, tokenizer


def _read(path: Path, count: int) -> Written | None:
    """The `count` answers at `path`, None where there is no such table, or only a damaged one."""
    import polars as pl

    try:
        table = pl.read_parquet(path, columns=["answer", "finish_reason"])
    except (OSError, pl.exceptions.PolarsError):
        return None
    return table.rows() if table.height == count and not sum(table.null_count().row(0)) else None
