"""Direct preference optimisation (Rafailov et al. 2023): prefers chosen over rejected answers.

Reads data/librachemqa/{train,validation}.parquet, data/substances.parquet and models/sft/ (the
start and the frozen reference); writes models/dpo/ (safetensors, tokenizer, training.csv). Params:
random_seed, train, model, dpo. With dpo.soup of 2 or more, that many policies are trained, each on
epochs of its own, and the mean of their weights and curves is written. A row of training.csv:

    step,loss,rewards/chosen,rewards/rejected,rewards/accuracies,rewards/margins,eval_loss
    200,0.381022,0.412210,-2.310551,0.875000,2.722761,0.452118
"""

from functools import partial
from typing import TYPE_CHECKING

from stages.core import cli
from stages.core.params import read_params
from stages.preference.dpo_params import DpoParams
from stages.training import processes

if TYPE_CHECKING:
    from stages.training.model_params import ModelParams


def main() -> None:
    from stages.training.model_params import ModelParams

    params = read_params("dpo")
    train = params.section("train", processes.TrainParams)
    model_params = params.section("model", ModelParams)
    dpo = params.section("dpo", DpoParams)

    train_policy = partial(optimise, params.random_seed, model_params, dpo)
    processes.run("dpo", train.processes, dpo.pairs_per_step, train_policy)


def optimise(random_seed: int, model_params: "ModelParams", dpo: DpoParams) -> None:
    """Train the policy in models/sft and write it; called in every process of the run."""
    from stages.training.determinism import deterministic

    dpo.check_soup(model_params.lora)
    deterministic(random_seed, offline=model_params.is_local)  # before torch is imported
    from trl import DPOConfig

    from stages.preference.grid import GridTrainer
    from stages.preference.soup import Soup
    from stages.training import data, trainer
    from stages.training.checkpoints import run_folder
    from stages.training.policies import policy_to_train

    train, validation = data.triplets("train"), data.triplets("validation")
    recorded = {
        "random_seed": random_seed,
        "model": model_params.model_dump(),
        "dpo": dpo.model_dump(),
    }
    with processes.record("dpo", recorded, inputs=["data/librachemqa", "models/sft"]) as record:
        model, tokenizer = policy_to_train("models/sft", model_params)
        common = {"max_length": model_params.max_length, "random_seed": random_seed}

        # A dataset for each policy of the soup, on epochs of its own.
        members = [range(i * dpo.epochs, (i + 1) * dpo.epochs) for i in range(dpo.soup)]
        rows_kwargs = {"batch_size": dpo.batch_size, **common}
        member_rows = [
            data.dpo_rows(
                train,
                tokenizer,
                epochs,
                pairs=dpo.pairs,
                answers=dpo.answers,
                bpe_dropout=dpo.bpe_dropout,
                other_representation=dpo.other_representation,
                **rows_kwargs,
            )
            for epochs in members
        ]
        held_out, _ = data.dpo_rows(validation, tokenizer, range(1), **rows_kwargs)
        names = member_rows[0][1]
        totals = {name: sum(counts[name] for _, counts in member_rows) for name in names}
        record.metrics({"data": totals})

        folder = run_folder("dpo")
        soup = Soup("dpo", dpo.soup, folder) if dpo.soup > 1 else None
        for member, (rows, _) in enumerate(member_rows):
            if member:
                model, _ = policy_to_train("models/sft", model_params)
            arguments = trainer.arguments(
                rows,
                dpo.pairs_per_step,
                dpo.learning_rate,
                evaluations=4,
                evaluation_size=dpo.batch_size,
                folder=soup.folder(member) if soup else folder,
                **common,
                **model_params.trainer_kwargs(),
            )
            # Sharded weights can't compute the reference before training begins.
            config = DPOConfig(
                precompute_ref_log_probs=not processes.is_sharded(),
                **dpo.loss_kwargs(),
                **arguments,
            )
            make_trainer = partial(
                GridTrainer,
                model=model,  # and, before the first step, the reference
                args=config,
                train_dataset=rows,
                eval_dataset=held_out,
                processing_class=tokenizer,
            )
            if soup:
                soup.add(member, make_trainer)
        output = "models/dpo", record, "libra", model_params
        if soup:
            soup.save(model, tokenizer, *output)
        else:
            trainer.train_and_save(make_trainer(), tokenizer, trainer.Report("dpo"), *output)


if __name__ == "__main__":
    cli.run("dpo", main, __doc__)
