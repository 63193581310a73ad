"""GELU, LayerNorm, dropout, embedding and linear maps, each with its derivative, as their formulas say.

GELU in its tanh form, written with one sigmoid:

    y = x s,   s = sigmoid(2u),   u = c (x + a x^3)             since (1 + tanh u) / 2 = sigmoid(2u)
    dy/dx = s (1 + x (1 - s) 2u'),   u' = c (1 + 3 a x^2)       since sigmoid' = s (1 - s)

LayerNorm, row by row:

    y = x_hat gain + bias,   x_hat = (x - mean) rstd,   rstd = 1 / sqrt(var + eps)
    d_x    = rstd (g - mean(g) - x_hat mean(g x_hat)),   g = d_y gain
    d_gain = sum over rows of d_y x_hat,   d_bias = sum over rows of d_y

Linear maps:

    y = x W + b,   d_x = d_y W^T,   d_W = x^T d_y,   d_b = sum over rows of d_y

Dropout is linear and diagonal, and so its own derivative; its mask is drawn again in the backward, by the
rule of ``gpt_triton.dropout``. The gradient of a table's row is the sum of those at its occurrences.

Statistics, sums and gradients of parameters are float32 whatever the dtype of x is (float64 in checks).
Shapes: M rows, D width, K input and N output width of a map, B rows, T positions, V rows of the token table,
C of the position table; ``*n`` any.

References:
    Hendrycks and Gimpel 2016, "Gaussian error linear units".
    Ba, Kiros and Hinton 2016, "Layer normalization".
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gpt_triton.dropout import Dropout, drop
from gpt_triton.ops import EPSILON, NormResiduals

GELU_C = math.sqrt(2.0 / math.pi)
GELU_A = 0.044715


def widen(x: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """float32 for bfloat16 and float32, float64 for float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def gelu(x: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """GELU of every element."""
    wide = widen(x)
    s = torch.sigmoid((2 * GELU_C + 2 * GELU_C * GELU_A * (wide * wide)) * wide)
    return (wide * s).to(x.dtype)


def gelu_and_slope(x: Float[Tensor, "*n"]) -> tuple[Float[Tensor, "*n"], Float[Tensor, "*n"]]:
    """GELU and its derivative at every element, which have most of their arithmetic in common."""
    wide = widen(x)
    near = wide.clamp(-100.0, 100.0)  # s is 0 or 1 long before; far behind, x 2u' overflows
    square = near * near
    s = torch.sigmoid((2 * GELU_C + 2 * GELU_C * GELU_A * square) * near)
    slope = s * (1 + (1 - s) * (2 * GELU_C + 6 * GELU_C * GELU_A * square) * near)
    return (wide * s).to(x.dtype), slope.to(x.dtype)


def layer_norm_fwd(
    x: Float[Tensor, "M D"], gain: Float[Tensor, " D"], bias: Float[Tensor, " D"]
) -> tuple[Float[Tensor, "M D"], NormResiduals]:
    """Normalize every row, then scale and shift."""
    wide = widen(x)
    mean = wide.mean(1)
    var = (wide - mean[:, None]).square().mean(1)
    res = NormResiduals(x, mean, torch.rsqrt(var + EPSILON))
    return (_normalized(res) * gain + bias).to(x.dtype), res


def layer_norm_bwd(
    res: NormResiduals,
    gain: Float[Tensor, " D"],
    d_y: Float[Tensor, "M D"],
    d_gain: Float[Tensor, " D"],
    d_bias: Float[Tensor, " D"],
    d_skip: Float[Tensor, "M D"] | None = None,
) -> Float[Tensor, "M D"]:
    """Gradient of the input; those of gain and bias are added in place.

    Args:
        d_gain: Added to.
        d_bias: Added to.
        d_skip: Gradient that reached the input past the norm, added to the result.
    """
    x_hat, d_wide = _normalized(res), widen(d_y)
    d_bias.add_(d_wide.sum(0))
    d_gain.add_((d_wide * x_hat).sum(0))
    g = d_wide * gain
    projection = (g * x_hat).mean(1, keepdim=True)
    d_x = res.rstd[:, None] * (g - g.mean(1, keepdim=True) - x_hat * projection)
    return (d_x if d_skip is None else d_x + d_skip).to(d_y.dtype)


def _normalized(res: NormResiduals) -> Float[Tensor, "M D"]:
    """``x_hat``."""
    return (widen(res.x) - res.mean[:, None]) * res.rstd[:, None]


def dropout_fwd(x: Float[Tensor, "M D"], dropout: Dropout) -> Float[Tensor, "M D"]:
    """Zero the dropped elements and scale the kept ones by ``1 / (1 - rate)``."""
    return drop(x, dropout)


def dropout_bwd(d_y: Float[Tensor, "M D"], dropout: Dropout) -> Float[Tensor, "M D"]:
    """Gradient of the input: the same mask and scale."""
    return drop(d_y, dropout)


def embedding_fwd(
    tokens: Int[Tensor, "B T"],
    positions: Int[Tensor, "B T"],
    wte: Float[Tensor, "V D"],
    wpe: Float[Tensor, "C D"],
    dropout: Dropout | None = None,
) -> Float[Tensor, "M D"]:
    """``dropout(wte[token] + wpe[position])``.

    Args:
        tokens: Token ids, checked by the caller.
        positions: Rows of ``wpe``, checked by the caller.
    """
    x = (wte[tokens] + wpe[positions]).flatten(0, 1)
    return x if dropout is None else dropout_fwd(x, dropout)


def embedding_bwd(
    tokens: Int[Tensor, "B T"],
    positions: Int[Tensor, "B T"],
    d_x: Float[Tensor, "M D"],
    d_wte: Float[Tensor, "V D"],
    d_wpe: Float[Tensor, "C D"],
    dropout: Dropout | None = None,
) -> None:
    """Gradients of both tables, added in place, in an order that does not vary from run to run.

    Args:
        d_wte: Added to.
        d_wpe: Added to.
    """
    if dropout is not None:
        d_x = dropout_bwd(d_x, dropout)
    for table, index in ((d_wte, tokens), (d_wpe, positions)):
        if table.device.type == "cpu":
            table.index_add_(0, index.flatten(), d_x.to(table.dtype))
        else:
            # index_add_ would use atomics here; accumulating index_put_ sorts the indices first
            table.index_put_((index.flatten().long(),), d_x.to(table.dtype), accumulate=True)


def linear_fwd(
    x: Float[Tensor, "M K"], weight: Float[Tensor, "K N"], bias: Float[Tensor, " N"] | None
) -> Float[Tensor, "M N"]:
    """``x W + b``.

    Args:
        weight: Matrix, (in, out), in the dtype of ``x``.
        bias: Added to every row.
    """
    return x @ weight if bias is None else torch.addmm(bias.to(x.dtype), x, weight)


def linear_gelu_fwd(
    x: Float[Tensor, "M K"], weight: Float[Tensor, "K N"], bias: Float[Tensor, " N"], slope: bool = True
) -> tuple[Float[Tensor, "M N"], Float[Tensor, "M N"] | None]:
    """``gelu(x W + b)``, and GELU's slope there.

    Args:
        weight: Matrix, (in, out), in the dtype of ``x``.
        bias: Added to every row.
        slope: Whether the slope is needed; ``None`` is returned if not.
    """
    pre = linear_fwd(x, weight, bias)
    return gelu_and_slope(pre) if slope else (gelu(pre), None)


def linear_residual_fwd(
    x: Float[Tensor, "M K"],
    weight: Float[Tensor, "K N"],
    bias: Float[Tensor, " N"],
    residual: Float[Tensor, "M N"],
    dropout: Dropout | None = None,
) -> Float[Tensor, "M N"]:
    """``residual + dropout(x W + b)``.

    Args:
        weight: Matrix, (in, out), in the dtype of ``x``.
        bias: Added to every row.
    """
    branch = linear_fwd(x, weight, bias)
    return residual + (branch if dropout is None else dropout_fwd(branch, dropout))


def linear_bwd_dx(d_y: Float[Tensor, "M N"], weight: Float[Tensor, "K N"]) -> Float[Tensor, "M K"]:
    """Gradient of the map's input.

    Args:
        weight: Matrix, (in, out), in the dtype of ``d_y``.
    """
    return d_y @ weight.T


def linear_gelu_bwd_dx(
    d_y: Float[Tensor, "M N"],
    weight: Float[Tensor, "K N"],
    slope: Float[Tensor, "M K"],
) -> Float[Tensor, "M K"]:
    """Gradient of what GELU took, where its output was the map's input.

    Args:
        weight: Matrix, (in, out), in the dtype of ``d_y``.
    """
    return linear_bwd_dx(d_y, weight) * slope


def linear_bwd_dwdb(
    x: Float[Tensor, "M K"],
    d_y: Float[Tensor, "M N"],
    d_weight: Float[Tensor, "K N"],
    d_bias: Float[Tensor, " N"],
) -> None:
    """Gradients of matrix and bias, added in place; their sums over rows are float32.

    Args:
        d_weight: Added to.
        d_bias: Added to.
    """
    d_y = d_y.to(d_weight.dtype)
    d_weight.addmm_(x.to(d_weight.dtype).T, d_y)
    d_bias.add_(d_y.sum(0))
