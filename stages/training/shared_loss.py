"""The loss of a batch spread over several processes: the one of a single process with all its rows.

Gradients and losses are averaged over the processes, which is the mean over the batch only if every
process has the same share of it. TRL's DPO loss is a mean over the process's own pairs and, in its
`sft` term, over its own tokens, whose number differs; so is SFT's loss on the validation split. And
accelerate fills up an incomplete last batch with the first rows of the data, which a single process
wouldn't see again.
"""

from typing import Any

import torch
import torch.distributed as dist


def share_loss(trl_trainer) -> None:
    """Make each step's loss of an `SFTTrainer` or `DPOTrainer` that of the whole batch.

    In training this holds for every batch, on the validation split for full ones (the rows that
    fill up the last one count).
    """
    fetch = trl_trainer.get_batch_samples
    rows = trl_trainer.args.per_device_train_batch_size
    processes = trl_trainer.accelerator.num_processes
    rank = trl_trainer.accelerator.process_index
    is_dpo = hasattr(trl_trainer, "loss_types")
    own_rows = _own_pairs if is_dpo else _own_labels

    def get_batch_samples(batches, number, device):
        samples, items = fetch(batches, number, device)
        seen = trl_trainer.state.global_step * rows * processes
        left = len(trl_trainer.train_dataset) - seen
        if left < rows * processes:  # the last batch: without the rows that fill it up
            own = min(max(left - rank * rows, 0), rows)
            samples = [own_rows(batch, own, rows) for batch in samples]
            items = trl_trainer._get_num_items_in_batch(samples, device)
        return samples, items

    trl_trainer.get_batch_samples = get_batch_samples
    if is_dpo:
        _weigh_means(trl_trainer)
    else:
        _count_tokens(trl_trainer)


def _own_labels(batch: dict[str, Any], own: int, rows: int) -> dict[str, Any]:
    """SFT: remove the labels of all rows from `own` on."""
    batch["labels"][own:] = -100
    return batch


def _own_pairs(batch: dict[str, Any], own: int, rows: int) -> dict[str, Any]:
    """DPO: the first `own` of `rows` pairs. A process with none keeps one, of weight 0."""
    part: dict[str, Any] = {"own": own}
    for name, values in batch.items():  # rows of the chosen answers, then of the rejected ones
        sides = values.chunk(2) if len(values) == 2 * rows else (values,)
        part[name] = torch.cat([side[: max(own, 1)] for side in sides])
    return part


def _count_tokens(trl_trainer) -> None:
    """SFT: count all processes' tokens on the validation split too, as TRL does in training."""
    compute = trl_trainer.compute_loss

    def compute_loss(model, inputs, return_outputs=False, num_items_in_batch=None):
        if num_items_in_batch is None:
            num_items_in_batch = trl_trainer._get_num_items_in_batch(
                [inputs], trl_trainer.args.device
            )
        return compute(model, inputs, return_outputs, num_items_in_batch)

    trl_trainer.compute_loss = compute_loss


def _weigh_means(trl_trainer) -> None:
    """DPO: weigh a process's means by its share of the pairs, or of the chosen answers' tokens."""
    accelerator, weights = trl_trainer.accelerator, trl_trainer.loss_weights
    processes, gather = accelerator.num_processes, accelerator.gather
    compute = trl_trainer._compute_loss

    def compute_loss(model, inputs, return_outputs):
        own = inputs.pop("own", None)
        pairs = inputs["completion_mask"].shape[0] // 2 if own is None else own
        tokens = inputs["completion_mask"][:pairs, 1:].sum()
        counts = torch.stack([torch.full_like(tokens, pairs), tokens]).double()
        totals = accelerator.reduce(counts, "sum").clamp(min=1)
        pair_share, token_share = (counts * processes / totals).tolist()
        trl_trainer.loss_weights = [
            weight * (token_share if kind == "sft" else pair_share)
            for weight, kind in zip(weights, trl_trainer.loss_types, strict=True)
        ]
        if own is not None:
            accelerator.gather = gather_uneven(own)  # for the logged metrics
        try:
            return compute(model, inputs, return_outputs)
        finally:
            trl_trainer.loss_weights, accelerator.gather = weights, gather

    def gather_uneven(own: int):
        def gathered(values: torch.Tensor) -> torch.Tensor:
            parts: list = [None] * processes
            dist.all_gather_object(parts, values.detach().reshape(-1).cpu() if own else None)
            return torch.cat([part for part in parts if part is not None]).to(values.device)

        return gathered

    trl_trainer._compute_loss = compute_loss
