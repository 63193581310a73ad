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
def load_site(
    key_ptr,  # [3] int64, as Dropout.key
):
    """The two words of a site's key, and the number of the first row: uint32."""
    k0, k1, first_row = tl.load(key_ptr), tl.load(key_ptr + 1), tl.load(key_ptr + 2)
    return k0.to(tl.uint32), k1.to(tl.uint32), first_row.to(tl.uint32)


@triton.jit
@no_type_check
def philox(
    c0,
    c1,
    c2,  # the words of the counter, uint32 of shapes that broadcast; the fourth is 0
    k0,
    k1,
):
    """The four words of Philox-4x32-10."""
    c3 = tl.zeros_like(c0)
    for _ in tl.static_range(10):
        # one 64-bit product, not a high and a low one: one instruction instead of two
        p0, p1 = c0.to(tl.uint64) * PHILOX_M0, c2.to(tl.uint64) * PHILOX_M1
        c0, c2 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0, (p0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c1, c3 = p1.to(tl.uint32), p0.to(tl.uint32)
        k0 += PHILOX_W0
        k1 += PHILOX_W1
    return c0, c1, c2, c3
