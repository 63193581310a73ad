"""Dropout by Philox-4x32-10, the rule of ``gpt_trainer.philox`` bit for bit; drawn again in the backward.

Shapes: N elements.
"""

from __future__ import annotations

from typing import NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from gpt_trainer.philox import dropout_threshold
from jaxtyping import Float
from torch import Tensor

from gpt_triton.dropout import Dropout
from gpt_triton.kernels.primitives import drop, narrow, widen
from gpt_triton.kernels.tiles import flat_block


class DropoutArguments(NamedTuple):
    """A mask as kernels take it: no key pointer means no dropout.

    Attributes:
        key: Key words on the device, or ``None``.
        keep_scale: Scale of the kept elements.
        threshold: Smallest Philox word that is kept.
    """

    key: Tensor | None
    keep_scale: float
    threshold: int


def dropout_arguments(dropout: Dropout | None) -> DropoutArguments:
    """Kernel arguments of a mask, or of none."""
    if dropout is None:
        return DropoutArguments(None, 1.0, 0)
    return DropoutArguments(dropout.key, 1.0 / (1.0 - dropout.rate), dropout_threshold(dropout.rate))


@triton.jit
@no_type_check
def _dropout_kernel(
    x_ptr,  # [N]
    y_ptr,  # [N] written
    key_ptr,  # [2] int64
    N,
    keep_scale,
    THRESHOLD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = widen(tl.load(x_ptr + i, mask=i < N, other=0.0))
    y = drop(x, i, key_ptr, keep_scale, THRESHOLD)
    tl.store(y_ptr + i, narrow(y, y_ptr.dtype.element_ty), mask=i < N)


def dropout_fwd(x: Float[Tensor, "*n"], dropout: Dropout) -> Float[Tensor, "*n"]:
    """Zero the dropped elements and scale the kept ones by ``1 / (1 - rate)``.

    Args:
        x: Any tensor; element ``i`` is its ``i``-th in row-major order.
    """
    x = x.contiguous()
    y = torch.empty_like(x)
    key, keep_scale, threshold = dropout_arguments(dropout)
    block = flat_block()
    grid = (triton.cdiv(x.numel(), block),)
    _dropout_kernel[grid](x, y, key, x.numel(), keep_scale, THRESHOLD=threshold, BLOCK=block)
    return y


def dropout_bwd(d_y: Float[Tensor, "*n"], dropout: Dropout) -> Float[Tensor, "*n"]:
    """Gradient of the input: the same mask and scale."""
    return dropout_fwd(d_y, dropout)
