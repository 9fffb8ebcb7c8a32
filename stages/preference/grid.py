"""DPO on a preference grid: a prompt and each of its answers once, however many pairs they are in.

    trl_trainer = GridTrainer(model=model, args=DPOConfig(precompute_ref_log_probs=True, ...),
                              train_dataset=rows, eval_dataset=held_out, processing_class=tokenizer)

Plain DPO computes the prompt again for both answers of every pair. Here rows that share a prompt
are packed (packing.py); on a GPU in 16 bits a whole batch is one row (shared_attention.py). A model
whose attention takes no such mask (FlashAttention, sliding windows) computes equal rows once
instead. Loss, metrics and loop are TRL's; the reference is computed before the first step
(reference.py).
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
from stages.preference import packing, reference, shared_attention
from stages.training.head import score_labelled_only

# TRL hashes the reference's weights when the trainer is made; its own function is slow.
dpo_trainer.hash_module = reference.weights_hash
PER_TOKEN = ("log_probs", "entropy", "mean_logits", "is_top1")  # outputs of the fused head
REFERENCE_BATCH = 32  # pairs; it decides the last bits of the table, so it isn't a param
SIDES = ("chosen_ids", "rejected_ids")


class GridTrainer(DPOTrainer):
    """`DPOTrainer` that computes prompts and answers once.

    Its rows are `prompt_ids`, `chosen_ids`, `rejected_ids` in training order: TRL would render and
    tokenize each text of the grid many times over. With `precompute_ref_log_probs` the reference's
    log-probabilities come from a table (reference.py).
    """

    def __init__(self, *args, **kwargs):
        self._is_patched = False
        super().__init__(*args, **kwargs)
        collator = self.data_collator
        if (
            isinstance(collator, DataCollatorForPreference)
            and self.args.truncation_mode == "keep_start"
        ):
            multiple = self.args.pad_to_multiple_of or 1
            self.data_collator = Collator(collator.pad_token_id, self.args.max_length, multiple)
        self._patch_models()

    def _patch_models(self) -> None:
        """Once TRL has added its fused head, possibly within `__init__` for the reference."""
        if self._is_patched:
            return
        self._is_patched = True
        models = ((self.model, ("entropy", "mean_logits", "is_top1")), (self.ref_model, ()))
        for model, outputs in models:
            if model is not None:
                base = self.accelerator.unwrap_model(model)
                base = base.get_base_model() if hasattr(base, "get_base_model") else base
                score_labelled_only(base, outputs)
                share_prompts(base)

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        return dataset

    def _precompute_ref_logps(self, dataset, name, batch_size):
        """`dataset` with `ref_chosen_logps` and `ref_rejected_logps` (nats)."""
        self._patch_models()
        columns = (dataset[side] for side in SIDES)
        rows = reference.unique_rows(dataset["prompt_ids"], *columns)
        pairs = reference.as_pairs(rows)
        key = reference.cache_key(rows, *self._reference_settings())
        label = f"dpo: reference, {name}"
        values = reference.read(key, 2 * len(pairs))
        if values is None:
            values = self._compute_reference(pairs, label)
            if self.accelerator.is_main_process:
                reference.write(key, values)
            self.accelerator.wait_for_everyone()
        elif self.accelerator.is_main_process:
            answers = sum(map(len, rows.values()))
            print(f"{label}: {answers:,} answers from the cache ({key[:12]})")

        texts = [(tuple(pair["prompt_ids"]), tuple(pair[side])) for pair in pairs for side in SIDES]
        log_probs = dict(zip(texts, values, strict=True))
        for side in SIDES:
            texts = zip(dataset["prompt_ids"], dataset[side], strict=True)
            column = [log_probs[tuple(prompt), tuple(answer)] for prompt, answer in texts]
            dataset = dataset.add_column(f"ref_{side.removesuffix('_ids')}_logps", column)
        return dataset

    def _reference_settings(self) -> list:
        """All but the rows that decides the reference's values."""
        # `share_prompts` switches sdpa to the other during training.
        attention = self.model.config._attn_implementation
        attention = attention.replace(shared_attention.NAME, "sdpa")
        adapters = getattr(self.model, "peft_config", {})
        return [
            self._precompute_model_hash,
            attention,
            str(self.model.dtype),
            self.args.bf16,
            self.args.max_length,
            self.accelerator.device.type,
            self.accelerator.num_processes,
            REFERENCE_BATCH,
            {name: str(adapter) for name, adapter in adapters.items()},
        ]

    def _compute_reference(self, pairs: list[dict[str, list[int]]], label: str) -> list[float]:
        """The reference's log-probabilities (nats) of both answers of each pair, in turn."""
        loader = self.accelerator.prepare(
            DataLoader(pairs, REFERENCE_BATCH, shuffle=False, collate_fn=self.data_collator)
        )
        bar = counter(label, len(pairs))
        batches = []
        for batch in loader:
            both = self.accelerator.gather_for_metrics(
                self.compute_ref_log_probs(self.ref_model or self.model, batch)
            )
            batches.append(torch.stack(both, dim=1).cpu())
            bar.update(len(batches[-1]))
        bar.close()
        return torch.cat(batches).flatten().tolist()


@dataclass(frozen=True)
class Collator:
    """TRL's DataCollatorForPreference for rows cut at the end: equal tensors, much faster."""

    pad_token_id: int
    max_length: int | None = None
    multiple: int = 1  # the padded length is a multiple of this

    def __call__(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        """Chosen rows, then rejected ones (2 x rows x tokens).

        `input_ids`, `attention_mask`, `completion_mask`, and the reference's log-probabilities.
        """
        texts = [(example["prompt_ids"], example[side]) for side in SIDES for example in examples]
        longest = max(len(prompt) + len(answer) for prompt, answer in texts)
        cut = self.max_length or longest
        width = min(cut, longest)
        width += -width % self.multiple

        ids = np.full((len(texts), width), self.pad_token_id)
        mask, completion = np.zeros_like(ids), np.zeros_like(ids)
        for number, (prompt, answer) in enumerate(texts):
            row = (prompt + answer)[:cut]
            ids[number, : len(row)] = row
            mask[number, : len(row)] = 1
            completion[number, len(prompt) : len(row)] = 1
        arrays = {"input_ids": ids, "attention_mask": mask, "completion_mask": completion}
        batch = {name: torch.from_numpy(values) for name, values in arrays.items()}
        for name in ("ref_chosen_logps", "ref_rejected_logps"):
            if name in examples[0]:
                batch[name] = torch.tensor([example[name] for example in examples])
        return batch


def share_prompts(model) -> None:
    """Make `model(input_ids, attention_mask, labels, fused_lm_head=True)` compute prompts once.

    Equal answers too. `model` has a fused head; labels are -100 on the prompt and on padding at the
    right, else the row's own tokens (the answer).
    """
    fused = model.forward
    per_token = packing.relative_cost(model)
    unsupported: list[bool] = []  # set once shared_attention turned out not to fit the model

    def forward(
        self, input_ids=None, attention_mask=None, labels=None, fused_lm_head=False, **kwargs
    ):
        _cast_once(self)
        if not fused_lm_head or labels is None:
            optional = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
            kwargs |= {name: value for name, value in optional.items() if value is not None}
            return fused(fused_lm_head=True, **kwargs) if fused_lm_head else fused(**kwargs)

        if not takes_mask(self, input_ids.shape[1]):
            return each_row_once(input_ids, attention_mask, labels, kwargs)

        if use_shared_attention(self, input_ids.device):
            try:
                return scored(*_single_row(input_ids, labels), kwargs)
            except shared_attention.Unsupported:
                self.set_attn_implementation("sdpa")
                unsupported.append(True)

        packed = packing.pack(input_ids, labels, per_token)
        packed = {name: column.to(input_ids.device) for name, column in packed.items()}
        mask = packing.attention_mask(packed["prompt"], packed["answer"])
        if self.config._attn_implementation == "eager":
            zeros = torch.zeros(mask.shape, dtype=self.dtype, device=mask.device)
            mask = zeros.masked_fill(~mask, torch.finfo(self.dtype).min)
        return scored(packed, {"attention_mask": mask}, kwargs)

    def each_row_once(input_ids, attention_mask, labels, kwargs):
        first, numbers = packing.equal_rows(input_ids, labels)
        outputs = fused(
            input_ids=input_ids[first],
            attention_mask=attention_mask[first],
            labels=labels[first],
            fused_lm_head=True,
            **kwargs,
        )
        for name in (*PER_TOKEN, "label_mask"):
            if outputs.get(name) is not None:
                outputs[name] = outputs[name][numbers]
        return outputs

    def use_shared_attention(self, device: torch.device) -> bool:
        if unsupported or not shared_attention.usable(self, device):
            return False
        if self.config._attn_implementation == "sdpa":
            self.set_attn_implementation(shared_attention.NAME)
        return self.config._attn_implementation == shared_attention.NAME

    def scored(packed: dict[str, torch.Tensor], attention_kwargs: dict, kwargs: dict):
        """The outputs of the packed rows, put back where the original rows have them."""
        names = ("input_ids", "position_ids", "shift_labels")
        packed_rows = {name: packed[name] for name in names}
        outputs = fused(fused_lm_head=True, **kwargs, **attention_kwargs, **packed_rows)
        labelled = packed["packed_index"] >= 0
        index = packed["packed_index"].clamp(min=0)
        for name in PER_TOKEN:
            if (values := outputs.get(name)) is not None:
                outputs[name] = values.reshape(-1)[index].masked_fill(~labelled, 0)
        outputs["label_mask"] = labelled
        return outputs

    model.forward = types.MethodType(forward, model)


def _single_row(
    input_ids: torch.Tensor, labels: torch.Tensor
) -> tuple[dict[str, torch.Tensor], dict]:
    """All prompts and answers packed into one row, and the arguments of its attention."""
    device = input_ids.device
    packed = packing.pack(input_ids, labels, None)
    prompt, answer = packed["prompt"][0].numpy(), packed["answer"][0].numpy()
    attention_kwargs = {
        "segments": shared_attention.segments(prompt, answer, device),
        "attention_mask": shared_attention.no_mask(device),
    }
    return {name: column.to(device) for name, column in packed.items()}, attention_kwargs


def _cast_once(model) -> None:
    """Let autocast, if on, cast the inputs of adapters: peft would convert them to fp32 first."""
    for module in model.modules():
        if hasattr(module, "cast_input_dtype_enabled"):
            module.cast_input_dtype_enabled = not torch.is_autocast_enabled(model.device.type)


def takes_mask(model, tokens: int) -> bool:
    """Whether a 4D mask and positions decide attention: plain layers, no window below `tokens`."""
    config = model.config.get_text_config()
    # Without `layer_types` layers may be anything, recurrent ones for instance.
    layers = set(getattr(config, "layer_types", None) or ["sliding_attention"])
    window = getattr(config, "sliding_window", None) or tokens
    return (
        model.config._attn_implementation in ("sdpa", "eager", shared_attention.NAME)
        and layers <= {"full_attention", "sliding_attention"}
        and (tokens <= window or "sliding_attention" not in layers)
        and "position_ids" in inspect.signature(type(model).forward).parameters
    )
