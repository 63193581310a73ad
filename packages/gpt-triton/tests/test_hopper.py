"""Hopper's kernels, emulated on a CPU; compiled they are held to the kernels' other tests on a GPU."""

from __future__ import annotations

from typing import Any

import gpt_triton_kernel_runs as runs
import pytest
import torch
from gpt_triton import reference
from gpt_triton.kernels.dropout import attention_mask
from gpt_triton.kernels.hopper import attention, attention_backward, matmul
from gpt_triton.kernels.matmul import launch_hopper
from gpt_triton.kernels.matmul_kernels import Epilogue
from gpt_triton.kernels.tiles import MatmulTiles
from gpt_triton.ops import AttentionResiduals
from gpt_triton_gluon import Described, Emulated, StuckError
from gpt_triton_kernel_runs import Fenced, dropout, randn, relative
from torch import Tensor

pytestmark = pytest.mark.skipif(runs.DEVICE.type != "cpu", reason="an emulation on the CPU")
KERNELS = {
    attention: "attention_fwd_hopper_kernel",
    attention_backward: "attention_bwd_hopper_kernel",
    matmul: "hopper_kernel",
}


@pytest.fixture(params=[0, 1], ids=lambda seed: f"order{seed}")
def emulated(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels' launchers launch the emulation, in two orders of partitions."""
    for module, name in KERNELS.items():
        monkeypatch.setattr(module, name, Emulated(getattr(module, name), request.param))
        if module is not matmul:
            monkeypatch.setattr(module, "described", lambda x, rows: Described(x.flatten(0, 1), [rows, 64]))
    monkeypatch.setattr(matmul, "described", lambda x, *block: Described(x, list(block)))
    monkeypatch.setattr(
        attention_backward, "described_numbers", lambda x, count: Described(x.flatten(), [count])
    )


def _attention(rows: int, context: int, heads: int, rate: float) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs of the emulated kernels, and the reference's in float64."""
    width, fence = 64 * heads, Fenced()
    qkv, d_out = randn(rows, context, 3 * width), randn(rows, context, width, seed=1)
    site = dropout(context, rate) if rate else None
    mask = None if site is None else attention_mask(site, rows, context, heads, None)
    scale = 1.0 / (1.0 - rate)
    empty = {"dtype": torch.bfloat16}
    out = fence(torch.full((rows, context, width), torch.nan), **empty)
    d_qkv = fence(torch.full((rows, context, 3 * width), torch.nan), **empty)
    lse = fence(torch.full((rows, heads, context), torch.nan))
    attention.launch_fwd(qkv.bfloat16(), mask, out, lse, scale)
    res = AttentionResiduals(qkv.bfloat16(), out, lse, None, mask)
    attention_backward.launch_bwd(res, d_out.bfloat16(), d_qkv, scale)
    fence.check()
    want, kept = reference.attention_fwd(qkv.double(), heads, None, site)
    d_want = reference.attention_bwd(kept, d_out.double(), heads, site)
    return [out, lse, *d_qkv.split(width, 2)], [want, kept.lse, *d_want.split(width, 2)]


# 256 and 768: one program's queries, and three; two programs share the work, so each takes several pieces
@pytest.mark.parametrize(("rows", "context", "heads"), [(1, 256, 1), (2, 256, 2), (1, 768, 1)])
@pytest.mark.parametrize("rate", [0.0, 0.3], ids=("kept", "dropout"))
@pytest.mark.usefixtures("emulated")
def test_attention(rows: int, context: int, heads: int, rate: float) -> None:
    got, want = _attention(rows, context, heads, rate)
    # what rounding to bfloat16 leaves: of outputs, of weights, and of d_S before the products
    for name, ours, exact in zip(("out", "lse", "d_q", "d_k", "d_v"), got, want, strict=True):
        assert relative(ours, exact) < (1e-5 if name == "lse" else 5e-3), name


def _never_released(_stream: Any, _n: int) -> None:
    """A consumer that keeps its slot."""


@pytest.mark.usefixtures("emulated")
def test_a_slot_that_is_never_released_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "release", _never_released)
    with pytest.raises(StuckError):
        _attention(1, 768, 1, 0.0)


@pytest.mark.usefixtures("emulated")
def test_a_tile_that_is_not_waited_for_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "wait_full", lambda _stream, _n, _wanted: None)
    # NaN, or stuck: whichever partition comes first
    with pytest.raises(AssertionError):
        assert _attention(1, 256, 1, 0.0)[0][0].isfinite().all()


# 200 and 264: partial tiles; 600: ten steps, the last partial, or two parts of five; two programs, four tiles
@pytest.mark.parametrize("a_across", [False, True], ids=("a", "a across"))
@pytest.mark.parametrize("b_across", [False, True], ids=("b", "b across"))
@pytest.mark.usefixtures("emulated")
def test_product(a_across: bool, b_across: bool) -> None:
    m, n, k = 200, 264, 600
    a = randn(k, m).bfloat16().T if a_across else randn(m, k).bfloat16()
    b = randn(n, k).bfloat16().T if b_across else randn(k, n).bfloat16()
    other, bias, plan, fence = (
        randn(m, n, seed=1).bfloat16(),
        randn(n),
        MatmulTiles(128, 256, 64, 8, 3),
        Fenced(),
    )
    want = a.double() @ b.double()
    parts, sums = fence(torch.full((2, m, n), torch.nan)), None if b_across else fence(torch.ones(n))
    launch_hopper(a, b, parts, plan._replace(splits=2), Epilogue(), False, sums)
    kept = fence(torch.ones(m, n))
    launch_hopper(a, b, kept, plan, Epilogue(), True)
    for epilogue, exact in (
        (Epilogue(bias=bias), want + bias),
        (Epilogue(factor=other), want * other),
        (Epilogue(bias=bias, residual=other), want + bias + other),
    ):
        out = fence(torch.full((m, n), torch.nan), dtype=torch.bfloat16)
        launch_hopper(a, b, out, plan, epilogue, False)
        assert relative(out, exact) < 3e-3
    fence.check()
    assert relative(parts.sum(0), want) < 1e-6
    assert relative(kept, want + 1.0) < 1e-6
    if sums is not None:
        assert relative(sums, b.double().sum(0) + 1.0) < 1e-6
