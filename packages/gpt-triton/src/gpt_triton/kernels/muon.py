"""Muon: momentum, made orthogonal by Newton-Schulz, for stacks of matrices.

    m  = mu m + s g,    s = min(1, clip / norm)
    w -= lr (sqrt(max(1, C / R)) orthogonalize(s g + mu m) + decay w)

    orthogonalize:  X = G / |G|,   five times  X <- a X + (b X X^T + c (X X^T)^2) X

A product of one matrix of 768 x 768 fills a quarter of a large GPU: one launch takes those of all layers.
What is added to a product is added to its float32 sums. Shapes: L blocks, K matrices side by side, R rows,
C columns, N = L*K; r, c the shorter and the longer side; G tiles of a matrix.

References:
    Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks". Their matrices are
    (out, in), ours (in, out).
"""

from __future__ import annotations

import math
from typing import no_type_check

import torch
import triton
import triton.language as tl
from gpt_trainer.backend import OptimizerConfig
from jaxtyping import Float
from torch import Tensor

from gpt_triton.kernels.adamw import clipping, counts
from gpt_triton.kernels.matmul_kernels import tile_of
from gpt_triton.kernels.primitives import matrix_tile, narrow, operand, widen
from gpt_triton.kernels.tiles import group_rows, stack_tiles
from gpt_triton.optimizer import MUON_MOMENTUM, NEWTON_SCHULZ, NEWTON_SCHULZ_STEPS, NORM_FLOOR


@triton.jit
@no_type_check
def _tile(R, C, K, block_stride, part_stride, row_stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Where this program's tile lies in a stack with strides, and in a dense one; and what is inside."""
    n = tl.program_id(1).to(tl.int64)
    column_tiles = tl.cdiv(C, COLUMNS)
    row = (tl.program_id(0) // column_tiles) * ROWS + tl.arange(0, ROWS)
    column = (tl.program_id(0) % column_tiles) * COLUMNS + tl.arange(0, COLUMNS)
    first = (n // K) * block_stride + (n % K) * part_stride
    keep = (row[:, None] < R) & (column[None, :] < C)
    at = first + row[:, None].to(tl.int64) * row_stride + column[None, :]
    return at, row[:, None], column[None, :], keep


@triton.jit
@no_type_check
def _changes(row, R, norm, skip_above):
    """Whether a row is changed: none are if the norm is not finite or too large."""
    return row < tl.where(counts(norm, skip_above), R, 0)


@triton.jit
@no_type_check
def _momentum_kernel(
    gradients_ptr,  # [L, K, R, C] by strides; s g + mu m is written there
    momentum_ptr,  # the same, changed
    norm_ptr,  # [1]
    scalars_ptr,  # [4] learning rate, -, -, skip_above
    R,
    C,
    K,
    block_stride,
    part_stride,
    row_stride,
    clip_norm,  # infinity: no clipping
    momentum,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    at, row, _, keep = _tile(R, C, K, block_stride, part_stride, row_stride, ROWS, COLUMNS)
    norm = tl.load(norm_ptr)
    change = keep & _changes(row, R, norm, tl.load(scalars_ptr + 3))
    clip = clipping(norm, clip_norm)
    g = tl.load(gradients_ptr + at, mask=change, other=0.0) * clip
    m = momentum * tl.load(momentum_ptr + at, mask=keep, other=0.0) + g
    tl.store(momentum_ptr + at, m, mask=change)
    # a step that is recorded runs once before it counts, and must leave the gradients to the one that does
    tl.store(gradients_ptr + at, g + momentum * m, mask=change)


@triton.jit
@no_type_check
def _stack_squares_kernel(
    x_ptr,  # [L, K, R, C] by strides
    parts_ptr,  # [N, G] written
    R,
    C,
    K,
    block_stride,
    part_stride,
    row_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    at, _, _, keep = _tile(R, C, K, block_stride, part_stride, row_stride, ROWS, COLUMNS)
    x = tl.load(x_ptr + at, mask=keep, other=0.0)
    place = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    tl.store(parts_ptr + place, tl.sum(tl.sum(x * x, 1), 0))


@triton.jit
@no_type_check
def _normalise_kernel(
    x_ptr,  # [L, K, R, C] by strides
    parts_ptr,  # [N, G]
    out_ptr,  # [N, r, c] written
    R,
    C,
    K,
    block_stride,
    part_stride,
    row_stride,
    floor,
    ACROSS: tl.constexpr,  # the output is the transpose
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at, row, column, keep = _tile(R, C, K, block_stride, part_stride, row_stride, ROWS, COLUMNS)
    n, parts = tl.program_id(1).to(tl.int64), tl.num_programs(0)
    total = tl.zeros([BLOCK], tl.float32)
    for first in range(0, parts, BLOCK):
        i = tl.arange(0, BLOCK) + first
        total += tl.load(parts_ptr + n * parts + i, mask=i < parts, other=0.0)
    x = tl.load(x_ptr + at, mask=keep, other=0.0) / (tl.sqrt(tl.sum(total, 0)) + floor)
    out = n * R * C + (column * R + row if ACROSS else row * C + column)
    tl.store(out_ptr + out, narrow(x, out_ptr.dtype.element_ty), mask=keep)


@triton.jit
@no_type_check
def _stack_product_kernel(
    a_ptr,  # [N, M, K] by strides
    b_ptr,  # [N, K, C] by strides
    add_ptr,  # [N, M, C], or None
    out_ptr,  # [N, M, C] written: alpha a b + beta add
    M,
    C,
    K,
    a_m,
    a_k,
    b_k,
    b_c,
    alpha,
    beta,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    m_tile, c_tile = tile_of(tl.program_id(0), tl.cdiv(M, BLOCK_M), tl.cdiv(C, BLOCK_N), GROUP)
    n = tl.program_id(1).to(tl.int64)
    row = m_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    column = c_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    depth = tl.arange(0, BLOCK_K)
    a_ptrs = a_ptr + n * M * K + row[:, None] * a_m + depth[None, :] * a_k
    b_ptrs = b_ptr + n * K * C + depth[:, None] * b_k + column[None, :] * b_c
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for first in range(0, K, BLOCK_K):
        inside = depth + first < K
        a = tl.load(a_ptrs, mask=(row[:, None] < M) & inside[None, :], other=0.0)
        b = tl.load(b_ptrs, mask=inside[:, None] & (column[None, :] < C), other=0.0)
        acc = tl.dot(operand(a), operand(b), acc, input_precision="ieee")
        a_ptrs += BLOCK_K * a_k
        b_ptrs += BLOCK_K * b_k
    keep = (row[:, None] < M) & (column[None, :] < C)
    at = n * M * C + row[:, None] * C + column[None, :]
    acc *= alpha
    if add_ptr is not None:
        acc += beta * widen(tl.load(add_ptr + at, mask=keep, other=0.0))
    tl.store(out_ptr + at, narrow(acc, out_ptr.dtype.element_ty), mask=keep)


@triton.jit
@no_type_check
def _muon_kernel(
    weights_ptr,  # [L, K, R, C] by strides, changed
    direction_ptr,  # [N, r, c]
    shadow_ptr,  # [L, K, R, C] by strides, written, or None
    norm_ptr,  # [1]
    scalars_ptr,  # [4]
    R,
    C,
    K,
    block_stride,
    part_stride,
    row_stride,
    lr_factor,
    scale,
    weight_decay,
    ACROSS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    at, row, column, keep = _tile(R, C, K, block_stride, part_stride, row_stride, ROWS, COLUMNS)
    change = keep & _changes(row, R, tl.load(norm_ptr), tl.load(scalars_ptr + 3))
    lr = tl.load(scalars_ptr) * lr_factor
    dense = tl.program_id(1).to(tl.int64) * R * C + (column * R + row if ACROSS else row * C + column)
    direction = widen(tl.load(direction_ptr + dense, mask=change, other=0.0))
    w = tl.load(weights_ptr + at, mask=keep, other=0.0)
    w -= tl.where(change, lr * (scale * direction + weight_decay * w), 0.0)
    tl.store(weights_ptr + at, w, mask=change)
    if shadow_ptr is not None:
        tl.store(shadow_ptr + at, narrow(w, shadow_ptr.dtype.element_ty), mask=keep)


def orthogonalize(x: Float[Tensor, "N R C"], dtype: torch.dtype) -> Float[Tensor, "N R C"]:
    """About ``U V^T`` of each matrix ``U S V^T``, in ``dtype``.

    Args:
        x: Rows are contiguous.
        dtype: Of the products.
    """
    found = _orthogonalize(x[:, None], dtype)
    return found.mT if x.shape[1] > x.shape[2] else found


def muon_update(
    weights: Float[Tensor, "L K R C"],
    gradients: Float[Tensor, "L K R C"],
    momentum: Float[Tensor, "L K R C"],
    shadow: Float[Tensor, "L K R C"] | None,
    norm: Float[Tensor, " 1"],
    scalars: Float[Tensor, " 4"],
    config: OptimizerConfig,
    dtype: torch.dtype,
) -> None:
    """One step in place.

    Args:
        weights: Master weights, changed; views into flat buffers of one layout, like the next three.
        gradients: Unclipped; used up.
        momentum: Changed.
        shadow: Copy of the weights in bfloat16, rewritten.
        norm: Of the whole gradient.
        scalars: As ``step_scalars`` makes them.
        dtype: Of the products.
    """
    grid, sizes, tile = _cut(weights)
    clip_norm = config.clip_norm or math.inf
    _momentum_kernel[grid](gradients, momentum, norm, scalars, *sizes, clip_norm, MUON_MOMENTUM, **tile)
    direction = _orthogonalize(gradients, dtype)
    rows, columns = weights.shape[2:]
    _muon_kernel[grid](
        weights, direction, shadow, norm, scalars, *sizes,
        config.muon_lr_factor, max(1.0, columns / rows) ** 0.5, config.weight_decay,
        ACROSS=rows > columns, **tile,
    )  # fmt: skip


def _orthogonalize(x: Float[Tensor, "L K R C"], dtype: torch.dtype) -> Float[Tensor, "N r c"]:
    """As ``orthogonalize``, transposed where a matrix is higher than wide."""
    a, b, c = NEWTON_SCHULZ
    grid, sizes, tile = _cut(x)
    count, (rows, columns) = grid[1], sorted(x.shape[2:])
    parts = x.new_empty(count, grid[0])
    _stack_squares_kernel[grid](x, parts, *sizes, **tile)
    x_in, x_out = (x.new_empty(count, rows, columns, dtype=dtype) for _ in range(2))
    across = x.shape[2] > x.shape[3]
    _normalise_kernel[grid](x, parts, x_in, *sizes, NORM_FLOOR, ACROSS=across, BLOCK=1024, **tile)
    gram, polynomial = (x.new_empty(count, rows, rows, dtype=dtype) for _ in range(2))
    for _ in range(NEWTON_SCHULZ_STEPS):
        _stack_product(x_in, x_in.mT, gram)
        _stack_product(gram, gram, polynomial, c, gram, b)
        _stack_product(polynomial, x_in, x_out, 1.0, x_in, a)
        x_in, x_out = x_out, x_in
    return x_in


def _stack_product(
    a: Float[Tensor, "N M K"],
    b: Float[Tensor, "N K C"],
    out: Float[Tensor, "N M C"],
    alpha: float = 1.0,
    add: Float[Tensor, "N M C"] | None = None,
    beta: float = 0.0,
) -> None:
    """``out = alpha a b + beta add`` for every matrix of a dense stack."""
    (count, m, k), columns = a.shape, b.shape[2]
    tiles = stack_tiles(m, a.dtype)
    column_tiles = triton.cdiv(columns, tiles.block_n)
    _stack_product_kernel[(triton.cdiv(m, tiles.block_m) * column_tiles, count)](
        a, b, add, out, m, columns, k, *a.stride()[1:], *b.stride()[1:], alpha, beta,
        BLOCK_M=tiles.block_m, BLOCK_N=tiles.block_n, BLOCK_K=tiles.block_k, GROUP=group_rows(column_tiles),
        num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip


def _cut(x: Float[Tensor, "L K R C"]) -> tuple[tuple[int, int], tuple[int, ...], dict[str, int]]:
    """Grid, sizes with strides, and tile of the kernels that go through a stack element by element."""
    blocks, parts, rows, columns = x.shape
    tile_rows, tile_columns = matrix_tile()
    grid = (triton.cdiv(rows, tile_rows) * triton.cdiv(columns, tile_columns), blocks * parts)
    return grid, (rows, columns, parts, *x.stride()[:3]), {"ROWS": tile_rows, "COLUMNS": tile_columns}
