"""Direct preference optimisation (Rafailov et al. 2023): moves the policy from the rejected answers to the chosen ones.

Reads data/librachemqa/{train,validation}.parquet, data/substances.parquet and models/sft/ (policy to start from, and the frozen reference);
writes models/dpo/ (safetensors, tokenizer, training.csv). Params: random_seed, train, model, dpo. With dpo.soup of 2 or more it trains as
many policies, each on epochs of its own, and writes the mean of their weights and of their curves. A row of training.csv (in part):

    step,loss,rewards/chosen,rewards/rejected,rewards/accuracies,rewards/margins,eval_loss,eval_rewards/accuracies
    200,0.381022,0.412210,-2.310551,0.875000,2.722761,0.452118,0.833984
"""

from functools import partial
from typing import Literal

from pydantic import Field, model_validator

from stages.core import cli
from stages.core.errors import LibraError
from stages.core.params import Section, read_params
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
    def _smoothed(self):
        if self.label_smoothing and self.loss != "robust":
            raise ValueError(
                f"label_smoothing is for the loss robust; with {self.loss} set it to 0"
            )
        return self

    @property
    def pairs_per_step(self) -> int:
        return self.batch_size * (self.answers**2 if self.pairs == "grid" else self.answers)

    def check_soup(self, lora) -> None:
        """Raises LibraError when a mean is asked for of what isn't whole weights in one process."""
        if self.soup > 1 and lora:
            raise LibraError(
                f"dpo.soup is {self.soup}, and the mean of adapters (model.lora) isn't that of their policies; set dpo.soup to 1"
            )
        if self.soup > 1 and processes.is_sharded():
            raise LibraError(
                f"dpo.soup is {self.soup}, and FSDP or DeepSpeed leaves no process whole weights; set dpo.soup to 1"
            )


def main() -> None:
    from stages.training.models import ModelParams

    params = read_params("dpo")
    train = params.section("train", processes.TrainParams)
    size, dpo = params.section("model", ModelParams), params.section("dpo", DpoParams)
    processes.run(
        "dpo", train.processes, dpo.pairs_per_step, lambda: optimise(params.random_seed, size, dpo)
    )


def optimise(random_seed: int, size, dpo: DpoParams) -> None:
    """Train the policy in models/sft, held as `size` (ModelParams) says, and write it; called in every process of the run."""
    from stages.training.models import deterministic, policy_to_train

    dpo.check_soup(size.lora)
    deterministic(random_seed, offline=size.is_local)
    from trl import DPOConfig

    from stages.preference.grid import GridTrainer
    from stages.preference.soup import Soup
    from stages.training import data, trainer
    from stages.training.checkpoints import run_folder

    train, validation = data.triplets("train"), data.triplets("validation")
    recorded = {"random_seed": random_seed, "model": size.model_dump(), "dpo": dpo.model_dump()}
    with processes.record("dpo", recorded, inputs=["data/librachemqa", "models/sft"]) as record:
        model, tokenizer = policy_to_train("models/sft", size)
        common = {"max_length": size.max_length, "random_seed": random_seed}
        shown = {"batch_size": dpo.batch_size, **common}
        chosen = {"pairs": dpo.pairs, "answers": dpo.answers}
        varied = {"bpe_dropout": dpo.bpe_dropout, "other_representation": dpo.other_representation}
        epochs = [
            range(member * dpo.epochs, (member + 1) * dpo.epochs) for member in range(dpo.soup)
        ]
        made = [data.dpo_rows(train, tokenizer, own, **chosen, **varied, **shown) for own in epochs]
        held_out, _ = data.dpo_rows(validation, tokenizer, range(1), **shown)
        record.metrics(
            {"data": {name: sum(counts[name] for _, counts in made) for name in made[0][1]}}
        )
        losses = {"loss_type": [dpo.loss], "loss_weights": [1.0]}
        if dpo.sft_weight:
            losses = {"loss_type": [dpo.loss, "sft"], "loss_weights": [1.0, dpo.sft_weight]}
        folder = run_folder("dpo")
        soup = Soup("dpo", dpo.soup, folder) if dpo.soup > 1 else None
        for member, (rows, _) in enumerate(made):
            if member:
                model, _ = policy_to_train("models/sft", size)
            arguments = trainer.arguments(
                rows,
                dpo.pairs_per_step,
                dpo.learning_rate,
                evaluations=4,
                evaluation_size=dpo.batch_size,
                folder=soup.folder(member) if soup else folder,
                **common,
                **size.training(),
            )
            make = partial(
                GridTrainer,
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
            if soup:
                soup.add(member, make)
            else:
                trainer.train_and_keep(
                    make(), tokenizer, trainer.Report("dpo"), "models/dpo", record, "libra", size
                )
        if soup:
            soup.keep(model, tokenizer, "models/dpo", record, "libra", size)


if __name__ == "__main__":
    cli.run("dpo", main, __doc__)
