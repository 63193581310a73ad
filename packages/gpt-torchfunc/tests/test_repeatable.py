"""Attention whose bits repeat, by cuDNN: when it is chosen, and on a GPU that can run it, its numbers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from gpt_torchfunc import plan, repeatable
from gpt_torchfunc.options import Options
from gpt_torchfunc.repeatable import attend_repeatably, has_repeatable, takes_heads
from gpt_trainer.backend import Runtime
from torch.nn.attention import SDPBackend, sdpa_kernel

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
    monkeypatch.setattr(repeatable, "_graph", graph)
    assert has_repeatable(GPU) is fits


def test_heads_without_a_derivative_are_left_to_torch():
    heads = torch.zeros(1, 2, 6, 16, dtype=torch.bfloat16)
    assert takes_heads(heads)
    for other in (heads.float(), heads[:, :, :5], heads[..., :12], heads.repeat(1, 1, 1, 16)):
        assert not takes_heads(other)


@on_gpu
@pytest.mark.parametrize(
    ("rows", "context", "count", "width"), [(2, 1024, 12, 64), (3, 130, 2, 64), (1, 66, 3, 48)]
)
def test_it_is_attention_and_its_derivative(rows, context, count, width, assert_close):
    q, k, v = _heads(rows, context, count, width)
    d_out = torch.randn(rows * context, count * width, device=GPU, dtype=torch.bfloat16)
    out, pull_back = attend_repeatably(q, k, v)
    wide = [heads.double().requires_grad_() for heads in (q, k, v)]
    with sdpa_kernel(SDPBackend.MATH):
        want = F.scaled_dot_product_attention(*wide, is_causal=True).transpose(1, 2).flatten(2).flatten(0, 1)
    d_wide = torch.autograd.grad(want, wide, d_out.double())
    for name, ours, theirs in zip(
        ("out", "d_q", "d_k", "d_v"), (out, *pull_back(d_out)), (want, *d_wide), strict=True
    ):
        assert_close(name, ours.double().cpu(), theirs.cpu(), rel=1e-2)


@on_gpu
def test_its_bits_repeat():
    q, k, v = _heads(16, 1024, 12, 64)
    d_out = torch.randn(16 * 1024, 768, device=GPU, dtype=torch.bfloat16)
    first = attend_repeatably(q, k, v)[1](d_out)
    for _ in range(20):
        again = attend_repeatably(q, k, v)[1](d_out)
        assert all(map(torch.equal, again, first))


def _heads(rows, context, count, width):
    """Queries, keys and values as the model lays them out."""
    shape = rows, context, count, width
    return [torch.randn(shape, device=GPU, dtype=torch.bfloat16).transpose(1, 2) for _ in range(3)]
