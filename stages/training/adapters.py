"""Adapters (LoRA, Hu et al. 2022) on a base: new ones, those in a folder, and how they are written.

A folder with an adapter names its base and the base's commit, which `peft` loads. With the base's
files beside it (`model.save: with_base`) `transformers` and `transformers serve` load it too, and
this project needs no hub for it.
"""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from stages.core.cache import content_key
from stages.core.errors import LibraError
from stages.core.folders import cache_folder
from stages.training.model_params import LoraParams, ModelParams
from stages.training.pretrained import commit_of, load_weights

CONFIG, ADAPTER, WEIGHTS = "config.json", "adapter_config.json", "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"  # of weights in several files
FIX_FOLDER = "write or pull the folder again"


def is_adapted(model) -> bool:
    """Whether `model` is a base with adapters (peft's), not whole weights."""
    return hasattr(model, "peft_config")


def load_adapted(
    folder: Path, dtype: str, attention: str, quantization: str | None, trainable: bool
):
    """The adapter in `folder` as a `PeftModel`, on the base in the folder or else the one it names.

    The adapter is in float32. Raises LibraError if a part is missing, or the base or hardware isn't
    available.
    """
    from peft import PeftModel

    if not (folder / "adapter_model.safetensors").exists():
        raise LibraError(
            f"{folder} holds an adapter without its weights; run `dvc repro {folder.name}` first"
        )
    load_kwargs = {"dtype": dtype, "attention": attention, "quantization": quantization}
    if has_base(folder):
        base = _load_base(folder, load_kwargs)
    else:
        config = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
        name = config["base_model_name_or_path"]
        base = load_weights(name, commit_of(name, config.get("revision")), **load_kwargs)
    return PeftModel.from_pretrained(base, folder, is_trainable=trainable)


def has_base(folder: Path) -> bool:
    """Whether the base of the adapter in `folder` is beside it."""
    return (folder / WEIGHTS).exists() or (folder / INDEX).exists()


def _load_base(folder: Path, load_kwargs: dict[str, str | None]):
    """The base in `folder` without the adapter, which transformers would otherwise attach."""
    with tempfile.TemporaryDirectory() as links:
        for path in _base_files(folder, FIX_FOLDER):
            (Path(links) / path.name).symlink_to(path.resolve())
        try:
            model = load_weights(links, None, **load_kwargs)
        except LibraError as error:
            raise LibraError(str(error).replace(links, str(folder))) from None
    model.name_or_path = model.config.name_or_path = str(folder)
    return model


def with_adapter(model, lora: LoraParams, revision: str | None):
    """`model` frozen, with new adapters that change nothing yet.

    `revision` is the commit that `model` was loaded from. Raises LibraError if a name in
    `lora.target_modules` matches no linear module: peft only requires that one of them does.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    # The head gets no adapter: the trainers read its weights directly.
    head = model.get_output_embeddings()
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    ]
    known = sorted({name.rpartition(".")[2] for name in linear})
    targets = known if lora.target_modules == "all-linear" else lora.target_modules
    unknown = [
        target
        for target in targets
        if not any(f".{name}".endswith(f".{target}") for name in linear)
    ]
    if unknown:
        raise LibraError(
            f"model.lora.target_modules: {', '.join(unknown)}: not a linear module of "
            f"{model.name_or_path} that takes an adapter; it has {', '.join(known)}"
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


def final_model(model, model_params: ModelParams):
    """The trained `model` in the form to be written: whole weights in `dtype`, or still adapted.

    Adapters on a 4-bit base are merged into that base loaded in `dtype`: weights merged in 4 bits
    would be rounded again.
    """
    import torch

    dtype = getattr(torch, model_params.dtype)
    if not is_adapted(model):
        return model.to(dtype)
    if model_params.save != "merged":
        return model
    if model_params.quantization:
        from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

        config = model.peft_config["default"]
        learnt = get_peft_model_state_dict(
            model, adapter_name="default", save_embedding_layers=False
        )
        base = load_weights(
            config.base_model_name_or_path,
            config.revision,
            model_params.dtype,
            model_params.attention,
            None,
        )
        model = get_peft_model(base, config)
        set_peft_model_state_dict(model, learnt)
    return model.merge_and_unload(safe_merge=True, adapter_names=["default"]).to(dtype)


def check_base(model, model_params: ModelParams) -> None:
    """Raises LibraError before training if the base can't be copied to the adapter afterwards."""
    if not is_adapted(model) or model_params.save != "with_base":
        return
    needed, free = _bytes(base_files(model)), shutil.disk_usage(".").free
    if needed > free:
        raise LibraError(
            f"model.save: with_base copies the base ({needed / 1e9:.1f} GB) beside the adapter, "
            f"and only {free / 1e9:.1f} GB of the disk are free; free some, or set it to adapter"
        )


def base_files(model) -> list[Path]:
    """Configuration and weights that the base of the adapted `model` was loaded from.

    Raises LibraError if one is missing.
    """
    from huggingface_hub import hf_hub_download

    source = model.get_base_model().name_or_path
    folder = Path(source)
    if not folder.is_dir():  # loaded by now, so it is in the hub's cache
        revision = model.peft_config["default"].revision
        folder = Path(hf_hub_download(source, CONFIG, revision=revision)).parent
    return _base_files(folder, "restore it, or set model.save to adapter")


def _base_files(folder: Path, fix: str) -> list[Path]:
    weights = {WEIGHTS}
    if not (folder / WEIGHTS).exists() and (folder / INDEX).exists():
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        weights = {INDEX, *index["weight_map"].values()}
    files = [folder / name for name in (CONFIG, *sorted(weights))]
    if missing := [path.name for path in files if not path.exists()]:
        raise LibraError(f"{folder} lacks {', '.join(missing)} of the base model; {fix}")
    return files + [path for path in [folder / "generation_config.json"] if path.exists()]


def _bytes(files: list[Path]) -> int:
    return sum(path.stat().st_size for path in files)


def base_folder(folder: Path) -> str | None:
    """A folder with the base of the adapter in `folder`, without the adapter; None: whole weights.

    A base that is only beside the adapter is linked into `.cache/bases/`, so that the next policy
    doesn't overwrite it. Raises huggingface_hub's LocalEntryNotFoundError if the base isn't on this
    machine, and OSError.
    """
    from huggingface_hub import errors, hf_hub_download

    if not (folder / ADAPTER).exists():
        return None
    config = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
    base, commit = config["base_model_name_or_path"], config.get("revision")
    if Path(base).is_dir():
        return base
    try:
        config_path = hf_hub_download(base, CONFIG, revision=commit, local_files_only=True)
        return str(Path(config_path).parent)
    except (errors.LocalEntryNotFoundError, errors.HFValidationError):
        if not has_base(folder):
            raise

    links = cache_folder() / "bases" / content_key(base, commit)[:16]
    links.mkdir(parents=True, exist_ok=True)
    for file in _base_files(folder, FIX_FOLDER):
        if not (links / file.name).exists():
            try:
                os.link(file, links / file.name)
            except OSError:  # another file system, or one without hard links
                shutil.copyfile(file, temporary := links / f".{file.name}.{os.getpid()}")
                temporary.rename(links / file.name)
    return str(links)


def save_adapter(model, folder: Path, weights: dict[str, Any] | None, with_base: bool) -> None:
    """Write the trained adapter (not DPO's reference) and its base, the same bytes each time.

    `weights` are the adapter's if those of `model` are sharded. Raises LibraError, OSError.
    """
    model.save_pretrained(
        folder, state_dict=weights, selected_adapters=["default"], save_embedding_layers=False
    )
    (folder / "README.md").unlink()  # an empty template with this machine's versions
    path = folder / ADAPTER
    config = json.loads(path.read_text(encoding="utf-8"))
    config["target_modules"].sort()  # peft writes a set in this process's order
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if not with_base:
        return

    files = base_files(model)
    gigabytes = _bytes(files) / 1e9
    if gigabytes > 1:
        print(f"copying the base to the adapter: {gigabytes:.1f} GB", file=sys.stderr, flush=True)
    try:
        for path in files:
            shutil.copyfile(path, folder / path.name)
    except OSError as error:
        raise LibraError(
            f"the base ({gigabytes:.1f} GB) can't be copied to the adapter ({error.strerror}: "
            f"{error.filename}); fix that or set model.save to adapter, then run again: with the "
            "same params training resumes at its last checkpoint"
        ) from None
