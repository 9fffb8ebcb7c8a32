"""Shared-prefix attention (Juravsky et al. 2024, Hydragen) with its gradients, on a GPU: each prompt once in one row, its answers behind it.

An answer's token looks at its own answer up to itself, and at its prompt. Each of the two looks is FlashAttention (Dao 2023) over
sequences of different lengths, and their softmaxes are put together by their logarithmic sums. Backward goes through each look with the sum
of both, as in ring attention (Liu et al. 2023): dQ, dK and dV are those of a softmax over all keys.

A mask over the same row costs the square of its length, of which a grid of 5 x 5 answers uses a tenth.
"""

from dataclasses import dataclass

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "shared_prompts"  # of transformers' attention: sdpa, but for rows with `segments`


@dataclass(frozen=True)
class Segments:
    """Where prompts and answers stand in a row: `own` are the lengths of both, in order, summed up from 0; the longest is `longest`.

    `asking` are the places of tokens of answers whose prompt has tokens before them, `prompts` those of these prompts' tokens; `asked`
    and `asking_of` are their numbers, prompt by prompt, summed up; `most` and `most_asking` the largest.
    """

    own: torch.Tensor
    longest: int
    prompts: torch.Tensor
    asked: torch.Tensor
    most: int
    asking: torch.Tensor
    asking_of: torch.Tensor
    most_asking: int


def segments(prompt: np.ndarray, answer: np.ndarray, device: torch.device) -> Segments:
    """From two numbers of each token (arrays of the row's length): 1, 2, ... whose prompt it belongs to; 0 (the prompt) or 1, 2, ... which answer."""
    starts = np.flatnonzero(np.diff(prompt, prepend=0) | np.diff(answer, prepend=-1))
    own = np.append(starts, len(prompt))
    before = np.bincount(prompt[answer == 0], minlength=prompt.max() + 1)  # tokens of each prompt
    asking = np.flatnonzero((answer > 0) & (before[prompt] > 0))
    each = np.bincount(prompt[asking], minlength=len(before))[before > 0]

    def sums(lengths: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.append(0, np.cumsum(lengths)).astype(np.int32)).to(device)

    return Segments(
        own=torch.from_numpy(own.astype(np.int32)).to(device),
        longest=int(np.diff(own).max()),
        prompts=torch.from_numpy(np.flatnonzero(answer == 0)).to(device),
        asked=sums(before[before > 0]),
        most=int(before.max(initial=0)),
        asking=torch.from_numpy(asking).to(device),
        asking_of=sums(each),
        most_asking=int(each.max(initial=0)),
    )


class Unfit(Exception):
    """A model whose attention is more than the two looks give, or that doesn't hand on where they go."""


def usable(model, device: torch.device) -> bool:
    """Whether FlashAttention computes here: on a GPU, in 16 bits. Whether it computes what the model does shows in `attend`."""
    return (
        device.type == "cuda"
        and torch.version.hip is None
        and torch.cuda.get_device_capability(device) >= (8, 0)
        and (
            torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else model.dtype
        ).itemsize
        == 2
    )


def no_mask(device: torch.device) -> torch.Tensor:
    """What is given in the place of a mask: of four dimensions, so that none is made."""
    return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)


def attend(module, query, key, value, attention_mask, scaling=None, segments=None, **kwargs):
    """transformers' attention: queries, keys, values are rows x heads x tokens x numbers; the result rows x tokens x heads x numbers.

    Without `segments` it is sdpa. Raises Unfit.
    """
    marked = attention_mask is not None and attention_mask.shape == (1, 1, 1, 1)
    if segments is None and not (marked and query.shape[2] > 1):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
    more = [
        name
        for name in ("dropout", "softcap", "position_bias", "s_aux")
        if kwargs.get(name) not in (None, 0.0)
    ]
    width = query.shape[-1]
    if segments is None or not marked or attention_mask.dtype != torch.bool or more:
        raise Unfit
    if not key.shape[-1] == value.shape[-1] == width or width > 256 or width % 8:
        raise Unfit
    # Of weights in 32 bits that are computed with in 16 the positions' turns give 32 again; sdpa's autocast would take them back.
    given = (x[0].transpose(0, 1).to(value.dtype) for x in (query, key, value))
    return SharedAttention.apply(*given, segments, width**-0.5 if scaling is None else scaling)[
        None
    ], None


class SharedAttention(torch.autograd.Function):
    """Of queries, keys and values of a row (tokens x heads x numbers; fewer heads of keys and values divide those of queries): tokens x heads x numbers."""

    @staticmethod
    def forward(ctx, query, key, value, of: Segments, scale: float):
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        out, total = flash(query, key, value, of.own, of.own, of.longest, of.longest, True, scale)
        if len(of.asking):
            told, sums = flash(
                query[of.asking],
                key[of.prompts],
                value[of.prompts],
                of.asking_of,
                of.asked,
                of.most_asking,
                of.most,
                False,
                scale,
            )
            both = torch.logaddexp(total[:, of.asking], sums)
            shares = [(part - both).exp().T[..., None] for part in (total[:, of.asking], sums)]
            out[of.asking] = (shares[0] * out[of.asking] + shares[1] * told).to(out.dtype)
            total[:, of.asking] = both
        ctx.save_for_backward(query, key, value, out, total)
        ctx.of, ctx.scale = of, scale
        return out

    @staticmethod
    def backward(ctx, gradient):
        query, key, value, out, total = ctx.saved_tensors
        of, scale, gradient = ctx.of, ctx.scale, gradient.contiguous()
        d_query, d_key, d_value = flash_backward(
            gradient,
            query,
            key,
            value,
            out,
            total,
            of.own,
            of.own,
            of.longest,
            of.longest,
            True,
            scale,
        )
        if len(of.asking):
            of_query, of_key, of_value = flash_backward(
                gradient[of.asking], query[of.asking], key[of.prompts], value[of.prompts], out[of.asking], total[:, of.asking].contiguous(),
                of.asking_of, of.asked, of.most_asking, of.most, False, scale,
            )  # fmt: skip
            d_query[of.asking] += of_query
            d_key[of.prompts] += of_key
            d_value[of.prompts] += of_value
        return d_query, d_key, d_value, None, None


def flash(query, key, value, of_queries, of_keys, most_queries, most_keys, causal, scale):
    """(result, tokens x heads x numbers; logarithmic sums, heads x tokens) of sequences whose lengths are summed up in `of_queries` and `of_keys`.

    PyTorch's operator, as torch.nn.attention.varlen calls it: that module's function has no gradient of the sums.
    """
    operator = torch.ops.aten._flash_attention_forward
    return operator(
        query,
        key,
        value,
        of_queries,
        of_keys,
        most_queries,
        most_keys,
        0.0,
        causal,
        False,
        scale=scale,
    )[:2]


def flash_backward(
    gradient,
    query,
    key,
    value,
    out,
    sums,
    of_queries,
    of_keys,
    most_queries,
    most_keys,
    causal,
    scale,
):
    """Gradients of queries, keys and values, where `out` and `sums` may be those of a softmax over further keys."""
    operator = torch.ops.aten._flash_attention_backward
    no_dropout = torch.zeros(2, dtype=torch.uint64, device=query.device)
    lengths = of_queries, of_keys, most_queries, most_keys
    return operator(
        gradient,
        query,
        key,
        value,
        out,
        sums,
        *lengths,
        0.0,
        causal,
        no_dropout,
        no_dropout[:0],
        scale=scale,
    )


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
