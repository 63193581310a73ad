"""Causal self-attention within documents, tile by tile: the forward.

    S = Q K^T / sqrt(K),   P = softmax over the keys that a query may see,   O = dropout(P) V

A program owns a tile of queries and streams the keys past it, with the running maximum and sum of the online
softmax. Key tiles after the last query or before the start of the first query's document are never loaded;
tiles that every query sees whole skip the masks. Scores are kept in units of log 2, because exp2 is one
instruction: log2(e) is folded into the scale.
Shapes: B rows, T positions, D width, H heads, K = D/H head width, W padded head width.

References:
    Dao 2023, "FlashAttention-2", section 3.1.
"""

from __future__ import annotations

import math
from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from gpt_triton.dropout import Dropout
from gpt_triton.kernels.dropout import attention_mask, kept, mask_words
from gpt_triton.kernels.primitives import LN_2, LOG2_E, matrix_tile, narrow, operand, rounded_operand
from gpt_triton.kernels.tiles import attention_tiles, hopper_attention
from gpt_triton.ops import AttentionResiduals


@triton.jit
@no_type_check
def load_head_tile(
    base_ptr,  # first element of the head in row 0
    position,  # [rows]
    stride,  # elements from one position to the next
    T,
    K: tl.constexpr,
    W: tl.constexpr,
):
    """Rows ``position`` of one head, [rows, W]; zeros past the end and past the head width."""
    column = tl.arange(0, W)
    keep = (position[:, None] < T) & (column[None, :] < K)
    at = position.to(tl.int64)[:, None] * stride + column[None, :]
    return tl.load(base_ptr + at, mask=keep, other=0.0)


@triton.jit
@no_type_check
def across(
    tile,  # [rows, W], as load_head_tile has it
    across_ptr,  # first element of the head in a transposed copy, or None
    position,  # [rows]
    T,
    K: tl.constexpr,
    W: tl.constexpr,
):
    """The tile transposed, [W, rows]; where there is a copy, from that, and the tile is not loaded."""
    if across_ptr is None:
        return operand(tile).T
    else:  # noqa: RET505  # the compiler drops only the other branch of a whole if
        column = tl.arange(0, W)
        keep = (column[:, None] < K) & (position[None, :] < T)
        at = column.to(tl.int64)[:, None] * T + position[None, :]
        return operand(tl.load(across_ptr + at, mask=keep, other=0.0))


@triton.jit
@no_type_check
def store_head_tile(base_ptr, position, stride, T, value, K: tl.constexpr, W: tl.constexpr):
    """Write rows ``position`` of one head."""
    column = tl.arange(0, W)
    keep = (position[:, None] < T) & (column[None, :] < K)
    at = base_ptr + position.to(tl.int64)[:, None] * stride + column[None, :]
    tl.store(at, narrow(value, base_ptr.dtype.element_ty), mask=keep)


@triton.jit
@no_type_check
def visible(q_position, k_position, start):
    """[q, k]: the key is not after the query and not before its document.

    A query that exists sees no key past the end; one that does not is never written, or has zeros for d_out.
    """
    seen = k_position[None, :] <= q_position[:, None]
    if start is not None:
        seen = seen & (k_position[None, :] >= start[:, None])
    return seen


@triton.jit
@no_type_check
def _attend(
    state,  # acc [q, W] float32, running maximum of the unscaled scores [q], running sum [q]
    queries,  # values [q, W], positions [q]
    start,  # [q], or None
    keys,  # first key of the head, in a copy across or None, first value, from one position to the next, T
    mask_ptr,  # first word of the head's mask, or None
    key_first,
    key_last,
    scale_log2,
    MASKED: tl.constexpr,
    DTYPE: tl.constexpr,
    STREAM: tl.constexpr,
    K: tl.constexpr,
    W: tl.constexpr,
):
    """Stream the keys of ``[key_first, key_last)`` past the tile of queries."""
    acc, top, total = state
    q, q_position = queries
    k_ptr, across_ptr, v_ptr, stride, T = keys
    for first in range(key_first, key_last, STREAM):
        k_position = tl.arange(0, STREAM) + first
        k = load_head_tile(k_ptr, k_position, stride, T, K, W)
        s = tl.dot(q, across(k, across_ptr, k_position, T, K, W), input_precision="ieee")
        if MASKED:
            s = tl.where(visible(q_position, k_position, start), s, float("-inf"))
        new_top = tl.maximum(top, tl.max(s, 1))
        shift = new_top * scale_log2
        if MASKED and start is not None:
            # a query may have seen nothing yet: then 0 stands for its maximum of -inf
            shift = tl.where(new_top == float("-inf"), 0.0, shift)
        p = tl.exp2(s * scale_log2 - shift[:, None])
        shrink = tl.exp2(top * scale_log2 - shift)
        total = total * shrink + tl.sum(p, 1)
        if mask_ptr is not None:
            p = tl.where(kept(mask_ptr, q_position, first, T, False, STREAM), p, 0.0)
        v = operand(load_head_tile(v_ptr, k_position, stride, T, K, W))
        acc = tl.dot(rounded_operand(p, DTYPE), v, acc * shrink[:, None], input_precision="ieee")
        top = new_top
    return acc, top, total


@triton.jit
@no_type_check
def _attention_fwd_kernel(
    qkv_ptr,  # [B, T, 3, H, K]
    keys_ptr,  # [B, H, K, T] or None
    starts_ptr,  # [B, T] or None
    mask_ptr,  # [2, B*H, blocks, 32] or None
    out_ptr,  # [B, T, H, K] written
    lse_ptr,  # [B, H, T] written
    T,
    scale_log2,
    keep_scale,
    H: tl.constexpr,
    K: tl.constexpr,
    STAY: tl.constexpr,
    STREAM: tl.constexpr,
    W: tl.constexpr,
):
    # the last tile of queries has the most keys: start with it, so that the longest work is not left over
    q_first = (tl.num_programs(1) - 1 - tl.program_id(1)) * STAY
    head = tl.program_id(0).to(tl.int64)
    width: tl.constexpr = H * K
    q_ptr = qkv_ptr + (head // H) * T * 3 * width + (head % H) * K
    q_position = q_first + tl.arange(0, STAY)
    q = operand(load_head_tile(q_ptr, q_position, 3 * width, T, K, W))
    start = None
    whole_first = 0
    if starts_ptr is not None:
        starts_at = starts_ptr + (head // H) * T + q_position
        start = tl.load(starts_at, mask=q_position < T, other=0)
        # key tiles before any query's document are skipped; from the latest start on, all see every key
        earliest = tl.min(tl.load(starts_at, mask=q_position < T, other=2147483647), 0)
        seen_first = earliest // STREAM * STREAM
        whole_first = tl.minimum(tl.cdiv(tl.max(start, 0), STREAM) * STREAM, q_first // STREAM * STREAM)
    whole_last = tl.maximum(q_first // STREAM * STREAM, whole_first)
    key_last = tl.minimum(q_first + STAY, T)
    acc = tl.zeros([STAY, W], tl.float32)
    top = tl.full([STAY], float("-inf"), tl.float32)
    total = tl.zeros([STAY], tl.float32)
    if mask_ptr is not None:
        mask_ptr += head * mask_words(T)
    k_ptr, v_ptr = q_ptr + width, q_ptr + 2 * width
    if keys_ptr is not None:
        keys_ptr += head * K * T
    DTYPE: tl.constexpr = qkv_ptr.dtype.element_ty
    state, queries, keys = (acc, top, total), (q, q_position), (k_ptr, keys_ptr, v_ptr, 3 * width, T)
    if starts_ptr is not None:
        state = _attend(
            state, queries, start, keys, mask_ptr, seen_first, whole_first, scale_log2,
            True, DTYPE, STREAM, K, W,
        )  # fmt: skip
    state = _attend(
        state, queries, start, keys, mask_ptr, whole_first, whole_last, scale_log2,
        False, DTYPE, STREAM, K, W,
    )  # fmt: skip
    state = _attend(
        state, queries, start, keys, mask_ptr, whole_last, key_last, scale_log2,
        True, DTYPE, STREAM, K, W,
    )  # fmt: skip
    acc, top, total = state
    out_base = out_ptr + (head // H) * T * width + (head % H) * K
    store_head_tile(out_base, q_position, width, T, acc * (keep_scale / total)[:, None], K, W)
    lse = (top * scale_log2 + tl.log2(total)) * LN_2
    tl.store(lse_ptr + head * T + q_position, lse, mask=q_position < T)


@triton.jit
@no_type_check
def _across_kernel(
    x_ptr,  # [B, T, W] by strides, its columns contiguous
    y_ptr,  # [B, W, T] written
    T,
    W,
    row,
    position,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    batch = tl.program_id(2).to(tl.int64)
    t = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    w = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    keep = (t[:, None] < T) & (w[None, :] < W)
    x = tl.load(x_ptr + batch * row + t[:, None].to(tl.int64) * position + w[None, :], mask=keep, other=0.0)
    tl.store(y_ptr + (batch * W + w[:, None]) * T + t[None, :], x.T, mask=keep.T)


def copy_across(x: Float[Tensor, "B T W"]) -> Float[Tensor, "B W T"] | None:
    """A copy with neighbouring positions beside each other, for float32; others are read across in place.

    The plain units take an operand that is read across half as fast; the tensor cores do not mind.
    """
    if x.dtype != torch.float32:
        return None
    rows, context, width = x.shape
    y = x.new_empty(rows, width, context)
    tile, block = matrix_tile()
    grid = (triton.cdiv(context, tile), triton.cdiv(width, block), rows)
    _across_kernel[grid](x, y, context, width, *x.stride()[:2], ROWS=tile, COLUMNS=block)
    return y


def attention_fwd(
    qkv: Float[Tensor, "B T W"],
    n_head: int,
    segment_starts: Int[Tensor, "B T"] | None,
    dropout: Dropout | None = None,
) -> tuple[Float[Tensor, "B T D"], AttentionResiduals]:
    """Attention of every head; softmax and sums in float32.

    Args:
        segment_starts: First position that each position may see; ``None`` means 0.
    """
    qkv = qkv.contiguous()
    if segment_starts is not None:
        segment_starts = segment_starts.contiguous()
    rows, context, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    head_width = width // n_head
    padded = max(16, triton.next_power_of_2(head_width))
    out = qkv.new_empty(rows, context, width)
    lse = torch.empty(rows, n_head, context, dtype=torch.float32, device=qkv.device)
    mask, keep_scale = None, 1.0
    if dropout is not None:
        mask, keep_scale = attention_mask(dropout, rows, context, n_head, segment_starts), dropout.keep_scale
    if hopper_attention(qkv, head_width, segment_starts is not None):
        # imported where it runs: Gluon has no interpreter
        from gpt_triton.kernels.hopper.attention import launch_fwd

        launch_fwd(qkv, mask, out, lse, keep_scale)
        return out, AttentionResiduals(qkv, out, lse, None, mask)
    tiles = attention_tiles("forward", padded, qkv.dtype, dropout is not None)
    _attention_fwd_kernel[(rows * n_head, triton.cdiv(context, tiles.stay))](
        qkv, copy_across(qkv[..., width : 2 * width]), segment_starts, mask, out, lse, context,
        LOG2_E.value / math.sqrt(head_width), keep_scale,
        H=n_head, K=head_width, STAY=tiles.stay, STREAM=tiles.stream, W=padded,
        num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    return out, AttentionResiduals(qkv, out, lse, segment_starts, mask)
