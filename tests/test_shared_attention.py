"""Attention in two looks (an answer at itself, and at its prompt) against the same attention with a mask.

FlashAttention runs on GPUs alone: elsewhere plain torch takes its place, one sequence after the other, and all around it is tested.
"""

import copy
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_grid import CASES, model, project, same_as_trl, tokenizer  # noqa: F401
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    LlamaConfig,
    LlamaForCausalLM,
    StableLmConfig,
)
from trl.trainer.utils import add_fused_lm_head

from stages.preference import grid, shared_attention
from stages.preference.shared_attention import SharedAttention, segments


def sequences(query, key, of_queries, of_keys, causal, scale):
    """Of each sequence: (where its queries stand, where its keys stand, their products: heads x queries x keys)."""
    for (a, b), (c, d) in zip(
        zip(of_queries, of_queries[1:], strict=False),
        zip(of_keys, of_keys[1:], strict=False),
        strict=True,
    ):
        keys = key[c:d].repeat_interleave(query.shape[1] // key.shape[1], 1)
        products = torch.einsum("qhd,khd->hqk", query[a:b], keys) * scale
        if causal:
            products = products.masked_fill(
                ~torch.ones(b - a, d - c, dtype=torch.bool, device=query.device).tril(), -torch.inf
            )
        yield slice(a, b), slice(c, d), products


def plain(query, key, value, of_queries, of_keys, most_queries, most_keys, causal, scale):
    assert most_queries == int(of_queries.diff().max()) and most_keys == int(of_keys.diff().max())
    assert (
        of_queries[-1] == len(query)
        and of_keys[-1] == len(key)
        and len(of_queries) == len(of_keys)
        and of_keys.diff().min() > 0
    )
    out, sums = torch.empty_like(query), query.new_empty(query.shape[1], len(query))
    for queries, keys, products in sequences(query, key, of_queries, of_keys, causal, scale):
        values = value[keys].repeat_interleave(query.shape[1] // key.shape[1], 1)
        out[queries], sums[:, queries] = (
            torch.einsum("hqk,khd->qhd", products.softmax(-1), values),
            products.logsumexp(-1),
        )
    return out, sums


def plain_backward(
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
    """As FlashAttention does it (Dao et al. 2022, algorithm 4): from `out` and `sums` alone."""
    repeat = query.shape[1] // key.shape[1]
    d_query, d_key, d_value = (
        torch.zeros_like(query),
        torch.zeros_like(key),
        torch.zeros_like(value),
    )
    for queries, keys, products in sequences(query, key, of_queries, of_keys, causal, scale):
        shares = (products - sums[:, queries, None]).exp()
        given = torch.einsum(
            "qhd,khd->hqk", gradient[queries], value[keys].repeat_interleave(repeat, 1)
        )
        moved = shares * (given - (gradient[queries] * out[queries]).sum(-1).T[..., None]) * scale
        d_query[queries] += torch.einsum(
            "hqk,khd->qhd", moved, key[keys].repeat_interleave(repeat, 1)
        )
        for sink, found in (
            (d_key, (moved, query[queries])),
            (d_value, (shares, gradient[queries])),
        ):
            sink[keys] += (
                torch.einsum("hqk,qhd->khd", *found).unflatten(1, (key.shape[1], repeat)).sum(2)
            )
    return d_query, d_key, d_value


@pytest.fixture()
def stand_in(monkeypatch):
    """Plain torch in the place of FlashAttention; the rows' numbers of tokens."""
    taken = []
    monkeypatch.setattr(shared_attention, "usable", lambda *_: True)
    monkeypatch.setattr(
        shared_attention, "flash", lambda *given: taken.append(len(given[0])) or plain(*given)
    )
    monkeypatch.setattr(shared_attention, "flash_backward", plain_backward)
    return taken


# Prompts of 3, 0 and 2 tokens before their last, with 2, 1 and 3 answers.
PROMPT = np.array([1] * 3 + [1] * 2 + [1] * 4 + [2] * 2 + [3] * 2 + [3] * 1 + [3] * 3 + [3] * 2)
ANSWER = np.array([0] * 3 + [1] * 2 + [2] * 4 + [1] * 2 + [0] * 2 + [1] * 1 + [2] * 3 + [3] * 2)


def by_mask(query, key, value, scale):
    seen = grid.attention(torch.from_numpy(PROMPT)[None], torch.from_numpy(ANSWER)[None]).to(
        query.device
    )
    key, value = (x.repeat_interleave(query.shape[1] // key.shape[1], 1) for x in (key, value))
    return F.scaled_dot_product_attention(
        *(x.transpose(0, 1)[None] for x in (query, key, value)), attn_mask=seen, scale=scale
    )[0].transpose(0, 1)


def result_and_gradients(attend, dtype, device="cpu", width=8):
    draw = torch.Generator().manual_seed(1)
    given = [
        torch.randn(len(PROMPT), heads, width, generator=draw, dtype=torch.float64)
        for heads in (4, 2, 2, 4)
    ]
    *given, gradient = (x.to(device, dtype) for x in given)
    given = [x.requires_grad_() for x in given]
    out = attend(*given)
    out.backward(gradient)
    return [x.detach().double().cpu() for x in (out, *(x.grad for x in given))]


def test_two_looks_are_the_masked_look_and_so_are_their_gradients(stand_in):
    of = segments(PROMPT, ANSWER, torch.device("cpu"))
    assert of.own.tolist() == [0, 3, 5, 9, 11, 13, 14, 17, 19] and of.longest == 4
    ours = result_and_gradients(
        lambda *given: SharedAttention.apply(*given, of, 0.3), torch.float64
    )
    theirs = result_and_gradients(lambda *given: by_mask(*given, 0.3), torch.float64)
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, other, rtol=1e-9, atol=1e-12)
    assert stand_in == [len(PROMPT), 6 + 6], (
        "all tokens, then those of answers whose prompt has tokens before its last"
    )


@pytest.mark.parametrize(
    "case", [case for case in CASES if case not in ("eager", "another attention")]
)
def test_training_through_it_is_trl_s(model, tokenizer, tmp_path, stand_in, case):  # noqa: F811
    """The same gradients, weights and log of an epoch, to 1e-5."""
    rows, options = CASES[case]
    same_as_trl(model, tokenizer, tmp_path, rows, **options)
    assert stand_in


def test_activations_computed_again_take_the_same_way(model, tokenizer, stand_in):  # noqa: F811
    tokens = torch.randint(6, 300, (2, 9), generator=torch.Generator().manual_seed(1))
    labels = tokens.clone()
    labels[:, :4] = -100
    gradients = []
    for again in (False, True):
        made = copy.deepcopy(model).train()
        if again:
            made.gradient_checkpointing_enable()
        add_fused_lm_head(made)
        grid.share_prompts(made)
        made(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            labels=labels,
            fused_lm_head=True,
        ).log_probs.sum().backward()
        gradients.append(made.model.layers[0].self_attn.q_proj.weight.grad)
    assert torch.equal(*gradients)
    assert len(stand_in) == 2 * 2 * 3, "two layers, two looks, once and then twice"


def scored(made, tokens, labels):
    """Log-probabilities of the labelled tokens, and the first layer's gradient of their sum."""
    made.zero_grad()
    out = made(
        input_ids=tokens, attention_mask=torch.ones_like(tokens), labels=labels, fused_lm_head=True
    ).log_probs
    out.sum().backward()
    return out.detach().float(), next(
        weights.grad for name, weights in made.named_parameters() if "q_proj" in name
    )


def asked():
    tokens = torch.randint(6, 300, (4, 24), generator=torch.Generator().manual_seed(1))
    tokens[:, :9] = tokens[:1, :9]
    return tokens, tokens.masked_fill(torch.arange(24) < 9, -100)


def test_weights_in_32_bits_that_are_computed_with_in_16_reach_it_in_16(
    model, stand_in, monkeypatch
):  # noqa: F811
    """Autocast leaves what the positions turn in 32 bits, and FlashAttention takes 16 alone."""
    kinds = set()
    monkeypatch.setattr(
        shared_attention,
        "flash",
        lambda *given: kinds.update(x.dtype for x in given[:3]) or plain(*given),
    )
    found = []
    for usable in (True, False):
        monkeypatch.setattr(shared_attention, "usable", lambda *_, usable=usable: usable)
        made = copy.deepcopy(model).train()
        add_fused_lm_head(made)
        grid.share_prompts(made)
        with torch.autocast("cpu", torch.bfloat16):
            found.append(scored(made, *asked()))
    assert kinds == {torch.bfloat16}
    for ours, theirs in zip(*found, strict=True):
        assert (ours - theirs).norm() / theirs.norm() < 5e-2


SIZES = {
    "vocab_size": 300,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
UNFIT = {
    "heads of 12 numbers": LlamaConfig(**SIZES),
    "dropout": LlamaConfig(**SIZES | {"hidden_size": 32}, attention_dropout=0.1),
    "no segments handed on": StableLmConfig(**SIZES | {"hidden_size": 32}, num_key_value_heads=4, partial_rotary_factor=0.5),
    "keys wider than values": DeepseekV3Config(**SIZES, first_k_dense_replace=2, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8,
                                               qk_nope_head_dim=8, v_head_dim=8, num_key_value_heads=4, moe_intermediate_size=8, n_routed_experts=4,
                                               num_experts_per_tok=2, n_group=1, topk_group=1),
}  # fmt: skip


@pytest.mark.parametrize("kind", UNFIT)
def test_a_model_that_it_does_not_fit_takes_the_mask(stand_in, monkeypatch, kind):
    torch.manual_seed(1)
    made = AutoModelForCausalLM.from_config(UNFIT[kind]).train()
    add_fused_lm_head(made)
    usual = made.forward
    found = []
    for usable in (True, False):
        monkeypatch.setattr(shared_attention, "usable", lambda *_, usable=usable: usable)
        made.forward = usual
        grid.share_prompts(made)
        torch.manual_seed(2)
        tokens, labels = asked()
        found.append(
            made(
                input_ids=tokens,
                attention_mask=torch.ones_like(tokens),
                labels=labels,
                fused_lm_head=True,
            ).log_probs
        )
        assert made.config._attn_implementation == "sdpa"
    assert found[0].shape == (4, 23) and torch.isfinite(found[0]).all()
    if kind != "dropout":  # what is drawn differs
        assert torch.allclose(*found, atol=1e-5)
    assert not stand_in


def test_where_it_can_be_used_is_asked_of_the_machine_and_the_numbers(model, monkeypatch):  # noqa: F811
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    half = copy.deepcopy(model).to(torch.bfloat16)
    assert shared_attention.usable(half, gpu) and not shared_attention.usable(
        half, torch.device("cpu")
    )
    assert not shared_attention.usable(model, gpu), "float32"
    with monkeypatch.context() as on:
        on.setattr(torch, "is_autocast_enabled", lambda kind: kind == "cuda")
        assert shared_attention.usable(model, gpu), "computed with in 16 bits"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert not shared_attention.usable(half, gpu)


def test_what_is_written_names_no_attention_of_ours(tmp_path, stand_in):
    made = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=50,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
        )
    )
    made.set_attn_implementation(shared_attention.NAME)
    made.save_pretrained(tmp_path)
    assert shared_attention.NAME not in (tmp_path / "config.json").read_text()
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "llama"
    tokens = torch.arange(12).reshape(2, 6)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
    usual = LlamaForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        ours, theirs = (
            one(tokens, attention_mask=mask).logits[mask.bool()] for one in (made, usual)
        )
    assert torch.equal(ours, theirs), "without segments it is sdpa"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="FlashAttention needs a GPU")
def test_flash_attention_on_the_gpu_is_what_the_mask_gives():
    of = segments(PROMPT, ANSWER, torch.device("cuda"))
    exact = result_and_gradients(lambda *given: by_mask(*given, 0.3), torch.float64, width=64)
    ours = result_and_gradients(
        lambda *given: SharedAttention.apply(*given, of, 0.3), torch.bfloat16, "cuda", width=64
    )
    for mine, other in zip(ours, exact, strict=True):
        assert (mine - other).norm() / other.norm() < 1e-2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="FlashAttention needs a GPU")
def test_a_model_on_the_gpu_takes_it_and_says_what_the_mask_says(monkeypatch):
    torch.manual_seed(1)
    sizes = {
        "hidden_size": 256,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    made = (
        LlamaForCausalLM(LlamaConfig(vocab_size=50, initializer_range=0.1, **sizes))
        .to("cuda", torch.bfloat16)
        .train()
    )
    add_fused_lm_head(made)
    grid.share_prompts(made)
    tokens = torch.randint(3, 50, (8, 40), device="cuda")
    tokens[:, :20] = tokens[:1, :20]
    labels = tokens.masked_fill(torch.arange(40, device="cuda") < 20, -100)
    found = []
    for usable in (True, False):
        if not usable:
            monkeypatch.setattr(shared_attention, "usable", lambda *_: False)
        out = made(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            labels=labels,
            fused_lm_head=True,
        ).log_probs
        out.sum().backward()
        found.append(
            [out.detach().float(), made.model.layers[0].self_attn.k_proj.weight.grad.float()]
        )
        made.zero_grad()
        assert made.config._attn_implementation == shared_attention.NAME
    for flashed, masked in zip(*found, strict=True):
        assert (flashed - masked).norm() / masked.norm() < 3e-2
