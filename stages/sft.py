"""Supervised fine-tuning: teaches the policy to answer as the chosen answers do.

The result is also the reference of the DPO stage. Reads data/librachemqa/{train,validation}.parquet
and data/substances.parquet; writes models/sft/ (safetensors, tokenizer, training.csv). Params:
random_seed, train, model, sft. A row of training.csv:

    step,loss,grad_norm,learning_rate,entropy,mean_token_accuracy,eval_loss
    400,0.412031,0.380215,0.001204,0.391220,0.861034,0.433870
"""

from functools import partial
from typing import TYPE_CHECKING

from pydantic import Field

from stages.core import cli
from stages.core.params import Section, read_params
from stages.training import processes

if TYPE_CHECKING:
    from stages.training.model_params import ModelParams


class SftParams(Section):
    """How the policy is fine-tuned before DPO."""

    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    bpe_dropout: float = Field(ge=0, lt=1)
    other_representation: float = Field(ge=0, le=1)
    prompt_loss: float = Field(ge=0, le=1)


def main() -> None:
    from stages.training.model_params import ModelParams

    params = read_params("sft")
    train = params.section("train", processes.TrainParams)
    model_params = params.section("model", ModelParams)
    sft = params.section("sft", SftParams)

    train_policy = partial(fine_tune, params.random_seed, model_params, sft)
    processes.run("sft", train.processes, sft.batch_size, train_policy)


def fine_tune(random_seed: int, model_params: "ModelParams", sft: SftParams) -> None:
    """Train the policy and write it; called in every process of the run."""
    from stages.training.determinism import deterministic

    deterministic(random_seed, offline=model_params.is_local)  # before torch is imported
    from trl import SFTConfig, SFTTrainer

    from stages.training import data, trainer
    from stages.training.checkpoints import run_folder
    from stages.training.head import score_labelled_only
    from stages.training.policies import model_to_fine_tune

    train, validation = data.triplets("train"), data.triplets("validation")
    recorded = {
        "random_seed": random_seed,
        "model": model_params.model_dump(),
        "sft": sft.model_dump(),
    }
    with processes.record("sft", recorded, inputs=["data/librachemqa"]) as record:
        columns = ["prompt", "chosen", "rejected"]
        if sft.other_representation:
            columns.append("other_prompt")
        texts = [text for name in columns for text in train[name].drop_nulls().unique().sort()]
        model, tokenizer, commit = model_to_fine_tune(model_params, texts)
        parameters, tokens = model.num_parameters(), len(tokenizer)
        print(f"sft: {parameters:,} parameters, {tokens} tokens in the vocabulary")

        common = {
            "batch_size": sft.batch_size,
            "max_length": model_params.max_length,
            "random_seed": random_seed,
        }
        rows, counts = data.sft_rows(
            train,
            tokenizer,
            sft.epochs,
            prompt_loss=sft.prompt_loss,
            bpe_dropout=sft.bpe_dropout,
            other_representation=sft.other_representation,
            **common,
        )
        held_out, _ = data.sft_rows(validation, tokenizer, 1, **common)
        record.metrics({"data": counts})

        arguments = trainer.arguments(
            rows,
            learning_rate=sft.learning_rate,
            evaluations=3,
            evaluation_size=sft.batch_size,
            folder=run_folder("sft", commit),
            **common,
            **model_params.trainer_kwargs(),
        )
        sft_trainer = SFTTrainer(
            model=model,
            args=SFTConfig(**arguments),
            train_dataset=rows,
            eval_dataset=held_out,
            processing_class=tokenizer,
        )
        base = model.get_base_model() if model_params.lora else model
        score_labelled_only(base, ("entropy", "is_top1"))
        report = trainer.Report("sft")
        trainer.train_and_save(
            sft_trainer, tokenizer, report, "models/sft", record, "libra-sft", model_params
        )


if __name__ == "__main__":
    cli.run("sft", main, __doc__)
