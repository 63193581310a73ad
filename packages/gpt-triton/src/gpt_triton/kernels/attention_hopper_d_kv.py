"""The gradients of attention's keys and values on Hopper, heads of 64 in bfloat16; whole rows only.

The second pass of ``attention_backward``, by partitions of warps (``hopper``): a program owns 128 keys, a
consumer 64 of them, and queries are streamed. With the scores and d_P of tile t a consumer starts the
products that add tile t - 1 to d_V and d_K, and takes exponentials and d_S of tile t while they run. Four
tiles of float32 leave registers for two consumers.

Bound: of 128 keys and 64 queries the products take 1,024 cycles, the exponentials 512.

Shapes: B rows, T positions, H heads, N queries of a tile.
"""

from __future__ import annotations

import math
from typing import no_type_check

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

from gpt_triton.kernels.hopper import (
    GRADIENT,
    GROUP,
    HEAD,
    HOPPER_ATTENTION,
    NUMBERS,
    PRODUCER_REGISTERS,
    as_operand,
    described,
    described_numbers,
    expect_slot,
    keep,
    load_words,
    mask_bits,
    mask_of_head,
    release,
    scores,
    set_up,
    skip,
    store_tile,
    tma_load,
    wait_full,
)
from gpt_triton.kernels.primitives import LOG2_E
from gpt_triton.kernels.tiles import multiprocessors
from gpt_triton.ops import AttentionResiduals


@gluon.jit
@no_type_check
def _keys_of(work, heads, GROUPS: gl.constexpr):
    """First key and head of a piece of work: those with the most queries come first."""
    return work // heads * GROUPS * GROUP, work % heads


@gluon.jit
@no_type_check
def _produce(kv_desc, descs, own, stream, heads, T, H: gl.constexpr, GROUPS: gl.constexpr):
    tiles, filled, emptied = own
    q_desc, d_out_desc, lse_desc, delta_desc = descs
    WIDTH: gl.constexpr = H * HEAD
    N: gl.constexpr = stream[0].shape[1]
    BYTES: gl.constexpr = 2 * q_desc.block_type.nbytes + 2 * lse_desc.block_type.nbytes
    n = 0
    for work in range(gl.program_id(0), heads * (T // (GROUPS * GROUP)), gl.num_programs(0)):
        turn = work // gl.num_programs(0)
        k_first, head = _keys_of(work, heads, GROUPS)
        row, column = head // H * T, head % H * HEAD
        for group in gl.static_range(GROUPS):
            mbarrier.wait(emptied.index(group), (turn & 1) ^ 1)
            full = filled.index(group)
            mbarrier.expect(full, 2 * kv_desc.block_type.nbytes)
            at = row + k_first + group * GROUP
            tma_load(kv_desc, [at, column + WIDTH], full, tiles[0].index(group))
            tma_load(kv_desc, [at, column + 2 * WIDTH], full, tiles[1].index(group))
        for first in range(k_first, T, N):
            slot, full = expect_slot(stream, n, BYTES)
            tma_load(q_desc, [row + first, column], full, stream[0].index(slot))
            tma_load(d_out_desc, [row + first, column], full, stream[1].index(slot))
            tma_load(lse_desc, [head * T + first], full, stream[4].index(slot))
            tma_load(delta_desc, [head * T + first], full, stream[5].index(slot))
            n += 1


@gluon.jit
@no_type_check
def _add_tile(
    d_k,  # [64, 64] float32
    d_v,  # [64, 64] float32
    p_kept,  # [64, N] of the tile before, bfloat16
    d_s,  # [64, N] of the tile before, bfloat16
    stay,  # tiles of keys and of values
    stream,  # of queries and d_out, with their log-sum-exp and delta
    n,  # tiles before this one, since the start
    first,  # first query
    more,  # there is a tile after it
    k_position,
    mask_ptr,  # first word of the head's mask by key, or None
    scale_log2,
    keep_scale,
    MASKED: gl.constexpr,
    FIRST: gl.constexpr,
    S: gl.constexpr,  # layout of scores
):
    STAGES: gl.constexpr = stream[0].shape[0]
    N: gl.constexpr = stream[0].shape[1]
    slot, before = n % STAGES, (n + STAGES - 1) % STAGES
    words = None
    if mask_ptr is not None:
        words = load_words(mask_ptr, k_position, first, True, N)
    s = scores(stay[0], stream[0].index(slot), S)
    d_p = scores(stay[1], stream[1].index(slot), S)
    if not FIRST:
        d_v = warpgroup_mma(p_kept, stream[1].index(before), d_v, is_async=True)
        d_k = warpgroup_mma(d_s, stream[0].index(before), d_k, is_async=True)
    lse_log2 = stream[4].index(slot).load(gl.SliceLayout(0, S)) * LOG2_E
    s = warpgroup_mma_wait(1 if FIRST else 3, deps=(s,))
    p = gl.exp2(s * scale_log2 - lse_log2[None, :])
    if MASKED:
        q_position = first + gl.arange(0, N, layout=gl.SliceLayout(0, S))
        p = gl.where(k_position[:, None] <= q_position[None, :], p, 0.0)
    wait_full(stream, n + 1, more)
    d_p = warpgroup_mma_wait(0 if FIRST else 2, deps=(d_p,))
    delta = stream[5].index(slot).load(gl.SliceLayout(0, S))
    p_next = p
    if mask_ptr is not None:
        word, bit = mask_bits(words, N, S)
        p_next = keep(p, word, bit)
        d_p = keep(d_p, word, bit) * keep_scale
    d_s_next = p * (d_p - delta[None, :])
    if not FIRST:
        wait_full(stream, n + 1, more)
        d_k, d_v, p_kept, d_s = warpgroup_mma_wait(0, deps=(d_k, d_v, p_kept, d_s))
        release(stream, n - 1)
    return d_k, d_v, as_operand(p_next), as_operand(d_s_next)


@gluon.jit
@no_type_check
def _consume(
    given,  # see the kernel below
    H: gl.constexpr,
    GROUPS: gl.constexpr,
    group: gl.constexpr,
):
    d_qkv_desc, own, stream, mask_ptr, heads, T, numbers = given
    own_tiles, own_full, own_empty = own
    scale, scale_log2, keep_scale = numbers
    WIDTH: gl.constexpr = H * HEAD
    STAGES: gl.constexpr = stream[0].shape[0]
    N: gl.constexpr = stream[0].shape[1]
    S: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, N, 16])
    # tiles before it are for keys of the consumers before this one; from WHOLE on every query sees every key
    OWN: gl.constexpr = group * GROUP // N
    WHOLE: gl.constexpr = (group + 1) * GROUP // N
    stay = (own_tiles[0].index(group), own_tiles[1].index(group))
    n = 0
    for work in range(gl.program_id(0), heads * (T // (GROUPS * GROUP)), gl.num_programs(0)):
        turn = work // gl.num_programs(0)
        block_first, head = _keys_of(work, heads, GROUPS)
        tiles = (T - block_first) // N
        k_first = block_first + group * GROUP
        k_position = k_first + gl.arange(0, GROUP, layout=gl.SliceLayout(1, S))
        mask_head = mask_ptr
        if mask_ptr is not None:
            mask_head = mask_of_head(mask_ptr, heads + head, T)
        d_k = gl.zeros([GROUP, HEAD], gl.float32, layout=GRADIENT)
        d_v = gl.zeros([GROUP, HEAD], gl.float32, layout=GRADIENT)
        skip(stream, n, n + OWN)
        mbarrier.wait(own_full.index(group), turn & 1)
        wait_full(stream, n + OWN, True)
        d_k, d_v, p_kept, d_s = _add_tile(
            d_k, d_v, None, None, stay, stream, n + OWN, k_first, tiles > OWN + 1, k_position, mask_head,
            scale_log2, keep_scale, True, True, S,
        )  # fmt: skip
        for t in range(OWN + 1, WHOLE):
            d_k, d_v, p_kept, d_s = _add_tile(
                d_k, d_v, p_kept, d_s, stay, stream, n + t, block_first + t * N, t + 1 < tiles, k_position,
                mask_head, scale_log2, keep_scale, True, False, S,
            )  # fmt: skip
        for t in range(WHOLE, tiles):
            d_k, d_v, p_kept, d_s = _add_tile(
                d_k, d_v, p_kept, d_s, stay, stream, n + t, block_first + t * N, t + 1 < tiles, k_position,
                mask_head, scale_log2, keep_scale, False, False, S,
            )  # fmt: skip
        mbarrier.arrive(own_empty.index(group), count=1)
        last = n + tiles - 1
        d_v = warpgroup_mma(p_kept, stream[1].index(last % STAGES), d_v, is_async=True)
        d_k = warpgroup_mma(d_s, stream[0].index(last % STAGES), d_k, is_async=True)
        d_k, d_v, p_kept, d_s = warpgroup_mma_wait(0, deps=(d_k, d_v, p_kept, d_s))
        release(stream, last)
        row, column = head // H * T + k_first, head % H * HEAD
        store_tile(d_qkv_desc, row, column + WIDTH, own_tiles[2].index(group), d_k * scale)
        store_tile(d_qkv_desc, row, column + 2 * WIDTH, own_tiles[3].index(group), d_v * keep_scale)
        n += tiles
    tma.store_wait(0)


@gluon.jit
@no_type_check
def d_kv_hopper_kernel(
    kv_desc,  # [B*T, 3*H*64] by [64, 64]
    q_desc,  # the same by [N, 64]
    d_out_desc,  # [B*T, H*64] by [N, 64]
    d_qkv_desc,  # [B*T, 3*H*64] by [64, 64]: keys and values written
    mask_ptr,  # [2, B*H, blocks, 32] or None
    lse_desc,  # [B*H*T] by [N]
    delta_desc,  # the same
    heads,  # B*H
    T,
    scale,
    scale_log2,
    keep_scale,
    H: gl.constexpr,
    N: gl.constexpr,
    STAGES: gl.constexpr,
    REGISTERS: gl.constexpr,  # of a thread of a consumer
):
    """Gradients of all keys and values."""
    GROUPS: gl.constexpr = 2
    own, stream = set_up(4, GROUPS, STAGES, N)  # keys, values, and what is written of both
    lse_slots = gl.allocate_shared_memory(gl.float32, [STAGES, N], NUMBERS)
    delta_slots = gl.allocate_shared_memory(gl.float32, [STAGES, N], NUMBERS)
    stream += (lse_slots, delta_slots)
    descs = (q_desc, d_out_desc, lse_desc, delta_desc)
    numbers = (scale, scale_log2, keep_scale)
    given = (d_qkv_desc, own, stream, mask_ptr, heads, T, numbers)
    gl.warp_specialize(
        [
            (_consume, (given, H, GROUPS, 0)),
            (_consume, (given, H, GROUPS, 1)),
            (_produce, (kv_desc, descs, own, stream, heads, T, H, GROUPS)),
        ],
        [4, 1],
        [REGISTERS, PRODUCER_REGISTERS],
    )


def launch_d_kv(
    res: AttentionResiduals,
    d_out: Float[Tensor, "B T D"],
    delta: Float[Tensor, "B H T"],
    d_qkv: Float[Tensor, "B T 3*D"],
    keep_scale: float,
) -> None:
    """Write the keys and values of ``d_qkv``, where ``tiles.hopper_attention`` says so."""
    rows, n_head, context = delta.shape
    scale = 1.0 / math.sqrt(HEAD.value)
    tiles = HOPPER_ATTENTION["d_kv"]
    work = rows * n_head * (context // (tiles.groups * GROUP.value))
    d_kv_hopper_kernel[(min(multiprocessors(d_out.device), work),)](
        described(res.qkv, GROUP.value), described(res.qkv, tiles.stream),
        described(d_out, tiles.stream), described(d_qkv, GROUP.value), res.mask,
        described_numbers(res.lse, tiles.stream), described_numbers(delta, tiles.stream),
        rows * n_head, context, scale, scale * LOG2_E.value, keep_scale,
        H=n_head, N=tiles.stream, STAGES=tiles.stages, REGISTERS=tiles.registers, num_warps=4,
    )  # fmt: skip
