"""Supervised fine-tuning: teaches the policy to answer as the chosen answers do; the reference of the DPO stage.

Reads data/librachemqa/{train,validation}.parquet and data/substances.parquet; writes models/sft/ (safetensors, tokenizer, training.csv).
Params: random_seed, train, model, sft. One row of training.csv:

    step,loss,grad_norm,learning_rate,entropy,mean_token_accuracy,eval_loss
    400,0.412031,0.380215,0.001204,0.391220,0.861034,0.433870
"""

from pydantic import Field

from stages.core import cli
from stages.core.params import Section, read_params
from stages.training import processes


class SftParams(Section):
    """How the policy is fine-tuned before DPO."""

    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    bpe_dropout: float = Field(ge=0, lt=1)
    other_representation: float = Field(ge=0, le=1)
    prompt_loss: float = Field(ge=0, le=1)


def main() -> None:
    from stages.training.models import ModelParams

    params = read_params("sft")
    train = params.section("train", processes.TrainParams)
    size, sft = params.section("model", ModelParams), params.section("sft", SftParams)
    processes.run(
        "sft", train.processes, sft.batch_size, lambda: fine_tune(params.random_seed, size, sft)
    )


def fine_tune(random_seed: int, size, sft: SftParams) -> None:
    """Train a policy of `size` (ModelParams) and write it; called in every process of the run."""
    from stages.training.models import (
        SCRATCH,
        base_to_train,
        deterministic,
        new_model,
        train_tokenizer,
    )

    deterministic(random_seed, offline=size.is_local)
    from trl import SFTConfig, SFTTrainer

    from stages.training import data, trainer
    from stages.training.checkpoints import run_folder
    from stages.training.head import score_labelled_only

    train, validation = data.triplets("train"), data.triplets("validation")
    recorded = {"random_seed": random_seed, "model": size.model_dump(), "sft": sft.model_dump()}
    with processes.record("sft", recorded, inputs=["data/librachemqa"]) as record:
        if size.base == SCRATCH:
            shown = ["prompt", "chosen", "rejected"] + ["other_prompt"] * bool(
                sft.other_representation
            )
            texts = [
                text for column in shown for text in train[column].drop_nulls().unique().sort()
            ]
            tokenizer = train_tokenizer(texts, size.vocab_size)
            model, commit = new_model(size, tokenizer), None
        else:
            model, tokenizer, commit = base_to_train(size)
        print(
            f"sft: {model.num_parameters():,} parameters, {len(tokenizer)} tokens in the vocabulary"
        )
        common = {
            "batch_size": sft.batch_size,
            "max_length": size.max_length,
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
            **size.training(),
        )
        sft_trainer = SFTTrainer(
            model=model,
            args=SFTConfig(**arguments),
            train_dataset=rows,
            eval_dataset=held_out,
            processing_class=tokenizer,
        )
        score_labelled_only(model.get_base_model() if size.lora else model, ("entropy", "is_top1"))
        trainer.train_and_keep(
            sft_trainer, tokenizer, trainer.Report("sft"), "models/sft", record, "libra-sft", size
        )


if __name__ == "__main__":
    cli.run("sft", main, __doc__)
