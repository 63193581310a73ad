"""A matrix product with its epilogue on Hopper, in bfloat16: ``descriptor_kernel`` by specialized warps.

One warp loads, and two warpgroups multiply, each 64 of the 128 rows of a tile of 256 columns. They share the
tiles of a ring, so that one may be ahead of the other by what the ring holds: while one is in its epilogue,
the other has the tensor cores. What an epilogue reads (a factor, a residual) is loaded while the product
runs, into the buffer from which the result is stored. GELU stays with ``descriptor_kernel``: what computes
long is faster with two programs on a multiprocessor. Where the right operand is a gradient, two more warps
add up its columns, for that of a bias, from the tiles in the ring; the programs of a column of tiles take
turns, a slice each.

Bound: a tile of 128 x 256 takes 1,024 cycles of the tensor cores for each 64 of K; the epilogue of a
warpgroup, some 600 cycles, is hidden as far as the ring reaches.

Shapes: M rows, N columns, K depth, S parts of K.
"""

from __future__ import annotations

from typing import Any, no_type_check

from jaxtyping import Float
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from gpt_triton.kernels.hopper.partitions import TILE, block_barrier, new_barriers, tma_load, tma_store
from gpt_triton.kernels.matmul_kernels import tile_of

ROWS, COLUMNS, DEPTH = gl.constexpr(128), gl.constexpr(256), gl.constexpr(64)
HALF = gl.constexpr(64)  # rows of one warpgroup
PART = gl.constexpr(64)  # columns stored at once: 128 bytes, the widest swizzle
# the step at which a warpgroup gives its buffer back, and that at which the loading warp fills it
RETURN, FILL = gl.constexpr(2), gl.constexpr(6)
SLICE = gl.constexpr(8)  # rows added up at once: those of a swizzle
SUMMED = gl.constexpr(gl.BlockedLayout([8, 4], [1, 32], [1, 2], [1, 0]))  # a slice: whole columns in a thread
ACC = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 256, 16]))
ACC_PART = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16]))


@gluon.jit
@no_type_check
def _place(work, tiles, m_tiles, n_tiles, GROUP: gl.constexpr):
    """First row and column of a piece of work, and its part of K."""
    m_tile, n_tile = tile_of(work % tiles, m_tiles, n_tiles, GROUP)
    return m_tile * ROWS, n_tile * COLUMNS, work // tiles


@gluon.jit
@no_type_check
def _load(desc, row, column, barrier, tile, ACROSS: gl.constexpr):
    """Load a tile of an operand, of whose transpose it is ``ACROSS``."""
    if ACROSS:
        tma_load(desc, [column, row], barrier, tile)
    else:
        tma_load(desc, [row, column], barrier, tile)


@gluon.jit
@no_type_check
def _fill(desc, buffers, filled, returned, row, column, done):
    """Load what the epilogue of a warpgroup reads, once its buffers' last content is stored."""
    mbarrier.wait(returned, done & 1)
    mbarrier.expect(filled, 4 * desc.block_type.nbytes)
    for part in gl.static_range(4):
        tma_load(desc, [row, column + part * PART], filled, buffers.index(part))


@gluon.jit
@no_type_check
def _load_all(
    a_desc, b_desc, extra_desc, a_tiles, b_tiles, upper, lower, ready, free, filled, returned,
    m_tiles, n_tiles, steps, splits, A_ACROSS: gl.constexpr, B_ACROSS: gl.constexpr, GROUP: gl.constexpr,
):  # fmt: skip
    """The loading warp: tiles of both operands into the ring, what the epilogue reads into its buffers."""
    STAGES: gl.constexpr = ready.shape[0]
    tiles = m_tiles * n_tiles
    count = 0
    done = 0
    for work in range(gl.program_id(0), tiles * splits, gl.num_programs(0)):
        first_row, first_column, split = _place(work, tiles, m_tiles, n_tiles, GROUP)
        for step in range(steps):
            slot = count % STAGES
            depth = (split * steps + step) * DEPTH
            # a barrier that has never completed lets the wait for its other phase pass
            mbarrier.wait(free.index(slot), (count // STAGES & 1) ^ 1)
            barrier = ready.index(slot)
            mbarrier.expect(barrier, a_desc.block_type.nbytes + b_desc.block_type.nbytes)
            _load(a_desc, first_row, depth, barrier, a_tiles.index(slot), A_ACROSS)
            _load(b_desc, depth, first_column, barrier, b_tiles.index(slot), B_ACROSS)
            if extra_desc is not None:  # noqa: SIM102  # this is the compiler's, the next the kernel's
                if step == FILL:
                    row, column = first_row, first_column
                    _fill(extra_desc, upper, filled.index(0), returned.index(0), row, column, done)
                    _fill(extra_desc, lower, filled.index(1), returned.index(1), row + HALF, column, done)
            count += 1
        done += 1  # noqa: SIM113  # no enumerate in a kernel


@gluon.jit
@no_type_check
def _add_columns(sums_ptr, b_tiles, ready, free, N, m_tiles, n_tiles, steps, splits, GROUP: gl.constexpr):
    """The adding warps: sums of the right operand's columns, over the slices that fall to a tile's row."""
    if sums_ptr is not None:
        STAGES: gl.constexpr = ready.shape[0]
        tiles = m_tiles * n_tiles
        count = 0
        for work in range(gl.program_id(0), tiles * splits, gl.num_programs(0)):
            first_row, first_column, split = _place(work, tiles, m_tiles, n_tiles, GROUP)
            turn = first_row // ROWS
            part = split * m_tiles + turn
            total = gl.zeros([COLUMNS], gl.float32, layout=gl.SliceLayout(0, SUMMED))
            for _ in range(steps):
                slot = count % STAGES
                mbarrier.wait(ready.index(slot), count // STAGES & 1)
                for i in gl.static_range(DEPTH // SLICE):
                    if turn == 0:
                        x = b_tiles.index(slot).slice(i * SLICE, SLICE, dim=0).load(SUMMED)
                        total += gl.sum(x.to(gl.float32), 0)
                        turn = m_tiles
                    turn -= 1
                # both warps have read
                block_barrier()
                mbarrier.arrive(free.index(slot), count=1)
                count += 1
            column = first_column + gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, SUMMED))
            gl.store(sums_ptr + gl.cast(part, gl.int64) * N + column, total, mask=column < N)


@gluon.jit
@no_type_check
def _quarters(acc):
    """Four parts of an accumulator, by columns; nothing is moved."""
    left, right = gl.split(acc.reshape([HALF, 2, 2 * PART]).permute(0, 2, 1))
    a, b = gl.split(left.reshape([HALF, 2, PART]).permute(0, 2, 1))
    c, d = gl.split(right.reshape([HALF, 2, PART]).permute(0, 2, 1))
    return (
        gl.convert_layout(a, ACC_PART, assert_trivial=True),
        gl.convert_layout(b, ACC_PART, assert_trivial=True),
        gl.convert_layout(c, ACC_PART, assert_trivial=True),
        gl.convert_layout(d, ACC_PART, assert_trivial=True),
    )


@gluon.jit
@no_type_check
def _finish_wide(acc, out_ptr, row, column, M, N, ACCUMULATE: gl.constexpr):
    """Write, or add to, a float32 output through pointers: a thread has two neighbours of each row."""
    parts = _quarters(acc)
    rows = row + gl.arange(0, HALF, layout=gl.SliceLayout(1, ACC_PART))
    for part in gl.static_range(4):
        columns = column + part * PART + gl.arange(0, PART, layout=gl.SliceLayout(0, ACC_PART))
        at = rows.to(gl.int64)[:, None] * N + columns[None, :]
        keep = (rows < M)[:, None] & (columns < N)[None, :]
        x = parts[part]
        if ACCUMULATE:
            x += gl.load(out_ptr + at, mask=keep, other=0.0)
        gl.store(out_ptr + at, x, mask=keep)


@gluon.jit
@no_type_check
def _finish(acc, out_desc, bias_ptr, buffers, row, column, N, EXTRA: gl.constexpr):
    """Bias, then factor or residual, and the store of one warpgroup's 64 rows."""
    parts = _quarters(acc)
    if EXTRA == "none":
        # elsewhere the buffers were given back, and filled again
        tma.store_wait(0)
        block_barrier()
    for part in gl.static_range(4):
        x = parts[part]
        if bias_ptr is not None:
            at = column + part * PART + gl.arange(0, PART, layout=gl.SliceLayout(0, ACC_PART))
            x += gl.load(bias_ptr + at, mask=at < N, other=0.0)[None, :]
        if EXTRA == "factor":
            x *= buffers.index(part).load(ACC_PART).to(gl.float32)
        if EXTRA == "residual":
            x += buffers.index(part).load(ACC_PART).to(gl.float32)
        buffers.index(part).store(x.to(gl.bfloat16))
    fence_async_shared()
    block_barrier()
    for part in gl.static_range(4):
        tma_store(out_desc, [row, column + part * PART], buffers.index(part))


@gluon.jit
@no_type_check
def _multiply_all(
    out_ptr, out_desc, bias_ptr, a_tiles, b_tiles, buffers, ready, free, filled, returned, M, N,
    m_tiles, n_tiles, steps, splits, A_ACROSS: gl.constexpr, B_ACROSS: gl.constexpr, EXTRA: gl.constexpr,
    ACCUMULATE: gl.constexpr, GROUP: gl.constexpr, HALF_INDEX: gl.constexpr,
):  # fmt: skip
    """One of the two multiplying warpgroups: its 64 rows of every tile."""
    STAGES: gl.constexpr = ready.shape[0]
    tiles = m_tiles * n_tiles
    count = 0
    done = 0
    for work in range(gl.program_id(0), tiles * splits, gl.num_programs(0)):
        first_row, first_column, split = _place(work, tiles, m_tiles, n_tiles, GROUP)
        row = first_row + HALF_INDEX * HALF
        acc = gl.zeros([HALF, COLUMNS], gl.float32, layout=ACC)
        for step in range(steps):
            slot = count % STAGES
            mbarrier.wait(ready.index(slot), count // STAGES & 1)
            a, b = a_tiles.index(slot), b_tiles.index(slot)
            if A_ACROSS:
                a = a.slice(HALF_INDEX * HALF, HALF, dim=1).permute((1, 0))
            else:
                a = a.slice(HALF_INDEX * HALF, HALF, dim=0)
            if B_ACROSS:
                b = b.permute((1, 0))
            acc = warpgroup_mma(a, b, acc, use_acc=step > 0, is_async=True)
            # the product before this one is done with its tiles
            acc = warpgroup_mma_wait(1, deps=(acc,))
            mbarrier.arrive(free.index((count + STAGES - 1) % STAGES), count=1, pred=step > 0)
            if EXTRA != "none":  # noqa: SIM102  # this is the compiler's, the next the kernel's
                if step == RETURN:
                    tma.store_wait(0)
                    mbarrier.arrive(returned.index(HALF_INDEX), count=1)
            count += 1
        acc = warpgroup_mma_wait(0, deps=(acc,))
        mbarrier.arrive(free.index((count + STAGES - 1) % STAGES), count=1)
        if EXTRA != "none":
            mbarrier.wait(filled.index(HALF_INDEX), done & 1)
        if out_desc is None:
            _finish_wide(acc, out_ptr + gl.cast(split, gl.int64) * M * N, row, first_column, M, N, ACCUMULATE)
        else:
            _finish(acc, out_desc, bias_ptr, buffers, row, first_column, N, EXTRA)
        done += 1  # noqa: SIM113  # no enumerate in a kernel
    tma.store_wait(0)


@gluon.jit
@no_type_check
def hopper_kernel(
    a_desc,  # [M, K] by [128, 64], or [K, M] by [64, 128] if A_ACROSS
    b_desc,  # [K, N] by [64, 256], or [N, K] by [256, 64] if B_ACROSS
    out_ptr,  # [S, M, N] float32, written or added to, unless out_desc is given
    out_desc,  # [M, N] by [64, 64], written, or None
    extra_desc,  # [M, N] by [64, 64] factor or residual, or None
    bias_ptr,  # [N] or None
    sums_ptr,  # [S * row tiles, N] written: parts of the sums over K of the right operand, or None
    M,
    N,
    steps,
    splits,
    A_ACROSS: gl.constexpr,
    B_ACROSS: gl.constexpr,
    EXTRA: gl.constexpr,
    ACCUMULATE: gl.constexpr,
    GROUP: gl.constexpr,
    STAGES: gl.constexpr,
):
    """Output tiles one after another until none is left, by three groups of warps."""
    A0: gl.constexpr = a_desc.block_type.shape[0]
    B0: gl.constexpr = b_desc.block_type.shape[0]
    A1: gl.constexpr = a_desc.block_type.shape[1]
    B1: gl.constexpr = b_desc.block_type.shape[1]
    a_tiles = gl.allocate_shared_memory(gl.bfloat16, [STAGES, A0, A1], TILE)
    b_tiles = gl.allocate_shared_memory(gl.bfloat16, [STAGES, B0, B1], TILE)
    upper = gl.allocate_shared_memory(gl.bfloat16, [4, HALF, PART], TILE)
    lower = gl.allocate_shared_memory(gl.bfloat16, [4, HALF, PART], TILE)
    ready, free = new_barriers(STAGES, 1), new_barriers(STAGES, 2 if sums_ptr is None else 3)
    filled, returned = new_barriers(2, 1), new_barriers(2, 1)
    fence_async_shared()
    block_barrier()
    m_tiles, n_tiles = gl.cdiv(M, ROWS), gl.cdiv(N, COLUMNS)
    gl.warp_specialize(
        [
            (_multiply_all, (
                out_ptr, out_desc, bias_ptr, a_tiles, b_tiles, upper, ready, free, filled, returned, M, N,
                m_tiles, n_tiles, steps, splits, A_ACROSS, B_ACROSS, EXTRA, ACCUMULATE, GROUP, 0,
            )),
            (_multiply_all, (
                out_ptr, out_desc, bias_ptr, a_tiles, b_tiles, lower, ready, free, filled, returned, M, N,
                m_tiles, n_tiles, steps, splits, A_ACROSS, B_ACROSS, EXTRA, ACCUMULATE, GROUP, 1,
            )),
            (_load_all, (
                a_desc, b_desc, extra_desc, a_tiles, b_tiles, upper, lower, ready, free, filled, returned,
                m_tiles, n_tiles, steps, splits, A_ACROSS, B_ACROSS, GROUP,
            )),
            (_add_columns, (sums_ptr, b_tiles, ready, free, N, m_tiles, n_tiles, steps, splits, GROUP)),
        ],
        [4, 1, 2],
        [240, 32, 32],
    )  # fmt: skip


def described(x: Float[Tensor, "R C"], rows: int, columns: int) -> Any:
    """Tiles of a matrix, as the tensor memory accelerator takes them."""
    return TensorDescriptor.from_tensor(x, [rows, columns], TILE.value)
