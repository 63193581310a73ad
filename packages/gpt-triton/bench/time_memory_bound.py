"""Times of the ops that move numbers more than they compute: rows, tables, and the optimizer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from gpt_trainer.backend import OptimizerConfig
from gpt_triton import kernels
from kernel_cases import DEVICE, PADDED, WIDTH
from kernel_report import Report
from torch import Tensor

PARAMETERS = 124_475_904


def _normal(*shape: int) -> Tensor:
    return torch.randn(shape, device=DEVICE) * 0.3


def time_rowwise(report: Report, tokens: int) -> None:
    """LayerNorm."""
    x, d_y, gain, bias = (
        _normal(tokens, WIDTH).bfloat16(),
        _normal(tokens, WIDTH).bfloat16(),
        _normal(WIDTH),
        _normal(WIDTH),
    )
    _time_layer_norm(report, x, d_y, gain, bias)


def _time_layer_norm(report: Report, x: Tensor, d_y: Tensor, gain: Tensor, bias: Tensor) -> None:
    _, res = kernels.layer_norm_fwd(x, gain, bias)
    g16, b16 = gain.bfloat16(), bias.bfloat16()
    report.time_pair(
        "LayerNorm forward",
        lambda: kernels.layer_norm_fwd(x, gain, bias),
        lambda: F.layer_norm(x, [WIDTH], g16, b16),
    )
    _, mean, rstd = torch.native_layer_norm(x, [WIDTH], g16, b16, 1e-5)
    backward = torch.ops.aten.native_layer_norm_backward
    report.time_pair(
        "LayerNorm backward",
        lambda: kernels.layer_norm_bwd(res, gain, d_y, gain, bias),
        lambda: backward(d_y, x, [WIDTH], mean, rstd, g16, b16, [True] * 3),
    )
    report.time_pair(
        "LayerNorm backward + skip", lambda: kernels.layer_norm_bwd(res, gain, d_y, gain, bias, x)
    )


def time_embedding(report: Report, rows: int, context: int) -> None:
    """Ids as skewed as text: a few make up half of all; then all the same, the most that can meet."""
    ids = (PADDED * torch.rand(rows, context, device=DEVICE) ** 6).to(torch.int32)
    at = torch.arange(context, dtype=torch.int32, device=DEVICE).repeat(rows, 1)
    wte, wpe = _normal(PADDED, WIDTH).bfloat16(), _normal(context, WIDTH).bfloat16()
    d_x, grads = _normal(rows * context, WIDTH).bfloat16(), (_normal(PADDED, WIDTH), _normal(context, WIDTH))
    report.time_pair(
        "embedding forward",
        lambda: kernels.embedding_fwd(ids, at, wte, wpe),
        lambda: F.embedding(ids, wte) + F.embedding(at, wpe),
    )
    report.time_pair("embedding backward", lambda: kernels.embedding_bwd(ids, at, d_x, *grads))
    same = torch.full_like(ids, 7)
    report.time_pair("embedding backward, one id", lambda: kernels.embedding_bwd(same, at, d_x, *grads))
    report.time_pair("sort of the ids alone", lambda: torch.sort(ids.view(-1), stable=True))


def time_adamw(report: Report) -> None:
    """The norm of all gradients, and AdamW on all parameters."""
    w, g, m, v = (_normal(PARAMETERS).abs_() for _ in range(4))
    shadow, scalars = w.bfloat16(), torch.tensor([1e-4, 0.1, 0.05, 1e9], device=DEVICE)
    norm = kernels.global_norm(g)
    report.time_pair("global norm", lambda: kernels.global_norm(g), lambda: torch.linalg.vector_norm(g))
    parameter = torch.nn.Parameter(w.clone())
    parameter.grad = g
    optimizer = torch.optim.AdamW([parameter], lr=1e-4, fused=True, capturable=True)
    report.time_pair(
        "AdamW",
        lambda: kernels.adamw_update(w, g, m, v, shadow, PARAMETERS // 2, norm, scalars, OptimizerConfig()),
        optimizer.step,
        "torch's without clipping and without the bfloat16 copy",
    )
