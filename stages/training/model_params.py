"""Section `model` of params.yaml: what the policy starts from and how its weights are held.

model_params = params.section("model", ModelParams)
model_params.load_kwargs(trained=False)
-> {"dtype": "float32", "attention": "sdpa", "quantization": None}
"""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from stages.core.params import Section

SCRATCH = "scratch"  # model.base of the small Llama


class LoraParams(Section):
    """Low-rank adapters (Hu et al. 2021): trained in place of the weights they are attached to."""

    r: int = Field(ge=1)
    alpha: float = Field(gt=0)
    dropout: float = Field(ge=0, lt=1)
    target_modules: Literal["all-linear"] | list[str] = Field(min_length=1)


class ModelParams(Section):
    """The base model and its form in memory; the sizes are those of the Llama from scratch."""

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
    def _check_combination(self):
        if self.base == SCRATCH:
            for name in ("revision", "quantization", "lora"):
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"`{name}` needs a pretrained model, and `base` is scratch; "
                        f"name a model in `base` or set `{name}` to null"
                    )
        if self.revision is not None and self.is_local:
            raise ValueError(
                f"`revision` is for a model on a hub, and `base` is the folder {self.base}; "
                "set `revision` to null"
            )
        if self.quantization and not self.lora:
            raise ValueError(
                "`quantization` freezes the weights, so there is nothing to train; "
                "set `lora`, or `quantization` to null"
            )
        if self.save != "with_base" and not self.lora:
            raise ValueError(
                f"`save: {self.save}` is for adapters, and `lora` is null; "
                "set `lora`, or `save` to with_base"
            )
        if self.attention == "flash_attention_2" and self.dtype == "float32":
            raise ValueError(
                "`attention: flash_attention_2` doesn't support float32; "
                "set `dtype` to bfloat16 or `attention` to sdpa"
            )
        return self

    @property
    def is_local(self) -> bool:
        """Whether training needs no hub: from scratch, or from a folder."""
        return self.base == SCRATCH or Path(self.base).is_dir()

    def load_kwargs(self, trained: bool) -> dict[str, str | None]:
        """Keyword arguments of `policies.load_policy`.

        Weights that are `trained` themselves are held in float32 whatever `dtype` says: in bfloat16
        an update of less than 1/256 of a weight is lost. The computation then runs in `dtype`
        (autocast).
        """
        dtype = "float32" if trained and not self.lora else self.dtype
        return {"dtype": dtype, "attention": self.attention, "quantization": self.quantization}

    def trainer_kwargs(self) -> dict[str, bool | float]:
        """Keyword arguments of `trainer.arguments`; decay is for weights that start near 0."""
        return {
            "bf16": self.dtype == "bfloat16",
            "checkpointing": self.checkpointing,
            "weight_decay": 0.5 if self.base == SCRATCH else 0.0,
        }
