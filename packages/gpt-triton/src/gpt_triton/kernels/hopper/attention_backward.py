"""Attention's backward on Hopper, heads of 64 in bfloat16, whole rows only: five products in one kernel.

What ``kernels.attention_backward`` computes in two passes of seven products, by ``partitions`` of warps. A
program takes pieces of 128 keys of a head; queries are streamed past them. A consumer owns 64 of the keys:

    S = K Q^T,   P = exp(S - lse),   d_P = V d_O^T,   d_S = P (d_P - delta),   d_V += P d_O,   d_K += d_S Q

It multiplies keys and values out of registers: left operands of 64 rows take as long to read from shared
memory as the tensor cores take for them. While one consumer takes exponentials, the other's products run.
Both leave d_S for a third, which adds its product with the keys to d_Q (``attention_d_q``).

Bound: of 128 keys and 64 queries the products take 1,280 cycles, what passes through shared memory 1,100,
the exponentials 512, the other instructions some 900 on four schedulers.

Shapes: B rows, T positions, H heads.

References:
    Shah et al. 2024, "FlashAttention-3", section 3 (partitions that fill each other's waits).
"""

from __future__ import annotations

import math
from typing import no_type_check

import torch
from jaxtyping import Float
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from gpt_triton.kernels.hopper.attention_d_q import (
    D_S_TILES,
    GROUPS,
    PIECE,
    STREAM,
    TURNS,
    add_queries,
    attention_rows_kernel,
    leave,
    new_pieces,
    piece_of,
    take,
    taken,
    tell_turns,
    wait_turns,
)
from gpt_triton.kernels.hopper.partitions import (
    GRADIENT,
    GROUP,
    HEAD,
    NUMBERS,
    OPERAND,
    PRODUCER_REGISTERS,
    as_operand,
    block_barrier,
    described,
    described_numbers,
    expect_slot,
    fence_async_shared,
    first_word,
    keep,
    mask_bits,
    new_barriers,
    new_numbers,
    new_stream,
    new_tiles,
    release,
    scores,
    skip,
    store_tile,
    tma_load,
    wait_full,
)
from gpt_triton.kernels.primitives import LOG2_E, multiprocessors
from gpt_triton.ops import AttentionResiduals

STAGES = 4  # tiles of queries in flight
REGISTERS, D_Q_REGISTERS = 208, 72  # of a thread of the consumers of keys, and of the third
# what a thread holds of numbers of a tile's keys, its rows, and queries
BY_KEY = gl.constexpr(gl.SliceLayout(1, GRADIENT.value))
BY_QUERY = gl.constexpr(gl.SliceLayout(0, GRADIENT.value))


@gluon.jit
@no_type_check
def _produce(kv_desc, descs, pieces, stream, added_ptr, heads, T, H: gl.constexpr):
    q_desc, d_out_desc, lse_desc, delta_desc, mask_desc = descs
    _, keys, values, _, _ = pieces
    WIDTH: gl.constexpr = H * HEAD
    # numbers, and words of a mask for both consumers and both blocks of 32 queries, are of one size
    COUNT: gl.constexpr = 2 if mask_desc is None else 2 + 2 * GROUPS
    BYTES: gl.constexpr = 2 * q_desc.block_type.nbytes + COUNT * lse_desc.block_type.nbytes
    tickets_ptr = added_ptr + heads * (T // STREAM)
    n = 0
    count = 0
    ticket, buffer, full = take(pieces, count, tickets_ptr)
    while ticket < heads * (T // PIECE):
        head, k_first = piece_of(ticket, T)
        row, column = head // H * T, head % H * HEAD
        mbarrier.expect(full, 2 * GROUPS * kv_desc.block_type.nbytes)
        for group in gl.static_range(GROUPS):
            at, tile = row + k_first + group * GROUP, buffer * GROUPS + group
            tma_load(kv_desc, [at, column + WIDTH], full, keys.index(tile))
            tma_load(kv_desc, [at, column + 2 * WIDTH], full, values.index(tile))
        for first in range(k_first, T, STREAM):
            slot, filled = expect_slot(stream, n, BYTES)
            tma_load(q_desc, [row + first, column], filled, stream[0].index(slot))
            tma_load(d_out_desc, [row + first, column], filled, stream[1].index(slot))
            tma_load(lse_desc, [head * T + first], filled, stream[4].index(slot))
            tma_load(delta_desc, [head * T + first], filled, stream[5].index(slot))
            if mask_desc is not None:
                # of blocks before these keys what lies there is read, and taken times zero
                for i in gl.static_range(2 * GROUPS):
                    at = first_word(head, first // 32 + i % 2, T) + k_first + i // 2 * GROUP
                    tma_load(mask_desc, [at], filled, stream[6].index(slot * 2 * GROUPS + i))
            n += 1
        count += 1
        ticket, buffer, full = take(pieces, count, tickets_ptr)
    mbarrier.arrive(full, count=1)


@gluon.jit
@no_type_check
def _add_tile(
    d_k,  # [64, 64] float32
    d_v,  # [64, 64] float32
    stay,  # keys and values, operands
    stream,  # of queries and d_out, with their log-sum-exp and delta, and words of the mask by key
    d_s_stream,
    n,  # tiles before this one, since the start
    scale_log2,
    keep_scale,
    group: gl.constexpr,
    MASK: gl.constexpr,  # there is one, dropout's
    DIAGONAL: gl.constexpr,  # its queries are the positions of the keys
):
    STAGES: gl.constexpr = stream[0].shape[0]
    slot = n % STAGES
    q_tile, d_out_tile = stream[0].index(slot), stream[1].index(slot)
    wait_full(stream, n, True)
    s = scores(stay[0], q_tile, GRADIENT)
    d_p = scores(stay[1], d_out_tile, GRADIENT)
    lse_log2 = stream[4].index(slot).load(BY_QUERY)
    s = warpgroup_mma_wait(1, deps=(s,))
    p = gl.exp2(s * scale_log2 - lse_log2[None, :])
    if DIAGONAL:
        key, query = gl.arange(0, GROUP, layout=BY_KEY), gl.arange(0, STREAM, layout=BY_QUERY)
        p = gl.where(key[:, None] <= query[None, :], p, 0.0)
    kept = p
    if MASK:
        at = (slot * GROUPS + group) * 2
        words = (stream[6].index(at).load(BY_KEY), stream[6].index(at + 1).load(BY_KEY))
        word, bit = mask_bits(words, STREAM, GRADIENT)
        kept = keep(p, word, bit)
    kept = as_operand(kept)
    d_v = warpgroup_mma(kept, d_out_tile, d_v, is_async=True)
    d_p = warpgroup_mma_wait(1, deps=(d_p,))
    delta = stream[5].index(slot).load(BY_QUERY)
    if MASK:
        d_p = keep(d_p, word, bit) * keep_scale
    d_s = p * (d_p - delta[None, :])
    d_s_operand = as_operand(d_s)
    d_k = warpgroup_mma(d_s_operand, q_tile, d_k, is_async=True)
    leave(d_s_stream, n, group, d_s.to(gl.bfloat16))
    d_k, d_v, kept, d_s_operand = warpgroup_mma_wait(0, deps=(d_k, d_v, kept, d_s_operand))
    release(stream, n)
    return d_k, d_v


@gluon.jit
@no_type_check
def _consume(
    given,  # see the kernel below
    H: gl.constexpr,
    MASK: gl.constexpr,
    group: gl.constexpr,
):
    d_qkv_desc, pieces, out_tiles, stream, d_s_stream, heads, T, numbers = given
    _, keys, values, _, empty = pieces
    scale, scale_log2, keep_scale = numbers
    WIDTH: gl.constexpr = H * HEAD
    n = 0
    count = 0
    ticket, buffer = taken(pieces, count, 4)
    while ticket < heads * (T // PIECE):
        tile = buffer * GROUPS + group
        stay = (keys.index(tile).load(OPERAND), values.index(tile).load(OPERAND))
        mbarrier.arrive(empty.index(buffer), count=1)
        head, k_first = piece_of(ticket, T)
        d_k = gl.zeros([GROUP, HEAD], gl.float32, layout=GRADIENT)
        d_v = gl.zeros([GROUP, HEAD], gl.float32, layout=GRADIENT)
        if group > 0:
            # queries before these keys
            leave(d_s_stream, n, group, gl.zeros([GROUP, STREAM], gl.bfloat16, layout=GRADIENT))
            skip(stream, n, n + group)
        d_k, d_v = _add_tile(
            d_k, d_v, stay, stream, d_s_stream, n + group, scale_log2, keep_scale, group, MASK, True
        )
        tiles = (T - k_first) // STREAM
        for t in range(group + 1, tiles):
            d_k, d_v = _add_tile(
                d_k, d_v, stay, stream, d_s_stream, n + t, scale_log2, keep_scale, group, MASK, False
            )
        row, column = head // H * T + k_first + group * GROUP, head % H * HEAD
        store_tile(d_qkv_desc, row, column + WIDTH, out_tiles[0].index(group), d_k * scale)
        store_tile(d_qkv_desc, row, column + 2 * WIDTH, out_tiles[1].index(group), d_v * keep_scale)
        n += tiles
        count += 1
        ticket, buffer = taken(pieces, count, 4)
    tma.store_wait(0)


@gluon.jit
@no_type_check
def attention_bwd_hopper_kernel(
    kv_desc,  # [B*T, 3*H*64] by [64, 64]
    d_out_desc,  # [B*T, H*64] by [64, 64]
    d_qkv_desc,  # [B*T, 3*H*64] by [64, 64], written
    mask_desc,  # the mask's words by key by [64], or None
    lse_log2_desc,  # [B*H*T] by [64]
    delta_desc,  # the same
    sums_ptr,  # [B*H*T*64] float32: sums of d_q
    added_ptr,  # [B*H*T/64 + 1]: additions to each tile of them; tickets taken
    heads,  # B*H
    T,
    scale,
    scale_log2,
    keep_scale,
    H: gl.constexpr,
    STAGES: gl.constexpr,
    REGISTERS: gl.constexpr,  # of a thread of a consumer of keys
    D_Q_REGISTERS: gl.constexpr,  # of one of the third consumer
):
    """Gradients of all queries, keys and values."""
    stream = new_stream(STAGES, GROUPS, STREAM)
    stream += (new_numbers(STAGES, STREAM), new_numbers(STAGES, STREAM))
    MASK: gl.constexpr = mask_desc is not None
    WORDS: gl.constexpr = STAGES * GROUPS * 2 if MASK else 1
    stream += (gl.allocate_shared_memory(gl.int32, [WORDS, GROUP], NUMBERS),)
    pieces = new_pieces()
    out_tiles = (new_tiles(GROUPS, GROUP), new_tiles(GROUPS, GROUP))
    out_tile = new_tiles(1, STREAM).index(0)
    d_s_stream = (
        new_tiles(D_S_TILES * GROUPS, GROUP),
        new_barriers(D_S_TILES, GROUPS),
        new_barriers(D_S_TILES, 1),
    )
    turns = (new_barriers(TURNS, 1), new_barriers(TURNS, 1), new_barriers(TURNS, 1))
    fence_async_shared()
    block_barrier()
    descs = (kv_desc, d_out_desc, lse_log2_desc, delta_desc, mask_desc)
    numbers = (scale, scale_log2, keep_scale)
    given = (d_qkv_desc, pieces, out_tiles, stream, d_s_stream, heads, T, numbers)
    gl.warp_specialize(
        [
            (_consume, (given, H, MASK, 0)),
            (_consume, (given, H, MASK, 1)),
            (add_queries, (d_qkv_desc, pieces, d_s_stream, turns, out_tile, sums_ptr, heads, T, scale, H)),
            (_produce, (kv_desc, descs, pieces, stream, added_ptr, heads, T, H)),
            (wait_turns, (pieces, turns, added_ptr, heads, T)),
            (tell_turns, (pieces, turns, added_ptr, heads, T)),
        ],
        [4, 4, 1, 1, 1],
        [REGISTERS, D_Q_REGISTERS, PRODUCER_REGISTERS, PRODUCER_REGISTERS, PRODUCER_REGISTERS],
    )


def launch_bwd(
    res: AttentionResiduals,
    d_out: Float[Tensor, "B T D"],
    d_qkv: Float[Tensor, "B T 3*D"],
    keep_scale: float,
) -> None:
    """Write ``d_qkv``, where ``tiles.hopper_attention`` says so."""
    rows, n_head, context = res.lse.shape
    heads, scale = rows * n_head, 1.0 / math.sqrt(HEAD.value)
    tiles, pieces = heads * (context // STREAM.value), heads * (context // PIECE.value)
    lse_log2, delta = torch.empty_like(res.lse), torch.empty_like(res.lse)
    added = torch.empty(tiles + 1, dtype=torch.int32, device=d_out.device)
    sums = torch.empty(delta.numel() * HEAD.value, dtype=torch.float32, device=d_out.device)
    attention_rows_kernel[(tiles,)](
        res.out, d_out, res.lse, lse_log2, delta, added, context,
        H=n_head, ROWS=STREAM.value, K=HEAD.value, num_warps=4,
    )  # fmt: skip
    mask = None if res.mask is None else described_numbers(res.mask[1], GROUP.value)
    attention_bwd_hopper_kernel[(min(multiprocessors(d_out.device), pieces),)](
        described(res.qkv, GROUP.value), described(d_out, STREAM.value), described(d_qkv, GROUP.value),
        mask, described_numbers(lse_log2, STREAM.value), described_numbers(delta, STREAM.value),
        sums, added, heads, context, scale, scale * LOG2_E.value, keep_scale,
        H=n_head, STAGES=STAGES, REGISTERS=REGISTERS, D_Q_REGISTERS=D_Q_REGISTERS, num_warps=4,
    )  # fmt: skip
