"""DPO on a preference grid: a prompt is computed once, and each of its answers once, however many pairs they are in.

Plain DPO computes the prompt again for both answers of every pair. Here the rows of a batch that share a prompt become one:

    prompt[:-1] | prompt[-1] chosen_0[:-1] | prompt[-1] chosen_1[:-1] | prompt[-1] rejected_0[:-1] | ...

Each answer stands at the positions it would have behind the prompt and sees the prompt and itself, nothing else, so that every
log-probability is the one of a row of its own. Where a model's attention takes no such mask (FlashAttention, sliding windows), equal rows
are computed once instead. Loss, metrics and loop are TRL's; the reference is computed before the first step (reference.py).
"""

import inspect
import types

import torch
from torch.utils.data import DataLoader
from trl import DPOTrainer

from stages.common.progress import counter
from stages.training import reference
from stages.training.head import score_labelled_only

PER_TOKEN = ("log_probs", "entropy", "mean_logits", "is_top1")  # what the fused head gives
REFERENCE_BATCH = 32  # pairs; the table's values depend on it in their last bits, so it isn't a param


class GridTrainer(DPOTrainer):
    """`DPOTrainer` for rows of `prompt_ids`, `chosen_ids`, `rejected_ids` in training order, prompts and answers computed once.

    TRL renders and tokenizes every pair anew, each text of the grid many times over; ours are encoded once
    (stages.training.encode). With `precompute_ref_log_probs` the reference's log-probabilities come from a table (reference.py).
    """

    def __init__(self, *args, **kwargs):
        self._shared = False
        super().__init__(*args, **kwargs)
        self._share()

    def _share(self) -> None:
        """Once, as soon as TRL has given the models its fused head: the reference may be computed before `__init__` ends."""
        if self._shared:
            return
        self._shared = True
        for model, outputs in ((self.model, ("entropy", "mean_logits", "is_top1")), (self.ref_model, ())):
            if model is not None:
                base = model.get_base_model() if hasattr(model, "get_base_model") else model
                score_labelled_only(base, outputs)
                share_prompts(base)

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        return dataset

    def _precompute_ref_logps(self, dataset, name, batch_size):
        """`dataset` with `ref_chosen_logps` and `ref_rejected_logps` (nats), each different (prompt, answer) computed once."""
        self._share()
        rows = reference.unique_rows(dataset["prompt_ids"], dataset["chosen_ids"], dataset["rejected_ids"])
        config, adapters = self.model.config, getattr(self.model, "peft_config", {})
        held = (config._attn_implementation, str(self.model.dtype), self.args.bf16, self.args.max_length)
        shared = (self.accelerator.device.type, self.accelerator.num_processes, REFERENCE_BATCH)
        adapted = {name: str(adapter) for name, adapter in adapters.items()}
        path = reference.address(rows, self._precompute_model_hash, *held, *shared, adapted)
        pairs = reference.two_by_two(rows)
        values = reference.read(path, 2 * len(pairs))
        if values is None:
            values = self._reference(pairs, f"dpo: reference, {name}")
            if self.accelerator.is_main_process:
                reference.write(path, values)
            self.accelerator.wait_for_everyone()
        elif self.accelerator.is_main_process:
            print(f"dpo: reference, {name}: {sum(map(len, rows.values())):,} answers were computed before ({path.name[:12]})")
        answers = [(pair["prompt_ids"], pair[side]) for pair in pairs for side in ("chosen_ids", "rejected_ids")]
        known = {(tuple(prompt), tuple(answer)): value for (prompt, answer), value in zip(answers, values, strict=True)}
        for side in ("chosen", "rejected"):
            found = zip(dataset["prompt_ids"], dataset[f"{side}_ids"], strict=True)
            dataset = dataset.add_column(f"ref_{side}_logps", [known[tuple(prompt), tuple(answer)] for prompt, answer in found])
        return dataset

    def _reference(self, pairs: list[dict[str, list[int]]], what: str) -> list[float]:
        """The reference's log-probability of both answers of each pair, one after the other."""
        loader = self.accelerator.prepare(DataLoader(pairs, REFERENCE_BATCH, shuffle=False, collate_fn=self.data_collator))
        bar = counter(what, len(pairs))
        found = []
        for batch in loader:
            both = self.accelerator.gather_for_metrics(self.compute_ref_log_probs(self.ref_model or self.model, batch))
            found.append(torch.stack(both, dim=1).cpu())
            bar.update(len(found[-1]))
        bar.close()
        return torch.cat(found).flatten().tolist()


def share_prompts(model) -> None:
    """Make `model(input_ids, attention_mask, labels, fused_lm_head=True)` compute shared prompts and equal answers once.

    For a model with a fused head. Labels are -100 on a prompt and on padding at the right, else the row's own tokens: an answer.
    """
    fused = model.forward

    def forward(self, input_ids=None, attention_mask=None, labels=None, fused_lm_head=False, **kwargs):
        if not fused_lm_head or labels is None:
            given = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
            kwargs |= {name: value for name, value in given.items() if value is not None}
            return fused(fused_lm_head=True, **kwargs) if fused_lm_head else fused(**kwargs)
        if not takes_mask(self, input_ids.shape[1]):
            first, of = equal_rows(input_ids, labels)
            outputs = fused(input_ids=input_ids[first], attention_mask=attention_mask[first], labels=labels[first],
                            fused_lm_head=True, **kwargs)  # fmt: skip
            for name in (*PER_TOKEN, "label_mask"):
                if outputs.get(name) is not None:
                    outputs[name] = outputs[name][of]
            return outputs
        shared = packed(input_ids, labels)
        seen = attention(shared["part"])
        if self.config._attn_implementation == "eager":
            seen = torch.zeros(seen.shape, dtype=self.dtype, device=seen.device).masked_fill(~seen, torch.finfo(self.dtype).min)
        kwargs |= {name: shared[name] for name in ("input_ids", "position_ids", "shift_labels")}
        outputs = fused(attention_mask=seen, fused_lm_head=True, **kwargs)
        found = shared["found_at"] >= 0
        for name in PER_TOKEN:
            values = outputs.get(name)
            if values is not None:
                outputs[name] = values.reshape(-1)[shared["found_at"].clamp(min=0)].masked_fill(~found, 0)
        outputs["label_mask"] = found
        return outputs

    model.forward = types.MethodType(forward, model)


def takes_mask(model, tokens: int) -> bool:
    """Whether a mask of four dimensions and positions decide what each of `tokens` sees: plain attention, and no window in the way."""
    config = model.config.get_text_config()
    layers = set(getattr(config, "layer_types", None) or ["sliding_attention"])  # else recurrent ones, for instance
    window = getattr(config, "sliding_window", None) or tokens
    return (
        model.config._attn_implementation in ("sdpa", "eager")
        and layers <= {"full_attention", "sliding_attention"}
        and (tokens <= window or "sliding_attention" not in layers)
        and "position_ids" in inspect.signature(type(model).forward).parameters
    )


def equal_rows(input_ids: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(indices of the different rows, for each row which of them it is)."""
    numbers: dict[tuple, int] = {}
    firsts, of = [], []
    for i, row in enumerate(torch.stack([input_ids, labels], dim=1).flatten(1).tolist()):
        if (key := tuple(row)) not in numbers:
            numbers[key] = len(numbers)
            firsts.append(i)
        of.append(numbers[key])
    return torch.tensor(firsts, device=input_ids.device), torch.tensor(of, device=input_ids.device)


def packed(input_ids: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Rows (rows x tokens) that share a prompt as one row each (prompts x packed tokens).

    Returns `input_ids`, `position_ids`, `shift_labels` and `part` of the packed rows (`part`: 0 the prompt, 1, 2, ... an
    answer, -1 padding), and `found_at` (rows x (tokens - 1)): the place, in the packed rows read one after the other, that
    predicts a row's next token, -1 where none is labelled.
    """
    groups: dict[tuple, dict[tuple, int]] = {}
    rows = []
    for ids, marks in zip(input_ids.tolist(), labels.tolist(), strict=True):
        labelled = [i for i, mark in enumerate(marks) if mark != -100] or [1]
        start, end = labelled[0], labelled[-1] + 1
        answer = tuple(ids[start:end]) if marks[start] != -100 else ()
        groups.setdefault(tuple(ids[:start]), {}).setdefault(answer, 0)
        rows.append((tuple(ids[:start]), answer))
    layout, starts = [], {}
    for prompt, answers in groups.items():
        ids = list(prompt[:-1])
        positions, targets, part = list(range(len(ids))), [-100] * len(ids), [0] * len(ids)
        for number, answer in enumerate(answers, start=1):
            starts[prompt, answer] = (len(layout), len(ids))
            ids += (prompt[-1:] + answer[:-1]) if answer else ()
            positions += range(len(prompt) - 1, len(prompt) - 1 + len(answer))
            targets += answer
            part += [number] * len(answer)
        layout.append((ids, positions, targets, part))
    width = max(1, *(len(ids) for ids, *_ in layout))
    columns = [torch.full((len(layout), width), fill) for fill in (0, 0, -100, -1)]
    for number, lists in enumerate(layout):
        for column, values in zip(columns, lists, strict=True):
            column[number, : len(values)] = torch.tensor(values)
    found_at = torch.full((input_ids.shape[0], input_ids.shape[1] - 1), -1)
    for number, (prompt, answer) in enumerate(rows):
        row, offset = starts[prompt, answer]
        first = row * width + offset
        found_at[number, len(prompt) - 1 : len(prompt) - 1 + len(answer)] = torch.arange(first, first + len(answer))
    device = input_ids.device
    names = ("input_ids", "position_ids", "shift_labels", "part")
    return {name: column.to(device) for name, column in zip(names, columns, strict=True)} | {"found_at": found_at.to(device)}


def attention(part: torch.Tensor) -> torch.Tensor:
    """What each packed token sees (prompts x 1 x tokens x tokens, boolean): the prompt and its own answer, up to itself."""
    same = (part[:, None, :] == 0) | (part[:, None, :] == part[:, :, None])
    return (same & torch.ones(part.shape[1], part.shape[1], dtype=torch.bool, device=part.device).tril())[:, None]
