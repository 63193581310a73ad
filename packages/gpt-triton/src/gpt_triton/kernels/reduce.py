"""Sums in a fixed order: partial sums added into a gradient, and the column sums of a matrix.

Shapes: G groups of P parts, N elements of each, M rows.
"""

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from gpt_triton.kernels.primitives import widen
from gpt_triton.kernels.tiles import column_sum_tiles, partial_sum_tiles


@triton.jit
@no_type_check
def _add_partial_sums_kernel(
    parts_ptr,  # [G, P, N]
    total0_ptr,  # [N] added to
    total1_ptr,  # [N] added to, or None: of the second group
    P,
    N,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    group = tl.program_id(1)
    parts_ptr += group.to(tl.int64) * P * N
    total_ptr = total0_ptr
    if total1_ptr is not None:
        total_ptr = total1_ptr if group == 1 else total_ptr
    column = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for first in range(0, P, PARTS):
        part = first + tl.arange(0, PARTS)
        keep = (part[:, None] < P) & (column[None, :] < N)
        at = part[:, None].to(tl.int64) * N + column[None, :]
        total += tl.sum(tl.load(parts_ptr + at, mask=keep, other=0.0), 0)
    total += tl.load(total_ptr + column, mask=column < N, other=0.0)
    tl.store(total_ptr + column, total, mask=column < N)


@triton.jit
@no_type_check
def _column_sums_kernel(
    x_ptr,  # [M, N]
    parts_ptr,  # [P, N] written
    M,
    N,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    column = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    program = tl.program_id(1).to(tl.int64)
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    for first in range(program * ROWS, M, tl.num_programs(1) * ROWS):
        row = first + tl.arange(0, ROWS)
        keep = (row[:, None] < M) & (column[None, :] < N)
        at = row[:, None].to(tl.int64) * N + column[None, :]
        total += widen(tl.load(x_ptr + at, mask=keep, other=0.0))
    # the rows of a tile are added up once, not at every step
    tl.store(parts_ptr + program * N + column, tl.sum(total, 0), mask=column < N)


def add_partial_sums(
    parts: Float[Tensor, "G P N"], total: Float[Tensor, " N"], second: Float[Tensor, " N"] | None = None
) -> None:
    """Add the sum of each group's parts to its total, in an order that depends on the shape alone.

    Args:
        parts: Partial sums of one group or two, float32, contiguous.
        total: Added to.
        second: Added to, if there is a second group.
    """
    groups, count, width = parts.shape
    rows, block = partial_sum_tiles(count, width)
    grid = (triton.cdiv(width, block), groups)
    _add_partial_sums_kernel[grid](parts, total, second, count, width, PARTS=rows, BLOCK=block)


def add_column_sums(x: Float[Tensor, "M N"], total: Float[Tensor, " N"]) -> None:
    """Add the sum over the rows of ``x`` to ``total``, in two stages.

    Args:
        x: Contiguous matrix.
        total: Added to, float32.
    """
    rows, width = x.shape
    tile, block, programs = column_sum_tiles(rows, width, x.device)
    parts = torch.empty(programs, width, dtype=torch.float32, device=x.device)
    grid = (triton.cdiv(width, block), programs)
    _column_sums_kernel[grid](x, parts, rows, width, ROWS=tile, BLOCK=block)
    add_partial_sums(parts[None], total)
