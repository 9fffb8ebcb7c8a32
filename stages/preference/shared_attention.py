"""Shared-prefix attention (Juravsky et al. 2024, Hydragen) with gradients, on a GPU.

All prompts and answers of a batch are one row, each prompt once, its answers after it (packing.py).
An answer's token attends to its own answer up to itself, and to its prompt. Each of these two parts
is FlashAttention (Dao 2023) over sequences of different lengths, and the softmaxes are combined by
their log-sum-exps. Backward goes through each part with the combined log-sum-exp, as in ring
attention (Liu et al. 2023): dQ, dK and dV are those of one softmax over all keys.

A mask over the same row costs the square of its length, of which a grid of 5 x 5 answers uses a
tenth.
"""

from dataclasses import dataclass

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "shared_prompts"  # in transformers' registry: sdpa, except for rows with `segments`


@dataclass(frozen=True)
class Segments:
    """Where prompts and answers are in a row; `cu_` are cumulative lengths from 0, `max_` maxima.

    `own`: prompts and answers, in order. `prompt`: the tokens at `prompt_index`, prompt by prompt.
    `answer`: the answer tokens at `answer_index`, all answers of a prompt together; without those
    of prompts of a single token, which have nothing before the answer's own sequence.
    """

    cu_own: torch.Tensor
    max_own: int
    prompt_index: torch.Tensor
    cu_prompt: torch.Tensor
    max_prompt: int
    answer_index: torch.Tensor
    cu_answer: torch.Tensor
    max_answer: int


def segments(prompt: np.ndarray, answer: np.ndarray, device: torch.device) -> Segments:
    """From two numbers of each token: its prompt (1, 2, ...) and answer (0: the prompt itself)."""
    starts = np.flatnonzero(np.diff(prompt, prepend=0) | np.diff(answer, prepend=-1))
    cu_own = np.append(starts, len(prompt))
    prompt_lengths = np.bincount(prompt[answer == 0], minlength=prompt.max() + 1)
    answer_index = np.flatnonzero((answer > 0) & (prompt_lengths[prompt] > 0))
    answer_lengths = np.bincount(prompt[answer_index], minlength=len(prompt_lengths))
    answer_lengths = answer_lengths[prompt_lengths > 0]

    def on_device(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values).to(device)

    def cumulative(lengths: np.ndarray) -> torch.Tensor:
        return on_device(np.append(0, np.cumsum(lengths)).astype(np.int32))

    return Segments(
        cu_own=on_device(cu_own.astype(np.int32)),
        max_own=int(np.diff(cu_own).max()),
        prompt_index=on_device(np.flatnonzero(answer == 0)),
        cu_prompt=cumulative(prompt_lengths[prompt_lengths > 0]),
        max_prompt=int(prompt_lengths.max(initial=0)),
        answer_index=on_device(answer_index),
        cu_answer=cumulative(answer_lengths),
        max_answer=int(answer_lengths.max(initial=0)),
    )


class Unsupported(Exception):
    """The model's attention needs more than these two parts, or doesn't pass `segments` on."""


def usable(model, device: torch.device) -> bool:
    """Whether FlashAttention runs here: GPU, 16 bits. `attend` finds out whether the model fits."""
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    autocast = torch.is_autocast_enabled("cuda")
    dtype = torch.get_autocast_dtype("cuda") if autocast else model.dtype
    return torch.cuda.get_device_capability(device) >= (8, 0) and dtype.itemsize == 2


def no_mask(device: torch.device) -> torch.Tensor:
    """A placeholder for the mask: with four dimensions, so that transformers makes none."""
    return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)


def attend(module, query, key, value, attention_mask, scaling=None, segments=None, **kwargs):
    """An attention of transformers: rows x heads x tokens x head size in, rows x tokens x ... out.

    Without `segments` it is sdpa. Raises Unsupported.
    """
    is_placeholder = attention_mask is not None and attention_mask.shape == (1, 1, 1, 1)
    if segments is None and not (is_placeholder and query.shape[2] > 1):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
    extras = ("dropout", "softcap", "position_bias", "s_aux")
    if any(kwargs.get(name) not in (None, 0.0) for name in extras):
        raise Unsupported
    if segments is None or not is_placeholder or attention_mask.dtype != torch.bool:
        raise Unsupported
    head_size = query.shape[-1]
    if not key.shape[-1] == value.shape[-1] == head_size or head_size > 256 or head_size % 8:
        raise Unsupported
    # With fp32 weights under autocast, rotary positions return fp32; sdpa's autocast would cast it.
    tensors = (x[0].transpose(0, 1).to(value.dtype) for x in (query, key, value))
    scale = head_size**-0.5 if scaling is None else scaling
    return SharedAttention.apply(*tensors, segments, scale)[None], None


class SharedAttention(torch.autograd.Function):
    """Of queries, keys, values of one row (tokens x heads x head size); key heads may be fewer."""

    @staticmethod
    def forward(ctx, query, key, value, seg: Segments, scale: float):
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        own_lengths = seg.cu_own, seg.cu_own, seg.max_own, seg.max_own
        out, lse = flash(query, key, value, *own_lengths, True, scale)
        if len(seg.answer_index):
            answers, prompts = seg.answer_index, seg.prompt_index
            lengths = seg.cu_answer, seg.cu_prompt, seg.max_answer, seg.max_prompt
            to_prompt, prompt_lse = flash(
                query[answers], key[prompts], value[prompts], *lengths, False, scale
            )
            both = torch.logaddexp(lse[:, answers], prompt_lse)
            weights = [(part - both).exp().T[..., None] for part in (lse[:, answers], prompt_lse)]
            out[answers] = (weights[0] * out[answers] + weights[1] * to_prompt).to(out.dtype)
            lse[:, answers] = both
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.segments, ctx.scale = seg, scale
        return out

    @staticmethod
    def backward(ctx, gradient):
        query, key, value, out, lse = ctx.saved_tensors
        seg, scale, gradient = ctx.segments, ctx.scale, gradient.contiguous()
        own_lengths = seg.cu_own, seg.cu_own, seg.max_own, seg.max_own
        d_query, d_key, d_value = flash_backward(
            gradient, query, key, value, out, lse, *own_lengths, True, scale
        )
        if len(seg.answer_index):
            answers, prompts = seg.answer_index, seg.prompt_index
            lengths = seg.cu_answer, seg.cu_prompt, seg.max_answer, seg.max_prompt
            more_query, more_key, more_value = flash_backward(
                gradient[answers],
                query[answers],
                key[prompts],
                value[prompts],
                out[answers],
                lse[:, answers].contiguous(),
                *lengths,
                False,
                scale,
            )
            d_query[answers] += more_query
            d_key[prompts] += more_key
            d_value[prompts] += more_value
        return d_query, d_key, d_value, None, None


def flash(query, key, value, cu_queries, cu_keys, max_queries, max_keys, causal, scale):
    """(outputs, tokens x heads x head size; log-sum-exps, heads x tokens) of many sequences.

    PyTorch's operator, called as torch.nn.attention.varlen does: that module's function gives no
    gradient through the log-sum-exps.
    """
    lengths = cu_queries, cu_keys, max_queries, max_keys
    operator = torch.ops.aten._flash_attention_forward
    return operator(query, key, value, *lengths, 0.0, causal, False, scale=scale)[:2]


def flash_backward(
    gradient, query, key, value, out, lse, cu_queries, cu_keys, max_queries, max_keys, causal, scale
):
    """Gradients of queries, keys, values; `out` and `lse` may be of a softmax over more keys."""
    lengths = cu_queries, cu_keys, max_queries, max_keys
    no_dropout = torch.zeros(2, dtype=torch.uint64, device=query.device)
    rng_state = no_dropout, no_dropout[:0]
    operator = torch.ops.aten._flash_attention_backward
    return operator(
        gradient, query, key, value, out, lse, *lengths, 0.0, causal, *rng_state, scale=scale
    )


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
