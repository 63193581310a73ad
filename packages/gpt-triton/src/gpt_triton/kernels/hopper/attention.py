"""Causal self-attention of whole rows on Hopper, heads of 64 in bfloat16: the forward.

What ``kernels.attention`` computes, by ``partitions`` of warps: a program owns 256 queries, a consumer 64
of them. With the scores of tile t a consumer starts the product of the weights and values of tile t - 1,
and takes maximum, exponentials and sum of tile t while that runs; four consumers fill each other's waits.
Keys are streamed upwards; only a consumer's first and last tile are masked, and the tiles after its last
are others'.

Bound: of 128 queries and 64 keys the products take 512 cycles, the exponentials 512 (16 a cycle), the other
instructions some 560 on four schedulers.

Shapes: B rows, T positions, H heads, N keys of a tile.

References:
    Shah et al. 2024, "FlashAttention-3", section 3.
"""

from __future__ import annotations

import math
from typing import no_type_check

from jaxtyping import Float, Int
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from gpt_triton.kernels.hopper.partitions import (
    GRADIENT,
    GROUP,
    HEAD,
    PRODUCER_REGISTERS,
    as_operand,
    described,
    expect_slot,
    first_word,
    keep,
    load_words,
    mask_bits,
    release,
    scores,
    set_up,
    skip,
    store_tile,
    tma_load,
    wait_full,
)
from gpt_triton.kernels.primitives import LN_2, LOG2_E, multiprocessors

GROUPS = gl.constexpr(4)  # consumers of a program
STREAM, STAGES = 64, 4  # keys of a tile that is streamed past them; tiles in flight
REGISTERS = 112  # of a thread of a consumer: four of them beside a producer cannot have more


@gluon.jit
@no_type_check
def _queries_of(work, heads, T):
    """First query and head of a piece of work: those with the most keys come first."""
    return T - (work // heads + 1) * GROUPS * GROUP, work % heads


@gluon.jit
@no_type_check
def _produce(
    q_desc,
    kv_desc,
    own,
    stream,  # of keys and values
    heads,
    T,
    H: gl.constexpr,
):
    tiles, filled, emptied = own
    WIDTH: gl.constexpr = H * HEAD
    N: gl.constexpr = stream[0].shape[1]
    n = 0
    for work in range(gl.program_id(0), heads * (T // (GROUPS * GROUP)), gl.num_programs(0)):
        turn = work // gl.num_programs(0)
        q_first, head = _queries_of(work, heads, T)
        row, column = head // H * T, head % H * HEAD
        for group in gl.static_range(GROUPS):
            mbarrier.wait(emptied.index(group), (turn & 1) ^ 1)
            full = filled.index(group)
            mbarrier.expect(full, q_desc.block_type.nbytes)
            tma_load(q_desc, [row + q_first + group * GROUP, column], full, tiles[0].index(group))
        for first in range(0, q_first + GROUPS * GROUP, N):
            slot, full = expect_slot(stream, n, 2 * kv_desc.block_type.nbytes)
            tma_load(kv_desc, [row + first, column + WIDTH], full, stream[0].index(slot))
            tma_load(kv_desc, [row + first, column + 2 * WIDTH], full, stream[1].index(slot))
            n += 1


@gluon.jit
@no_type_check
def _softmax(s, top, total, words, q_position, first, scale_log2, MASKED: gl.constexpr, S: gl.constexpr):
    """Weights of a tile of scores, the new maximum and sum, and what the sums so far shrink by."""
    N: gl.constexpr = s.shape[1]
    if MASKED:
        k_position = first + gl.arange(0, N, layout=gl.SliceLayout(0, S))
        s = gl.where(k_position[None, :] <= q_position[:, None], s, float("-inf"))
    new_top = gl.maximum(top, gl.max(s, 1))
    shift = new_top * scale_log2
    p = gl.exp2(s * scale_log2 - shift[:, None])
    shrink = gl.exp2(top * scale_log2 - shift)
    total = total * shrink + gl.sum(p, 1)
    if words is not None:
        word, bit = mask_bits(words, N, S)
        p = keep(p, word, bit)
    return p, new_top, total, shrink


@gluon.jit
@no_type_check
def _attend(
    acc,  # [64, 64] float32
    weights,  # [64, N] float32, of the tile before
    top,  # [64]
    total,  # [64]
    q_tile,
    stream,  # of keys and values
    n,  # tiles before this one, since the start
    first,  # first key
    more,  # there is a tile after it
    q_position,
    mask_ptr,  # first word of the head's mask, or None
    scale_log2,
    MASKED: gl.constexpr,
    S: gl.constexpr,  # layout of scores
):
    STAGES: gl.constexpr = stream[0].shape[0]
    words = None
    if mask_ptr is not None:
        words = load_words(mask_ptr, q_position, first)
    p = as_operand(weights)
    s = scores(q_tile, stream[0].index(n % STAGES), S)
    acc = warpgroup_mma(p, stream[1].index((n - 1) % STAGES), acc, is_async=True)
    s = warpgroup_mma_wait(1, deps=(s,))
    weights, top, total, shrink = _softmax(s, top, total, words, q_position, first, scale_log2, MASKED, S)
    wait_full(stream, n + 1, more)
    acc, p = warpgroup_mma_wait(0, deps=(acc, p))
    release(stream, n - 1)
    acc = acc * gl.convert_layout(shrink, gl.SliceLayout(1, GRADIENT))[:, None]
    return acc, weights, top, total


@gluon.jit
@no_type_check
def _consume(
    given,  # see the kernel below
    H: gl.constexpr,
    group: gl.constexpr,
):
    out_desc, own, stream, mask_ptr, lse_ptr, heads, T, scale_log2, keep_scale = given
    own_tiles, q_full, q_empty = own
    q_tiles, out_tiles = own_tiles
    STAGES: gl.constexpr = stream[0].shape[0]
    N: gl.constexpr = stream[0].shape[1]
    S: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, N, 16])
    q_tile = q_tiles.index(group)
    n = 0
    for work in range(gl.program_id(0), heads * (T // (GROUPS * GROUP)), gl.num_programs(0)):
        turn = work // gl.num_programs(0)
        block_first, head = _queries_of(work, heads, T)
        q_first = block_first + group * GROUP
        last = q_first // N  # the tile on the diagonal
        mask_head = mask_ptr
        words = None
        q_position = q_first + gl.arange(0, GROUP, layout=gl.SliceLayout(1, S))
        if mask_ptr is not None:
            mask_head = mask_ptr + first_word(gl.cast(head, gl.int64), 0, T)
            words = load_words(mask_head, q_position, 0)
        top = gl.full([GROUP], float("-inf"), gl.float32, layout=gl.SliceLayout(1, S))
        total = gl.zeros([GROUP], gl.float32, layout=gl.SliceLayout(1, S))
        acc = gl.zeros([GROUP, HEAD], gl.float32, layout=GRADIENT)
        mbarrier.wait(q_full.index(group), turn & 1)
        wait_full(stream, n, True)
        s = warpgroup_mma_wait(0, deps=(scores(q_tile, stream[0].index(n % STAGES), S),))
        weights, top, total, _ = _softmax(s, top, total, words, q_position, 0, scale_log2, True, S)
        wait_full(stream, n + 1, last > 0)
        for t in range(1, last):
            acc, weights, top, total = _attend(
                acc, weights, top, total, q_tile, stream, n + t, t * N, True, q_position, mask_head,
                scale_log2, False, S,
            )  # fmt: skip
        for t in range(gl.maximum(last, 1), last + 1):
            acc, weights, top, total = _attend(
                acc, weights, top, total, q_tile, stream, n + t, t * N, False, q_position, mask_head,
                scale_log2, True, S,
            )  # fmt: skip
        mbarrier.arrive(q_empty.index(group), count=1)
        p = as_operand(weights)
        acc = warpgroup_mma(p, stream[1].index((n + last) % STAGES), acc, is_async=True)
        lse = (top * scale_log2 + gl.log2(total)) * LN_2
        gl.store(lse_ptr + gl.cast(head, gl.int64) * T + q_position, lse)
        inverse = gl.convert_layout(keep_scale / total, gl.SliceLayout(1, GRADIENT))
        acc, p = warpgroup_mma_wait(0, deps=(acc, p))
        release(stream, n + last)
        row, column = head // H * T + q_first, head % H * HEAD
        store_tile(out_desc, row, column, out_tiles.index(group), acc * inverse[:, None])
        tiles = (block_first + GROUPS * GROUP) // N
        skip(stream, n + last + 1, n + tiles)
        n += tiles
    tma.store_wait(0)


@gluon.jit
@no_type_check
def attention_fwd_hopper_kernel(
    q_desc,  # [B*T, 3*H*64] by [64, 64]
    kv_desc,  # the same by [N, 64]
    out_desc,  # [B*T, H*64] by [64, 64], written
    mask_ptr,  # [2, B*H, blocks, 32] or None
    lse_ptr,  # [B, H, T] written
    heads,  # B*H
    T,
    scale_log2,
    keep_scale,
    H: gl.constexpr,
    N: gl.constexpr,
    STAGES: gl.constexpr,
    REGISTERS: gl.constexpr,  # of a thread of a consumer
):
    """Attention of all queries."""
    own, stream = set_up(2, GROUPS, STAGES, N)  # queries, and what is written
    given = (out_desc, own, stream, mask_ptr, lse_ptr, heads, T, scale_log2, keep_scale)
    gl.warp_specialize(
        [
            (_consume, (given, H, 0)),
            (_consume, (given, H, 1)),
            (_consume, (given, H, 2)),
            (_consume, (given, H, 3)),
            (_produce, (q_desc, kv_desc, own, stream, heads, T, H)),
        ],
        [4, 4, 4, 1],
        [REGISTERS, REGISTERS, REGISTERS, PRODUCER_REGISTERS],
    )


def launch_fwd(
    qkv: Float[Tensor, "B T W"],
    mask: Int[Tensor, "2 N C 32"] | None,
    out: Float[Tensor, "B T W//3"],
    lse: Float[Tensor, "B H T"],
    keep_scale: float,
) -> None:
    """Write ``out`` and ``lse``, where ``tiles.hopper_attention`` says so."""
    rows, n_head, context = lse.shape
    work = rows * n_head * (context // (GROUPS.value * GROUP.value))
    attention_fwd_hopper_kernel[(min(multiprocessors(qkv.device), work),)](
        described(qkv, GROUP.value), described(qkv, STREAM), described(out, GROUP.value), mask, lse,
        rows * n_head, context, LOG2_E.value / math.sqrt(HEAD.value), keep_scale,
        H=n_head, N=STREAM, STAGES=STAGES, REGISTERS=REGISTERS, num_warps=4,
    )  # fmt: skip
