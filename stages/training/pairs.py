"""TRL's DPO on pairs that are token ids already."""

from trl import DPOTrainer


class TokenPairTrainer(DPOTrainer):
    """`DPOTrainer` for rows of `prompt_ids`, `chosen_ids`, `rejected_ids` in training order.

    TRL renders and tokenizes every pair anew, each text of the preference grid many times over; ours are encoded once
    (stages.training.encode). The losses, metrics and the loop are TRL's.
    """

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        return dataset
