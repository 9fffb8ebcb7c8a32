"""Policies that start from a real model: where it comes from and how it is loaded.

A model is a hub id or a local folder in hub layout (config.json, *.safetensors, tokenizer files). Weights are read as safetensors
only and no code from a model's repository is run.
"""

import importlib.util
import os
from pathlib import Path

from stages.core.errors import LibraError

# Put before a chat template that tells the date (Llama 3's): the same prompt on every day, in training and where it is served.
SAME_DATE = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro %}"


def find(base: str, revision: str | None) -> str | None:
    """The commit of the hub's model `base` that `revision` (commit, tag, branch; null: the default branch) names now.

    None for a local folder. Raises LibraError that says where was looked and what mends it.
    """
    if Path(base).is_dir():
        if not (Path(base) / "config.json").exists():
            raise LibraError(
                f"model.base: the folder {base} has no config.json, so it holds no model in hub layout; name another one"
            )
        return None
    if base.startswith((".", "/", "~")) or base.count("/") > 1:
        raise LibraError(
            f"model.base: there is no folder {base}; mend the path (a relative one starts at the project's folder)"
        )
    import httpx2
    from huggingface_hub import constants, errors, hf_hub_download

    called = base if revision is None else f"{base} at revision {revision}"
    looked = f"on the hub {constants.ENDPOINT} (HF_ENDPOINT)"
    cache = f"in the cache {constants.HF_HUB_CACHE} (HF_HUB_CACHE)"
    try:
        return Path(hf_hub_download(base, "config.json", revision=revision)).parent.name
    except errors.GatedRepoError:
        fault = (
            f"is gated {looked}; ask for access on its page there, then set HF_TOKEN to your token"
        )
    except errors.RevisionNotFoundError:
        fault = f"is not {looked}; the model is: mend model.revision"
    except errors.RepositoryNotFoundError:
        fault = f"is not {looked}; mend model.base, or set HF_TOKEN if the model is private"
    except errors.LocalEntryNotFoundError:
        if constants.is_offline_mode():
            fault = f"is not {cache}, and HF_HUB_OFFLINE keeps from looking elsewhere; unset it, or name a local folder in model.base"
        else:
            fault = f"is not {cache}, and the hub {constants.ENDPOINT} (HF_ENDPOINT) can't be reached; mend the connection or HF_ENDPOINT, "
            fault += "download the model where there is one and set HF_HUB_OFFLINE=1, or name a local folder in model.base"
    except errors.EntryNotFoundError:
        fault = f"has no config.json {looked}, so it is no model of transformers; name another one"
    except (errors.HfHubHTTPError, errors.HFValidationError, httpx2.HTTPError, OSError) as error:
        fault = f"can't be had {looked} or {cache}: {_line(error)}; mend that, set HF_TOKEN, or name a local folder in model.base"
    raise LibraError(f"model.base: {called} {fault}")


def loading(dtype: str, attention: str, quantization: str | None) -> dict:
    """Keyword arguments of `from_pretrained`; 4 bits are nf4 (Dettmers et al. 2023), computed with in `dtype`, on the GPU.

    Raises LibraError when the hardware or a package for them is missing.
    """
    import torch
    from transformers import BitsAndBytesConfig

    how = {"dtype": getattr(torch, dtype), "attn_implementation": attention}
    if attention == "flash_attention_2" and not (
        torch.cuda.is_available() and importlib.util.find_spec("flash_attn")
    ):
        raise LibraError(
            "model.attention: flash_attention_2 needs a GPU and the package flash-attn; set it to sdpa"
        )
    if not quantization:
        return how
    if not torch.cuda.is_available():
        raise LibraError(
            "model.quantization: nf4 needs a GPU, and this machine has none that torch sees; set it to null"
        )
    if not importlib.util.find_spec("bitsandbytes"):
        raise LibraError(
            "model.quantization: nf4 needs the package bitsandbytes; `pip install bitsandbytes`, or set it to null"
        )
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=how["dtype"],
    )
    return how | {
        "quantization_config": config,
        "device_map": {"": int(os.environ.get("LOCAL_RANK", 0))},
    }


def load_weights(
    source: str | Path, revision: str | None, dtype: str, attention: str, quantization: str | None
):
    """The causal language model in the folder or hub model `source`. Raises LibraError when it or the hardware isn't there."""
    import httpx2
    from transformers import AutoModelForCausalLM

    how = loading(dtype, attention, quantization)
    local = Path(source).is_dir()
    try:
        return AutoModelForCausalLM.from_pretrained(
            source,
            revision=revision or "main",
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=local,
            **how,
        )
    except (
        OSError,
        ValueError,
        ImportError,
        httpx2.HTTPError,
    ) as error:  # a missing file or package, an unknown kind of model
        if "attention implementation" in str(error):
            raise LibraError(
                f"model.attention: {source} has no {attention}; set it to eager"
            ) from None
        raise LibraError(
            f"{source} can't be loaded as a causal language model in safetensors: {_line(error)}"
        ) from None


def load_tokenizer(source: str | Path, revision: str | None = None):
    """The tokenizer in the folder or hub model `source`, padding on the left (with the end of text where it has no pad token).

    A chat template that tells the date is made to tell the same one always. Raises LibraError when there is no tokenizer, or it
    has no chat template.
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
        raise LibraError(f"the tokenizer of {source} can't be loaded: {_line(error)}") from None
    if not tokenizer.chat_template:
        raise LibraError(
            f"{source} has no chat template, so it is no chat model; name its instruct or chat version in model.base"
        )
    if "strftime_now" in tokenizer.chat_template and SAME_DATE not in tokenizer.chat_template:
        tokenizer.chat_template = SAME_DATE + tokenizer.chat_template
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
