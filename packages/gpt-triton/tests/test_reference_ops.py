"""The hand-written derivatives in float64: explicit Jacobians, finite differences and closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from gpt_trainer.philox import Site, dropout_key, dropout_mask
from gpt_triton import reference
from gpt_triton.dropout import Dropout
from gpt_triton.reference.layers import gelu, gelu_and_slope
from gpt_triton_cases import CASES, attention_case, jacobians

Check = Callable[..., None]


@pytest.mark.parametrize("name", CASES)
def test_forward_equals_the_plain_form(name: str, assert_close: Check) -> None:
    case = CASES[name](reference)
    assert_close(name, case.forward(*case.inputs), case.plain(*case.inputs), "float64")


@pytest.mark.parametrize("name", CASES)
def test_backward_equals_the_explicit_jacobian(name: str, assert_close: Check) -> None:
    case = CASES[name](reference)
    want = torch.func.jacrev(case.plain, argnums=tuple(range(len(case.inputs))))(*case.inputs)
    for number, pair in enumerate(zip(jacobians(case), want, strict=True)):
        assert_close(f"{name}, input {number}", *pair, "float64")


@pytest.mark.parametrize("name", CASES)
def test_backward_equals_finite_differences(name: str, assert_close: Check) -> None:
    case = CASES[name](reference)
    stream = torch.Generator().manual_seed(3)
    d_out = torch.randn(case.forward(*case.inputs).shape, dtype=torch.float64, generator=stream)
    if name == "cross_entropy":
        d_out = torch.ones_like(d_out)
    gradients = case.backward(*case.inputs, d_out)
    for number, gradient in enumerate(gradients):
        direction = torch.randn(gradient.shape, dtype=torch.float64, generator=stream)
        ends = []
        for sign in (1.0, -1.0):
            moved = list(case.inputs)
            moved[number] = moved[number] + sign * 1e-5 * direction
            ends.append((case.forward(*moved) * d_out).sum())
        slope = (ends[0] - ends[1]) / 2e-5
        assert_close(f"{name}, input {number}", slope, (gradient * direction).sum(), "finite difference")


def test_heads_in_several_groups_equal_the_plain_form(assert_close: Check) -> None:
    # 24 sequences of heads at 200 positions are more than one tile takes
    case = attention_case(reference, 8, 200, 3, 2, segments=True, drop=True)
    out, pull = torch.func.vjp(case.plain, *case.inputs)
    d_out = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert_close("out", case.forward(*case.inputs), out, "float64")
    assert_close("d_qkv", case.backward(*case.inputs, d_out)[0], pull(d_out)[0], "float64")


def test_gradients_are_added_to_what_is_there() -> None:
    x, d_y = torch.ones(2, 3, dtype=torch.float64), torch.ones(2, 5, dtype=torch.float64)
    d_weight, d_bias = torch.full((3, 5), 10.0).double(), torch.full((5,), 20.0).double()
    reference.linear_bwd_dwdb(x, d_y, d_weight, d_bias)
    assert (d_weight == 12.0).all()
    assert (d_bias == 22.0).all()


def test_equal_logits_cost_log_of_the_vocabulary(assert_close: Check) -> None:
    x, wte = torch.zeros(6, 4, dtype=torch.float64), torch.randn(128, 4, dtype=torch.float64)
    targets = torch.tensor([0, 1, 50, 100, 5, -1], dtype=torch.int32)
    nll = reference.linear_nll(x, wte, targets, 101)
    assert_close("nll", nll, [math.log(101)] * 5 + [0.0], "float64")


def test_extreme_logits_stay_finite() -> None:
    x = torch.tensor([[1e4], [-1e4]])
    wte = torch.zeros(128, 1)
    wte[0] = 1.0
    d_wte = torch.zeros_like(wte)
    targets = torch.tensor([0, 0], dtype=torch.int32)
    nll, d_x = reference.linear_cross_entropy(x, wte, targets, 3, torch.tensor(1.0), d_wte)
    assert nll.tolist() == pytest.approx([0.0, 1e4 + math.log(2)])
    assert d_x.isfinite().all()
    assert d_wte.isfinite().all()


@pytest.mark.parametrize("size", [1e3, 1e14, 1e30])
def test_slope_of_gelu_far_from_zero_is_one_or_nothing(size: float) -> None:
    x = torch.tensor([size, -size])
    assert gelu_and_slope(x)[1].tolist() == [1.0, 0.0]


def test_a_step_without_targets_gives_zero() -> None:
    x, wte = torch.randn(3, 4), torch.randn(128, 4)
    targets = torch.full((3,), -1, dtype=torch.int32)
    d_wte = torch.zeros_like(wte)
    nll, d_x = reference.linear_cross_entropy(x, wte, targets, 7, torch.tensor(1.0), d_wte)
    assert not nll.any()
    assert not d_x.any()
    assert not d_wte.any()


def test_layer_norm_of_constant_rows_is_the_bias() -> None:
    x = torch.tensor([[3.0] * 7, [0.0] * 7])
    bias = torch.arange(7.0)
    y, res = reference.layer_norm_fwd(x, torch.full((7,), 2.0), bias)
    assert torch.equal(y, bias.expand(2, 7))
    assert torch.isfinite(res.rstd).all()


def test_attention_weights_sum_to_one(assert_close: Check) -> None:
    qkv = torch.randn(2, 70, 3 * 4, dtype=torch.float64)
    qkv[:, :, 8:] = 1.0
    out, _ = reference.attention_fwd(qkv, 2, None)
    assert_close("out", out, torch.ones_like(out), "float64")


def test_attention_without_preference_averages_what_it_may_see(assert_close: Check) -> None:
    values = torch.randn(1, 9, 3, dtype=torch.float64)
    qkv = torch.cat([torch.zeros(1, 9, 6, dtype=torch.float64), values], 2)
    starts = torch.tensor([[0, 0, 0, 3, 3, 3, 3, 7, 7]], dtype=torch.int32)
    out, res = reference.attention_fwd(qkv, 1, starts)
    means = [values[0, starts[0, t] : t + 1].mean(0) for t in range(9)]
    assert_close("out", out[0], torch.stack(means), "float64")
    counts = torch.arange(9) - starts[0] + 1
    assert_close("lse", res.lse[0, 0], counts.double().log(), "float64")


@pytest.mark.parametrize("changed", [1, 63, 64, 66])  # within, at the end of, and after a query tile
def test_attention_is_causal_to_the_bit(changed: int) -> None:
    qkv = torch.randn(2, 67, 3 * 6)
    before, _ = reference.attention_fwd(qkv, 2, None)
    qkv[:, changed:] += 1.0
    after, _ = reference.attention_fwd(qkv, 2, None)
    assert torch.equal(before[:, :changed], after[:, :changed])
    assert not torch.equal(before[:, changed:], after[:, changed:])


def test_embedding_gradient_counts_occurrences() -> None:
    tokens = torch.tensor([[1, 4, 1], [0, 1, 2]], dtype=torch.int32)
    positions = torch.arange(3, dtype=torch.int32).expand(2, 3)
    d_wte, d_wpe = torch.zeros(6, 2), torch.zeros(4, 2)
    reference.embedding_bwd(tokens, positions, torch.ones(6, 2), d_wte, d_wpe)
    assert d_wte[:, 0].tolist() == [1.0, 3.0, 1.0, 0.0, 1.0, 0.0]
    assert d_wpe[:, 1].tolist() == [2.0, 2.0, 2.0, 0.0]


# rows, positions, width: 1 of a call's four columns, 3 of its last one's, none left over; a seed past 32 bits
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (2, 33, 48)], ids=str)
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.99])
def test_dropout_draws_the_shared_mask(shape: tuple[int, int, int], rate: float) -> None:
    key = dropout_key(2**40 + 5, 7, 2, Site.MLP_RESIDUAL)
    y = reference.dropout_fwd(
        torch.ones(shape).flatten(0, 1), Dropout(rate, torch.tensor([*key, 6]), shape[1])
    )
    assert np.array_equal(y.view(shape).numpy() != 0.0, dropout_mask(shape, key, rate, 6))
    assert set(y.unique().tolist()) <= {0.0, float(np.float32(1.0 / (1.0 - rate)))}


@pytest.mark.parametrize("name", ["gelu", "layer_norm_fwd", "attention_fwd"])
def test_bfloat16_errs_at_most_twice_as_much_as_torch(name: str) -> None:
    x = torch.randn(2, 33, 24, generator=torch.Generator().manual_seed(1)).bfloat16()
    gain, bias = torch.rand(24) + 0.5, torch.rand(24)
    if name == "gelu":
        ours, theirs = gelu(x), torch.nn.functional.gelu(x, approximate="tanh")
        want = torch.nn.functional.gelu(x.double(), approximate="tanh")
    elif name == "layer_norm_fwd":
        ours = reference.layer_norm_fwd(x.view(66, 24), gain, bias)[0].view(x.shape)
        theirs = torch.nn.functional.layer_norm(x, (24,), gain.bfloat16(), bias.bfloat16())
        want = torch.nn.functional.layer_norm(x.double(), (24,), gain.double(), bias.double())
    else:
        ours = reference.attention_fwd(x, 2, None)[0]
        q, k, v = (t.view(2, 33, 2, 4).transpose(1, 2) for t in x.split(8, 2))
        attend = torch.nn.functional.scaled_dot_product_attention
        theirs = attend(q, k, v, is_causal=True).transpose(1, 2).reshape(2, 33, 8)
        want = attend(q.double(), k.double(), v.double(), is_causal=True).transpose(1, 2).reshape(2, 33, 8)
    assert (ours.double() - want).norm() <= 2.0 * (theirs.double() - want).norm()
