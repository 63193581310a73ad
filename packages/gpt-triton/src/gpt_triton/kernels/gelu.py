"""GELU in its tanh form, element by element; inside a product's epilogue the same helpers are used.

Shapes: N elements.
"""

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from gpt_triton.kernels.primitives import gelu, gelu_and_slope, narrow, widen
from gpt_triton.kernels.tiles import flat_block


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
