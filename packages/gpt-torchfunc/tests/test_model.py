"""The forward pass: against Hugging Face, against itself, and in closed form."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from gpt_torchfunc import attention
from gpt_torchfunc.attention import attend, attention_weights, draw_weights, visible
from gpt_torchfunc.model import Plan, gelu, layer_norm, logits
from torch.func import vjp


def plan_for(config, **changes):
    return replace(Plan(config.n_head, config.vocab_size), **changes)


@pytest.mark.parametrize("attention", ["written", "sdpa"])
def test_logits_are_those_of_hugging_face(attention, config, weights, batch, params, to_inputs, assert_close):
    transformers = pytest.importorskip("transformers")
    sizes = {"n_layer": config.n_layer, "n_head": config.n_head, "n_embd": config.d_model}
    outside = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**sizes, n_positions=config.context, vocab_size=config.vocab_size)
    ).eval()
    missing, unexpected = outside.load_state_dict(
        {name: torch.from_numpy(value) for name, value in weights.items()}, strict=False
    )
    assert missing == ["lm_head.weight"]
    assert not unexpected
    outside.tie_weights()
    outside.double()
    with torch.no_grad():
        want = outside(torch.from_numpy(batch.tokens).long()).logits
    got = logits(params, to_inputs(batch), plan_for(config, attention=attention))
    assert_close("logits", got[..., : config.vocab_size], want, rel=1e-5)


@pytest.mark.parametrize("packing", ["batch", "packed"])
def test_both_attentions_agree(packing, config, params, to_inputs, assert_close, request):
    inputs = to_inputs(request.getfixturevalue(packing))
    written, fused = (logits(params, inputs, plan_for(config, attention=a)) for a in ("written", "sdpa"))
    assert_close("logits", fused, written, rel=1e-5)


@pytest.mark.parametrize("attention", ["written", "sdpa"])
def test_a_token_leaves_what_came_before_it_bit_equal(attention, config, params, batch, to_inputs):
    plan = plan_for(config, attention=attention)
    changed = batch._replace(tokens=batch.tokens.copy())
    changed.tokens[:, 7] = (changed.tokens[:, 7] + 1) % config.vocab_size
    before, after = (logits(params, to_inputs(b), plan) for b in (batch, changed))
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.equal(before[:, 7:], after[:, 7:])


@pytest.mark.parametrize("attention", ["written", "sdpa"])
def test_packed_documents_equal_documents_apart(attention, config, params, packed, to_inputs, assert_close):
    plan = plan_for(config, attention=attention)
    together = logits(params, to_inputs(packed), plan)
    for row, starts in enumerate(packed.segment_starts):
        edges = [*np.unique(starts), config.context]
        for start, stop in pairwise(edges):
            apart = packed._replace(segment_starts=None)
            apart = apart._replace(
                tokens=packed.tokens[row : row + 1, start:stop],
                targets=packed.targets[row : row + 1, start:stop],
            )
            want = logits(params, to_inputs(apart), plan)[0]
            assert_close(f"row {row}, {start}:{stop}", together[row, start:stop], want, rel=1e-5)


def test_rows_do_not_see_each_other(config, params, batch, to_inputs, assert_close):
    together = logits(params, to_inputs(batch), plan_for(config))
    for row in range(len(batch.tokens)):
        alone = logits(params, to_inputs(batch.rows(row, row + 1)), plan_for(config))
        assert_close(f"row {row}", alone[0], together[row], rel=1e-6)


# 1: no spread to divide by; 7, 769: off every vector width; 768: GPT-2's
@pytest.mark.parametrize("width", [1, 7, 768, 769])
def test_layer_norm_has_the_mean_and_spread_it_promises(width, assert_close):
    x = 100.0 + torch.randn(2, 3, width, generator=torch.Generator().manual_seed(0))
    out = layer_norm(x, torch.full((width,), 2.0), torch.full((width,), 3.0))
    assert_close("mean", out.double().mean(-1), torch.full((2, 3), 3.0), rel=1e-5)
    spread = x.double().var(-1, correction=0)
    want = 4.0 * spread / (spread + 1e-5)
    assert_close("variance", out.double().var(-1, correction=0), want, rel=1e-4)


def test_layer_norm_of_a_constant_row_is_its_bias():
    out = layer_norm(torch.full((1, 1, 5), 65504.0), torch.ones(5), torch.arange(5.0))
    assert out.flatten().tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_gelu_is_its_formula(assert_close):
    x = torch.linspace(-9, 9, 1001, dtype=torch.float64)
    want = 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))
    assert_close("gelu", gelu(x.float()), want, rel=1e-6)


def test_equal_scores_average_the_visible_values(assert_close):
    v = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(1))
    q = torch.zeros_like(v)
    out = attend(q, q, v)
    want = v.cumsum(2) / torch.arange(1, 6)[:, None]
    assert_close("attention", out, want, rel=1e-6)


@pytest.mark.parametrize("queries", [13, 5], ids=["all", "the last five"])
def test_tiles_of_queries_are_the_whole(queries, monkeypatch, assert_close):
    shape, stream = (2, 3, 13, 4), torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(shape, generator=stream) for _ in range(3))
    starts = torch.tensor([[0] * 13, [0] * 6 + [6] * 7])
    given = q[:, :, -queries:], k, v, visible(starts)[:, -queries:]

    def attended():
        bits = draw_weights((len(q), *q.shape[1:3]), torch.tensor([3, 4, 0]), 0.5) if queries == 13 else None
        return attend(*given, bits, 0.5)

    whole = attended()
    monkeypatch.setattr(attention, "TILE", 4)
    assert_close("attention", attended(), whole, rel=1e-6)


def test_scores_of_ten_thousand_stay_finite(assert_close):
    q = torch.full((1, 1, 3, 4), 100.0)
    out = attend(q, q, torch.ones(1, 1, 3, 4))
    assert torch.equal(out, torch.ones_like(out))
    kept = attention_weights(q[0, 0], q[0, 0], torch.ones(3, 3).bool(), torch.eye(3).bool(), rate=0.5)
    assert_close("dropped", kept, torch.eye(3) / 1.5, rel=1e-6)


def test_weights_as_powers_of_two_are_the_softmax_dropped(assert_close):
    """In value and derivative; query 2 loses all it sees."""
    stream = torch.Generator().manual_seed(4)
    q, k = (2 * torch.randn(5, 4, generator=stream, dtype=torch.float64) for _ in range(2))
    mask, kept = torch.ones(5, 5, dtype=torch.bool).tril(), torch.rand(5, 5, generator=stream) < 0.7
    kept[2] = False
    want, pull = vjp(lambda q, k: torch.where(kept, attention_weights(q, k, mask) / 0.7, 0.0), q, k)
    got, pull_powers = vjp(lambda q, k: attention_weights(q, k, mask, kept, rate=0.3), q, k)
    assert_close("weights", got, want, rel=1e-12)
    upstream = torch.randn(5, 5, generator=stream, dtype=torch.float64)
    for name, mine, theirs in zip("qk", pull_powers(upstream), pull(upstream), strict=True):
        assert_close(name, mine, theirs, rel=1e-12)
