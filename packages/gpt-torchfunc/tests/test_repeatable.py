"""Attention whose bits repeat, by cuDNN: when it is chosen, and on a GPU that can run it, its numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from gpt_torchfunc import gradients, plan, repeatable
from gpt_torchfunc.dropout import dropout_keys
from gpt_torchfunc.gradients import loss_and_gradients
from gpt_torchfunc.model import Inputs, Plan
from gpt_torchfunc.options import Options
from gpt_torchfunc.repeatable import attend_repeatably, has_repeatable, takes
from gpt_torchfunc.tree import LEAF_NAMES, from_canonical, leaves
from gpt_trainer.backend import Runtime
from gpt_trainer.model_config import ModelConfig
from gpt_trainer.parameters import init_parameters

GPU = torch.device("cuda")
here = torch.cuda.is_available() and has_repeatable(GPU)
on_gpu = pytest.mark.skipif(not here, reason="no Hopper GPU with nvidia-cudnn-frontend")


@pytest.mark.parametrize(
    ("there", "deterministic", "asked", "got"),
    [
        (True, True, "auto", "cudnn"),
        (True, False, "auto", "sdpa"),
        (False, True, "auto", "sdpa"),
        (True, False, "cudnn", "cudnn"),
        (True, True, "written", "written"),
    ],
)
def test_it_is_chosen_where_it_is_there_and_bits_must_repeat(
    there, deterministic, asked, got, config, monkeypatch
):
    monkeypatch.setattr(plan, "has_repeatable", lambda device: there)
    runtime = Runtime(precision="bfloat16", device="gpu", deterministic=deterministic)
    assert plan.make_plan(config, runtime, Options(attention=asked), GPU).attention == got


def test_where_it_is_not_there_it_is_refused(config):
    with pytest.raises(ValueError, match=r"nvidia-cudnn-frontend that .*; use attention='auto'"):
        plan.make_plan(config, Runtime(device="cpu"), Options(attention="cudnn"), torch.device("cpu"))


@pytest.mark.parametrize("fits", [True, False])
def test_a_package_for_a_later_cudnn_is_as_none(fits, monkeypatch):
    """Built for 9.22 and later, the package fails on 9.19 where a plan is made."""

    def graph(*given):
        if not fits:
            raise RuntimeError("CUDNN_ATTR_OPERATION_RESHAPE_MODE ... CUDNN_STATUS_BAD_PARAM")

    monkeypatch.setattr(repeatable.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(repeatable, "_derivative", graph)
    assert has_repeatable(GPU) is fits


@pytest.mark.parametrize(
    ("changes", "context", "width", "drops", "taken"),
    [
        ({}, 6, 16, False, True),
        ({"dtype": torch.float32}, 6, 16, False, False),
        ({"attention": "sdpa"}, 6, 16, False, False),
        ({}, 5, 16, False, False),
        ({}, 6, 12, False, False),
        ({}, 6, 256, False, False),
        ({}, 64, 16, True, True),
        ({}, 62, 16, True, False),
    ],
)
def test_sizes_without_a_derivative_are_left_to_others(changes, context, width, drops, taken):
    plan = replace(Plan(2, 100, torch.bfloat16, "cudnn"), **changes)
    tokens = torch.zeros(1, context, dtype=torch.int32)
    assert takes(plan, Inputs(tokens, tokens), width, drops=drops) is taken
    assert not takes(plan, Inputs(tokens, tokens, tokens), width, drops=drops)


def test_dropout_comes_to_it_as_a_mask_of_whole_rows(monkeypatch):
    """With torch in cuDNN's place, loss and gradients are those of attention written out."""

    def attend(q, k, v, write, rate):
        kept = torch.zeros(*q.shape[:3], q.shape[2], dtype=torch.bfloat16)
        write(kept.view(torch.int32))
        ahead = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).triu(1)

        def mixed(q, k, v):
            scores = (q @ k.mT / q.shape[3] ** 0.5).float().masked_fill(ahead, float("-inf"))
            out = (torch.softmax(scores, -1) * kept / (1.0 - rate)).to(q.dtype) @ v
            return out.transpose(1, 2).flatten(2).flatten(0, 1)

        return torch.func.vjp(mixed, q, k, v)

    config = ModelConfig(2, 2, 32, 320, 100)
    params = from_canonical(init_parameters(config, 1), config, torch.device("cpu"))
    tokens = torch.randint(0, 100, (3, 320), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    plan, keys = Plan(2, 100, torch.bfloat16, "cudnn", 0.3), dropout_keys(5, 2, 1, 2)
    monkeypatch.setattr(gradients, "attend_repeatably", attend)
    given = params, Inputs(tokens, tokens), plan, torch.tensor(1 / tokens.numel()), keys
    loss, got = loss_and_gradients(*given)
    monkeypatch.setattr(gradients, "attend_repeatably", None)
    want_loss, want = loss_and_gradients(*given[:2], replace(plan, attention="written"), *given[3:])
    assert float(loss) == pytest.approx(float(want_loss), rel=1e-4)
    for name, ours, theirs in zip(LEAF_NAMES, leaves(got), leaves(want), strict=True):
        assert (ours - theirs).norm() <= 2e-2 * theirs.norm(), name


@on_gpu
@pytest.mark.parametrize(
    ("rows", "context", "count", "width", "rate"),
    [
        (2, 1024, 12, 64, 0.0),
        (3, 130, 2, 64, 0.0),
        (1, 66, 3, 48, 0.0),
        (2, 1024, 12, 64, 0.1),
        (3, 192, 2, 64, 0.4),
        (1, 64, 3, 48, 0.1),
    ],
)
def test_it_is_attention_and_its_derivative(rows, context, count, width, rate, assert_close):
    q, k, v = _heads(rows, context, count, width)
    d_out = torch.randn(rows * context, count * width, device=GPU, dtype=torch.bfloat16)
    kept = (torch.rand(rows, count, context, context, device=GPU) >= rate).to(torch.bfloat16)
    out, pull_back = attend_repeatably(q, k, v, _writer(kept) if rate else None, rate)
    wide = [heads.double().requires_grad_() for heads in (q, k, v)]
    ahead = torch.ones(context, context, dtype=torch.bool, device=GPU).triu(1)
    scores = (wide[0] @ wide[1].mT / width**0.5).masked_fill(ahead, float("-inf"))
    weights = torch.softmax(scores, -1) * kept.double() / (1.0 - rate)
    want = (weights @ wide[2]).transpose(1, 2).flatten(2).flatten(0, 1)
    d_wide = torch.autograd.grad(want, wide, d_out.double())
    for name, ours, theirs in zip(
        ("out", "d_q", "d_k", "d_v"), (out, *pull_back(d_out)), (want, *d_wide), strict=True
    ):
        assert_close(name, ours.double().cpu(), theirs.cpu(), rel=1e-2)


@on_gpu
@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_its_bits_repeat(rate):
    q, k, v = _heads(16, 1024, 12, 64)
    d_out = torch.randn(16 * 1024, 768, device=GPU, dtype=torch.bfloat16)
    mask = (torch.rand(16, 12, 1024, 1024, device=GPU) >= rate).to(torch.bfloat16)
    write = _writer(mask) if rate else None
    first = attend_repeatably(q, k, v, write, rate)[1](d_out)
    for _ in range(20):
        again = attend_repeatably(q, k, v, write, rate)[1](d_out)
        assert all(map(torch.equal, again, first))


def _writer(mask):
    return lambda words: words.copy_(mask.view(torch.int32))


def _heads(rows, context, count, width):
    """Queries, keys and values as the model lays them out."""
    shape = rows, context, count, width
    return [torch.randn(shape, device=GPU, dtype=torch.bfloat16).transpose(1, 2) for _ in range(3)]
