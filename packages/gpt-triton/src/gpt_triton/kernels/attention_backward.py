"""The backward of attention: the weights are computed again, tile by tile, from the log-sum-exp.

With mask scale R (all ones without dropout) and delta = row sums of d_O * O:

    P = exp(S - lse),   d_V = (P R)^T d_O,   d_P = (d_O V^T) R,   d_S = P (d_P - delta),
    d_Q = d_S K / sqrt(K),   d_K = d_S^T Q / sqrt(K)

Two passes instead of one: a program owns queries and streams keys for delta and d_Q, then a program owns keys
and streams queries for d_K and d_V. Each sum has one owner, so nothing is added atomically and a run repeats
itself; the price is two products more than the five of a single pass, as Hopper's kernel makes it
(``hopper.attention_backward``). delta is left for the second pass, which would read O and d_O once more for
every tile of keys. Tiles of which nothing is seen are never loaded; without documents, tiles that are seen
whole skip the mask. Shapes as in ``attention``.

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

from gpt_triton.dropout import Dropout
from gpt_triton.kernels.attention import across, copy_across, load_head_tile, store_head_tile, visible
from gpt_triton.kernels.dropout import kept, mask_words
from gpt_triton.kernels.primitives import LOG2_E, operand, rounded_operand, widen
from gpt_triton.kernels.tiles import attention_tiles, hopper_attention
from gpt_triton.ops import AttentionResiduals


@triton.jit
@no_type_check
def _d_q_tiles(
    d_q,  # [q, W] float32
    queries,  # values and d_out [q, W], lse_log2, delta and positions [q]
    start,  # [q], or None
    k_ptr,  # first key of the head
    across_ptr,  # the same in a copy across, or None
    mask_ptr,  # first word of the head's mask, or None
    key_first,
    key_last,
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
    """Stream the keys of ``[key_first, key_last)`` past the tile of queries."""
    q, d_out, lse_log2, delta, q_position = queries
    for first in range(key_first, key_last, STREAM):
        k_position = tl.arange(0, STREAM) + first
        k = load_head_tile(k_ptr, k_position, 3 * WIDTH, T, K, W)
        s = tl.dot(q, across(k, across_ptr, k_position, T, K, W), input_precision="ieee")
        p = tl.exp2(s * scale_log2 - lse_log2[:, None])
        if MASKED:
            p = tl.where(visible(q_position, k_position, start), p, 0.0)
        v = load_head_tile(k_ptr + WIDTH, k_position, 3 * WIDTH, T, K, W)
        v_across_ptr = None
        if across_ptr is not None:
            v_across_ptr = across_ptr + WIDTH * T
        d_p = tl.dot(d_out, across(v, v_across_ptr, k_position, T, K, W), input_precision="ieee")
        if mask_ptr is not None:
            d_p = tl.where(kept(mask_ptr, q_position, first, T, False, STREAM), d_p, 0.0) * keep_scale
        d_s = p * (d_p - delta[:, None])
        d_q = tl.dot(rounded_operand(d_s, DTYPE), operand(k), d_q, input_precision="ieee")
    return d_q


@triton.jit
@no_type_check
def d_q_kernel(
    qkv_ptr,  # [B, T, 3, H, K]
    out_ptr,  # [B, T, H, K]
    d_out_ptr,  # [B, T, H, K]
    across_ptr,  # [B, 3, H, K, T] or None: as qkv_ptr
    lse_ptr,  # [B, H, T]
    delta_ptr,  # [B, H, T] written
    starts_ptr,  # [B, T] or None
    mask_ptr,  # [2, B*H, blocks, 32] or None
    d_qkv_ptr,  # [B, T, 3, H, K]: queries written
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
    """Gradient of one tile of queries."""
    q_first = (tl.num_programs(1) - 1 - tl.program_id(1)) * STAY
    head = tl.program_id(0).to(tl.int64)
    WIDTH: tl.constexpr = H * K
    DTYPE: tl.constexpr = qkv_ptr.dtype.element_ty
    row = head // H
    base = row * T * 3 * WIDTH + (head % H) * K
    q_position = tl.arange(0, STAY) + q_first
    q = operand(load_head_tile(qkv_ptr + base, q_position, 3 * WIDTH, T, K, W))
    head_first = row * T * WIDTH + (head % H) * K
    d_out = load_head_tile(d_out_ptr + head_first, q_position, WIDTH, T, K, W)
    out = load_head_tile(out_ptr + head_first, q_position, WIDTH, T, K, W)
    delta = tl.sum(widen(out) * widen(d_out), 1)
    tl.store(delta_ptr + head * T + q_position, delta, mask=q_position < T)
    d_out = operand(d_out)
    lse = tl.load(lse_ptr + head * T + q_position, mask=q_position < T, other=0.0)
    start = None
    whole_last = q_first // STREAM * STREAM
    key_first = 0
    if starts_ptr is not None:
        start = tl.load(starts_ptr + row * T + q_position, mask=q_position < T, other=2147483647)
        key_first = tl.min(start, 0) // STREAM * STREAM
        # a document may begin anywhere: every tile is masked
        whole_last = key_first
    key_last = tl.minimum(q_first + STAY, T)
    if mask_ptr is not None:
        mask_ptr += head * mask_words(T)
    if across_ptr is not None:
        across_ptr += (row * 3 * WIDTH + WIDTH + (head % H) * K) * T
    d_q = tl.zeros([STAY, W], tl.float32)
    queries = (q, d_out, lse * LOG2_E, delta, q_position)
    if starts_ptr is None:
        d_q = _d_q_tiles(
            d_q, queries, start, qkv_ptr + base + WIDTH, across_ptr, mask_ptr, key_first, whole_last,
            T, scale_log2, keep_scale, False, DTYPE, STREAM, WIDTH, K, W,
        )  # fmt: skip
    d_q = _d_q_tiles(
        d_q, queries, start, qkv_ptr + base + WIDTH, across_ptr, mask_ptr, whole_last, key_last,
        T, scale_log2, keep_scale, True, DTYPE, STREAM, WIDTH, K, W,
    )  # fmt: skip
    store_head_tile(d_qkv_ptr + base, q_position, 3 * WIDTH, T, d_q * scale, K, W)


@triton.jit
@no_type_check
def _d_kv_tiles(
    sums,  # d_k and d_v [k, W] float32
    keys,  # keys and values [k, W], positions [k]
    queries,  # pointers: first query, d_out, both in copies across or None, lse and delta of the head
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
    q_ptr, d_out_ptr, q_across_ptr, d_out_across_ptr, lse_ptr, delta_ptr = queries
    for first in range(query_first, query_last, STREAM):
        q_position = tl.arange(0, STREAM) + first
        q = load_head_tile(q_ptr, q_position, 3 * WIDTH, T, K, W)
        lse = tl.load(lse_ptr + q_position, mask=q_position < T, other=0.0)
        s = tl.dot(k, across(q, q_across_ptr, q_position, T, K, W), input_precision="ieee")
        p = tl.exp2(s * scale_log2 - (lse * LOG2_E)[None, :])
        if MASKED:
            # queries past the end need no mask: their d_out and delta are zero
            seen = k_position[:, None] <= q_position[None, :]
            if starts_ptr is not None:
                start = tl.load(starts_ptr + q_position, mask=q_position < T, other=0)
                seen = seen & (k_position[:, None] >= start[None, :])
            p = tl.where(seen, p, 0.0)
        d_out = load_head_tile(d_out_ptr, q_position, WIDTH, T, K, W)
        d_p = tl.dot(v, across(d_out, d_out_across_ptr, q_position, T, K, W), input_precision="ieee")
        p_kept = p
        if mask_ptr is not None:
            keep = kept(mask_ptr, k_position, first, T, True, STREAM)
            p_kept = tl.where(keep, p, 0.0)
            d_p = tl.where(keep, d_p, 0.0) * keep_scale
        d_v = tl.dot(rounded_operand(p_kept, DTYPE), operand(d_out), d_v, input_precision="ieee")
        delta = tl.load(delta_ptr + q_position, mask=q_position < T, other=0.0)
        d_s = p * (d_p - delta[None, :])
        d_k = tl.dot(rounded_operand(d_s, DTYPE), operand(q), d_k, input_precision="ieee")
    return d_k, d_v


@triton.jit
@no_type_check
def d_kv_kernel(
    qkv_ptr,  # [B, T, 3, H, K]
    d_out_ptr,  # [B, T, H, K]
    across_ptr,  # [B, 3, H, K, T] or None: as qkv_ptr
    d_out_across_ptr,  # [B, H, K, T] or None
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
    if across_ptr is not None:
        across_ptr += (row * 3 * WIDTH + (head % H) * K) * T
        d_out_across_ptr += head * K * T
    if mask_ptr is not None:
        mask_ptr += (tl.num_programs(0) + head) * mask_words(T)
    sums, keys = (tl.zeros([STAY, W], tl.float32), tl.zeros([STAY, W], tl.float32)), (k, v, k_position)
    lse_ptr, delta_ptr = lse_ptr + head * T, delta_ptr + head * T
    queries = (qkv_ptr + base, d_out_ptr, across_ptr, d_out_across_ptr, lse_ptr, delta_ptr)
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


def attention_bwd(
    res: AttentionResiduals,
    d_out: Float[Tensor, "B T D"],
    n_head: int,
    dropout: Dropout | None = None,
) -> Float[Tensor, "B T 3*D"]:
    """Gradient of queries, keys and values."""
    d_out = d_out.contiguous()
    rows, context, width = d_out.shape
    head_width = width // n_head
    padded = max(16, triton.next_power_of_2(head_width))
    d_qkv = torch.empty_like(res.qkv)
    keep_scale = 1.0 if dropout is None else dropout.keep_scale
    scale = 1.0 / math.sqrt(head_width)
    if hopper_attention(res.qkv, head_width, res.segment_starts is not None):
        # imported where it runs: Gluon has no interpreter
        from gpt_triton.kernels.hopper.attention_backward import launch_bwd

        launch_bwd(res, d_out, d_qkv, keep_scale)
        return d_qkv
    delta, qkv_across = torch.empty_like(res.lse), copy_across(res.qkv)
    passes = (
        (d_q_kernel, "d_q", (res.qkv, res.out, d_out, qkv_across)),
        (d_kv_kernel, "d_kv", (res.qkv, d_out, qkv_across, copy_across(d_out))),
    )
    for kernel, kind, given in passes:
        tiles = attention_tiles(kind, padded, d_out.dtype, dropout is not None)
        kernel[(rows * n_head, triton.cdiv(context, tiles.stay))](
            *given, res.lse, delta, res.segment_starts, res.mask, d_qkv, context,
            scale, scale * LOG2_E.value, keep_scale,
            H=n_head, K=head_width, STAY=tiles.stay, STREAM=tiles.stream, W=padded,
            num_warps=tiles.warps, num_stages=tiles.stages,
        )  # fmt: skip
    return d_qkv
