"""Direct preference optimisation (Rafailov et al. 2023): moves the policy from the rejected answers to the chosen ones.

Reads data/librachemqa/{train,validation}.parquet, data/substances.parquet and models/sft/ (policy to start from, and the frozen reference);
writes models/dpo/ (safetensors, tokenizer, training.csv). Params: random_seed, train, model, dpo. A row of training.csv (in part):

    step,loss,rewards/chosen,rewards/rejected,rewards/accuracies,rewards/margins,eval_loss,eval_rewards/accuracies
    200,0.381022,0.412210,-2.310551,0.875000,2.722761,0.452118,0.833984
"""

from typing import Literal

from pydantic import Field, model_validator

from stages.common import cli
from stages.common.params import Section, read_params
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

    @model_validator(mode="after")
    def _smoothed(self):
        if self.label_smoothing and self.loss != "robust":
            raise ValueError(f"label_smoothing is for the loss robust; with {self.loss} set it to 0")
        return self

    @property
    def pairs_per_step(self) -> int:
        return self.batch_size * (self.answers**2 if self.pairs == "grid" else self.answers)


def main() -> None:
    from stages.training.models import ModelParams

    params = read_params("dpo")
    train = params.section("train", processes.TrainParams)
    size, dpo = params.section("model", ModelParams), params.section("dpo", DpoParams)
    processes.run("dpo", train.processes, dpo.pairs_per_step, lambda: optimise(params.random_seed, size, dpo))


def optimise(random_seed: int, size, dpo: DpoParams) -> None:
    """Train the policy in models/sft, held as `size` (ModelParams) says, and write it; called in every process of the run."""
    from stages.training.models import deterministic, policy_to_train

    deterministic(random_seed, offline=size.is_local)
    from trl import DPOConfig

    from stages.training import data, trainer
    from stages.training.checkpoints import run_folder
    from stages.training.grid import GridTrainer

    train, validation = data.triplets("train"), data.triplets("validation")
    recorded = {"random_seed": random_seed, "model": size.model_dump(), "dpo": dpo.model_dump()}
    with processes.record("dpo", recorded, inputs=["data/librachemqa", "models/sft"]) as record:
        model, tokenizer = policy_to_train("models/sft", size)
        common = {"max_length": size.max_length, "random_seed": random_seed}
        shown = {"batch_size": dpo.batch_size, **common}
        rows, counts = data.dpo_rows(
            train,
            tokenizer,
            dpo.epochs,
            bpe_dropout=dpo.bpe_dropout,
            other_representation=dpo.other_representation,
            pairs=dpo.pairs,
            answers=dpo.answers,
            **shown,
        )
        held_out, _ = data.dpo_rows(validation, tokenizer, 1, **shown)
        record.metrics({"data": counts})
        arguments = trainer.arguments(
            rows,
            dpo.pairs_per_step,
            dpo.learning_rate,
            evaluations=4,
            evaluation_size=dpo.batch_size,
            folder=run_folder("dpo"),
            **common,
            **size.training(),
        )
        losses = {"loss_type": [dpo.loss], "loss_weights": [1.0]}
        if dpo.sft_weight:
            losses = {"loss_type": [dpo.loss, "sft"], "loss_weights": [1.0, dpo.sft_weight]}
        dpo_trainer = GridTrainer(
            model=model,  # and, before the first step, the reference
            args=DPOConfig(
                beta=dpo.beta,
                label_smoothing=dpo.label_smoothing,
                precompute_ref_log_probs=not processes.is_sharded(),  # sharded weights compute nothing before training begins
                **losses,
                **arguments,
            ),
            train_dataset=rows,
            eval_dataset=held_out,
            processing_class=tokenizer,
        )
        trainer.train_and_keep(dpo_trainer, tokenizer, trainer.Report("dpo"), "models/dpo", record, "libra", size)


if __name__ == "__main__":
    cli.run("dpo", main, __doc__)
