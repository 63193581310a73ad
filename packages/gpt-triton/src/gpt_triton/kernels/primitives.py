"""What several kernels share: conversions, sums in a fixed order, and what the device can.

The interpreter keeps bfloat16 as raw 16-bit words: it multiplies them as integers, and it rounds float32
down instead of to nearest. So every kernel widens right after a load and narrows right before a store
through the two helpers here; compiled, they leave the operands of the tensor cores in bfloat16.

Shapes: G groups of P parts, N elements of each, M rows.
"""

from __future__ import annotations

import functools
from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

# decided when the kernels are defined, like the interpreter itself
INTERPRET = tl.constexpr(triton.knobs.runtime.interpret)
LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
@no_type_check
def widen(x):
    """Float32 values of a loaded tile."""
    if INTERPRET and x.dtype == tl.bfloat16:
        return (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:  # noqa: RET505  # the compiler drops only the other branch of a whole if
        return x.to(tl.float32)


@triton.jit
@no_type_check
def narrow(x, dtype: tl.constexpr):
    """Float32 values rounded to nearest even in ``dtype``."""
    if INTERPRET and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return bits.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:  # noqa: RET505  # the compiler drops only the other branch of a whole if
        return x.to(dtype)


@triton.jit
@no_type_check
def operand(x):
    """A loaded tile as an operand of ``tl.dot``: in its own dtype when compiled."""
    if INTERPRET:
        return widen(x)
    else:  # noqa: RET505  # the compiler drops only the other branch of a whole if
        return x


@triton.jit
@no_type_check
def rounded_operand(x, dtype: tl.constexpr):
    """A computed float32 tile as an operand of ``tl.dot``, rounded to ``dtype``."""
    return operand(narrow(x, dtype))


@triton.jit
@no_type_check
def _add_partial_sums_kernel(
    parts_ptr,  # [G, P, N]
    total0_ptr,  # [N] added to
    total1_ptr,  # [N] added to, or None: of the second group
    P,
    N,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    group = tl.program_id(1)
    parts_ptr += group.to(tl.int64) * P * N
    total_ptr = total0_ptr
    if total1_ptr is not None:
        total_ptr = total1_ptr if group == 1 else total_ptr
    column = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for first in range(0, P, PARTS):
        part = first + tl.arange(0, PARTS)
        keep = (part[:, None] < P) & (column[None, :] < N)
        at = part[:, None].to(tl.int64) * N + column[None, :]
        total += tl.sum(tl.load(parts_ptr + at, mask=keep, other=0.0), 0)
    total += tl.load(total_ptr + column, mask=column < N, other=0.0)
    tl.store(total_ptr + column, total, mask=column < N)


@triton.jit
@no_type_check
def _column_sums_kernel(
    x_ptr,  # [M, N]
    parts_ptr,  # [P, N] written
    M,
    N,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    column = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    program = tl.program_id(1).to(tl.int64)
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    for first in range(program * ROWS, M, tl.num_programs(1) * ROWS):
        row = first + tl.arange(0, ROWS)
        keep = (row[:, None] < M) & (column[None, :] < N)
        at = row[:, None].to(tl.int64) * N + column[None, :]
        total += widen(tl.load(x_ptr + at, mask=keep, other=0.0))
    # the rows of a tile are added up once, not at every step
    tl.store(parts_ptr + program * N + column, tl.sum(total, 0), mask=column < N)


def add_partial_sums(
    parts: Float[Tensor, "G P N"], total: Float[Tensor, " N"], second: Float[Tensor, " N"] | None = None
) -> None:
    """Add the sum of each group's parts to its total, in an order that depends on the shape alone.

    Args:
        parts: Partial sums of one group or two, float32, contiguous.
        total: Added to.
        second: Added to, if there is a second group.
    """
    groups, count, width = parts.shape
    rows, block = _partial_sum_tiles(count, width)
    grid = (triton.cdiv(width, block), groups)
    _add_partial_sums_kernel[grid](parts, total, second, count, width, PARTS=rows, BLOCK=block)


def add_column_sums(x: Float[Tensor, "M N"], total: Float[Tensor, " N"]) -> None:
    """Add the sum over the rows of ``x`` to ``total``, in two stages.

    Args:
        x: Contiguous matrix.
        total: Added to, float32.
    """
    rows, width = x.shape
    tile, block, programs = _column_sum_tiles(rows, width, x.device)
    parts = torch.empty(programs, width, dtype=torch.float32, device=x.device)
    grid = (triton.cdiv(width, block), programs)
    _column_sums_kernel[grid](x, parts, rows, width, ROWS=tile, BLOCK=block)
    add_partial_sums(parts[None], total)


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Multiprocessors of the device; 132 for the meta device, 2 in the interpreter (short loops of waves)."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).multi_processor_count)
    return 132 if device.type == "meta" else 2


@functools.cache
def capability(device: torch.device) -> int:
    """Ten times the compute capability; of the meta device, the compiler's target; 90 where there is none."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return 10 * major + minor
    compiled = device.type == "meta" and not INTERPRET.value
    return int(triton.runtime.driver.active.get_current_target().arch) if compiled else 90


def has_tensor_descriptors(device: torch.device) -> bool:
    """True where tiles can be moved by the tensor memory accelerator (from compute capability 9)."""
    return capability(device) >= 90


def is_hopper(device: torch.device) -> bool:
    """True where the tensor cores take the products of a warpgroup (compute capability 9 alone)."""
    return capability(device) == 90 and not INTERPRET.value


def row_tile(width: int) -> tuple[int, int]:
    """Rows per tile and padded width, for kernels that hold whole rows; about 4,096 elements at 4 warps."""
    block = max(16, triton.next_power_of_2(width))
    budget = 1 << 16 if INTERPRET.value else 4096
    rows = max(1, min(64, budget // block))
    return rows, block


def matrix_tile() -> tuple[int, int]:
    """Rows and columns of a tile of a matrix that an elementwise kernel takes, perhaps across."""
    return (64, 256) if INTERPRET.value else (32, 64)


def _partial_sum_tiles(count: int, width: int) -> tuple[int, int]:
    """Parts and columns per step when partial sums are added.

    Narrow and tall (a bias): few columns, so that enough programs exist, and many parts at once. Wide and
    short (the parts of a split product): whole cache lines of one part after the other.
    """
    if INTERPRET.value:
        return 16, 1 << 10
    return (256, 8) if width <= 16384 else (1, 1024) if count <= 4 else (4, 1024)


def _column_sum_tiles(rows: int, width: int, device: torch.device) -> tuple[int, int, int]:
    """Rows and columns per step, and programs per column block, of a sum over rows."""
    if INTERPRET.value:
        return 32, 128, 2
    # narrow: few columns, so that enough programs exist; about 8 for each multiprocessor
    tile, block = (64, 64) if width <= 1024 else (16, 256)
    programs = max(1, min(triton.cdiv(rows, tile), 8 * multiprocessors(device) * block // max(width, block)))
    return tile, block, programs
