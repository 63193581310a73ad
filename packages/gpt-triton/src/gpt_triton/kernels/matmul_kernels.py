"""The two kernels of a matrix product with its epilogue.

The epilogue works on the float32 accumulator, in this order: add a bias row; apply GELU, and write its slope;
multiply by a saved factor; add a residual; add what the output holds. GELU in its tanh form, and its slope:

    y = x s,   s = sigmoid(2u),   u = c (x + a x^3),   y' = s + y (1 - s) 2u'

Two kernels do the same:

- ``pointer_kernel`` loads tiles through pointers: any strides, any dtype, the interpreter;
- ``descriptor_kernel`` is persistent and loads tiles through tensor descriptors, which the copy engine of
  compute capability 9 reads without spending registers or threads on addresses.

Shapes: M rows, N columns, K depth, S parts of K.
"""

from __future__ import annotations

from typing import NamedTuple, no_type_check

import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from gpt_triton.kernels.primitives import INTERPRET, LOG2_E, narrow, operand, widen

GELU_C = tl.constexpr(0.7978845608028654)  # sqrt(2 / pi)
GELU_A = tl.constexpr(0.044715)


class Epilogue(NamedTuple):
    """What follows a product; ``None`` leaves a part out.

    Attributes:
        bias: Row added to every row.
        gelu: GELU applies.
        slope: Written: GELU's slope where it applies.
        factor: The result is multiplied by it.
        residual: Added at the end.
    """

    bias: Float[Tensor, " N"] | None = None
    gelu: bool = False
    slope: Float[Tensor, "M N"] | None = None
    factor: Float[Tensor, "M N"] | None = None
    residual: Float[Tensor, "M N"] | None = None


@triton.jit
@no_type_check
def reciprocal(x):
    """``1 / x`` by one instruction, within one unit in the last place; a division takes five more."""
    if INTERPRET:
        return 1.0 / x
    else:  # noqa: RET505  # the compiler drops only the other branch of a whole if
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )


@triton.jit
@no_type_check
def gelu_gate(x, square):
    """``sigmoid(2u)`` at ``x``, with ``square = x^2``; log2(e) is in the constants."""
    exponent = x * (square * (-2.0 * GELU_C * GELU_A * LOG2_E) - 2.0 * GELU_C * LOG2_E)
    return reciprocal(1.0 + tl.exp2(exponent))


@triton.jit
@no_type_check
def gelu(x):
    """GELU, tanh form, as ``x sigmoid(2u)``."""
    return x * gelu_gate(x, x * x)


@triton.jit
@no_type_check
def gelu_and_slope(x):
    """GELU ``y = x s`` and its derivative ``s + y (1 - s) 2u'``; there the factors that vanish come first."""
    square = x * x
    s = gelu_gate(x, square)
    y = x * s
    return y, s + (y - y * s) * (square * (6.0 * GELU_C * GELU_A) + 2.0 * GELU_C)


@triton.jit
@no_type_check
def tile_of(index, m_tiles, n_tiles, GROUP: tl.constexpr):
    """Row and column of an output tile: down ``GROUP`` row tiles, then one column to the right."""
    width = GROUP * n_tiles
    first = (index // width) * GROUP
    height = tl.minimum(m_tiles - first, GROUP)
    return first + (index % width) % height, (index % width) // height


@triton.jit
@no_type_check
def _put(value, ptr, desc, at, keep, first_row, first_column, DTYPE: tl.constexpr):
    """Store a tile, by the copy engine where there is a descriptor."""
    if desc is not None:
        desc.store([first_row, first_column], narrow(value, DTYPE))
    else:
        tl.store(ptr + at, narrow(value, DTYPE), mask=keep)


@triton.jit
@no_type_check
def _finish(
    acc,  # [rows, columns] float32
    row,  # int64
    column,
    M,
    N,
    out_ptr,  # [M, N] written
    out_desc,  # the same, or None
    slope_ptr,  # [M, N] written: GELU's slope, or None
    slope_desc,
    factor_ptr,  # [M, N] or None
    factor_desc,
    bias_ptr,  # [N] or None
    residual_ptr,  # [M, N] or None
    first_row,
    first_column,
    GELU: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    DTYPE: tl.constexpr,
):
    keep = (row[:, None] < M) & (column[None, :] < N)
    at = row[:, None] * N + column[None, :]
    if bias_ptr is not None:
        acc += widen(tl.load(bias_ptr + column, mask=column < N, other=0.0))[None, :]
    if GELU:
        if slope_ptr is not None:
            acc, slope = gelu_and_slope(acc)
            _put(slope, slope_ptr, slope_desc, at, keep, first_row, first_column, DTYPE)
        else:
            acc = gelu(acc)
    if factor_ptr is not None:
        if factor_desc is not None:
            acc *= widen(factor_desc.load([first_row, first_column]))
        else:
            acc *= widen(tl.load(factor_ptr + at, mask=keep, other=0.0))
    if residual_ptr is not None:
        acc += widen(tl.load(residual_ptr + at, mask=keep, other=0.0))
    if ACCUMULATE:
        acc += tl.load(out_ptr + at, mask=keep, other=0.0)
    _put(acc, out_ptr, out_desc, at, keep, first_row, first_column, DTYPE)


@triton.jit
@no_type_check
def pointer_kernel(
    a_ptr,  # [M, K] by strides
    b_ptr,  # [K, N] by strides
    out_ptr,  # [S, M, N] written
    slope_ptr,
    factor_ptr,
    bias_ptr,
    residual_ptr,
    M,
    N,
    K,
    a_m,
    a_k,
    b_k,
    b_n,
    GELU: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLITS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """One output tile and one part of K, its operands loaded through pointers."""
    m_tile, n_tile = tile_of(tl.program_id(0), tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N), GROUP)
    split = tl.program_id(1).to(tl.int64)
    row = m_tile.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = n_tile.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    steps = tl.cdiv(tl.cdiv(K, BLOCK_K), SPLITS)
    depth = split * steps * BLOCK_K + tl.arange(0, BLOCK_K)
    a_ptrs = a_ptr + row[:, None] * a_m + depth[None, :] * a_k
    b_ptrs = b_ptr + depth[:, None] * b_k + column[None, :] * b_n
    # in int64 before the stride multiplies it
    stride_step = tl.full((), BLOCK_K, tl.int64)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for step in range(steps):
        inside = depth + step * BLOCK_K < K
        a = tl.load(a_ptrs, mask=(row[:, None] < M) & inside[None, :], other=0.0)
        b = tl.load(b_ptrs, mask=inside[:, None] & (column[None, :] < N), other=0.0)
        acc = tl.dot(operand(a), operand(b), acc, input_precision="ieee")
        a_ptrs += stride_step * a_k
        b_ptrs += stride_step * b_k
    out_ptr += split * M * N
    _finish(
        acc, row, column, M, N, out_ptr, None, slope_ptr, None, factor_ptr, None, bias_ptr, residual_ptr,
        0, 0, GELU, ACCUMULATE, out_ptr.dtype.element_ty,
    )  # fmt: skip


@triton.jit
@no_type_check
def descriptor_kernel(
    a_desc,  # [M, K], or [K, M] if A_ACROSS
    b_desc,  # [K, N], or [N, K] if B_ACROSS
    out_ptr,  # [S, M, N] written, unless out_desc is given
    out_desc,  # [M, N] written, or None
    slope_ptr,
    slope_desc,
    factor_ptr,
    factor_desc,
    bias_ptr,
    residual_ptr,
    M,
    N,
    K,
    A_ACROSS: tl.constexpr,
    B_ACROSS: tl.constexpr,
    GELU: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLITS: tl.constexpr,
    GROUP: tl.constexpr,
    HALVES: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Output tiles one after another until none is left, their operands loaded through descriptors."""
    m_tiles, n_tiles = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    tiles = m_tiles * n_tiles
    # the copy engine fills with zeros past the end of K, so that every part takes the same steps
    steps = tl.cdiv(tl.cdiv(K, BLOCK_K), SPLITS)
    # flattened: the loads of the next tile start while this one's epilogue runs
    for work in tl.range(tl.program_id(0), tiles * SPLITS, tl.num_programs(0), flatten=True):
        m_tile, n_tile = tile_of(work % tiles, m_tiles, n_tiles, GROUP)
        split = work // tiles
        first_row, first_column = m_tile * BLOCK_M, n_tile * BLOCK_N
        acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for step in range(steps):
            depth = (split * steps + step) * BLOCK_K
            if A_ACROSS:
                a = operand(a_desc.load([depth, first_row])).T
            else:
                a = operand(a_desc.load([first_row, depth]))
            if B_ACROSS:
                b = operand(b_desc.load([first_column, depth])).T
            else:
                b = operand(b_desc.load([depth, first_column]))
            acc = tl.dot(a, b, acc, input_precision="ieee")
        row = first_row.to(tl.int64) + tl.arange(0, BLOCK_M)
        part_ptr = out_ptr
        if out_desc is None:
            part_ptr = out_ptr + split.to(tl.int64) * M * N
        if HALVES:
            # half a tile at a time: the staging buffer of a whole one would not fit beside the pipeline
            left, right = acc.reshape(BLOCK_M, 2, BLOCK_N // 2).permute(0, 2, 1).split()
            column = first_column.to(tl.int64) + tl.arange(0, BLOCK_N // 2)
            _finish(
                left, row, column, M, N, part_ptr, out_desc, slope_ptr, slope_desc, factor_ptr, factor_desc,
                bias_ptr, residual_ptr, first_row, first_column, GELU, ACCUMULATE, DTYPE,
            )  # fmt: skip
            _finish(
                right, row, column + BLOCK_N // 2, M, N, part_ptr, out_desc, slope_ptr, slope_desc,
                factor_ptr, factor_desc, bias_ptr, residual_ptr, first_row, first_column + BLOCK_N // 2, GELU,
                ACCUMULATE, DTYPE,
            )  # fmt: skip
        else:
            column = first_column.to(tl.int64) + tl.arange(0, BLOCK_N)
            _finish(
                acc, row, column, M, N, part_ptr, out_desc, slope_ptr, slope_desc, factor_ptr, factor_desc,
                bias_ptr, residual_ptr, first_row, first_column, GELU, ACCUMULATE, DTYPE,
            )  # fmt: skip
