"""The gradients of attention's keys and values: a program owns keys and streams queries past them.

    d_V = (P R)^T d_O,   d_K = d_S^T Q / sqrt(K)

P, R and d_S as in ``attention_backward``, tile by tile, with keys down and queries across. Tiles of queries
that see none of these keys are never loaded; without documents, tiles that see all of them skip the mask.
Shapes as in ``attention``.
"""

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl

from gpt_triton.kernels.attention import load_head_tile, store_head_tile
from gpt_triton.kernels.attention_mask import kept, mask_words
from gpt_triton.kernels.primitives import LOG2_E, operand, rounded_operand


@triton.jit
@no_type_check
def _d_kv_tiles(
    sums,  # d_k and d_v [k, W] float32
    keys,  # keys and values [k, W], positions [k]
    queries,  # pointers: first query, d_out, lse and delta of the head
    starts_ptr,
    mask_ptr,  # first word of the head's mask by key, or None
    query_first,
    query_last,
    T,
    scale_log2,
    keep_scale,
    MASKED: tl.constexpr,
    DTYPE: tl.constexpr,
    STREAM: tl.constexpr,
    WIDTH: tl.constexpr,
    K: tl.constexpr,
    W: tl.constexpr,
):
    """Stream the queries of ``[query_first, query_last)`` past the tile of keys; tiles are [k, q]."""
    d_k, d_v = sums
    k, v, k_position = keys
    q_ptr, d_out_ptr, lse_ptr, delta_ptr = queries
    for first in range(query_first, query_last, STREAM):
        q_position = tl.arange(0, STREAM) + first
        q = operand(load_head_tile(q_ptr, q_position, 3 * WIDTH, T, K, W))
        lse = tl.load(lse_ptr + q_position, mask=q_position < T, other=0.0)
        p = tl.exp2(tl.dot(k, q.T, input_precision="ieee") * scale_log2 - (lse * LOG2_E)[None, :])
        if MASKED:
            # queries past the end need no mask: their d_out and delta are zero
            seen = k_position[:, None] <= q_position[None, :]
            if starts_ptr is not None:
                start = tl.load(starts_ptr + q_position, mask=q_position < T, other=0)
                seen = seen & (k_position[:, None] >= start[None, :])
            p = tl.where(seen, p, 0.0)
        d_out = operand(load_head_tile(d_out_ptr, q_position, WIDTH, T, K, W))
        d_p = tl.dot(v, d_out.T, input_precision="ieee")
        p_kept = p
        if mask_ptr is not None:
            keep = kept(mask_ptr, k_position, first, T, True, STREAM)
            p_kept = tl.where(keep, p, 0.0)
            d_p = tl.where(keep, d_p, 0.0) * keep_scale
        d_v = tl.dot(rounded_operand(p_kept, DTYPE), d_out, d_v, input_precision="ieee")
        delta = tl.load(delta_ptr + q_position, mask=q_position < T, other=0.0)
        d_s = p * (d_p - delta[None, :])
        d_k = tl.dot(rounded_operand(d_s, DTYPE), q, d_k, input_precision="ieee")
    return d_k, d_v


@triton.jit
@no_type_check
def d_kv_kernel(
    qkv_ptr,  # [B, T, 3, H, K]
    d_out_ptr,  # [B, T, H, K]
    lse_ptr,  # [B, H, T]
    delta_ptr,  # [B, H, T]
    starts_ptr,  # [B, T] or None
    mask_ptr,  # [2, B*H, blocks, 32] or None
    d_qkv_ptr,  # [B, T, 3, H, K]: keys and values written
    T,
    scale,
    scale_log2,
    keep_scale,
    H: tl.constexpr,
    K: tl.constexpr,
    STAY: tl.constexpr,
    STREAM: tl.constexpr,
    W: tl.constexpr,
):
    """Gradients of one tile of keys and of its values."""
    # the first tile of keys has the most queries, and comes first
    key_first = tl.program_id(1) * STAY
    head = tl.program_id(0).to(tl.int64)
    WIDTH: tl.constexpr = H * K
    DTYPE: tl.constexpr = qkv_ptr.dtype.element_ty
    row = head // H
    base = row * T * 3 * WIDTH + (head % H) * K
    k_position = tl.arange(0, STAY) + key_first
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
            position = tl.arange(0, 512) + first
            start = tl.load(starts_ptr + position, mask=position < T, other=2147483647)
            sees = tl.where(start < key_first + STAY, position + 1, 0)
            query_last = tl.maximum(query_last, tl.max(sees, 0))
        # a document may begin anywhere: every tile is masked
        whole_first = query_last
    d_out_ptr += row * T * WIDTH + (head % H) * K
    if mask_ptr is not None:
        mask_ptr += (tl.num_programs(0) + head) * mask_words(T)
    d_k = tl.zeros([STAY, W], tl.float32)
    d_v = tl.zeros([STAY, W], tl.float32)
    sums, keys = (d_k, d_v), (k, v, k_position)
    queries = (qkv_ptr + base, d_out_ptr, lse_ptr + head * T, delta_ptr + head * T)
    sums = _d_kv_tiles(
        sums, keys, queries, starts_ptr, mask_ptr, query_first, whole_first, T, scale_log2, keep_scale,
        True, DTYPE, STREAM, WIDTH, K, W,
    )  # fmt: skip
    if starts_ptr is None:
        sums = _d_kv_tiles(
            sums, keys, queries, starts_ptr, mask_ptr, whole_first, query_last, T, scale_log2, keep_scale,
            False, DTYPE, STREAM, WIDTH, K, W,
        )  # fmt: skip
    d_k, d_v = sums
    store_head_tile(d_qkv_ptr + base + WIDTH, k_position, 3 * WIDTH, T, d_k * scale, K, W)
    store_head_tile(d_qkv_ptr + base + 2 * WIDTH, k_position, 3 * WIDTH, T, d_v * keep_scale, K, W)
