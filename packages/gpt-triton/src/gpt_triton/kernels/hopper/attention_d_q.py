"""The gradient of attention's queries on Hopper: a sum over pieces of keys, added up in a fixed order.

Part of ``attention_backward``. d_Q of 64 queries is a sum over all keys before them, of which a
program holds a piece of 128 at a time. So the sum lies in global memory (L2), as float32, and each piece adds
its product of d_S and keys. The order is fixed: the keys on the diagonal first, then those before them, a
piece at a time, down to the head's first keys, which write the sum out. A tile counts what was added: a warp
waits until the count says that it is this piece's turn, and another raises it when the addition is in memory.

All pieces of a head begin with their own diagonal. So each comes to a tile two tiles later than the piece
before it in that order, and seldom waits. Pieces are taken as tickets, the last keys of a head first: what a
piece waits for was taken before it, so that no program waits for one that does not run.
"""

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl
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
    block_barrier,
    fence_async_shared,
    new_barriers,
    new_tiles,
    store_tile,
)
from gpt_triton.kernels.primitives import LOG2_E

GROUPS = gl.constexpr(2)  # consumers of a piece's keys
PIECE = gl.constexpr(128)  # keys, those of both
STREAM = gl.constexpr(64)  # queries of a tile
BUFFERS = gl.constexpr(2)  # pieces whose keys are in shared memory: this one and the next
READERS = gl.constexpr(5)  # partitions that read tickets
D_S_TILES = gl.constexpr(3)  # in flight
TURNS = gl.constexpr(4)  # additions in flight
TICKET = gl.constexpr(gl.SwizzledSharedLayout(1, 1, 1, [0]))
# a tile of the sum as threads hold it, four numbers side by side: 4 (32 (4 c + w) + l) + 2 h + p is, in warp
# w and lane l, row 16 w + 8 h + l div 4 and column 8 c + 2 (l mod 4) + p
FLAT = gl.constexpr(
    gl.DistributedLinearLayout(
        [[1], [2], [512], [1024], [2048]], [[4], [8], [16], [32], [64]], [[128], [256]], [], [4096]
    )
)


@triton.jit
@no_type_check
def attention_rows_kernel(
    out_ptr,  # [B*T, H*K]
    d_out_ptr,  # the same
    lse_ptr,  # [B, H, T]
    lse_log2_ptr,  # [B, H, T] written
    delta_ptr,  # the same
    added_ptr,  # [B*H*T/ROWS + 1]: zeros written
    T,
    H: tl.constexpr,
    ROWS: tl.constexpr,
    K: tl.constexpr,
):
    """Of each query the log-sum-exp to base 2 and delta = sum of d_O * O; and that nothing is added yet."""
    tile = tl.program_id(0)
    head = tile // (T // ROWS)
    position = tile % (T // ROWS) * ROWS + tl.arange(0, ROWS)
    row = (head // H).to(tl.int64) * T + position
    at = row[:, None] * (H * K) + head % H * K + tl.arange(0, K)[None, :]
    product = tl.load(out_ptr + at).to(tl.float32) * tl.load(d_out_ptr + at).to(tl.float32)
    number = head.to(tl.int64) * T + position
    tl.store(delta_ptr + number, tl.sum(product, 1))
    tl.store(lse_log2_ptr + number, tl.load(lse_ptr + number) * LOG2_E)
    tl.store(added_ptr + tile, 0)
    tl.store(added_ptr + tl.num_programs(0), 0)


@gluon.jit
@no_type_check
def new_pieces():
    """Tickets, keys, values, and the barriers of each: that they are there, that all are done with them."""
    tickets = gl.allocate_shared_memory(gl.int32, [BUFFERS, 1], TICKET)
    keys, values = new_tiles(BUFFERS * GROUPS, GROUP), new_tiles(BUFFERS * GROUPS, GROUP)
    return tickets, keys, values, new_barriers(BUFFERS, 1), new_barriers(BUFFERS, READERS)


@gluon.jit
@no_type_check
def take(pieces, n, tickets_ptr):
    """The next ticket, left for the others as their n-th; its buffer, and the barrier to complete."""
    tickets, _, _, full, empty = pieces
    ticket = gl.atomic_add(tickets_ptr, 1)
    buffer = n % BUFFERS
    mbarrier.wait(empty.index(buffer), ((n // BUFFERS) & 1) ^ 1)
    tickets.index(buffer).store(gl.full([1], ticket, gl.int32, layout=gl.BlockedLayout([1], [32], [1], [0])))
    block_barrier()
    return ticket, buffer, full.index(buffer)


@gluon.jit
@no_type_check
def taken(pieces, n, WARPS: gl.constexpr):
    """The n-th ticket, when its keys and values are there, and its buffer."""
    tickets, _, _, full, _ = pieces
    buffer = n % BUFFERS
    mbarrier.wait(full.index(buffer), (n // BUFFERS) & 1)
    ticket = gl.max(tickets.index(buffer).load(gl.BlockedLayout([1], [32], [WARPS], [0])), 0)
    return ticket, buffer


@gluon.jit
@no_type_check
def piece_of(ticket, T):
    """Head and first key: the last keys of a head come first."""
    blocks = T // PIECE
    return ticket // blocks, (blocks - 1 - ticket % blocks) * PIECE


@gluon.jit
@no_type_check
def leave(d_s_stream, n, group: gl.constexpr, d_s):
    """Leave a consumer's part of the n-th tile of d_S, by keys."""
    tiles, full, empty = d_s_stream
    slot = n % D_S_TILES
    mbarrier.wait(empty.index(slot), ((n // D_S_TILES) & 1) ^ 1)
    tiles.index(slot * GROUPS + group).store(d_s)
    fence_async_shared()
    block_barrier()
    mbarrier.arrive(full.index(slot), count=1)


@gluon.jit
@no_type_check
def wait_turns(pieces, turns, added_ptr, heads, T):
    """Let additions begin, each when the keys behind this piece's have been added to its tile."""
    ready, _, told = turns
    n = 0
    count = 0
    ticket, buffer = taken(pieces, count, 1)
    while ticket < heads * (T // PIECE):
        mbarrier.arrive(pieces[4].index(buffer), count=1)
        head, k_first = piece_of(ticket, T)
        added_here = added_ptr + head * (T // STREAM) + k_first // STREAM
        for t in range((T - k_first) // STREAM):
            # no key is behind the diagonal of the first two tiles
            while gl.atomic_add(added_here + t, 0, sem="acquire") < t // 2:
                pass
            mbarrier.wait(told.index(n % TURNS), ((n // TURNS) & 1) ^ 1)
            mbarrier.arrive(ready.index(n % TURNS), count=1)
            n += 1
        count += 1
        ticket, buffer = taken(pieces, count, 1)


@gluon.jit
@no_type_check
def tell_turns(pieces, turns, added_ptr, heads, T):
    """Count additions, each when it is stored."""
    _, stored, told = turns
    n = 0
    count = 0
    ticket, buffer = taken(pieces, count, 1)
    while ticket < heads * (T // PIECE):
        mbarrier.arrive(pieces[4].index(buffer), count=1)
        head, k_first = piece_of(ticket, T)
        added_here = added_ptr + head * (T // STREAM) + k_first // STREAM
        for t in range((T - k_first) // STREAM):
            mbarrier.wait(stored.index(n % TURNS), (n // TURNS) & 1)
            gl.atomic_add(added_here + t, 1, sem="release")
            mbarrier.arrive(told.index(n % TURNS), count=1)
            n += 1
        count += 1
        ticket, buffer = taken(pieces, count, 1)


@gluon.jit
@no_type_check
def _multiply(d_s_stream, keys, n, buffer):
    """The n-th tile of d_S times the piece's keys: [queries, 64] float32."""
    tiles, full, empty = d_s_stream
    slot = n % D_S_TILES
    mbarrier.wait(full.index(slot), (n // D_S_TILES) & 1)
    d_q = gl.zeros([STREAM, HEAD], gl.float32, layout=GRADIENT)
    for group in gl.static_range(GROUPS):
        d_s = tiles.index(slot * GROUPS + group).permute((1, 0))
        d_q = warpgroup_mma(d_s, keys.index(buffer * GROUPS + group), d_q, is_async=True)
    d_q = warpgroup_mma_wait(0, deps=(d_q,))
    mbarrier.arrive(empty.index(slot), count=1)
    return d_q


@gluon.jit
@no_type_check
def add_queries(d_qkv_desc, pieces, d_s_stream, turns, out_tile, sums_ptr, heads, T, scale, H: gl.constexpr):
    """Add pieces to d_q, tile by tile; that of a head's first keys is the last, and writes d_q out."""
    _, keys, _, _, empty = pieces
    ready, stored, _ = turns
    n = 0
    count = 0
    ticket, buffer = taken(pieces, count, 4)
    while ticket < heads * (T // PIECE):
        head, k_first = piece_of(ticket, T)
        for first in range(k_first, T, STREAM):
            at = sums_ptr + (gl.cast(head, gl.int64) * T + first) * HEAD + gl.arange(0, 4096, layout=FLAT)
            further = first >= k_first + PIECE
            d_q = _multiply(d_s_stream, keys, n, buffer)
            mbarrier.wait(ready.index(n % TURNS), (n // TURNS) & 1)
            if k_first == 0:
                sums = gl.load(at, mask=further, other=0.0, cache_modifier=".cg")
                others = sums.reshape([8, 4, 8, 4, 2, 2]).permute((1, 4, 2, 0, 3, 5)).reshape([STREAM, HEAD])
                d_q += gl.convert_layout(others, GRADIENT, assert_trivial=True)
                store_tile(d_qkv_desc, head // H * T + first, head % H * HEAD, out_tile, d_q * scale)
            else:
                own = d_q.reshape([4, 2, 8, 8, 4, 2]).permute((3, 0, 2, 4, 1, 5)).reshape([4096])
                sums = gl.convert_layout(own, FLAT, assert_trivial=True)
                # the addition that nobody else makes meanwhile: in L2, and nothing comes back
                if further:
                    gl.atomic_add(at, sums, sem="relaxed")
                else:
                    gl.store(at, sums)
            block_barrier()
            mbarrier.arrive(stored.index(n % TURNS), count=1)
            n += 1
        mbarrier.arrive(empty.index(buffer), count=1)
        count += 1
        ticket, buffer = taken(pieces, count, 4)
    tma.store_wait(0)
