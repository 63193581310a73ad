"""Times of the matrix products: a layer's affine maps with what follows them, and the head with its loss."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from gpt_triton import kernels
from gpt_triton.dropout import Dropout
from gpt_triton.kernels.cross_entropy import _cross_entropy, cross_entropy_chunk
from gpt_triton.kernels.matmul import product
from kernel_cases import DEVICE, PADDED, VOCAB, WIDTH
from kernel_report import Report
from torch import Tensor


def time_linear(report: Report, tokens: int) -> None:
    """The four affine maps of a layer, forward and backward."""
    for label, n_in, n_out in (("qkv", 1, 3), ("out", 1, 1), ("fc", 1, 4), ("fc out", 4, 1)):
        tensors = _affine(tokens, n_in * WIDTH, n_out * WIDTH)
        _time_forward(report, label, tensors)
        _time_d_x(report, label, tensors)
        _time_d_w(report, label, tensors)


class _Affine(NamedTuple):
    """Tensors of one map, bfloat16: input, weight, gradient of the output; bias in float32."""

    x: Tensor
    w: Tensor
    d_y: Tensor
    b: Tensor


def _affine(tokens: int, n_in: int, n_out: int) -> _Affine:
    shapes = ((tokens, n_in), (n_in, n_out), (tokens, n_out), (n_out,))
    x, w, d_y, b = (torch.randn(shape, device=DEVICE) * 0.3 for shape in shapes)
    return _Affine(x.bfloat16(), w.bfloat16(), d_y.bfloat16(), b)


def _time_forward(report: Report, label: str, tensors: _Affine) -> None:
    x, w, d_y, b = tensors
    b16, y = b.bfloat16(), torch.empty_like(d_y)
    report.time_pair(
        f"{label} forward {x.shape[0]}x{x.shape[1]}x{w.shape[1]}",
        lambda: kernels.linear_fwd(x, w, b),
        lambda: torch.addmm(b16, x, w, out=y),
    )
    if label == "fc":
        report.time_pair(
            "fc forward + GELU",
            lambda: kernels.linear_gelu_fwd(x, w, b),
            lambda: F.gelu(torch.addmm(b16, x, w), approximate="tanh"),
        )
    if "out" in label:
        report.time_pair(
            f"{label} forward + residual",
            lambda: kernels.linear_residual_fwd(x, w, b, d_y),
            lambda: torch.addmm(b16, x, w).add_(d_y),
        )
        site = Dropout(0.1, torch.tensor([1, 2, 0], device=DEVICE), len(x))
        report.time_pair(
            f"{label} forward + dropout + residual",
            lambda: kernels.linear_residual_fwd(x, w, b, d_y, site),
        )


def _time_d_x(report: Report, label: str, tensors: _Affine) -> None:
    x, w, d_y, _ = tensors
    d_x = torch.empty_like(x)
    report.time_pair(
        f"{label} dX", lambda: kernels.linear_bwd_dx(d_y, w), lambda: torch.mm(d_y, w.T, out=d_x)
    )
    if label == "fc out":
        report.time_pair(
            "fc out dX * GELU'",
            lambda: kernels.linear_gelu_bwd_dx(d_y, w, x),
            lambda: torch.ops.aten.gelu_backward(d_y @ w.T, x, approximate="tanh"),
        )


def _time_d_w(report: Report, label: str, tensors: _Affine) -> None:
    x, w, d_y, b = tensors
    d_w, d_b, d_w16 = torch.zeros_like(w, dtype=torch.float32), torch.zeros_like(b), torch.empty_like(w)
    report.time_pair(
        f"{label} dW",
        lambda: product(x.T, d_y, d_w, accumulate=True),
        lambda: torch.mm(x.T, d_y, out=d_w16),
        "torch's in bfloat16",
    )
    report.time_pair(
        f"{label} dW and db",
        lambda: kernels.linear_bwd_dwdb(x, d_y, d_w, d_b),
        lambda: (torch.mm(x.T, d_y, out=d_w16), d_y.sum(0)),
    )


def time_head(report: Report, tokens: int) -> None:
    """Head and loss, by parts and whole."""
    x = torch.randn(tokens, WIDTH, device=DEVICE, dtype=torch.bfloat16)
    wte = (torch.randn(PADDED, WIDTH, device=DEVICE) * 0.02).bfloat16()
    targets = torch.randint(0, VOCAB, (tokens,), device=DEVICE, dtype=torch.int32)
    scale, d_wte = torch.tensor(1.0 / tokens, device=DEVICE), torch.zeros(PADDED, WIDTH, device=DEVICE)
    chunk = min(tokens, cross_entropy_chunk(tokens, PADDED, DEVICE))
    logits = torch.empty(chunk, PADDED, device=DEVICE, dtype=torch.bfloat16)
    _time_head_products(report, x[:chunk], wte, logits, d_wte)
    _time_softmax(report, logits, targets[:chunk], scale)
    report.time_pair(
        "head + loss, whole", lambda: kernels.linear_cross_entropy(x, wte, targets, VOCAB, scale, d_wte)
    )


def _time_head_products(report: Report, x: Tensor, wte: Tensor, logits: Tensor, d_wte: Tensor) -> None:
    d_x, d_wte16, note = torch.empty_like(x), d_wte.bfloat16(), f"chunk of {x.shape[0]}"
    report.time_pair(
        "head forward", lambda: product(x, wte.T, logits), lambda: torch.mm(x, wte.T, out=logits), note
    )
    report.time_pair(
        "head dX", lambda: product(logits, wte, d_x), lambda: torch.mm(logits, wte, out=d_x), note
    )
    report.time_pair(
        "head dW",
        lambda: product(logits.T, x, d_wte, accumulate=True),
        lambda: torch.mm(logits.T, x, out=d_wte16),
        note,
    )


def _time_softmax(report: Report, logits: Tensor, targets: Tensor, scale: Tensor) -> None:
    nll, wide_targets = torch.empty(logits.shape[0], device=DEVICE), targets.long()
    report.time_pair(
        "softmax and its gradient, in place",
        lambda: _cross_entropy(logits, targets, nll, VOCAB, scale),
        lambda: F.cross_entropy(logits, wide_targets, reduction="none"),
        f"chunk of {logits.shape[0]}; torch's forward only",
    )
