"""Direct preference optimisation (Rafailov et al. 2023): moves the policy from the rejected answers to the chosen ones.

Reads data/librachemqa/train.parquet, validation.parquet and models/sft/ (policy to start from, and the frozen reference);
writes models/dpo/ (safetensors, tokenizer, training.csv). Params: random_seed, dpo. One row of training.csv (some columns):

    step,loss,rewards/chosen,rewards/rejected,rewards/accuracies,rewards/margins,eval_loss,eval_rewards/accuracies
    200,0.381022,0.412210,-2.310551,0.875000,2.722761,0.452118,0.833984
"""

from typing import Literal

from pydantic import Field

from stages.common import cli
from stages.common.params import Section, read_params


class DpoParams(Section):
    """How preferences are learnt."""

    pairs_per_prompt: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    beta: float = Field(gt=0)
    loss: Literal["sigmoid", "ipo", "hinge"]
    sft_weight: float = Field(ge=0)


def main() -> None:
    from stages.training.models import deterministic, load_policy

    params = read_params("dpo")
    dpo = params.section("dpo", DpoParams)
    deterministic(params.random_seed)
    from transformers import PrinterCallback
    from trl import DPOConfig

    from stages.common import tracking
    from stages.training import data, trainer
    from stages.training.pairs import TokenPairTrainer

    train, validation = data.triplets("train"), data.triplets("validation")
    recorded = {"random_seed": params.random_seed, "dpo": dpo.model_dump()}
    with tracking.run("dpo", recorded, inputs=["data/librachemqa", "models/sft"]) as record:
        model, tokenizer = load_policy("models/sft")
        reference, _ = load_policy("models/sft")
        common = {"batch_size": dpo.batch_size, "max_length": model.config.max_position_embeddings, "random_seed": params.random_seed}
        rows = data.dpo_rows(train, tokenizer, dpo.pairs_per_prompt, **common)
        held_out = data.dpo_rows(validation, tokenizer, 1, **common)
        report = trainer.Report("dpo")
        steps = -(-len(rows) // dpo.batch_size)
        dpo_trainer = TokenPairTrainer(
            model=model,
            ref_model=reference,
            args=DPOConfig(
                **trainer.arguments(
                    output_dir=".cache/dpo-trainer",
                    per_device_train_batch_size=dpo.batch_size,
                    per_device_eval_batch_size=dpo.batch_size,
                    learning_rate=dpo.learning_rate,
                    warmup_steps=min(50, steps // 10),
                    logging_steps=max(1, steps // 100),
                    eval_strategy="steps",
                    eval_steps=max(1, steps // 4),
                    seed=params.random_seed,
                    max_length=common["max_length"],
                    beta=dpo.beta,
                    loss_type=[dpo.loss, "sft"] if dpo.sft_weight else [dpo.loss],
                    loss_weights=[1.0, dpo.sft_weight] if dpo.sft_weight else [1.0],
                )
            ),
            train_dataset=rows,
            eval_dataset=held_out,
            processing_class=tokenizer,
            callbacks=[report],
        )
        dpo_trainer.remove_callback(PrinterCallback)
        dpo_trainer.train()
        trainer.save_policy(dpo_trainer.model, tokenizer, report.curve(), "models/dpo")
        record.curve(report.curve())
        record.model("models/dpo", "libra")


if __name__ == "__main__":
    cli.run("dpo", main, __doc__)
