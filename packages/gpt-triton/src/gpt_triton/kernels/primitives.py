"""What several kernels share: conversions and Philox.

The interpreter keeps bfloat16 as raw 16-bit words: it multiplies them as integers, and it rounds float32
down instead of to nearest. So every kernel widens right after a load and narrows right before a store
through the two helpers here; compiled, they leave the operands of the tensor cores in bfloat16.
"""

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl
from gpt_trainer.philox import MULTIPLIERS, WEYL

# decided when the kernels are defined, like the interpreter itself
INTERPRET = tl.constexpr(triton.knobs.runtime.interpret)
LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
PHILOX_M0, PHILOX_M1 = tl.constexpr(MULTIPLIERS[0]), tl.constexpr(MULTIPLIERS[1])
PHILOX_W0, PHILOX_W1 = tl.constexpr(WEYL[0]), tl.constexpr(WEYL[1])


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
def keep_mask(
    index,  # row-major positions: int64, or uint32 where all fit
    key_ptr,  # [2] int64
    THRESHOLD: tl.constexpr,
):
    """True where word 0 of Philox-4x32-10 at ``(index low, index high, 0, 0)`` reaches the threshold."""
    k0 = tl.load(key_ptr).to(tl.uint32)
    k1 = tl.load(key_ptr + 1).to(tl.uint32)
    c0 = index.to(tl.uint32)
    c1 = tl.zeros_like(c0)
    if index.dtype.primitive_bitwidth == 64:
        c1 = (index >> 32).to(tl.uint32)
    c2 = tl.zeros_like(c0)
    c3 = tl.zeros_like(c0)
    m0 = tl.full(c0.shape, PHILOX_M0, tl.uint64)
    m1 = tl.full(c0.shape, PHILOX_M1, tl.uint64)
    for _ in tl.static_range(10):
        # one 64-bit product, not a high and a low one: one instruction instead of two
        p0, p1 = m0 * c0.to(tl.uint64), m1 * c2.to(tl.uint64)
        c0, c2 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0, (p0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c1, c3 = p1.to(tl.uint32), p0.to(tl.uint32)
        k0 += PHILOX_W0
        k1 += PHILOX_W1
    return c0 >= tl.full(c0.shape, THRESHOLD, tl.uint32)
