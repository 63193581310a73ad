"""GELU in its tanh form, and its slope: for a product's epilogue, and element by element.

    y = x s,   s = sigmoid(2u),   u = c (x + a x^3),   y' = s + y (1 - s) 2u'

Shapes: N elements.
"""

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from gpt_triton.kernels.primitives import INTERPRET, LOG2_E, narrow, widen
from gpt_triton.kernels.tiles import flat_block

GELU_C = tl.constexpr(0.7978845608028654)  # sqrt(2 / pi)
GELU_A = tl.constexpr(0.044715)


@triton.jit
@no_type_check
def reciprocal(x):
    """``1 / x`` by one instruction, within one unit in the last place; a division takes five more."""
    if INTERPRET:
        return 1.0 / x
    else:  # noqa: RET505  # the compiler drops only the other branch of a whole if
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )


@triton.jit
@no_type_check
def gelu_gate(x, square):
    """``sigmoid(2u)`` at ``x``, with ``square = x^2``; log2(e) is in the constants."""
    exponent = x * (square * (-2.0 * GELU_C * GELU_A * LOG2_E) - 2.0 * GELU_C * LOG2_E)
    return reciprocal(1.0 + tl.exp2(exponent))


@triton.jit
@no_type_check
def gelu(x):
    """GELU, tanh form, as ``x sigmoid(2u)``."""
    return x * gelu_gate(x, x * x)


@triton.jit
@no_type_check
def gelu_and_slope(x):
    """GELU ``y = x s`` and its derivative ``s + y (1 - s) 2u'``; there the factors that vanish come first."""
    square = x * x
    s = gelu_gate(x, square)
    y = x * s
    return y, s + (y - y * s) * (square * (6.0 * GELU_C * GELU_A) + 2.0 * GELU_C)


@triton.jit
@no_type_check
def _gelu_fwd_kernel(
    x_ptr,  # [N]
    y_ptr,  # [N] written
    N,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = widen(tl.load(x_ptr + i, mask=i < N, other=0.0))
    tl.store(y_ptr + i, narrow(gelu(x), y_ptr.dtype.element_ty), mask=i < N)


@triton.jit
@no_type_check
def _gelu_bwd_kernel(
    x_ptr,  # [N] input of the forward
    d_y_ptr,  # [N]
    d_x_ptr,  # [N] written
    N,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = widen(tl.load(x_ptr + i, mask=i < N, other=0.0))
    d_y = widen(tl.load(d_y_ptr + i, mask=i < N, other=0.0))
    _, slope = gelu_and_slope(x)
    tl.store(d_x_ptr + i, narrow(d_y * slope, d_x_ptr.dtype.element_ty), mask=i < N)


def gelu_fwd(x: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """GELU of every element."""
    x = x.contiguous()
    y = torch.empty_like(x)
    block = flat_block()
    _gelu_fwd_kernel[(triton.cdiv(x.numel(), block),)](x, y, x.numel(), BLOCK=block)
    return y


def gelu_bwd(x: Float[Tensor, "*n"], d_y: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Gradient of the input."""
    x, d_y = x.contiguous(), d_y.contiguous()
    d_x = torch.empty_like(d_y)
    block = flat_block()
    _gelu_bwd_kernel[(triton.cdiv(x.numel(), block),)](x, d_y, d_x, x.numel(), BLOCK=block)
    return d_x
