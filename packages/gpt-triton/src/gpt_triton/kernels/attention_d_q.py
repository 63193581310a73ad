"""The gradient of attention's queries: a program owns queries and streams keys past them.

    delta = row sums of d_O * O,   d_Q = d_S K / sqrt(K)

d_S as in ``attention_backward``, tile by tile, with queries down and keys across. Tiles of keys that none of
these queries sees are never loaded; without documents, tiles that every query sees whole skip the mask.
delta is left for the pass that follows, which would read O and d_O once more for every tile of keys.
Shapes as in ``attention``.
"""

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl

from gpt_triton.kernels.attention import load_head_tile, store_head_tile, visible
from gpt_triton.kernels.attention_mask import kept, mask_words
from gpt_triton.kernels.primitives import LOG2_E, operand, rounded_operand, widen


@triton.jit
@no_type_check
def _d_q_tiles(
    d_q,  # [q, W] float32
    queries,  # values and d_out [q, W], lse_log2, delta and positions [q]
    start,  # [q], or None
    k_ptr,  # first key of the head
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
        k = operand(load_head_tile(k_ptr, k_position, 3 * WIDTH, T, K, W))
        p = tl.exp2(tl.dot(q, k.T, input_precision="ieee") * scale_log2 - lse_log2[:, None])
        if MASKED:
            p = tl.where(visible(q_position, k_position, start), p, 0.0)
        v = operand(load_head_tile(k_ptr + WIDTH, k_position, 3 * WIDTH, T, K, W))
        d_p = tl.dot(d_out, v.T, input_precision="ieee")
        if mask_ptr is not None:
            d_p = tl.where(kept(mask_ptr, q_position, first, T, False, STREAM), d_p, 0.0) * keep_scale
        d_s = p * (d_p - delta[:, None])
        d_q = tl.dot(rounded_operand(d_s, DTYPE), k, d_q, input_precision="ieee")
    return d_q


@triton.jit
@no_type_check
def d_q_kernel(
    qkv_ptr,  # [B, T, 3, H, K]
    out_ptr,  # [B, T, H, K]
    d_out_ptr,  # [B, T, H, K]
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
    d_q = tl.zeros([STAY, W], tl.float32)
    queries = (q, d_out, lse * LOG2_E, delta, q_position)
    if starts_ptr is None:
        d_q = _d_q_tiles(
            d_q, queries, start, qkv_ptr + base + WIDTH, mask_ptr, key_first, whole_last,
            T, scale_log2, keep_scale, False, DTYPE, STREAM, WIDTH, K, W,
        )  # fmt: skip
    d_q = _d_q_tiles(
        d_q, queries, start, qkv_ptr + base + WIDTH, mask_ptr, whole_last, key_last,
        T, scale_log2, keep_scale, True, DTYPE, STREAM, WIDTH, K, W,
    )  # fmt: skip
    store_head_tile(d_qkv_ptr + base, q_position, 3 * WIDTH, T, d_q * scale, K, W)
