"""Loading any policy: whole weights or an adapter, from a folder of ours or a pretrained model.

model, tokenizer = load_policy("models/dpo")
model, tokenizer, commit = base_to_train(model_params)           # what `sft` trains
model, tokenizer = policy_to_train("models/sft", model_params)   # what `dpo` trains
"""

from pathlib import Path

from stages.core.errors import LibraError
from stages.training import adapters, pretrained, scratch
from stages.training.model_params import SCRATCH, ModelParams


def load_policy(
    folder: str | Path,
    dtype: str = "float32",
    attention: str = "sdpa",
    quantization: str | None = None,
    trainable: bool = False,
):
    """(model, tokenizer) from a folder written by `sft` or `dpo`: safetensors only, no code is run.

    The folder holds whole weights, or an adapter with its base in the folder or named there; an
    adapter is frozen unless `trainable`. Only the base of an adapter is quantized: whole weights
    here are merged ones, and would be rounded again.

    Raises LibraError if the folder holds no model, or the base or hardware isn't available.
    """
    folder = Path(folder)
    load_kwargs = {"dtype": dtype, "attention": attention, "quantization": quantization}
    if (folder / adapters.ADAPTER).exists():
        model = adapters.load_adapted(folder, trainable=trainable, **load_kwargs)
    elif (folder / "config.json").exists():
        model = pretrained.load_weights(folder, None, **load_kwargs | {"quantization": None})
    else:
        raise LibraError(f"{folder} holds no model; run `dvc repro {folder.name}` first")
    return model, pretrained.load_tokenizer(folder)


def model_to_fine_tune(model_params: ModelParams, texts: list[str]):
    """(model, tokenizer, commit): `model.base`, or a small Llama whose tokenizer learns `texts`.

    Raises LibraError as `base_to_train` and `scratch.new_model` do.
    """
    if model_params.base != SCRATCH:
        return base_to_train(model_params)
    tokenizer = scratch.train_tokenizer(texts, model_params.vocab_size)
    return scratch.new_model(model_params, tokenizer), tokenizer, None


def base_to_train(model_params: ModelParams):
    """(model, tokenizer, commit) of `model.base`, with new adapters if `model.lora` is set.

    The commit is the one on the hub, None for a local folder. Raises LibraError if the model or the
    hardware isn't available.
    """
    load_kwargs = model_params.load_kwargs(trained=True)
    # Missing hardware should fail before a download of many gigabytes.
    pretrained.from_pretrained_kwargs(**load_kwargs)
    commit = pretrained.commit_of(model_params.base, model_params.revision)
    tokenizer = pretrained.load_tokenizer(model_params.base, commit)
    model = pretrained.load_weights(model_params.base, commit, **load_kwargs)
    if adapters.is_adapted(model):
        raise LibraError(
            f"model.base: {model_params.base} holds an adapter beside its base; merge them "
            "(model.save: merged) and name the folder with the whole weights"
        )
    if model_params.lora:
        model = adapters.with_adapter(model, model_params.lora, commit)
        adapters.check_base(model, model_params)
    return model, tokenizer, commit


def policy_to_train(folder: str | Path, model_params: ModelParams):
    """(model, tokenizer) from `folder`, ready for DPO to continue training.

    An adapter is loaded trainable on its own base: a new one would restart from that base and lose
    what SFT learnt. Merged weights get a new adapter, which changes nothing at its start. Raises
    LibraError as `load_policy` does.
    """
    load_kwargs = model_params.load_kwargs(trained=True)
    model, tokenizer = load_policy(folder, **load_kwargs, trainable=True)
    if model_params.lora and not adapters.is_adapted(model):
        model = adapters.with_adapter(model, model_params.lora, None)
    adapters.check_base(model, model_params)
    return model, tokenizer
