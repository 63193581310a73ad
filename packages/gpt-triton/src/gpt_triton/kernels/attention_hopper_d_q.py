"""The gradient of attention's queries on Hopper, heads of 64 in bfloat16; whole rows only.

The first pass of ``attention_backward``, by partitions of warps (``hopper``): a program owns 256 queries, a
consumer 64 of them. With the scores and d_P of tile t a consumer starts the product that adds tile t - 1 to
d_Q, and takes exponentials and d_S of tile t while they run. Tiles of 32 keys: so four consumers have
registers enough.

Bound: of 128 queries and 64 keys the products take 1,024 cycles (d_Q's 256; the left operands of 32 columns
come from shared memory more slowly than the tensor cores could take them), the exponentials 512.

Shapes: B rows, T positions, H heads, N keys of a tile.
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

from gpt_triton.kernels.attention_hopper import produce_keys, queries_of
from gpt_triton.kernels.hopper import (
    GRADIENT,
    GROUP,
    HEAD,
    HOPPER_ATTENTION,
    PRODUCER_REGISTERS,
    as_operand,
    described,
    keep,
    load_words,
    mask_bits,
    mask_of_head,
    release,
    scores,
    set_up,
    skip,
    store_tile,
    wait_full,
)
from gpt_triton.kernels.primitives import LOG2_E
from gpt_triton.kernels.tiles import multiprocessors
from gpt_triton.ops import AttentionResiduals


@gluon.jit
@no_type_check
def _add_tile(
    d_q,  # [64, 64] float32
    d_s,  # [64, N] of the tile before, bfloat16
    stay,  # tiles of queries and of d_out
    stream,  # of keys and values
    n,  # tiles before this one, since the start
    first,  # first key
    more,  # there is a tile after it
    q_position,
    lse_log2,  # [64]
    delta,  # [64]
    mask_ptr,  # first word of the head's mask, or None
    scale_log2,
    keep_scale,
    MASKED: gl.constexpr,
    FIRST: gl.constexpr,
    S: gl.constexpr,  # layout of scores
):
    STAGES: gl.constexpr = stream[0].shape[0]
    N: gl.constexpr = stream[0].shape[1]
    words = None
    if mask_ptr is not None:
        words = load_words(mask_ptr, q_position, first, False, N)
    s = scores(stay[0], stream[0].index(n % STAGES), S)
    d_p = scores(stay[1], stream[1].index(n % STAGES), S)
    if not FIRST:
        d_q = warpgroup_mma(d_s, stream[0].index((n - 1) % STAGES), d_q, is_async=True)
    s = warpgroup_mma_wait(1 if FIRST else 2, deps=(s,))
    p = gl.exp2(s * scale_log2 - lse_log2[:, None])
    if MASKED:
        k_position = first + gl.arange(0, N, layout=gl.SliceLayout(0, S))
        p = gl.where(k_position[None, :] <= q_position[:, None], p, 0.0)
    wait_full(stream, n + 1, more)
    d_p = warpgroup_mma_wait(0 if FIRST else 1, deps=(d_p,))
    if mask_ptr is not None:
        word, bit = mask_bits(words, N, S)
        d_p = keep(d_p, word, bit) * keep_scale
    d_s_next = p * (d_p - delta[:, None])
    if not FIRST:
        wait_full(stream, n + 1, more)
        d_q, d_s = warpgroup_mma_wait(0, deps=(d_q, d_s))
        release(stream, n - 1)
    return d_q, as_operand(d_s_next)


@gluon.jit
@no_type_check
def _consume(
    given,  # see the kernel below
    H: gl.constexpr,
    GROUPS: gl.constexpr,
    group: gl.constexpr,
):
    d_qkv_desc, own, stream, mask_ptr, lse_ptr, delta_ptr, heads, T, numbers = given
    own_tiles, own_full, own_empty = own
    scale, scale_log2, keep_scale = numbers
    STAGES: gl.constexpr = stream[0].shape[0]
    N: gl.constexpr = stream[0].shape[1]
    S: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, N, 16])
    ROWS: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    stay = (own_tiles[0].index(group), own_tiles[1].index(group))
    n = 0
    for work in range(gl.program_id(0), heads * (T // (GROUPS * GROUP)), gl.num_programs(0)):
        turn = work // gl.num_programs(0)
        block_first, head = queries_of(work, heads, T, GROUPS)
        q_first = block_first + group * GROUP
        whole, last = q_first // N, (q_first + GROUP) // N - 1
        mask_head = mask_ptr
        if mask_ptr is not None:
            mask_head = mask_of_head(mask_ptr, head, T)
        q_position = q_first + gl.arange(0, GROUP, layout=gl.SliceLayout(1, S))
        at = gl.cast(head, gl.int64) * T + q_position
        lse_log2 = gl.load(lse_ptr + at) * LOG2_E
        d_q = gl.zeros([GROUP, HEAD], gl.float32, layout=GRADIENT)
        mbarrier.wait(own_full.index(group), turn & 1)
        out = own_tiles[2].index(group).load(ROWS).to(gl.float32)
        delta = gl.sum(out * stay[1].load(ROWS).to(gl.float32), 1)
        delta = gl.convert_layout(delta, gl.SliceLayout(1, S))
        gl.store(delta_ptr + at, delta)
        wait_full(stream, n, True)
        d_q, d_s = _add_tile(
            d_q, None, stay, stream, n, 0, last > 0, q_position, lse_log2, delta, mask_head,
            scale_log2, keep_scale, True, True, S,
        )  # fmt: skip
        for t in range(1, whole):
            d_q, d_s = _add_tile(
                d_q, d_s, stay, stream, n + t, t * N, True, q_position, lse_log2, delta, mask_head,
                scale_log2, keep_scale, False, False, S,
            )  # fmt: skip
        for t in range(gl.maximum(whole, 1), last + 1):
            d_q, d_s = _add_tile(
                d_q, d_s, stay, stream, n + t, t * N, t < last, q_position, lse_log2, delta, mask_head,
                scale_log2, keep_scale, True, False, S,
            )  # fmt: skip
        mbarrier.arrive(own_empty.index(group), count=1)
        d_q = warpgroup_mma(d_s, stream[0].index((n + last) % STAGES), d_q, is_async=True)
        d_q, d_s = warpgroup_mma_wait(0, deps=(d_q, d_s))
        release(stream, n + last)
        row, column = head // H * T + q_first, head % H * HEAD
        store_tile(d_qkv_desc, row, column, own_tiles[3].index(group), d_q * scale)
        tiles = (block_first + GROUPS * GROUP) // N
        skip(stream, n + last + 1, n + tiles)
        n += tiles
    tma.store_wait(0)


@gluon.jit
@no_type_check
def d_q_hopper_kernel(
    q_desc,  # [B*T, 3*H*64] by [64, 64]
    kv_desc,  # the same by [N, 64]
    out_desc,  # [B*T, H*64] by [64, 64]
    d_out_desc,  # the same
    d_qkv_desc,  # [B*T, 3*H*64] by [64, 64]: queries written
    mask_ptr,  # [2, B*H, blocks, 32] or None
    lse_ptr,  # [B, H, T]
    delta_ptr,  # [B, H, T] written
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
    """Gradients of all queries."""
    GROUPS: gl.constexpr = 4
    own, stream = set_up(4, GROUPS, STAGES, N)  # queries, d_out, out, and what is written
    descs = (q_desc, d_out_desc, out_desc)
    numbers = (scale, scale_log2, keep_scale)
    given = (d_qkv_desc, own, stream, mask_ptr, lse_ptr, delta_ptr, heads, T, numbers)
    gl.warp_specialize(
        [
            (_consume, (given, H, GROUPS, 0)),
            (_consume, (given, H, GROUPS, 1)),
            (_consume, (given, H, GROUPS, 2)),
            (_consume, (given, H, GROUPS, 3)),
            (produce_keys, (descs, kv_desc, own, stream, heads, T, H, GROUPS)),
        ],
        [4, 4, 4, 1],
        [REGISTERS, REGISTERS, REGISTERS, PRODUCER_REGISTERS],
    )


def launch_d_q(
    res: AttentionResiduals,
    d_out: Float[Tensor, "B T D"],
    delta: Float[Tensor, "B H T"],
    d_qkv: Float[Tensor, "B T 3*D"],
    keep_scale: float,
) -> None:
    """Write ``delta`` and the queries of ``d_qkv``, where ``tiles.hopper_attention`` says so."""
    rows, n_head, context = delta.shape
    scale = 1.0 / math.sqrt(HEAD.value)
    tiles = HOPPER_ATTENTION["d_q"]
    work = rows * n_head * (context // (tiles.groups * GROUP.value))
    d_q_hopper_kernel[(min(multiprocessors(d_out.device), work),)](
        described(res.qkv, GROUP.value), described(res.qkv, tiles.stream), described(res.out, GROUP.value),
        described(d_out, GROUP.value), described(d_qkv, GROUP.value), res.mask, res.lse, delta,
        rows * n_head, context, scale, scale * LOG2_E.value, keep_scale,
        H=n_head, N=tiles.stream, STAGES=tiles.stages, REGISTERS=tiles.registers, num_warps=4,
    )  # fmt: skip
