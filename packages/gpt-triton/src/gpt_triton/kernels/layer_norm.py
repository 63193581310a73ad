"""LayerNorm:  y = x_hat * gain + bias,  x_hat = (x - mean) rstd,  rstd = 1 / sqrt(var + eps), row by row.

With g = d_y * gain:

    d_x    = rstd (g - mean(g) - x_hat mean(g x_hat))
    d_gain = sum over rows of d_y x_hat,   d_bias = sum over rows of d_y

The two sums over rows: each program of a fixed number keeps partial sums in float32, and a second kernel
adds them in order. Shapes: M rows, D width, P programs.

References:
    Ba, Kiros and Hinton 2016, "Layer normalization".
"""

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from gpt_triton.kernels.primitives import add_partial_sums, multiprocessors, narrow, row_tile, widen
from gpt_triton.ops import EPSILON, NormResiduals


@triton.jit
@no_type_check
def _layer_norm_fwd_kernel(
    x_ptr,  # [M, D]
    gain_ptr,  # [D]
    bias_ptr,  # [D]
    y_ptr,  # [M, D] written
    mean_ptr,  # [M] written
    rstd_ptr,  # [M] written
    M,
    D,
    eps,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # from the last rows, which the product wrote last: some are still in L2, as the first will be then
    row = (tl.num_programs(0) - 1 - tl.program_id(0)).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    keep = (row[:, None] < M) & (column[None, :] < D)
    at = row[:, None] * D + column[None, :]
    x = widen(tl.load(x_ptr + at, mask=keep, other=0.0))
    mean = tl.sum(x, 1) / D
    # centred before squaring: the difference of two large sums would lose the variance
    centred = tl.where(keep, x - mean[:, None], 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / D + eps)
    gain = tl.load(gain_ptr + column, mask=column < D, other=0.0)
    bias = tl.load(bias_ptr + column, mask=column < D, other=0.0)
    y = centred * rstd[:, None] * gain[None, :] + bias[None, :]
    tl.store(y_ptr + at, narrow(y, y_ptr.dtype.element_ty), mask=keep)
    tl.store(mean_ptr + row, mean, mask=row < M)
    tl.store(rstd_ptr + row, rstd, mask=row < M)


@triton.jit
@no_type_check
def _layer_norm_bwd_kernel(
    x_ptr,  # [M, D]
    mean_ptr,  # [M]
    rstd_ptr,  # [M]
    gain_ptr,  # [D]
    d_y_ptr,  # [M, D]
    d_skip_ptr,  # [M, D] or None
    d_x_ptr,  # [M, D] written
    d_gain_parts_ptr,  # [P, D] written
    d_bias_parts_ptr,  # [P, D] written
    M,
    D,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    gain = tl.load(gain_ptr + column, mask=column < D, other=0.0)
    d_gain = tl.zeros([BLOCK], tl.float32)
    d_bias = tl.zeros([BLOCK], tl.float32)
    tiles = tl.cdiv(M, ROWS)
    for tile in range(program, tiles, tl.num_programs(0)):
        # from the last rows, as in the forward
        row = (tiles - 1 - tile) * ROWS + tl.arange(0, ROWS)
        keep = (row[:, None] < M) & (column[None, :] < D)
        at = row[:, None].to(tl.int64) * D + column[None, :]
        mean = tl.load(mean_ptr + row, mask=row < M, other=0.0)
        rstd = tl.load(rstd_ptr + row, mask=row < M, other=0.0)
        x = widen(tl.load(x_ptr + at, mask=keep, other=0.0))
        d_y = widen(tl.load(d_y_ptr + at, mask=keep, other=0.0))
        x_hat = tl.where(keep, (x - mean[:, None]) * rstd[:, None], 0.0)
        d_gain += tl.sum(d_y * x_hat, 0)
        d_bias += tl.sum(d_y, 0)
        g = d_y * gain[None, :]
        mean_g = tl.sum(g, 1) / D
        projection = tl.sum(g * x_hat, 1) / D
        d_x = (g - mean_g[:, None] - x_hat * projection[:, None]) * rstd[:, None]
        if d_skip_ptr is not None:
            d_x += widen(tl.load(d_skip_ptr + at, mask=keep, other=0.0))
        tl.store(d_x_ptr + at, narrow(d_x, d_x_ptr.dtype.element_ty), mask=keep)
    tl.store(d_gain_parts_ptr + program * D + column, d_gain, mask=column < D)
    tl.store(d_bias_parts_ptr + program * D + column, d_bias, mask=column < D)


def layer_norm_fwd(
    x: Float[Tensor, "M D"], gain: Float[Tensor, " D"], bias: Float[Tensor, " D"]
) -> tuple[Float[Tensor, "M D"], NormResiduals]:
    """Normalize every row, then scale and shift.

    Args:
        gain: Scale of each column, float32.
        bias: Shift of each column, float32.
    """
    x = x.contiguous()
    rows, width = x.shape
    y = torch.empty_like(x)
    mean, rstd = (torch.empty(rows, dtype=torch.float32, device=x.device) for _ in range(2))
    tile, block, warps = norm_tiles(width)
    _layer_norm_fwd_kernel[(triton.cdiv(rows, tile),)](
        x, gain, bias, y, mean, rstd, rows, width, EPSILON, ROWS=tile, BLOCK=block, num_warps=warps
    )
    return y, NormResiduals(x, mean, rstd)


def layer_norm_bwd(
    res: NormResiduals,
    gain: Float[Tensor, " D"],
    d_y: Float[Tensor, "M D"],
    d_gain: Float[Tensor, " D"],
    d_bias: Float[Tensor, " D"],
    d_skip: Float[Tensor, "M D"] | None = None,
) -> Float[Tensor, "M D"]:
    """Gradient of the input; those of gain and bias are added in place.

    Args:
        gain: Scale of each column, float32.
        d_gain: Added to.
        d_bias: Added to.
        d_skip: Gradient that reached the input past the norm, added to the result.
    """
    d_y = d_y.contiguous()
    rows, width = d_y.shape
    d_x = torch.empty_like(d_y)
    tile, block, warps, programs = norm_bwd_tiles(rows, width, d_y.device)
    parts = torch.empty(2, programs, width, dtype=torch.float32, device=d_y.device)
    _layer_norm_bwd_kernel[(programs,)](
        res.x, res.mean, res.rstd, gain, d_y, None if d_skip is None else d_skip.contiguous(), d_x,
        parts[0], parts[1], rows, width, ROWS=tile, BLOCK=block, num_warps=warps,
    )  # fmt: skip
    add_partial_sums(parts, d_gain, d_bias)
    return d_x


def norm_tiles(width: int) -> tuple[int, int, int]:
    """Rows per program, padded width and warps of LayerNorm's forward."""
    return *row_tile(width), 4


def norm_bwd_tiles(rows: int, width: int, device: torch.device) -> tuple[int, int, int, int]:
    """Rows per step, padded width, warps and programs of LayerNorm's backward.

    Each program keeps a partial sum of d_gain and d_bias. Four per multiprocessor hide the latency of the
    loads; more would only lengthen the last reduction.
    """
    tile, block = row_tile(width)
    return tile, block, 4, max(1, min(triton.cdiv(rows, tile), 4 * multiprocessors(device)))
