"""Pretrained models: where they are and how they are loaded.

    commit = commit_of("Qwen/Qwen3-8B", revision=None)      # None for a local folder
    model = load_weights("Qwen/Qwen3-8B", commit, "bfloat16", "sdpa", None)
    tokenizer = load_tokenizer("Qwen/Qwen3-8B", commit)

A model is a hub id or a local folder in hub layout (config.json, *.safetensors, tokenizer files).
Only safetensors are read, and no code from a model's repository is run.
"""

import importlib.util
import os
from pathlib import Path

from stages.core.errors import LibraError

# Prepended to a chat template that prints the date (Llama 3's): the prompt is the same every day,
# in training and wherever the model is served.
FIXED_DATE = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro %}"


def commit_of(base: str, revision: str | None) -> str | None:
    """The commit that `revision` (commit, tag, branch; None: the default branch) names on the hub.

    None for a local folder. Raises LibraError that says where was searched and how to fix it.
    """
    if Path(base).is_dir():
        if not (Path(base) / "config.json").exists():
            raise LibraError(
                f"model.base: the folder {base} has no config.json, so it isn't a model in hub "
                "layout; name another folder"
            )
        return None
    if base.startswith((".", "/", "~")) or base.count("/") > 1:
        raise LibraError(
            f"model.base: there is no folder {base}; fix the path (relative paths start at the "
            "project's folder)"
        )

    import httpx2
    from huggingface_hub import constants, errors, hf_hub_download

    hub = f"the hub {constants.ENDPOINT} (HF_ENDPOINT)"
    cache = f"the cache {constants.HF_HUB_CACHE} (HF_HUB_CACHE)"
    try:
        return Path(hf_hub_download(base, "config.json", revision=revision)).parent.name
    except errors.GatedRepoError:
        fault = f"is gated on {hub}; request access on its page there, then set HF_TOKEN"
    except errors.RevisionNotFoundError:
        fault = f"is not on {hub}, but the model is; fix model.revision"
    except errors.RepositoryNotFoundError:
        fault = f"is not on {hub}; fix model.base, or set HF_TOKEN if the model is private"
    except errors.LocalEntryNotFoundError:
        if constants.is_offline_mode():
            fault = (
                f"is not in {cache}, and HF_HUB_OFFLINE forbids to look elsewhere; "
                "unset it, or name a local folder in model.base"
            )
        else:
            fault = (
                f"is not in {cache}, and {hub} can't be reached; check the connection and "
                "HF_ENDPOINT, or download the model elsewhere and set HF_HUB_OFFLINE=1, "
                "or name a local folder in model.base"
            )
    except errors.EntryNotFoundError:
        fault = f"has no config.json on {hub}, so it isn't a transformers model; name another one"
    except (errors.HfHubHTTPError, errors.HFValidationError, httpx2.HTTPError, OSError) as error:
        fault = (
            f"isn't available on {hub} or in {cache}: {_one_line(error)}; fix that, "
            "set HF_TOKEN, or name a local folder in model.base"
        )
    name = base if revision is None else f"{base} at revision {revision}"
    raise LibraError(f"model.base: {name} {fault}")


def from_pretrained_kwargs(dtype: str, attention: str, quantization: str | None) -> dict:
    """Keyword arguments of `from_pretrained`.

    4-bit weights are nf4 (Dettmers et al. 2023), on the GPU, computed with in `dtype`. Raises
    LibraError if the hardware or a package is missing.
    """
    import torch
    from transformers import BitsAndBytesConfig

    kwargs = {"dtype": getattr(torch, dtype), "attn_implementation": attention}
    has_gpu = torch.cuda.is_available()
    if attention == "flash_attention_2" and not (
        has_gpu and importlib.util.find_spec("flash_attn")
    ):
        raise LibraError(
            "model.attention: flash_attention_2 needs a GPU and the package flash-attn; "
            "set it to sdpa"
        )
    if not quantization:
        return kwargs

    if not has_gpu:
        raise LibraError(
            "model.quantization: nf4 needs a GPU, and torch sees none on this machine; "
            "set it to null"
        )
    if not importlib.util.find_spec("bitsandbytes"):
        raise LibraError(
            "model.quantization: nf4 needs the package bitsandbytes; "
            "`pip install bitsandbytes`, or set it to null"
        )
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=kwargs["dtype"],
    )
    device_map = {"": int(os.environ.get("LOCAL_RANK", 0))}
    return kwargs | {"quantization_config": config, "device_map": device_map}


def load_weights(
    source: str | Path, revision: str | None, dtype: str, attention: str, quantization: str | None
):
    """The causal language model in the folder or hub model `source`.

    Raises LibraError if the model, hardware or a package isn't available.
    """
    import httpx2
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_pretrained(
            source,
            revision=revision or "main",
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=Path(source).is_dir(),
            **from_pretrained_kwargs(dtype, attention, quantization),
        )
    # A missing file or package, or a model type that transformers doesn't know.
    except (OSError, ValueError, ImportError, httpx2.HTTPError) as error:
        if "attention implementation" in str(error):
            raise LibraError(
                f"model.attention: {source} doesn't support {attention}; set it to eager"
            ) from None
        raise LibraError(
            f"{source} can't be loaded as a causal language model in safetensors: "
            f"{_one_line(error)}"
        ) from None


def load_tokenizer(source: str | Path, revision: str | None = None):
    """The tokenizer in the folder or hub model `source`, padding on the left.

    The end-of-text token pads if there is no pad token, and a chat template that prints the date
    always prints the same one. Raises LibraError if there is no tokenizer or no chat template.
    """
    import httpx2
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source,
            revision=revision or "main",
            padding_side="left",
            trust_remote_code=False,
            local_files_only=Path(source).is_dir(),
        )
    except (OSError, ValueError, ImportError, httpx2.HTTPError) as error:
        raise LibraError(f"the tokenizer of {source} can't be loaded: {_one_line(error)}") from None
    if not tokenizer.chat_template:
        raise LibraError(
            f"{source} has no chat template, so it isn't a chat model; "
            "name its instruct or chat version in model.base"
        )
    if "strftime_now" in tokenizer.chat_template and FIXED_DATE not in tokenizer.chat_template:
        tokenizer.chat_template = FIXED_DATE + tokenizer.chat_template
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
