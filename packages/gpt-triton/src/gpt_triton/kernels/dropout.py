"""Dropout by Philox-4x32-10, the rule of ``gpt_trainer.philox`` bit for bit.

A call of Philox is some seventy instructions, for four columns. Of activations the mask is drawn where it is
used, and again in the backward: at 2 bytes an element the memory is the slower. That of attention's weights,
which several kernels need that have no instruction to spare, is drawn once and kept as bits. It has blocks of
32 queries and 32 keys, those that are not after the diagonal. Block (i, j) is the ``i (i + 1) / 2 + j``-th
and has 32 words, twice: a word for each query with the keys as bits, for kernels that stream keys, and a word
for each key with the queries as bits, for those that stream queries.

Shapes: B rows, T positions, M = B*T, D width, H heads, N = B*H, C blocks.
"""

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl
from gpt_trainer import philox as rule
from gpt_trainer.philox import MULTIPLIERS, WEYL
from jaxtyping import Float, Int
from torch import Tensor

from gpt_triton.dropout import Dropout
from gpt_triton.kernels.primitives import matrix_tile, narrow, widen

ROUNDS = tl.constexpr(rule.ROUNDS)
PHILOX_M0, PHILOX_M1 = tl.constexpr(MULTIPLIERS[0]), tl.constexpr(MULTIPLIERS[1])
PHILOX_W0, PHILOX_W1 = tl.constexpr(WEYL[0]), tl.constexpr(WEYL[1])


@triton.jit
@no_type_check
def load_site(
    key_ptr,  # [3] int64, as Dropout.key
):
    """The two words of a site's key, and the number of the first row: uint32."""
    k0, k1, first_row = tl.load(key_ptr), tl.load(key_ptr + 1), tl.load(key_ptr + 2)
    return k0.to(tl.uint32), k1.to(tl.uint32), first_row.to(tl.uint32)


@triton.jit
@no_type_check
def philox(
    c0,
    c1,
    c2,  # the words of the counter, uint32 of shapes that broadcast; the fourth is 0
    k0,
    k1,
):
    """The four words of Philox-4x32-10."""
    c3 = tl.zeros_like(c0)
    for _ in tl.static_range(ROUNDS):
        # one 64-bit product, not a high and a low one: one instruction instead of two
        p0, p1 = c0.to(tl.uint64) * PHILOX_M0, c2.to(tl.uint64) * PHILOX_M1
        c0, c2 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0, (p0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c1, c3 = p1.to(tl.uint32), p0.to(tl.uint32)
        k0 += PHILOX_W0
        k1 += PHILOX_W1
    return c0, c1, c2, c3


@triton.jit
@no_type_check
def dropped(
    x,  # [ROWS, COLUMNS] float32
    line,  # [ROWS]
    column,  # [COLUMNS]
    row,  # [], or [ROWS, 1]
    key_ptr,  # [3] int64: the key, and the number of the first row
    keep_scale,
    THRESHOLD: tl.constexpr,
):
    """``x`` scaled where the mask of a tensor [B, T, D] keeps it, else 0."""
    k0, k1, first_row = load_site(key_ptr)
    call, row = (column // 4).to(tl.uint32)[None, :], first_row + row.to(tl.uint32)
    # a thread has neighbouring columns, of whose equal calls the compiler leaves one
    w0, w1, w2, w3 = philox(call, line.to(tl.uint32)[:, None], row, k0, k1)
    place = (column % 4)[None, :]
    word = tl.where(place < 2, tl.where(place == 0, w0, w1), tl.where(place == 2, w2, w3))
    return tl.where(word >= tl.full(x.shape, THRESHOLD, tl.uint32), x * keep_scale, 0.0)


@triton.jit
@no_type_check
def _dropout_kernel(
    x_ptr,  # [B, T, D]
    residual_ptr,  # [B, T, D] or None
    y_ptr,  # [B, T, D] written
    key_ptr,  # [3] int64
    T,
    D,
    keep_scale,
    THRESHOLD: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(2)
    line = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    keep = (line[:, None] < T) & (column[None, :] < D)
    at = (row.to(tl.int64) * T + line[:, None]) * D + column[None, :]
    x = widen(tl.load(x_ptr + at, mask=keep, other=0.0))
    y = dropped(x, line, column, row, key_ptr, keep_scale, THRESHOLD)
    if residual_ptr is not None:
        y += widen(tl.load(residual_ptr + at, mask=keep, other=0.0))
    tl.store(y_ptr + at, narrow(y, y_ptr.dtype.element_ty), mask=keep)


def drop_into(
    y: Float[Tensor, "M D"],
    x: Float[Tensor, "M D"],
    dropout: Dropout,
    residual: Float[Tensor, "M D"] | None = None,
) -> None:
    """``y = residual + dropout(x)``, all contiguous; ``y`` may be ``x``."""
    (count, width), (rows, columns), context = x.shape, matrix_tile(), dropout.context
    _dropout_kernel[(triton.cdiv(context, rows), triton.cdiv(width, columns), count // context)](
        x, residual, y, dropout.key, context, width, dropout.keep_scale,
        THRESHOLD=dropout.threshold, ROWS=rows, COLUMNS=columns,
    )  # fmt: skip


def dropout_fwd(x: Float[Tensor, "M D"], dropout: Dropout) -> Float[Tensor, "M D"]:
    """Zero the dropped elements and scale the kept ones by ``1 / (1 - rate)``."""
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    drop_into(y, x.contiguous(), dropout)
    return y


def dropout_bwd(d_y: Float[Tensor, "M D"], dropout: Dropout) -> Float[Tensor, "M D"]:
    """Gradient of the input: the same mask and scale."""
    return dropout_fwd(d_y, dropout)


@triton.jit
@no_type_check
def _triangle(block):
    """Blocks before the first of block row ``block``."""
    return block * (block + 1) // 2


@triton.jit
@no_type_check
def mask_words(T):
    """Words of a head, int64; the words by key of all heads follow those by query."""
    return _triangle(tl.cdiv(T, 32)).to(tl.int64) * 32


@triton.jit
@no_type_check
def _exchange(word, DISTANCE: tl.constexpr, LOW: tl.constexpr):
    """Between lanes ``DISTANCE`` apart, the first's bits outside ``LOW`` for the second's bits within."""
    lane = tl.arange(0, 32)
    low = tl.full([32], LOW, tl.uint32)
    other = tl.gather(word, lane ^ DISTANCE, 0)
    first = (word & low) | ((other & low) << DISTANCE)
    second = (word & ~low) | ((other >> DISTANCE) & low)
    return tl.where((lane & DISTANCE) == 0, first, second)


@triton.jit
@no_type_check
def _transposed_bits(word):
    """32 words such that bit ``i`` of word ``j`` is bit ``j`` of the given word ``i``."""
    word = _exchange(word, 16, 0x0000FFFF)
    word = _exchange(word, 8, 0x00FF00FF)
    word = _exchange(word, 4, 0x0F0F0F0F)
    word = _exchange(word, 2, 0x33333333)
    return _exchange(word, 1, 0x55555555)


@triton.jit
@no_type_check
def _mask_kernel(
    mask_ptr,  # [2, N, C, 32] int32 written: by query, by key
    starts_ptr,  # [B, T] or None
    key_ptr,  # [3] int64
    T,
    THRESHOLD: tl.constexpr,
    H: tl.constexpr,
):
    """The blocks of 32 queries of a head; a lane draws the word of its query, eight calls of four bits."""
    head = tl.program_id(0).to(tl.int64)
    block = tl.num_programs(1) - 1 - tl.program_id(1)
    lane = tl.arange(0, 32)
    q = block * 32 + lane
    column_first = 0
    if starts_ptr is not None:
        start = tl.load(starts_ptr + head // H * T + q, mask=q < T, other=2147483647)
        column_first = tl.min(start, 0) // 32
    written = mask_ptr + head * mask_words(T) + _triangle(block) * 32
    by_key_ptr = written + tl.num_programs(0) * mask_words(T)
    k0, k1, first_row = load_site(key_ptr)
    row = first_row + (head // H).to(tl.uint32)
    line = (head % H * T + q).to(tl.uint32)
    call = tl.arange(0, 8)
    for column in range(column_first, block + 1):
        w0, w1, w2, w3 = philox((column * 8 + call).to(tl.uint32)[:, None], line[None, :], row, k0, k1)
        least = tl.full(w0.shape, THRESHOLD, tl.uint32)
        low = tl.where(w0 >= least, 1, 0) | tl.where(w1 >= least, 2, 0)
        high = tl.where(w2 >= least, 4, 0) | tl.where(w3 >= least, 8, 0)
        by_query = tl.sum((low | high).to(tl.uint32) << (call * 4)[:, None], 0).to(tl.uint32)
        at = column * 32 + lane
        tl.store(written + at, by_query.to(tl.int32, bitcast=True))
        tl.store(by_key_ptr + at, _transposed_bits(by_query).to(tl.int32, bitcast=True))


@triton.jit
@no_type_check
def kept(
    mask_ptr,  # first word of the head
    stay,  # [stay] int32 positions
    first,  # the first position streamed past, a multiple of STREAM
    T,
    BY_KEY: tl.constexpr,  # keys stay and queries are streamed
    STREAM: tl.constexpr,
):
    """[stay, stream]: the weight is kept. Past the last block and after the diagonal, whatever."""
    place = tl.arange(0, STREAM)[None, :]
    word = tl.zeros([stay.shape[0], STREAM], tl.int32)
    for i in tl.static_range((STREAM + 31) // 32):
        block = first // 32 + i
        if BY_KEY:
            at = _triangle(block) * 32 + stay
            q_first, k_first = tl.zeros_like(stay) + block * 32, stay // 32 * 32
        else:
            at = (_triangle(stay // 32) + block) * 32 + stay % 32
            q_first, k_first = stay // 32 * 32, block * 32
        exists = (k_first <= q_first) & (q_first < T)
        here = tl.load(mask_ptr + at, mask=exists, other=0)
        word = tl.where(place >= i * 32, here[:, None], word)
    if STREAM < 32:
        word = word >> (first % 32)
    # where tensor cores leave a tile, bits 1 and 2 of a column tell the thread, the others the register: one
    # shift for all of a thread's columns, then a test of a constant bit for each
    return (((word >> (place & 6)) >> (place & 25)) & 1) != 0


def attention_mask(
    dropout: Dropout,
    rows: int,
    context: int,
    n_head: int,
    segment_starts: Int[Tensor, "B T"] | None,
) -> Int[Tensor, "2 N C 32"]:
    """Draw the mask of all heads' weights.

    Args:
        segment_starts: First position that each position may see: blocks that nobody sees are not drawn.
    """
    count = triton.cdiv(context, 32)
    blocks = count * (count + 1) // 2
    mask = torch.empty(2, rows * n_head, blocks, 32, dtype=torch.int32, device=dropout.key.device)
    _mask_kernel[(rows * n_head, count)](
        mask, segment_starts, dropout.key, context,
        THRESHOLD=dropout.threshold, H=n_head, num_warps=1,
    )  # fmt: skip
    return mask
