"""LayerNorm:  y = x_hat * gain + bias,  x_hat = (x - mean) rstd,  rstd = 1 / sqrt(var + eps), row by row.

With g = d_y * gain:

    d_x    = rstd (g - mean(g) - x_hat mean(g x_hat))
    d_gain = sum over rows of d_y x_hat,   d_bias = sum over rows of d_y

Shapes: M rows, D width.

References:
    Ba, Kiros and Hinton 2016, "Layer normalization".
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from gpt_triton.ops import NormResiduals
from gpt_triton.reference.tiles import accumulation_dtype, rows_per_tile


def layer_norm_fwd(
    x: Float[Tensor, "M D"], gain: Float[Tensor, " D"], bias: Float[Tensor, " D"], eps: float = 1e-5
) -> tuple[Float[Tensor, "M D"], NormResiduals]:
    """Normalize every row, then scale and shift.

    Args:
        eps: Added to the variance.
    """
    y, mean, rstd = torch.native_layer_norm(x.to(gain.dtype), [x.shape[1]], gain, bias, eps)
    return y.to(x.dtype), NormResiduals(x, mean.view(-1), rstd.view(-1))


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
    dtype = accumulation_dtype(res.x)
    d_x = torch.empty_like(d_y)
    rows = rows_per_tile(d_y, d_y.shape[1])
    for start in range(0, d_y.shape[0], rows):
        tile = slice(start, start + rows)
        rstd = res.rstd[tile, None]
        x_hat = (res.x[tile].to(dtype) - res.mean[tile, None]).mul_(rstd)
        g = d_y[tile].to(dtype)
        d_bias.add_(g.sum(0))
        d_gain.add_((g * x_hat).sum(0))
        g = g * gain
        projection = (g * x_hat).mean(1, keepdim=True)
        g.sub_(g.mean(1, keepdim=True)).addcmul_(x_hat, projection, value=-1.0).mul_(rstd)
        if d_skip is not None:
            g.add_(d_skip[tile])
        d_x[tile] = g
    return d_x
