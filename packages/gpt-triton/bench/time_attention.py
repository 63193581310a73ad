"""Times of one layer's attention beside torch's, in each of its fast backends."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from gpt_triton import kernels
from gpt_triton.dropout import Dropout
from kernel_cases import DEVICE, HEADS, WIDTH
from kernel_report import Report
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


def time_attention(report: Report, rows: int, context: int) -> None:
    """Whole rows beside torch, then documents and dropout, which torch's fast backends lack."""
    qkv = torch.randn(rows, context, 3 * WIDTH, device=DEVICE, dtype=torch.bfloat16)
    d_out = torch.randn(rows, context, WIDTH, device=DEVICE, dtype=torch.bfloat16)
    for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION):
        with sdpa_kernel(backend):
            _time_beside_torch(report, qkv, d_out, backend.name)
    index = torch.arange(context, dtype=torch.int32, device=DEVICE)
    _time_ours(report, qkv, d_out, "documents of 200", starts=(index // 200 * 200).repeat(rows, 1))
    site = Dropout(0.1, torch.tensor([1, 2, 0], device=DEVICE), context)
    _time_ours(report, qkv, d_out, "dropout", site=site)


def _time_beside_torch(report: Report, qkv: Tensor, d_out: Tensor, note: str) -> None:
    rows, context, _ = qkv.shape
    q, key, v = (_by_head(t).detach().requires_grad_() for t in qkv.split(WIDTH, 2))
    d_heads = _by_head(d_out)
    out = F.scaled_dot_product_attention(q, key, v, is_causal=True)
    _, res = kernels.attention_fwd(qkv, HEADS, None)

    def forward() -> Tensor:
        with torch.no_grad():
            return F.scaled_dot_product_attention(q, key, v, is_causal=True)

    def backward() -> Any:
        return torch.autograd.grad(out, (q, key, v), d_heads, retain_graph=True)

    ms = report.time_pair("attention forward", lambda: kernels.attention_fwd(qkv, HEADS, None), forward, note)
    # two products of [T, K] with [K, T] and [T, T] with [T, K], of which causality leaves half
    flops = 4 * rows * context * context * WIDTH / 2
    print(f"  ours {flops / ms / 1e9:.0f} TFLOP/s")
    report.time_pair("attention backward", lambda: kernels.attention_bwd(res, d_out, HEADS), backward, note)


def _time_ours(
    report: Report,
    qkv: Tensor,
    d_out: Tensor,
    note: str,
    starts: Tensor | None = None,
    site: Dropout | None = None,
) -> None:
    _, res = kernels.attention_fwd(qkv, HEADS, starts, site)
    report.time_pair(f"attention forward, {note}", lambda: kernels.attention_fwd(qkv, HEADS, starts, site))
    report.time_pair(f"attention backward, {note}", lambda: kernels.attention_bwd(res, d_out, HEADS, site))


def _by_head(x: Tensor) -> Tensor:
    """[B, T, D] as [B, H, T, K], the layout torch wants."""
    return x.unflatten(2, (HEADS, -1)).transpose(1, 2)
