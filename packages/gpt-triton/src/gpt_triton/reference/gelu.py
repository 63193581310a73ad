"""GELU in its tanh form, written with one sigmoid:  y = x s,  s = sigmoid(2u),  u = c (x + a x^3).

    dy/dx = s + x s (1 - s) 2u',   u' = c (1 + 3 a x^2)

because ``(1 + tanh u) / 2 = sigmoid(2u)`` and ``sigmoid' = s (1 - s)``. Any shape.

References:
    Hendrycks and Gimpel 2016, "Gaussian error linear units".
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from gpt_triton.reference.tiles import accumulation_dtype, rows_per_tile

C = math.sqrt(2.0 / math.pi)
A = 0.044715


def gelu_fwd(x: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """GELU of every element."""
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    tile = rows_per_tile(x, 1)
    for x_tile, y_tile in zip(x.reshape(-1).split(tile), y.view(-1).split(tile), strict=True):
        wide = x_tile.to(accumulation_dtype(x))
        y_tile.copy_(_gate(wide, wide * wide).mul_(wide))
    return y


def gelu_bwd(x: Float[Tensor, "*n"], d_y: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Gradient of the input."""
    d_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    tile = rows_per_tile(x, 1)
    flat = (x.reshape(-1), d_y.reshape(-1), d_x.view(-1))
    for x_tile, d_y_tile, d_x_tile in zip(*(t.split(tile) for t in flat), strict=True):
        d_x_tile.copy_(_slope(x_tile.to(accumulation_dtype(x))).mul_(d_y_tile))
    return d_x


def _gate(x: Float[Tensor, " N"], square: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """``s`` at ``x``, with ``square = x^2``."""
    return torch.mul(square, 2 * C * A).add_(2 * C).mul_(x).sigmoid_()


def _slope(x: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Derivative of GELU, by s * (1 + x (1 - s) 2u')."""
    x = x.clamp(-100.0, 100.0)  # 0 or 1 long before; far behind, x 2u' overflows
    square = x * x
    s = _gate(x, square)
    slope = square.mul_(6 * C * A).add_(2 * C).mul_(x)  # x 2u'
    return slope.addcmul_(slope, s, value=-1.0).add_(1.0).mul_(s)
