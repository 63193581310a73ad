"""Embedding:  x = dropout(wte[token] + wpe[position]).

The gradient of a table's row is the sum of the gradients at its occurrences. Real text has ids that occur
once and ids that occur thousands of times, so the occurrences are sorted by id (stably, hence in a fixed
order) and cut into blocks of equal length:

- within a block, a run of equal ids that begins and ends there is added to the table at once;
- a run that reaches across a border leaves one partial sum per block: in ``inner`` where it came in from the
  block before, in ``last`` where it begins in this block;
- the block in which such a run begins then adds up its partial sums, in order.

Every row of the table has one writer per launch: no atomics, the same bits every time. Shapes: B rows, T
positions, M = B*T, D width, Vp padded vocabulary, C rows of the position table, G blocks of sorted
occurrences.
"""

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from gpt_triton.dropout import Dropout
from gpt_triton.kernels.dropout import dropout_bwd, dropped
from gpt_triton.kernels.primitives import INTERPRET, narrow, row_tile, widen

PARTS = tl.constexpr(16)
# sorted occurrences of ids that one program sums in a row; longer runs are summed from partial sums
RUN_BLOCK = 8 if INTERPRET.value else 32


@triton.jit
@no_type_check
def _embedding_fwd_kernel(
    tokens_ptr,  # [M]
    positions_ptr,  # [M]
    wte_ptr,  # [Vp, D]
    wpe_ptr,  # [C, D]
    x_ptr,  # [M, D] written
    key_ptr,  # [3] int64 or None
    M,
    D,
    T,
    keep_scale,
    THRESHOLD: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    keep = (row[:, None] < M) & (column[None, :] < D)
    token = tl.load(tokens_ptr + row, mask=row < M, other=0).to(tl.int64)
    position = tl.load(positions_ptr + row, mask=row < M, other=0).to(tl.int64)
    x = widen(tl.load(wte_ptr + token[:, None] * D + column[None, :], mask=keep, other=0.0))
    x += widen(tl.load(wpe_ptr + position[:, None] * D + column[None, :], mask=keep, other=0.0))
    if key_ptr is not None:
        x = dropped(x, row % T, column, (row // T)[:, None], key_ptr, keep_scale, THRESHOLD)
    at = row[:, None] * D + column[None, :]
    tl.store(x_ptr + at, narrow(x, x_ptr.dtype.element_ty), mask=keep)


@triton.jit
@no_type_check
def _add_runs_kernel(
    ids_ptr,  # [M] sorted
    order_ptr,  # [M] row of d_x of each sorted occurrence
    d_x_ptr,  # [M, D]
    table_ptr,  # [*, D] added to
    inner_ptr,  # [G, D] written
    last_ptr,  # [G, D] written
    M,
    D,
    RUN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    block = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < D
    begin = block * RUN
    end = tl.minimum(begin + RUN, M)
    came_in = False
    if begin > 0:
        came_in = tl.load(ids_ptr + begin - 1) == tl.load(ids_ptr + begin)
    goes_on = False
    if end < M:
        goes_on = tl.load(ids_ptr + end - 1) == tl.load(ids_ptr + end)
    first_id = tl.load(ids_ptr + begin)
    total = tl.zeros([BLOCK], tl.float32)
    for i in range(begin, end):
        row = tl.load(order_ptr + i).to(tl.int64)
        total += widen(tl.load(d_x_ptr + row * D + column, mask=inside, other=0.0))
        here = tl.load(ids_ptr + i).to(tl.int64)
        run_ends = i == end - 1
        if i < end - 1:
            run_ends = here != tl.load(ids_ptr + i + 1)
        if run_ends:
            if came_in & (here == first_id):
                tl.store(inner_ptr + block * D + column, total, mask=inside)
            elif goes_on & (i == end - 1):
                tl.store(last_ptr + block * D + column, total, mask=inside)
            else:
                at = table_ptr + here * D + column
                tl.store(at, tl.load(at, mask=inside, other=0.0) + total, mask=inside)
            total = tl.zeros([BLOCK], tl.float32)


@triton.jit
@no_type_check
def _join_runs_kernel(
    ids_ptr,  # [M] sorted
    table_ptr,  # [*, D] added to
    inner_ptr,  # [G, D]
    last_ptr,  # [G, D]
    M,
    D,
    RUN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    block = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    begin = block * RUN
    end = begin + RUN
    # a run begins here and goes on if the last id of this block is the next one's first, and no run that came
    # in from before fills the whole block
    if end < M:
        here = tl.load(ids_ptr + end - 1).to(tl.int64)
        begins_here = tl.load(ids_ptr + begin) != here
        if begin > 0:
            begins_here = begins_here | (tl.load(ids_ptr + begin - 1) != here)
        else:
            begins_here = begins_here | (begin == 0)
        if begins_here & (tl.load(ids_ptr + end) == here):
            total = tl.load(last_ptr + block * D + column, mask=column < D, other=0.0)
            # several parts per step: the whole run may be thousands of blocks long
            next_block = block + 1
            more = 1
            while more > 0:
                part = next_block + tl.arange(0, PARTS)
                # sorted: the parts of this run are those whose first id is still this one
                same = tl.load(ids_ptr + part * RUN, mask=part * RUN < M, other=-1) == here
                keep = same[:, None] & (column[None, :] < D)
                at = inner_ptr + part[:, None] * D + column[None, :]
                total += tl.sum(tl.load(at, mask=keep, other=0.0), 0)
                more = tl.sum(same.to(tl.int32), 0) // PARTS
                next_block += PARTS
            at = table_ptr + here * D + column
            tl.store(at, tl.load(at, mask=column < D, other=0.0) + total, mask=column < D)


def embedding_fwd(
    tokens: Int[Tensor, "B T"],
    positions: Int[Tensor, "B T"],
    wte: Float[Tensor, "Vp D"],
    wpe: Float[Tensor, "C D"],
    dropout: Dropout | None = None,
) -> Float[Tensor, "M D"]:
    """``dropout(wte[token] + wpe[position])``.

    Args:
        tokens: Token ids, checked by the caller.
        positions: Rows of ``wpe``, checked by the caller.
    """
    count, context, width = tokens.numel(), tokens.shape[1], wte.shape[1]
    x = wte.new_empty(count, width)
    tile, block = row_tile(width)
    key, keep_scale, threshold = None, 1.0, 0
    if dropout is not None:
        key, keep_scale, threshold = dropout.key, dropout.keep_scale, dropout.threshold
    _embedding_fwd_kernel[(triton.cdiv(count, tile),)](
        tokens.contiguous(), positions.contiguous(), wte, wpe, x, key, count, width, context, keep_scale,
        THRESHOLD=threshold, ROWS=tile, BLOCK=block,
    )  # fmt: skip
    return x


def embedding_bwd(
    tokens: Int[Tensor, "B T"],
    positions: Int[Tensor, "B T"],
    d_x: Float[Tensor, "M D"],
    d_wte: Float[Tensor, "Vp D"],
    d_wpe: Float[Tensor, "C D"],
    dropout: Dropout | None = None,
) -> None:
    """Gradients of both tables, added in place.

    Args:
        d_wte: Added to, float32.
        d_wpe: Added to, float32.
    """
    d_x = d_x.contiguous() if dropout is None else dropout_bwd(d_x, dropout)
    _add_rows(d_wte, tokens.reshape(-1), d_x)
    _add_rows(d_wpe, positions.reshape(-1), d_x)


def _add_rows(table: Float[Tensor, "N D"], index: Int[Tensor, " M"], rows: Float[Tensor, "M D"]) -> None:
    """``table[index[i]] += rows[i]``, in an order that depends on the ids alone."""
    count, width = rows.shape
    ids, order = torch.sort(index, stable=True)
    blocks = triton.cdiv(count, RUN_BLOCK)
    inner, last = (torch.empty(blocks, width, dtype=torch.float32, device=rows.device) for _ in range(2))
    _, block = row_tile(width)
    _add_runs_kernel[(blocks,)](
        ids, order, rows, table, inner, last, count, width, RUN=RUN_BLOCK, BLOCK=block
    )
    _join_runs_kernel[(blocks,)](ids, table, inner, last, count, width, RUN=RUN_BLOCK, BLOCK=block)
