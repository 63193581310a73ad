"""Dropout by Philox-4x32-10, the rule of ``gpt_trainer.philox`` bit for bit.

Of activations the mask is drawn element by element, and again in the backward. That of attention's weights is
drawn once and kept as bits: a weight's bit costs ten rounds of Philox, some forty instructions, and three
kernels need it. It has blocks of 32 queries and 32 keys, those that are not after the diagonal. Block (i, j)
is the ``i (i + 1) / 2 + j``-th and has 32 words, twice: a word for each query with the keys as bits, for
kernels that stream keys, and a word for each key with the queries as bits, for those that stream queries.

Shapes: n elements, B rows, T positions, H heads, N = B*H, C blocks.
"""

from __future__ import annotations

from typing import NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from gpt_trainer.philox import dropout_threshold
from jaxtyping import Float, Int
from torch import Tensor

from gpt_triton.dropout import Dropout
from gpt_triton.kernels.primitives import INTERPRET, keep_mask, narrow, widen
from gpt_triton.kernels.tiles import flat_block


class DropoutArguments(NamedTuple):
    """A mask as kernels take it.

    Attributes:
        key: Key words on the device.
        keep_scale: Scale of the kept elements.
        threshold: Smallest Philox word that is kept.
    """

    key: Tensor
    keep_scale: float
    threshold: int


def dropout_arguments(dropout: Dropout) -> DropoutArguments:
    """Kernel arguments of a mask."""
    return DropoutArguments(dropout.key, 1.0 / (1.0 - dropout.rate), dropout_threshold(dropout.rate))


@triton.jit
@no_type_check
def _dropout_kernel(
    x_ptr,  # [N]
    residual_ptr,  # [N] or None
    y_ptr,  # [N] written
    key_ptr,  # [2] int64
    N,
    keep_scale,
    THRESHOLD: tl.constexpr,
    SMALL: tl.constexpr,  # every index fits 32 bits, whose Philox is the cheaper
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = widen(tl.load(x_ptr + i, mask=i < N, other=0.0))
    index = i
    if SMALL:
        index = i.to(tl.uint32)
    y = tl.where(keep_mask(index, key_ptr, THRESHOLD), x * keep_scale, 0.0)
    if residual_ptr is not None:
        y += widen(tl.load(residual_ptr + i, mask=i < N, other=0.0))
    tl.store(y_ptr + i, narrow(y, y_ptr.dtype.element_ty), mask=i < N)


def dropout_fwd(x: Float[Tensor, "*n"], dropout: Dropout) -> Float[Tensor, "*n"]:
    """Zero the dropped elements and scale the kept ones by ``1 / (1 - rate)``.

    Args:
        x: Any tensor; element ``i`` is its ``i``-th in row-major order.
    """
    x = x.contiguous()
    y = torch.empty_like(x)
    _launch(x, None, y, dropout)
    return y


def drop_in_place(
    y: Float[Tensor, "*n"], dropout: Dropout, residual: Float[Tensor, "*n"] | None = None
) -> None:
    """``y = residual + dropout(y)``; both are contiguous."""
    _launch(y, residual, y, dropout)


def _launch(
    x: Float[Tensor, "*n"], residual: Float[Tensor, "*n"] | None, y: Float[Tensor, "*n"], dropout: Dropout
) -> None:
    key, keep_scale, threshold = dropout_arguments(dropout)
    block = flat_block()
    count = x.numel()
    _dropout_kernel[(triton.cdiv(count, block),)](
        x, residual, y, key, count, keep_scale,
        THRESHOLD=threshold, SMALL=count <= 1 << 32, BLOCK=block,
    )  # fmt: skip


def dropout_bwd(d_y: Float[Tensor, "*n"], dropout: Dropout) -> Float[Tensor, "*n"]:
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
    key_ptr,  # [2]
    T,
    THRESHOLD: tl.constexpr,
    H: tl.constexpr,
    SMALL: tl.constexpr,  # every weight's index fits 32 bits
):
    """The blocks of 32 queries of a head; a lane draws its key's bits."""
    head = tl.program_id(0).to(tl.int64)
    row = tl.num_programs(1) - 1 - tl.program_id(1)
    lane = tl.arange(0, 32)
    column_first = 0
    if starts_ptr is not None:
        q = row * 32 + lane
        start = tl.load(starts_ptr + head // H * T + q, mask=q < T, other=2147483647)
        column_first = tl.min(start, 0) // 32
    written = mask_ptr + head * mask_words(T) + _triangle(row) * 32
    by_key_ptr = written + tl.num_programs(0) * mask_words(T)
    for column in range(column_first, row + 1):
        index = (head * T + row * 32) * T + column * 32 + lane
        if SMALL:
            index = index.to(tl.uint32)
        by_key = tl.zeros([32], tl.uint32)
        if INTERPRET:
            # an operation costs some 20 microseconds whatever its size
            keep = keep_mask(index[None, :] + lane[:, None] * T, key_ptr, THRESHOLD)
            by_key = tl.sum(keep.to(tl.uint32) << lane[:, None], 0).to(tl.uint32)
        else:
            for i in tl.static_range(32):
                by_key |= keep_mask(index + i * T, key_ptr, THRESHOLD).to(tl.uint32) << i
        at = column * 32 + lane
        tl.store(written + at, _transposed_bits(by_key).to(tl.int32, bitcast=True))
        tl.store(by_key_ptr + at, by_key.to(tl.int32, bitcast=True))


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
    key, _, threshold = dropout_arguments(dropout)
    # a last tile past T asks for up to 32 rows and columns more
    small = rows * n_head * context * context + 32 * (context + 1) <= 1 << 32
    _mask_kernel[(rows * n_head, count)](
        mask, segment_starts, key, context,
        THRESHOLD=threshold, H=n_head, SMALL=small, num_warps=1,
    )  # fmt: skip
    return mask
