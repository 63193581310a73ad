"""The backward of attention: the weights are computed again, tile by tile, from the log-sum-exp.

With mask scale R (all ones without dropout) and delta = row sums of d_O * O:

    P = exp(S - lse),   d_V = (P R)^T d_O,   d_P = (d_O V^T) R,   d_S = P (d_P - delta),
    d_Q = d_S K / sqrt(K),   d_K = d_S^T Q / sqrt(K)

Two passes instead of one: a program owns keys and streams queries for d_K and d_V, then a program owns
queries and streams keys for d_Q. Each sum has one owner, so nothing is added atomically and a run repeats
itself; the price is two products more than the five of a single pass. Shapes as in ``attention``.

References:
    Dao 2023, "FlashAttention-2", section 3.1.2.
"""

from __future__ import annotations

import math
from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from gpt_triton.kernels.attention import load_head_tile, store_head_tile, visible
from gpt_triton.kernels.dropout import dropout_arguments
from gpt_triton.kernels.primitives import LOG2_E, keep_mask, operand, rounded_operand, widen
from gpt_triton.kernels.tiles import attention_tiles, row_tile
from gpt_triton.residuals import AttentionResiduals, Dropout


@triton.jit
@no_type_check
def _delta_kernel(
    out_ptr,  # [B, T, H, K]
    d_out_ptr,  # [B, T, H, K]
    delta_ptr,  # [B, H, T] written
    N,
    T,
    H: tl.constexpr,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    W: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, W)
    keep = (row[:, None] < N) & (column[None, :] < K)
    at = row[:, None] * K + column[None, :]
    out = widen(tl.load(out_ptr + at, mask=keep, other=0.0))
    d_out = widen(tl.load(d_out_ptr + at, mask=keep, other=0.0))
    position, head = row // H, row % H
    to = (position // T * H + head) * T + position % T
    tl.store(delta_ptr + to, tl.sum(out * d_out, 1), mask=row < N)


@triton.jit
@no_type_check
def _d_kv_tiles(
    d_k,  # [k, W] float32
    d_v,  # [k, W] float32
    k,  # [k, W]
    v,  # [k, W]
    q_ptr,  # first query of the head
    d_out_ptr,
    lse_ptr,
    delta_ptr,
    starts_ptr,
    k_position,
    query_first,
    query_last,
    index_base,  # int64: position of the head's weights among all
    T,
    scale_log2,
    key_ptr,
    keep_scale,
    MASKED: tl.constexpr,
    THRESHOLD: tl.constexpr,
    DTYPE: tl.constexpr,
    STREAM: tl.constexpr,
    WIDTH: tl.constexpr,
    K: tl.constexpr,
    W: tl.constexpr,
):
    """Stream the queries of ``[query_first, query_last)`` past the tile of keys; tiles are [k, q]."""
    for first in range(query_first, query_last, STREAM):
        q_position = tl.arange(0, STREAM).to(tl.int64) + first
        q = operand(load_head_tile(q_ptr, q_position, 3 * WIDTH, T, K, W))
        lse = tl.load(lse_ptr + q_position, mask=q_position < T, other=0.0)
        p = tl.exp2(tl.dot(k, q.T, input_precision="ieee") * scale_log2 - (lse * LOG2_E)[None, :])
        if MASKED:
            seen = (k_position[:, None] <= q_position[None, :]) & (q_position[None, :] < T)
            if starts_ptr is not None:
                start = tl.load(starts_ptr + q_position, mask=q_position < T, other=0)
                seen = seen & (k_position[:, None] >= start[None, :])
            p = tl.where(seen, p, 0.0)
        d_out = operand(load_head_tile(d_out_ptr, q_position, WIDTH, T, K, W))
        d_p = tl.dot(v, d_out.T, input_precision="ieee")
        p_kept = p
        if key_ptr is not None:
            at = index_base + q_position[None, :] * T + k_position[:, None]
            kept = keep_mask(at, key_ptr, THRESHOLD)
            p_kept = tl.where(kept, p * keep_scale, 0.0)
            d_p = tl.where(kept, d_p * keep_scale, 0.0)
        d_v = tl.dot(rounded_operand(p_kept, DTYPE), d_out, d_v, input_precision="ieee")
        delta = tl.load(delta_ptr + q_position, mask=q_position < T, other=0.0)
        d_s = p * (d_p - delta[None, :])
        d_k = tl.dot(rounded_operand(d_s, DTYPE), q, d_k, input_precision="ieee")
    return d_k, d_v


@triton.jit
@no_type_check
def _d_kv_kernel(
    qkv_ptr,  # [B, T, 3, H, K]
    d_out_ptr,  # [B, T, H, K]
    lse_ptr,  # [B, H, T]
    delta_ptr,  # [B, H, T]
    starts_ptr,  # [B, T] or None
    d_qkv_ptr,  # [B, T, 3, H, K]: keys and values written
    key_ptr,  # [2] or None
    T,
    scale,
    scale_log2,
    keep_scale,
    THRESHOLD: tl.constexpr,
    H: tl.constexpr,
    K: tl.constexpr,
    STAY: tl.constexpr,
    STREAM: tl.constexpr,
    W: tl.constexpr,
):
    # the first tile of keys has the most queries, and comes first
    key_first = tl.program_id(1) * STAY
    head = tl.program_id(0).to(tl.int64)
    WIDTH: tl.constexpr = H * K
    DTYPE: tl.constexpr = qkv_ptr.dtype.element_ty
    row = head // H
    base = row * T * 3 * WIDTH + (head % H) * K
    k_position = tl.arange(0, STAY).to(tl.int64) + key_first
    k = operand(load_head_tile(qkv_ptr + base + WIDTH, k_position, 3 * WIDTH, T, K, W))
    v = operand(load_head_tile(qkv_ptr + base + 2 * WIDTH, k_position, 3 * WIDTH, T, K, W))
    query_first = key_first // STREAM * STREAM
    whole_first = tl.minimum(tl.cdiv(key_first + STAY, STREAM) * STREAM, tl.cdiv(T, STREAM) * STREAM)
    query_last = tl.cdiv(T, STREAM) * STREAM
    if starts_ptr is not None:
        starts_ptr += row * T
        # past the last query whose document begins at or before the last key, nobody sees these keys
        query_last = query_first
        for first in range(query_first, T, 512):
            position = tl.arange(0, 512).to(tl.int64) + first
            start = tl.load(starts_ptr + position, mask=position < T, other=2147483647)
            sees = tl.where(start < key_first + STAY, position + 1, 0)
            query_last = tl.maximum(query_last, tl.max(sees, 0).to(tl.int32))
        # a document may begin anywhere: every tile is masked
        whole_first = query_last
    d_out_ptr += row * T * WIDTH + (head % H) * K
    index_base = head * T * T
    d_k = tl.zeros([STAY, W], tl.float32)
    d_v = tl.zeros([STAY, W], tl.float32)
    d_k, d_v = _d_kv_tiles(
        d_k, d_v, k, v, qkv_ptr + base, d_out_ptr, lse_ptr + head * T, delta_ptr + head * T, starts_ptr,
        k_position, query_first, whole_first, index_base, T, scale_log2, key_ptr, keep_scale,
        True, THRESHOLD, DTYPE, STREAM, WIDTH, K, W,
    )  # fmt: skip
    if starts_ptr is None:
        d_k, d_v = _d_kv_tiles(
            d_k, d_v, k, v, qkv_ptr + base, d_out_ptr, lse_ptr + head * T, delta_ptr + head * T, starts_ptr,
            k_position, whole_first, query_last, index_base, T, scale_log2, key_ptr, keep_scale,
            False, THRESHOLD, DTYPE, STREAM, WIDTH, K, W,
        )  # fmt: skip
    store_head_tile(d_qkv_ptr + base + WIDTH, k_position, 3 * WIDTH, T, d_k * scale, K, W)
    store_head_tile(d_qkv_ptr + base + 2 * WIDTH, k_position, 3 * WIDTH, T, d_v, K, W)


@triton.jit
@no_type_check
def _d_q_tiles(
    d_q,  # [q, W] float32
    q,  # [q, W]
    d_out,  # [q, W]
    lse_log2,  # [q]
    delta,  # [q]
    k_ptr,  # first key of the head
    q_position,
    start,
    key_first,
    key_last,
    index_base,  # int64: position of the head's weights among all
    T,
    scale_log2,
    key_ptr,
    keep_scale,
    MASKED: tl.constexpr,
    THRESHOLD: tl.constexpr,
    DTYPE: tl.constexpr,
    STREAM: tl.constexpr,
    WIDTH: tl.constexpr,
    K: tl.constexpr,
    W: tl.constexpr,
):
    """Stream the keys of ``[key_first, key_last)`` past the tile of queries."""
    for first in range(key_first, key_last, STREAM):
        k_position = tl.arange(0, STREAM).to(tl.int64) + first
        k = operand(load_head_tile(k_ptr, k_position, 3 * WIDTH, T, K, W))
        p = tl.exp2(tl.dot(q, k.T, input_precision="ieee") * scale_log2 - lse_log2[:, None])
        if MASKED:
            p = tl.where(visible(q_position, k_position, start, T), p, 0.0)
        v = operand(load_head_tile(k_ptr + WIDTH, k_position, 3 * WIDTH, T, K, W))
        d_p = tl.dot(d_out, v.T, input_precision="ieee")
        if key_ptr is not None:
            at = index_base + q_position[:, None] * T + k_position[None, :]
            d_p = tl.where(keep_mask(at, key_ptr, THRESHOLD), d_p * keep_scale, 0.0)
        d_s = p * (d_p - delta[:, None])
        d_q = tl.dot(rounded_operand(d_s, DTYPE), k, d_q, input_precision="ieee")
    return d_q


@triton.jit
@no_type_check
def _d_q_kernel(
    qkv_ptr,  # [B, T, 3, H, K]
    d_out_ptr,  # [B, T, H, K]
    lse_ptr,  # [B, H, T]
    delta_ptr,  # [B, H, T]
    starts_ptr,  # [B, T] or None
    d_qkv_ptr,  # [B, T, 3, H, K]: queries written
    key_ptr,  # [2] or None
    T,
    scale,
    scale_log2,
    keep_scale,
    THRESHOLD: tl.constexpr,
    H: tl.constexpr,
    K: tl.constexpr,
    STAY: tl.constexpr,
    STREAM: tl.constexpr,
    W: tl.constexpr,
):
    q_first = (tl.num_programs(1) - 1 - tl.program_id(1)) * STAY
    head = tl.program_id(0).to(tl.int64)
    WIDTH: tl.constexpr = H * K
    DTYPE: tl.constexpr = qkv_ptr.dtype.element_ty
    row = head // H
    base = row * T * 3 * WIDTH + (head % H) * K
    q_position = tl.arange(0, STAY).to(tl.int64) + q_first
    q = operand(load_head_tile(qkv_ptr + base, q_position, 3 * WIDTH, T, K, W))
    d_out_at = d_out_ptr + row * T * WIDTH + (head % H) * K
    d_out = operand(load_head_tile(d_out_at, q_position, WIDTH, T, K, W))
    lse = tl.load(lse_ptr + head * T + q_position, mask=q_position < T, other=0.0)
    delta = tl.load(delta_ptr + head * T + q_position, mask=q_position < T, other=0.0)
    start = tl.zeros([STAY], tl.int32)
    whole_last = q_first // STREAM * STREAM
    key_first = 0
    if starts_ptr is not None:
        start = tl.load(starts_ptr + row * T + q_position, mask=q_position < T, other=2147483647)
        key_first = tl.min(start, 0) // STREAM * STREAM
        # a document may begin anywhere: every tile is masked
        whole_last = key_first
    key_last = tl.minimum(q_first + STAY, T)
    index_base = head * T * T
    d_q = tl.zeros([STAY, W], tl.float32)
    if starts_ptr is None:
        d_q = _d_q_tiles(
            d_q, q, d_out, lse * LOG2_E, delta, qkv_ptr + base + WIDTH, q_position, start, key_first,
            whole_last, index_base, T, scale_log2, key_ptr, keep_scale, False, THRESHOLD, DTYPE, STREAM,
            WIDTH, K, W,
        )  # fmt: skip
    d_q = _d_q_tiles(
        d_q, q, d_out, lse * LOG2_E, delta, qkv_ptr + base + WIDTH, q_position, start, whole_last, key_last,
        index_base, T, scale_log2, key_ptr, keep_scale, True, THRESHOLD, DTYPE, STREAM, WIDTH, K, W,
    )  # fmt: skip
    store_head_tile(d_qkv_ptr + base, q_position, 3 * WIDTH, T, d_q * scale, K, W)


def attention_bwd(
    res: AttentionResiduals,
    d_out: Float[Tensor, "B T D"],
    n_head: int,
    dropout: Dropout | None = None,
) -> Float[Tensor, "B T 3*D"]:
    """Gradient of queries, keys and values.

    Args:
        res: From the forward.
        d_out: Gradient of the output.
        n_head: As in the forward.
        dropout: As in the forward.
    """
    d_out = d_out.contiguous()
    rows, context, width = d_out.shape
    head_width = width // n_head
    padded = max(16, triton.next_power_of_2(head_width))
    delta = torch.empty_like(res.lse)
    tile, _ = row_tile(padded)
    count = rows * context * n_head
    _delta_kernel[(triton.cdiv(count, tile),)](
        res.out, d_out, delta, count, context, H=n_head, K=head_width, ROWS=tile, W=padded
    )
    d_qkv = torch.empty_like(res.qkv)
    key, keep_scale, threshold = dropout_arguments(dropout)
    scale = 1.0 / math.sqrt(head_width)
    for kernel, kind in ((_d_kv_kernel, "d_kv"), (_d_q_kernel, "d_q")):
        tiles = attention_tiles(kind, padded, d_out.dtype, dropout is not None)
        kernel[(rows * n_head, triton.cdiv(context, tiles.stay))](
            res.qkv, d_out, res.lse, delta, res.segment_starts, d_qkv, key, context,
            scale, scale * LOG2_E.value, keep_scale,
            THRESHOLD=threshold, H=n_head, K=head_width, STAY=tiles.stay, STREAM=tiles.stream, W=padded,
            num_warps=tiles.warps, num_stages=tiles.stages,
        )  # fmt: skip
    return d_qkv
