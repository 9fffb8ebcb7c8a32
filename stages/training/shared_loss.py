"""The loss of a batch whose rows lie on several processes: that of one process that has them all.

Gradients and losses are averaged over the processes. That is the mean over the batch only where each process has the same share
of what a mean is of. TRL's DPO loss is a mean over the process's own pairs and, in its `sft` term, over its own tokens, of which
each process has another number; so does SFT's loss on the validation split. And a last batch that isn't full is filled up by
accelerate with the first rows of the data, which one process would not see again.
"""

from typing import Any

import torch
import torch.distributed as dist


def share_loss(trl_trainer) -> None:
    """Make the loss of each step of an `SFTTrainer` or `DPOTrainer` that of the whole batch.

    In training for every batch; on the validation split for full ones (in the last one, rows that fill it up count).
    """
    fetch = trl_trainer.get_batch_samples
    size = trl_trainer.args.per_device_train_batch_size
    count, rank = trl_trainer.accelerator.num_processes, trl_trainer.accelerator.process_index
    own_rows = _own_pairs if hasattr(trl_trainer, "loss_types") else _own_labels

    def get_batch_samples(batches, number, device):
        samples, items = fetch(batches, number, device)
        left = len(trl_trainer.train_dataset) - trl_trainer.state.global_step * size * count
        if left < size * count:
            samples = [
                own_rows(batch, min(max(left - rank * size, 0), size), size) for batch in samples
            ]
            items = trl_trainer._get_num_items_in_batch(samples, device)
        return samples, items

    trl_trainer.get_batch_samples = get_batch_samples
    if hasattr(trl_trainer, "loss_types"):
        _weigh_means(trl_trainer)
    else:
        _count_tokens(trl_trainer)


def _own_labels(batch: dict[str, Any], own: int, size: int) -> dict[str, Any]:
    """SFT: nothing of the rows from `own` on is labelled."""
    batch["labels"][own:] = -100
    return batch


def _own_pairs(batch: dict[str, Any], own: int, size: int) -> dict[str, Any]:
    """DPO: the first `own` of `size` pairs. A process that has none keeps one, which will count nothing."""
    kept: dict[str, Any] = {"own": own}
    for name, values in batch.items():  # rows of the chosen answers, then of the rejected
        parts = values.chunk(2) if len(values) == 2 * size else (values,)
        kept[name] = torch.cat([part[: max(own, 1)] for part in parts])
    return kept


def _count_tokens(trl_trainer) -> None:
    """SFT: the tokens of all processes are counted on the validation split, as TRL does in training."""
    compute = trl_trainer.compute_loss

    def compute_loss(model, inputs, return_outputs=False, num_items_in_batch=None):
        if num_items_in_batch is None:
            num_items_in_batch = trl_trainer._get_num_items_in_batch(
                [inputs], trl_trainer.args.device
            )
        return compute(model, inputs, return_outputs, num_items_in_batch)

    trl_trainer.compute_loss = compute_loss


def _weigh_means(trl_trainer) -> None:
    """DPO: each mean of a process counts by the share of pairs, or of the chosen answers' tokens, that it is of."""
    accelerator, weights = trl_trainer.accelerator, trl_trainer.loss_weights
    count, compute, gather = (
        accelerator.num_processes,
        trl_trainer._compute_loss,
        accelerator.gather,
    )

    def compute_loss(model, inputs, return_outputs):
        own = inputs.pop("own", None)
        pairs = inputs["completion_mask"].shape[0] // 2 if own is None else own
        tokens = inputs["completion_mask"][:pairs, 1:].sum()
        mine = torch.stack([torch.full_like(tokens, pairs), tokens]).double()
        of_pairs, of_tokens = (mine * count / accelerator.reduce(mine, "sum").clamp(min=1)).tolist()
        kinds = zip(weights, trl_trainer.loss_types, strict=True)
        trl_trainer.loss_weights = [
            weight * (of_tokens if kind == "sft" else of_pairs) for weight, kind in kinds
        ]
        if own is not None:
            accelerator.gather = gather_uneven(own)  # what is logged
        try:
            return compute(model, inputs, return_outputs)
        finally:
            trl_trainer.loss_weights, accelerator.gather = weights, gather

    def gather_uneven(own: int):
        def gathered(values: torch.Tensor) -> torch.Tensor:
            parts: list = [None] * count
            dist.all_gather_object(parts, values.detach().reshape(-1).cpu() if own else None)
            return torch.cat([part for part in parts if part is not None]).to(values.device)

        return gathered

    trl_trainer._compute_loss = compute_loss
