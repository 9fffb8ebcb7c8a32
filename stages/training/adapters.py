"""Adapters (LoRA, Hu et al. 2022) on a base: fresh ones, those in a folder, and what is written of them.

A folder with an adapter names its base and the base's commit, which `peft` loads. With the base's own files beside it (`model.save:
with_base`) `transformers` and `transformers serve` load it as well, and this project asks no hub for it.
"""

import hashlib
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from stages.core.errors import LibraError
from stages.core.folders import cache_folder
from stages.training.models import LoraParams, ModelParams
from stages.training.pretrained import find, load_weights

CONFIG, ADAPTER, WEIGHTS = "config.json", "adapter_config.json", "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"  # of weights in several files


def is_adapted(model) -> bool:
    """Whether `model` is a base with adapters (peft's) and not whole weights."""
    return hasattr(model, "peft_config")


def load_adapted(
    folder: Path, dtype: str, attention: str, quantization: str | None, trainable: bool
):
    """The adapter in `folder` as a `PeftModel`, on the base in the folder, else on the one that it names; the adapter is in float32.

    Raises LibraError when a part of it is missing or the base or the hardware can't be had.
    """
    from peft import PeftModel

    if not (folder / "adapter_model.safetensors").exists():
        raise LibraError(
            f"{folder} holds an adapter without its weights; run `dvc repro {folder.name}` first"
        )
    how = {"dtype": dtype, "attention": attention, "quantization": quantization}
    if has_base(folder):
        model = _load_base(folder, how)
    else:
        config = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
        base = config["base_model_name_or_path"]
        model = load_weights(base, find(base, config.get("revision")), **how)
    return PeftModel.from_pretrained(model, folder, is_trainable=trainable)


def has_base(folder: Path) -> bool:
    """Whether the base of the adapter in `folder` lies beside it."""
    return (folder / WEIGHTS).exists() or (folder / INDEX).exists()


def _load_base(folder: Path, how: dict[str, str | None]):
    """The base in `folder` without the adapter beside it, which transformers would put on it."""
    with tempfile.TemporaryDirectory() as bare:
        for path in _base_files(folder, "write or pull the folder anew"):
            (Path(bare) / path.name).symlink_to(path.resolve())
        try:
            model = load_weights(bare, None, **how)
        except LibraError as error:
            raise LibraError(str(error).replace(bare, str(folder))) from None
    model.name_or_path = model.config.name_or_path = str(folder)
    return model


def with_adapter(model, lora: LoraParams, revision: str | None):
    """`model` frozen, with fresh adapters (which change nothing yet); `revision` is the commit that `model` was loaded from.

    Raises LibraError when a name in `lora.target_modules` matches no linear module: peft is content when one name of a list does.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    head = (
        model.get_output_embeddings()
    )  # is left alone: the trainers read its weights without an adapter
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    ]
    known = sorted({name.rpartition(".")[2] for name in linear})
    targets = known if lora.target_modules == "all-linear" else lora.target_modules
    if strays := [
        target
        for target in targets
        if not any(f".{name}".endswith(f".{target}") for name in linear)
    ]:
        raise LibraError(
            f"model.lora.target_modules: {', '.join(strays)} is no linear module of {model.name_or_path} that an adapter can be put on; "
            f"it has {', '.join(known)}"
        )
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        revision=revision,
    )
    return get_peft_model(model, config)


def finished(model, params: ModelParams):
    """What is written of the trained `model`: whole weights in `params.dtype`, or the adapted model itself.

    Adapters on a 4-bit base are merged into the base as it is in `params.dtype`: merged weights in 4 bits would be rounded anew.
    """
    import torch

    dtype = getattr(torch, params.dtype)
    if not is_adapted(model):
        return model.to(dtype)
    if params.save != "merged":
        return model
    if params.quantization:
        from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

        config = model.peft_config["default"]
        learnt = get_peft_model_state_dict(
            model, adapter_name="default", save_embedding_layers=False
        )
        base = load_weights(
            config.base_model_name_or_path, config.revision, params.dtype, params.attention, None
        )
        model = get_peft_model(base, config)
        set_peft_model_state_dict(model, learnt)
    return model.merge_and_unload(safe_merge=True, adapter_names=["default"]).to(dtype)


def check_base(model, params: ModelParams) -> None:
    """Raises LibraError before training for what would else show behind it: a base that can't be put beside the adapter."""
    if not is_adapted(model) or params.save != "with_base":
        return
    needed, free = _size(base_files(model)), shutil.disk_usage(".").free
    if needed > free:
        raise LibraError(
            f"model.save: with_base puts the base ({needed / 1e9:.1f} GB) beside the adapter, and {free / 1e9:.1f} GB of the disk are free; "
            "free the disk, or set it to adapter"
        )


def base_files(model) -> list[Path]:
    """The files of the base that the adapted `model` was loaded from: configuration and weights. Raises LibraError when one is missing."""
    from huggingface_hub import hf_hub_download

    source = model.get_base_model().name_or_path
    folder = Path(source)
    if not folder.is_dir():  # it was loaded, so it is in the hub's cache
        folder = Path(
            hf_hub_download(source, CONFIG, revision=model.peft_config["default"].revision)
        ).parent
    return _base_files(folder, "mend it, or set model.save to adapter")


def _base_files(folder: Path, mend: str) -> list[Path]:
    weights = {WEIGHTS}
    if not (folder / WEIGHTS).exists() and (folder / INDEX).exists():
        weights = {
            INDEX,
            *json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values(),
        }
    files = [folder / name for name in (CONFIG, *sorted(weights))]
    if missing := [path.name for path in files if not path.exists()]:
        raise LibraError(f"{folder} lacks {', '.join(missing)} of the base model; {mend}")
    return files + [path for path in [folder / "generation_config.json"] if path.exists()]


def _size(files: list[Path]) -> int:
    """Bytes."""
    return sum(path.stat().st_size for path in files)


def base_folder(folder: Path) -> str | None:
    """Where the base of the adapter in `folder` is on this machine, without the adapter; None when `folder` holds whole weights.

    A base that is nowhere but beside the adapter is linked into `.cache/bases/`, where the next policy's doesn't take its place. Raises
    huggingface_hub's LocalEntryNotFoundError when it isn't on this machine, and OSError.
    """
    from huggingface_hub import errors, hf_hub_download

    if not (folder / ADAPTER).exists():
        return None
    config = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
    base, commit = config["base_model_name_or_path"], config.get("revision")
    if Path(base).is_dir():
        return base
    try:
        return str(
            Path(hf_hub_download(base, CONFIG, revision=commit, local_files_only=True)).parent
        )
    except (errors.LocalEntryNotFoundError, errors.HFValidationError):
        if not has_base(folder):
            raise
    kept = cache_folder() / "bases" / hashlib.sha256(f"{base}@{commit}".encode()).hexdigest()[:16]
    kept.mkdir(parents=True, exist_ok=True)
    for file in _base_files(folder, "write or pull the folder anew"):
        if not (kept / file.name).exists():
            try:
                os.link(file, kept / file.name)
            except OSError:  # another file system, or one without links
                shutil.copyfile(file, half := kept / f".{file.name}.{os.getpid()}")
                half.rename(kept / file.name)
    return str(kept)


def write(model, folder: Path, weights: dict[str, Any] | None, with_base: bool) -> None:
    """Write the adapter that was trained (DPO keeps another one, its reference) and its base, the same bytes each time.

    `weights` are the adapter's where those of `model` are spread over processes. Raises LibraError, OSError.
    """
    model.save_pretrained(
        folder, state_dict=weights, selected_adapters=["default"], save_embedding_layers=False
    )
    (folder / "README.md").unlink()  # a form to fill in, with the versions of this machine
    path = folder / ADAPTER
    config = json.loads(path.read_text(encoding="utf-8"))
    config["target_modules"].sort()  # peft writes a set in the order that this process has it
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if with_base:
        files = base_files(model)
        gigabytes = _size(files) / 1e9
        if gigabytes > 1:
            print(
                f"puts the base beside the adapter: {gigabytes:.1f} GB", file=sys.stderr, flush=True
            )
        try:
            for path in files:
                shutil.copyfile(path, folder / path.name)
        except OSError as error:
            raise LibraError(
                f"the base ({gigabytes:.1f} GB) can't be put beside the adapter ({error.strerror}: {error.filename}); mend that or set "
                "model.save to adapter, then run again: with the same params training goes on at its last checkpoint"
            ) from None
