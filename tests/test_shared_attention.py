"""Shared-prefix attention against the same attention with a mask.

FlashAttention runs on GPUs only: elsewhere plain torch takes its place, one sequence after the
other, and everything around it is tested.
"""

import copy
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    LlamaConfig,
    LlamaForCausalLM,
    StableLmConfig,
)
from trl.trainer.utils import add_fused_lm_head

from helpers.grids import CASES, assert_same_as_trl, new_model, new_tokenizer
from stages.preference import grid, packing, shared_attention
from stages.preference.shared_attention import SharedAttention, segments


@pytest.fixture(scope="module")
def tokenizer():
    return new_tokenizer()


@pytest.fixture(scope="module")
def model():
    return new_model()


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Reference tables go to a folder of the test's own."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))


def sequences(query, key, cu_queries, cu_keys, causal, scale):
    """Of each sequence: (its queries, its keys, their scores: heads x queries x keys)."""
    query_spans = zip(cu_queries, cu_queries[1:], strict=False)
    key_spans = zip(cu_keys, cu_keys[1:], strict=False)
    for (a, b), (c, d) in zip(query_spans, key_spans, strict=True):
        keys = key[c:d].repeat_interleave(query.shape[1] // key.shape[1], 1)
        scores = torch.einsum("qhd,khd->hqk", query[a:b], keys) * scale
        if causal:
            seen = torch.ones(b - a, d - c, dtype=torch.bool, device=query.device).tril()
            scores = scores.masked_fill(~seen, -torch.inf)
        yield slice(a, b), slice(c, d), scores


def plain(query, key, value, cu_queries, cu_keys, max_queries, max_keys, causal, scale):
    """`flash` in plain torch."""
    assert max_queries == int(cu_queries.diff().max()) and max_keys == int(cu_keys.diff().max())
    assert cu_queries[-1] == len(query) and cu_keys[-1] == len(key)
    assert len(cu_queries) == len(cu_keys) and cu_keys.diff().min() > 0
    out, lse = torch.empty_like(query), query.new_empty(query.shape[1], len(query))
    for queries, keys, scores in sequences(query, key, cu_queries, cu_keys, causal, scale):
        values = value[keys].repeat_interleave(query.shape[1] // key.shape[1], 1)
        out[queries] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), values)
        lse[:, queries] = scores.logsumexp(-1)
    return out, lse


def plain_backward(
    gradient, query, key, value, out, lse, cu_queries, cu_keys, max_queries, max_keys, causal, scale
):
    """As FlashAttention does it (Dao et al. 2022, algorithm 4): from `out` and `lse` alone."""
    repeat = query.shape[1] // key.shape[1]
    d_query, d_key, d_value = (torch.zeros_like(x) for x in (query, key, value))
    for queries, keys, scores in sequences(query, key, cu_queries, cu_keys, causal, scale):
        weights = (scores - lse[:, queries, None]).exp()
        values = value[keys].repeat_interleave(repeat, 1)
        d_weights = torch.einsum("qhd,khd->hqk", gradient[queries], values)
        row_sums = (gradient[queries] * out[queries]).sum(-1).T[..., None]
        d_scores = weights * (d_weights - row_sums) * scale
        repeated = key[keys].repeat_interleave(repeat, 1)
        d_query[queries] += torch.einsum("hqk,khd->qhd", d_scores, repeated)
        for total, left, right in (
            (d_key, d_scores, query[queries]),
            (d_value, weights, gradient[queries]),
        ):
            product = torch.einsum("hqk,qhd->khd", left, right)
            total[keys] += product.unflatten(1, (key.shape[1], repeat)).sum(2)
    return d_query, d_key, d_value


@pytest.fixture()
def flash_calls(monkeypatch):
    """Plain torch in place of FlashAttention; the number of queries of each call."""
    calls = []

    def flash(*args):
        calls.append(len(args[0]))
        return plain(*args)

    monkeypatch.setattr(shared_attention, "usable", lambda *_: True)
    monkeypatch.setattr(shared_attention, "flash", flash)
    monkeypatch.setattr(shared_attention, "flash_backward", plain_backward)
    return calls


# Prompts of 3, 0 and 2 tokens before their last, with 2, 1 and 3 answers.
PROMPT = np.array([1] * 3 + [1] * 2 + [1] * 4 + [2] * 2 + [3] * 2 + [3] * 1 + [3] * 3 + [3] * 2)
ANSWER = np.array([0] * 3 + [1] * 2 + [2] * 4 + [1] * 2 + [0] * 2 + [1] * 1 + [2] * 3 + [3] * 2)


def masked(query, key, value, scale):
    prompt, answer = (torch.from_numpy(numbers)[None] for numbers in (PROMPT, ANSWER))
    mask = packing.attention_mask(prompt, answer).to(query.device)
    key, value = (x.repeat_interleave(query.shape[1] // key.shape[1], 1) for x in (key, value))
    tensors = (x.transpose(0, 1)[None] for x in (query, key, value))
    return F.scaled_dot_product_attention(*tensors, attn_mask=mask, scale=scale)[0].transpose(0, 1)


def output_and_gradients(attention, dtype, device="cpu", head_size=8):
    rng = torch.Generator().manual_seed(1)
    *tensors, gradient = (
        torch.randn(len(PROMPT), heads, head_size, generator=rng, dtype=torch.float64)
        for heads in (4, 2, 2, 4)
    )
    tensors = [x.to(device, dtype).requires_grad_() for x in tensors]
    out = attention(*tensors)
    out.backward(gradient.to(device, dtype))
    return [x.detach().double().cpu() for x in (out, *(x.grad for x in tensors))]


def test_shared_attention_is_masked_attention_and_so_are_its_gradients(flash_calls):
    seg = segments(PROMPT, ANSWER, torch.device("cpu"))
    assert seg.cu_own.tolist() == [0, 3, 5, 9, 11, 13, 14, 17, 19] and seg.max_own == 4
    ours = output_and_gradients(lambda *x: SharedAttention.apply(*x, seg, 0.3), torch.float64)
    theirs = output_and_gradients(lambda *x: masked(*x, 0.3), torch.float64)
    for mine, expected in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, expected, rtol=1e-9, atol=1e-12)
    # All tokens, then the answers whose prompt has tokens before its last.
    assert flash_calls == [len(PROMPT), 6 + 6]


@pytest.mark.parametrize(
    "case", [case for case in CASES if case not in ("eager", "another attention")]
)
def test_training_with_it_is_trl_s(model, tokenizer, tmp_path, flash_calls, case):
    rows, options = CASES[case]
    assert_same_as_trl(model, tokenizer, tmp_path, rows, **options)
    assert flash_calls


def grid_model(model):
    """A copy of `model` that computes shared prompts once."""
    policy = copy.deepcopy(model).train()
    add_fused_lm_head(policy)
    grid.share_prompts(policy)
    return policy


def log_probs(policy, tokens, labels) -> torch.Tensor:
    mask = torch.ones_like(tokens)
    outputs = policy(input_ids=tokens, attention_mask=mask, labels=labels, fused_lm_head=True)
    return outputs.log_probs


def test_recomputed_activations_take_the_same_path(model, flash_calls):
    tokens = torch.randint(6, 300, (2, 9), generator=torch.Generator().manual_seed(1))
    labels = tokens.masked_fill(torch.arange(9) < 4, -100)
    gradients = []
    for checkpointing in (False, True):
        policy = grid_model(model)
        if checkpointing:
            policy.gradient_checkpointing_enable()
        log_probs(policy, tokens, labels).sum().backward()
        gradients.append(policy.model.layers[0].self_attn.q_proj.weight.grad)
    assert torch.equal(*gradients)
    assert len(flash_calls) == 2 * 2 * 3, "two layers, two calls each, once and then twice"


def random_batch():
    """(tokens, labels) of four rows of 24 tokens with a prompt of 9."""
    tokens = torch.randint(6, 300, (4, 24), generator=torch.Generator().manual_seed(1))
    tokens[:, :9] = tokens[:1, :9]
    return tokens, tokens.masked_fill(torch.arange(24) < 9, -100)


def test_fp32_weights_under_autocast_reach_it_in_16_bits(model, flash_calls, monkeypatch):
    """Rotary positions return fp32 under autocast, and FlashAttention only takes 16 bits."""
    dtypes = set()

    def flash(*args):
        dtypes.update(x.dtype for x in args[:3])
        return plain(*args)

    monkeypatch.setattr(shared_attention, "flash", flash)
    results = []
    for usable in (True, False):
        monkeypatch.setattr(shared_attention, "usable", lambda *_, usable=usable: usable)
        policy = grid_model(model)
        with torch.autocast("cpu", torch.bfloat16):
            values = log_probs(policy, *random_batch())
            values.sum().backward()
        weight = policy.model.layers[0].self_attn.q_proj.weight
        results.append((values.detach().float(), weight.grad))
    assert dtypes == {torch.bfloat16}
    for shared, by_mask in zip(*results, strict=True):
        assert (shared - by_mask).norm() / by_mask.norm() < 5e-2


SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
UNSUPPORTED = {
    "heads of size 12": LlamaConfig(**SIZES | {"hidden_size": 48}),
    "dropout": LlamaConfig(**SIZES, attention_dropout=0.1),
    "segments not passed on": StableLmConfig(
        **SIZES, num_key_value_heads=4, partial_rotary_factor=0.5
    ),
    "keys wider than values": DeepseekV3Config(
        **SIZES | {"hidden_size": 48},
        first_k_dense_replace=2,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
        num_key_value_heads=4,
        moe_intermediate_size=8,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
    ),
}


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_a_model_that_is_not_supported_uses_the_mask(flash_calls, monkeypatch, kind):
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(UNSUPPORTED[kind]).train()
    add_fused_lm_head(model)
    forward = model.forward
    results = []
    for usable in (True, False):
        monkeypatch.setattr(shared_attention, "usable", lambda *_, usable=usable: usable)
        model.forward = forward
        grid.share_prompts(model)
        torch.manual_seed(2)
        results.append(log_probs(model, *random_batch()))
        assert model.config._attn_implementation == "sdpa"
    assert results[0].shape == (4, 23) and torch.isfinite(results[0]).all()
    if kind != "dropout":  # what is dropped differs
        assert torch.allclose(*results, atol=1e-5)
    assert not flash_calls


def test_it_is_used_on_a_recent_gpu_in_16_bits_only(model, monkeypatch):
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    half = copy.deepcopy(model).to(torch.bfloat16)
    assert shared_attention.usable(half, gpu) and not shared_attention.usable(half, cpu)
    assert not shared_attention.usable(model, gpu), "float32"
    with monkeypatch.context() as patch:
        patch.setattr(torch, "is_autocast_enabled", lambda kind: kind == "cuda")
        assert shared_attention.usable(model, gpu), "computed in 16 bits"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert not shared_attention.usable(half, gpu)


def test_a_written_model_does_not_name_this_attention(tmp_path, flash_calls):
    model = LlamaForCausalLM(LlamaConfig(**SIZES))
    model.set_attn_implementation(shared_attention.NAME)
    model.save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text()
    assert shared_attention.NAME not in config and json.loads(config)["model_type"] == "llama"

    tokens = torch.arange(12).reshape(2, 6)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
    loaded = LlamaForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        logits = [m(tokens, attention_mask=mask).logits[mask.bool()] for m in (model, loaded)]
    assert torch.equal(*logits), "without segments it is sdpa"


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="FlashAttention needs a GPU")


@needs_gpu
def test_flash_attention_on_the_gpu_is_masked_attention():
    seg = segments(PROMPT, ANSWER, torch.device("cuda"))
    exact = output_and_gradients(lambda *x: masked(*x, 0.3), torch.float64, head_size=64)
    ours = output_and_gradients(
        lambda *x: SharedAttention.apply(*x, seg, 0.3), torch.bfloat16, "cuda", head_size=64
    )
    for mine, expected in zip(ours, exact, strict=True):
        assert (mine - expected).norm() / expected.norm() < 1e-2


@needs_gpu
def test_a_model_on_the_gpu_gives_the_outputs_of_the_mask(monkeypatch):
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=50,
        initializer_range=0.1,
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    policy = grid_model(LlamaForCausalLM(config).to("cuda", torch.bfloat16))
    tokens = torch.randint(3, 50, (8, 40), device="cuda")
    tokens[:, :20] = tokens[:1, :20]
    labels = tokens.masked_fill(torch.arange(40, device="cuda") < 20, -100)
    results = []
    for usable in (True, False):
        if not usable:
            monkeypatch.setattr(shared_attention, "usable", lambda *_: False)
        values = log_probs(policy, tokens, labels)
        values.sum().backward()
        weight = policy.model.layers[0].self_attn.k_proj.weight
        results.append([values.detach().float(), weight.grad.float()])
        policy.zero_grad()
        assert policy.config._attn_implementation == shared_attention.NAME
    for shared, by_mask in zip(*results, strict=True):
        assert (shared - by_mask).norm() / by_mask.norm() < 3e-2
