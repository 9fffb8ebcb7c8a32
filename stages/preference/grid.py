"""DPO on a preference grid: a prompt is computed once, and each of its answers once, however many pairs they are in.

Plain DPO computes the prompt again for both answers of every pair. Here the rows of a batch that share a prompt become one:

    prompt[:-1] | prompt[-1] chosen_0[:-1] | prompt[-1] chosen_1[:-1] | prompt[-1] rejected_0[:-1] | ...

Each answer stands at the positions it would have behind the prompt and sees the prompt and itself, nothing else, so that every
log-probability is the one of a row of its own. Such rows are cut and put together so that little is padding and little is looked at in
vain (`layout`); on a GPU, in 16 bits, all are one row and nothing is (shared_attention.py). Where a model's attention takes no such mask
(FlashAttention, sliding windows), equal rows are computed once instead. Loss, metrics and loop are TRL's; the reference is computed before the first step (reference.py).
"""

import inspect
import types
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader
from trl import DPOTrainer
from trl.trainer import dpo_trainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from stages.core.progress import counter
from stages.preference import reference, shared_attention
from stages.training.head import score_labelled_only

dpo_trainer.hash_module = (
    reference.weights_hash
)  # TRL hashes the reference's weights when it is made; its own is slow
PER_TOKEN = ("log_probs", "entropy", "mean_logits", "is_top1")  # what the fused head gives
WIDTHS = 6  # of packed rows that are weighed against each other
REFERENCE_BATCH = (
    32  # pairs; the table's values depend on it in their last bits, so it isn't a param
)


class GridTrainer(DPOTrainer):
    """`DPOTrainer` for rows of `prompt_ids`, `chosen_ids`, `rejected_ids` in training order, prompts and answers computed once.

    TRL renders and tokenizes every pair anew, each text of the grid many times over; ours are encoded once
    (stages.training.encode). With `precompute_ref_log_probs` the reference's log-probabilities come from a table (reference.py).
    """

    def __init__(self, *args, **kwargs):
        self._shared = False
        super().__init__(*args, **kwargs)
        if (
            isinstance(self.data_collator, DataCollatorForPreference)
            and self.args.truncation_mode == "keep_start"
        ):
            self.data_collator = Collator(
                self.data_collator.pad_token_id,
                self.args.max_length,
                self.args.pad_to_multiple_of or 1,
            )
        self._share()

    def _share(self) -> None:
        """Once, as soon as TRL has given the models its fused head: the reference may be computed before `__init__` ends."""
        if self._shared:
            return
        self._shared = True
        for model, outputs in (
            (self.model, ("entropy", "mean_logits", "is_top1")),
            (self.ref_model, ()),
        ):
            if model is not None:
                base = self.accelerator.unwrap_model(model)
                base = base.get_base_model() if hasattr(base, "get_base_model") else base
                score_labelled_only(base, outputs)
                share_prompts(base)

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        return dataset

    def _precompute_ref_logps(self, dataset, name, batch_size):
        """`dataset` with `ref_chosen_logps` and `ref_rejected_logps` (nats), each different (prompt, answer) computed once."""
        self._share()
        rows = reference.unique_rows(
            dataset["prompt_ids"], dataset["chosen_ids"], dataset["rejected_ids"]
        )
        config, adapters = self.model.config, getattr(self.model, "peft_config", {})
        attention = config._attn_implementation.replace(
            shared_attention.NAME, "sdpa"
        )  # the one becomes the other on the way
        held = (attention, str(self.model.dtype), self.args.bf16, self.args.max_length)
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
            print(
                f"dpo: reference, {name}: {sum(map(len, rows.values())):,} answers were computed before ({path.name[:12]})"
            )
        answers = [
            (pair["prompt_ids"], pair[side])
            for pair in pairs
            for side in ("chosen_ids", "rejected_ids")
        ]
        known = {
            (tuple(prompt), tuple(answer)): value
            for (prompt, answer), value in zip(answers, values, strict=True)
        }
        for side in ("chosen", "rejected"):
            found = zip(dataset["prompt_ids"], dataset[f"{side}_ids"], strict=True)
            dataset = dataset.add_column(
                f"ref_{side}_logps",
                [known[tuple(prompt), tuple(answer)] for prompt, answer in found],
            )
        return dataset

    def _reference(self, pairs: list[dict[str, list[int]]], what: str) -> list[float]:
        """The reference's log-probability of both answers of each pair, one after the other."""
        loader = self.accelerator.prepare(
            DataLoader(pairs, REFERENCE_BATCH, shuffle=False, collate_fn=self.data_collator)
        )
        bar = counter(what, len(pairs))
        found = []
        for batch in loader:
            both = self.accelerator.gather_for_metrics(
                self.compute_ref_log_probs(self.ref_model or self.model, batch)
            )
            found.append(torch.stack(both, dim=1).cpu())
            bar.update(len(found[-1]))
        bar.close()
        return torch.cat(found).flatten().tolist()


@dataclass(frozen=True)
class Collator:
    """TRL's DataCollatorForPreference for rows cut at their end: the same tensors in a fraction of its time."""

    pad_token_id: int
    max_length: int | None = None
    multiple: int = 1  # of which the padded length is one

    def __call__(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        """Chosen rows, then rejected ones: `input_ids`, `attention_mask`, `completion_mask` (2 x rows x tokens), reference log-probabilities."""
        pairs = [
            (example["prompt_ids"], example[side])
            for side in ("chosen_ids", "rejected_ids")
            for example in examples
        ]
        cut = self.max_length or max(len(prompt) + len(answer) for prompt, answer in pairs)
        width = max(min(cut, len(prompt) + len(answer)) for prompt, answer in pairs)
        width += -width % self.multiple
        ids = np.full((len(pairs), width), self.pad_token_id)
        seen, answers = np.zeros_like(ids), np.zeros_like(ids)
        for number, (prompt, answer) in enumerate(pairs):
            row = (prompt + answer)[:cut]
            (
                ids[number, : len(row)],
                seen[number, : len(row)],
                answers[number, len(prompt) : len(row)],
            ) = row, 1, 1
        output = {"input_ids": ids, "attention_mask": seen, "completion_mask": answers}
        batch = {name: torch.from_numpy(values) for name, values in output.items()}
        for name in ("ref_chosen_logps", "ref_rejected_logps"):
            if name in examples[0]:
                batch[name] = torch.tensor([example[name] for example in examples])
        return batch


def share_prompts(model) -> None:
    """Make `model(input_ids, attention_mask, labels, fused_lm_head=True)` compute shared prompts and equal answers once.

    For a model with a fused head. Labels are -100 on a prompt and on padding at the right, else the row's own tokens: an answer.
    """
    fused = model.forward
    per_token = relative_cost(model)
    unfit: list[bool] = []  # for the two looks of shared_attention

    def forward(
        self, input_ids=None, attention_mask=None, labels=None, fused_lm_head=False, **kwargs
    ):
        cast_once(self)
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
        if two_looks(self, input_ids.device):
            try:
                return scored(*one_row(input_ids, labels), kwargs)
            except shared_attention.Unfit:
                self.set_attn_implementation("sdpa")
                unfit.append(True)
        shared = {
            name: column.to(input_ids.device)
            for name, column in packed(input_ids, labels, per_token).items()
        }
        seen = attention(shared["prompt"], shared["answer"])
        if self.config._attn_implementation == "eager":
            seen = torch.zeros(seen.shape, dtype=self.dtype, device=seen.device).masked_fill(
                ~seen, torch.finfo(self.dtype).min
            )
        return scored(shared, {"attention_mask": seen}, kwargs)

    def two_looks(self, device: torch.device) -> bool:
        if unfit or not shared_attention.usable(self, device):
            return False
        if self.config._attn_implementation == "sdpa":
            self.set_attn_implementation(shared_attention.NAME)
        return self.config._attn_implementation == shared_attention.NAME

    def scored(shared: dict[str, torch.Tensor], looks: dict, kwargs: dict):
        outputs = fused(
            fused_lm_head=True,
            **kwargs,
            **looks,
            **{name: shared[name] for name in ("input_ids", "position_ids", "shift_labels")},
        )
        found = shared["found_at"] >= 0
        for name in PER_TOKEN:
            values = outputs.get(name)
            if values is not None:
                outputs[name] = values.reshape(-1)[shared["found_at"].clamp(min=0)].masked_fill(
                    ~found, 0
                )
        outputs["label_mask"] = found
        return outputs

    model.forward = types.MethodType(forward, model)


def one_row(input_ids: torch.Tensor, labels: torch.Tensor) -> tuple[dict[str, torch.Tensor], dict]:
    """All prompts and answers as one row (`packed`), and what tells the model's attention where they stand in it."""
    device = input_ids.device
    row = packed(input_ids, labels, None)
    where = shared_attention.segments(row["prompt"][0].numpy(), row["answer"][0].numpy(), device)
    return {name: column.to(device) for name, column in row.items()}, {
        "segments": where,
        "attention_mask": shared_attention.no_mask(device),
    }


def cast_once(model) -> None:
    """Leave it to autocast, where it is on, to cast what adapters are given: peft would turn it into their 32 bits first."""
    for module in model.modules():
        if hasattr(module, "cast_input_dtype_enabled"):
            module.cast_input_dtype_enabled = not torch.is_autocast_enabled(model.device.type)


def takes_mask(model, tokens: int) -> bool:
    """Whether a mask of four dimensions and positions decide what each of `tokens` sees: plain attention, and no window in the way."""
    config = model.config.get_text_config()
    layers = set(
        getattr(config, "layer_types", None) or ["sliding_attention"]
    )  # else recurrent ones, for instance
    window = getattr(config, "sliding_window", None) or tokens
    return (
        model.config._attn_implementation in ("sdpa", "eager", shared_attention.NAME)
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


def packed(
    input_ids: torch.Tensor, labels: torch.Tensor, per_token: float | None
) -> dict[str, torch.Tensor]:
    """Rows (rows x tokens) as fewer, denser ones (packed rows x packed tokens): each different answer once, behind its prompt.

    A packed row holds one or more prompts, each with one or more of its answers; a prompt whose answers are in several rows is in each
    of them (`layout`, which says what `per_token` is; None: all in one row). Tensors on the CPU.

    Returns `input_ids`, `position_ids`, `shift_labels`, `prompt` and `answer` of the packed rows (`prompt`: 1, 2, ... whose prompt or
    answer a token is of, 0 padding; `answer`: 0 the prompt, 1, 2, ... an answer), and `found_at` (rows x (tokens - 1)): the place, in
    the packed rows read one after the other, that predicts a row's next token, -1 where none is labelled.
    """
    rows: list[tuple[int, int]] = []
    numbers: dict[tuple, int] = {}
    answers: list[dict[tuple, int]] = []
    for ids, marks in zip(input_ids.tolist(), labels.tolist(), strict=True):
        labelled = [i for i, mark in enumerate(marks) if mark != -100] or [1]
        start, end = labelled[0], labelled[-1] + 1
        prompt, answer = tuple(ids[:start]), tuple(ids[start:end]) if marks[start] != -100 else ()
        if (number := numbers.setdefault(prompt, len(numbers))) == len(answers):
            answers.append({})
        rows.append((number, answers[number].setdefault(answer, len(answers[number]))))
    prompts, texts = list(numbers), [list(of) for of in answers]
    packs = [{p: list(range(len(of))) for p, of in enumerate(texts)}]
    if per_token is not None:
        packs = layout(
            [
                (len(prompt) - 1, list(map(len, of)))
                for prompt, of in zip(prompts, texts, strict=True)
            ],
            per_token,
        )
    width = max(
        1,
        max(
            sum(len(prompts[p]) - 1 + sum(len(texts[p][a]) for a in of) for p, of in pack.items())
            for pack in packs
        ),
    )
    columns = {
        name: np.zeros((len(packs), width), np.int64)
        for name in ("input_ids", "position_ids", "shift_labels", "prompt", "answer")
    }
    columns["shift_labels"] -= 100
    starts: dict[tuple[int, int], int] = {}
    for number, pack in enumerate(packs):
        row = {name: column[number] for name, column in columns.items()}
        at = 0
        for p, of in pack.items():
            prompt = prompts[p]
            begin, at = at, at + len(prompt) - 1
            row["input_ids"][begin:at] = prompt[:-1]
            row["position_ids"][begin:at] = np.arange(len(prompt) - 1)
            for a in of:
                answer = texts[p][a]
                start, at = at, at + len(answer)
                starts[p, a] = number * width + start
                row["input_ids"][start:at] = (prompt[-1:] + answer)[: len(answer)]
                row["position_ids"][start:at] = np.arange(
                    len(prompt) - 1, len(prompt) - 1 + len(answer)
                )
                row["shift_labels"][start:at] = answer
                row["answer"][start:at] = a + 1
            row["prompt"][begin:at] = p + 1
    columns["found_at"] = np.full((input_ids.shape[0], input_ids.shape[1] - 1), -1)
    for found, (p, a) in zip(columns["found_at"], rows, strict=True):
        first, count = len(prompts[p]) - 1, len(texts[p][a])
        found[first : first + count] = np.arange(starts[p, a], starts[p, a] + count)
    return {name: torch.from_numpy(column) for name, column in columns.items()}


def layout(lengths: list[tuple[int, list[int]]], per_token: float) -> list[dict[int, list[int]]]:
    """The cheapest of some ways to put prompts with their answers into rows of one width: for each row {prompt: [answer, ...]}.

    `lengths` are tokens: of each prompt, and of each of its answers. Narrow rows repeat prompts, wide ones look at many tokens in vain: a row
    of w tokens costs w x (`per_token` + w), `per_token` being the cost of a token's way through a layer's matrices / of its look at one other token.
    """
    narrowest = max(prompt + max(answers) for prompt, answers in lengths)
    widest = max(narrowest, *(prompt + sum(answers) for prompt, answers in lengths))
    widths = {narrowest + step * (widest - narrowest) // WIDTHS for step in range(WIDTHS + 1)} | {
        2 * narrowest
    }
    return min(
        (fill(lengths, width) for width in sorted(widths)),
        key=lambda rows: row_cost(lengths, rows, per_token),
    )


def row_cost(
    lengths: list[tuple[int, list[int]]], rows: list[dict[int, list[int]]], per_token: float
) -> float:
    """What rows of `layout` cost, all of them as wide as the widest."""
    width = max(
        sum(lengths[p][0] + sum(lengths[p][1][a] for a in of) for p, of in row.items())
        for row in rows
    )
    return len(rows) * width * (per_token + width)


def fill(lengths: list[tuple[int, list[int]]], width: int) -> list[dict[int, list[int]]]:
    """Rows of at most `width` tokens; the longest answers first, each into a row that has its prompt, else where least room is left."""
    rows: list[dict[int, list[int]]] = []
    room: list[int] = []
    for p in sorted(range(len(lengths)), key=lambda p: -lengths[p][0] - sum(lengths[p][1])):
        prompt, answers = lengths[p]
        for a in sorted(range(len(answers)), key=lambda a: -answers[a]):
            needs = [answers[a] + (0 if p in row else prompt) for row in rows]
            fits = [(need, room[i], i) for i, need in enumerate(needs) if need <= room[i]]
            if fits:
                need, _, at = min(fits)
            else:
                need, at = prompt + answers[a], len(rows)
                rows.append({})
                room.append(width)
            rows[at].setdefault(p, []).append(a)
            room[at] -= need
    return rows


def relative_cost(model) -> float:
    """`per_token` of `layout`. Attention runs at about half the rate of matrix products (measured on two CPU cores)."""
    config = model.config.get_text_config()
    weights = (
        sum(weight.numel() for weight in model.parameters())
        - model.get_input_embeddings().weight.numel()
    )
    return weights / config.num_hidden_layers / (4 * config.hidden_size)


def attention(prompt: torch.Tensor, answer: torch.Tensor) -> torch.Tensor:
    """What each packed token sees (packed rows x 1 x tokens x tokens, boolean): its prompt and its own answer, up to itself."""
    same = (prompt[:, None, :] == prompt[:, :, None]) & (
        (answer[:, None, :] == 0) | (answer[:, None, :] == answer[:, :, None])
    )
    return (
        same
        & torch.ones(
            prompt.shape[1], prompt.shape[1], dtype=torch.bool, device=prompt.device
        ).tril()
    )[:, None]
