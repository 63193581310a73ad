"""Loss and gradient: against float64, finite differences and closed forms, whole and in pieces."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gpt_data.batch import IGNORE
from gpt_torchfunc.dropout import dropout_keys
from gpt_torchfunc.gradients import add_gradients_of_whole, loss_and_gradients
from gpt_torchfunc.loss import head_loss_and_gradients, target_log_probs, token_nll
from gpt_torchfunc.model import Plan, logits
from gpt_torchfunc.tree import LEAF_NAMES, from_leaves, leaves, map_leaves


def plan_for(config, **changes):
    return replace(Plan(config.n_head, config.vocab_size), **changes)


def weight_of(batch, dtype=torch.float32):
    return torch.tensor(1.0 / batch.target_count, dtype=dtype)


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("attention", ["written", "sdpa"])
@pytest.mark.parametrize("packing", ["batch", "packed"])
def test_float32_gradients_match_float64(
    packing, attention, rate, config, params, wide, to_inputs, assert_close, request
):
    batch = request.getfixturevalue(packing)
    plan = plan_for(config, attention=attention, dropout=rate)
    keys = dropout_keys(3, 1, 0, config.n_layer) if rate else None
    loss, got = loss_and_gradients(params, to_inputs(batch), plan, weight_of(batch), keys)
    wide_plan = replace(plan, dtype=torch.float64, attention="written")
    want_loss, want = loss_and_gradients(
        wide, to_inputs(batch), wide_plan, weight_of(batch, torch.float64), keys
    )
    assert_close("loss", loss, want_loss, rel=1e-6)
    for name, ours, theirs in zip(LEAF_NAMES, leaves(got), leaves(want), strict=True):
        assert_close(name, ours, theirs, rel=1e-5)


@pytest.mark.parametrize("packing", ["batch", "packed"])
def test_float64_gradients_match_finite_differences(packing, config, wide, to_inputs, assert_close, request):
    batch = request.getfixturevalue(packing)
    plan = plan_for(config, dtype=torch.float64, dropout=0.2)
    keys, weight = dropout_keys(3, 1, 0, config.n_layer), weight_of(batch, torch.float64)
    _, gradients = loss_and_gradients(wide, to_inputs(batch), plan, weight, keys)
    stream, step = torch.Generator().manual_seed(2), 1e-6
    for index, name in enumerate(LEAF_NAMES):
        # one random direction per tensor: a wrong term shows in it with probability one
        direction = torch.randn(leaves(wide)[index].shape, generator=stream, dtype=torch.float64)

        def moved(by, index=index, direction=direction):
            changed = [leaf + by * direction if i == index else leaf for i, leaf in enumerate(leaves(wide))]
            return loss_and_gradients(from_leaves(changed), to_inputs(batch), plan, weight, keys)[0]

        slope = (moved(step) - moved(-step)) / (2 * step)
        got = (leaves(gradients)[index] * direction).sum()
        assert_close(name, got, slope, rel=1e-6)


def test_bfloat16_gradients_err_at_most_twice_as_much_as_autocast(config, params, wide, batch, to_inputs):
    """The yardstick is torch's own autograd over the same functions, its weights cast whole."""
    inputs, weight = to_inputs(batch), weight_of(batch)
    plan = plan_for(config, dtype=torch.bfloat16)
    wide_plan = replace(plan, dtype=torch.float64)
    _, want = loss_and_gradients(wide, inputs, wide_plan, weight.double())
    _, ours = loss_and_gradients(params, inputs, plan, weight)
    plain = map_leaves(lambda leaf: leaf.bfloat16().requires_grad_(), params)
    z = logits(plain, inputs, plan)[..., : config.vocab_size]
    F.cross_entropy(z.float().flatten(0, 1), inputs.targets.flatten().long(), ignore_index=IGNORE).backward()
    for name, got, theirs, exact in zip(LEAF_NAMES, *map(leaves, (ours, plain, want)), strict=True):
        error, allowed = ((g.double() - exact).norm() / exact.norm() for g in (got, theirs.grad))
        assert error <= 2 * allowed, f"{name}: {error:.1e} > 2 x {allowed:.1e}"


@pytest.mark.parametrize("attention", ["written", "sdpa"])
@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_the_whole_and_its_pieces_have_one_gradient(
    rate, attention, config, params, packed, to_inputs, assert_close
):
    plan = plan_for(config, attention=attention, dropout=rate)
    keys = dropout_keys(3, 1, 0, config.n_layer) if rate else None
    given = (params, to_inputs(packed), plan, weight_of(packed), keys)
    (loss, got), (want_loss, want) = (
        loss_and_gradients(*given, add_gradients_of_whole),
        loss_and_gradients(*given),
    )
    assert_close("loss", loss, want_loss, rel=1e-6)
    for name, ours, theirs in zip(LEAF_NAMES, leaves(got), leaves(want), strict=True):
        assert_close(name, ours, theirs, rel=1e-6)


def test_without_a_compiler_no_product_is_formed_twice(build, batch, config):
    """The step of a CPU was a third slower while backward formed every product of forward again."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):
        hidden = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            wide = func is torch.ops.aten.mm.default and out.shape == (batch.tokens.size, 4 * config.d_model)
            self.hidden += wide
            return out

    backend = build()
    with Watch() as watch:
        backend.train_step([batch], 1e-3, 0)
    # the hidden layer and its gradient, in each block
    assert watch.hidden == 2 * config.n_layer


# 1: a token at a time; 7: a short last chunk; 52: all at once
@pytest.mark.parametrize("rows", [1, 7, 52])
def test_chunks_change_rounding_only(rows, config, params, batch, to_inputs, assert_close):
    whole, cut = (plan_for(config, chunk=n * config.vocab_size) for n in (10_000, rows))
    loss, want = loss_and_gradients(params, to_inputs(batch), whole, weight_of(batch))
    cut_loss, got = loss_and_gradients(params, to_inputs(batch), cut, weight_of(batch))
    assert_close("loss", cut_loss, loss, rel=1e-6)
    for name, ours, theirs in zip(LEAF_NAMES, leaves(got), leaves(want), strict=True):
        assert_close(name, ours, theirs, rel=1e-6)


def test_no_tensor_of_all_logits_is_made(config, params, batch, to_inputs):
    """Watched from below: every tensor as wide as the vocabulary that any operation returns."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):
        rows: ClassVar[set[int]] = set()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for each in out if isinstance(out, tuple | list) else (out,):
                if isinstance(each, torch.Tensor) and each.shape[-1:] == params.wte.shape[:1]:
                    self.rows.add(each.numel() // each.shape[-1])
            return out

    with Watch() as watch:
        loss_and_gradients(
            params, to_inputs(batch), plan_for(config, chunk=5 * len(params.wte)), weight_of(batch)
        )
    # chunks of 5, the last of 2; one row of ids; the head's weight, transposed
    assert watch.rows == {1, 2, 5, config.d_model}


def test_equal_logits_cost_the_log_of_the_vocabulary(config, params, batch, to_inputs, assert_close):
    """All weights zero: every token is equally likely, and padding gets nothing."""
    zero = map_leaves(torch.zeros_like, params)
    log_probs = target_log_probs(zero, to_inputs(batch), plan_for(config))
    want = np.where(batch.targets == IGNORE, 0.0, -np.log(config.vocab_size))
    assert_close("log-probabilities", log_probs.view(want.shape), want, rel=1e-6)


def test_padding_gets_no_gradient_and_ignored_positions_send_none(config, params, batch, to_inputs):
    hidden = torch.randn(52, config.d_model, generator=torch.Generator().manual_seed(3))
    targets = to_inputs(batch).targets.flatten()
    _, d_hidden, d_wte = head_loss_and_gradients(
        hidden, params.wte, targets, plan_for(config), torch.tensor(1.0)
    )
    assert not d_wte[config.vocab_size :].any()
    assert not d_hidden[targets == IGNORE].any()
    assert d_hidden[targets != IGNORE].any(-1).all()


@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_logits_of_ten_thousand_stay_finite(scale, assert_close):
    hidden, head = torch.tensor([[scale]]), torch.tensor([[1.0], [0.0], [0.0]])
    nll = token_nll(hidden, head, torch.tensor([0]), Plan(1, vocab_size=2))
    assert_close("nll", nll, [0.0 if scale > 0 else 1e4], rel=1e-6)


def test_micro_batches_change_gradients_by_rounding_only(build, batch, assert_close):
    backend = build()
    whole_loss, whole = backend.gradients([batch], 0)
    for size in (1, 2):
        loss, split = backend.gradients([batch.rows(i, i + size) for i in range(0, 4, size)], 0)
        assert_close("loss", loss, whole_loss, rel=1e-6)
        for name, want in whole.items():
            assert_close(name, split[name], want, rel=1e-6)
