"""The affine map  y = x W + b  with what follows it, and its three gradients.

    d_x = d_y W^T,   d_W = x^T d_y,   d_b = sum over rows of d_y

Weights are (in, out). Shapes: M rows, K input width, N output width.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from gpt_triton.dropout import Dropout
from gpt_triton.reference.dropout import dropout_fwd
from gpt_triton.reference.gelu import gelu_bwd, gelu_fwd


def linear_fwd(
    x: Float[Tensor, "M K"], weight: Float[Tensor, "K N"], bias: Float[Tensor, " N"] | None
) -> Float[Tensor, "M N"]:
    """Affine map of every row.

    Args:
        weight: Matrix, (in, out), in the dtype of ``x``.
        bias: Added to every row.
    """
    return x @ weight if bias is None else torch.addmm(bias.to(x.dtype), x, weight)


def linear_gelu_fwd(
    x: Float[Tensor, "M K"], weight: Float[Tensor, "K N"], bias: Float[Tensor, " N"], slope: bool = True
) -> tuple[Float[Tensor, "M N"], Float[Tensor, "M N"] | None]:
    """Affine map, then GELU; returns the output, and GELU's slope at the map's values.

    Args:
        weight: Matrix, (in, out), in the dtype of ``x``.
        bias: Added to every row.
        slope: Whether the slope is needed; ``None`` is returned if not.
    """
    pre = linear_fwd(x, weight, bias)
    return gelu_fwd(pre), gelu_bwd(pre, torch.ones_like(pre)) if slope else None


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
    if dropout is not None:
        branch = dropout_fwd(branch, dropout)
    return branch.add_(residual)


def linear_bwd_dx(d_y: Float[Tensor, "M N"], weight: Float[Tensor, "K N"]) -> Float[Tensor, "M K"]:
    """Gradient of the input.

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
    return (d_y @ weight.T).mul_(slope)


def linear_bwd_dwdb(
    x: Float[Tensor, "M K"],
    d_y: Float[Tensor, "M N"],
    d_weight: Float[Tensor, "K N"],
    d_bias: Float[Tensor, " N"],
) -> None:
    """Gradients of matrix and bias, added in place.

    Args:
        d_weight: Added to.
        d_bias: Added to.
    """
    # a product of bfloat16 rows is summed over all rows: keep that sum in float32 before it is added
    d_y = d_y.to(d_weight.dtype)
    d_weight.addmm_(x.to(d_weight.dtype).T, d_y)
    d_bias.add_(d_y.sum(0))
