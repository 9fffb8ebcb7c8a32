"""Section `dpo` of params.yaml: how preferences are learnt.

dpo = params.section("dpo", DpoParams)
dpo.loss_kwargs()
-> {"beta": 0.1, "loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 4.0], ...}
"""

from typing import Any, Literal

from pydantic import Field, model_validator

from stages.core.errors import LibraError
from stages.core.params import Section
from stages.training import processes


class DpoParams(Section):
    """How preferences are learnt."""

    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    bpe_dropout: float = Field(ge=0, lt=1)
    other_representation: float = Field(ge=0, le=1)
    pairs: Literal["matched", "grid", "random"]
    answers: int = Field(ge=1)
    beta: float = Field(gt=0)
    loss: Literal["sigmoid", "ipo", "hinge", "robust"]
    label_smoothing: float = Field(ge=0, lt=0.5)
    sft_weight: float = Field(ge=0)
    soup: int = Field(ge=1)

    @model_validator(mode="after")
    def _check_smoothing(self):
        if self.label_smoothing and self.loss != "robust":
            raise ValueError(
                f"label_smoothing has no effect on the loss {self.loss}; set it to 0, or loss to "
                "robust"
            )
        return self

    @property
    def pairs_per_step(self) -> int:
        return self.batch_size * (self.answers**2 if self.pairs == "grid" else self.answers)

    def loss_kwargs(self) -> dict[str, Any]:
        """Keyword arguments of `DPOConfig` for the loss."""
        with_sft = self.sft_weight > 0
        return {
            "beta": self.beta,
            "label_smoothing": self.label_smoothing,
            "loss_type": [self.loss, "sft"] if with_sft else [self.loss],
            "loss_weights": [1.0, self.sft_weight] if with_sft else [1.0],
        }

    def check_soup(self, lora) -> None:
        """Raises LibraError if `soup` > 1 without full weights in one process."""
        if self.soup == 1:
            return
        if lora:
            raise LibraError(
                f"dpo.soup is {self.soup}, but the mean of adapters (model.lora) isn't the mean of "
                "their policies; set dpo.soup to 1"
            )
        if processes.is_sharded():
            raise LibraError(
                f"dpo.soup is {self.soup}, but with FSDP or DeepSpeed no process has the full "
                "weights; set dpo.soup to 1"
            )
