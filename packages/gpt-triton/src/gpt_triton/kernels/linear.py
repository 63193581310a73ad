"""The affine map  y = x W + b  with what follows it, and its three gradients.

    d_x = d_y W^T,   d_W = x^T d_y,   d_b = sum over rows of d_y

Weights are (in, out). Shapes: M rows, K input width, N output width.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from gpt_triton.dropout import Dropout
from gpt_triton.kernels.matmul import Epilogue, product


def linear_fwd(
    x: Float[Tensor, "M K"], weight: Float[Tensor, "K N"], bias: Float[Tensor, " N"] | None
) -> Float[Tensor, "M N"]:
    """Affine map of every row.

    Args:
        weight: Matrix, (in, out), in the dtype of ``x``.
        bias: Added to every row, float32.
    """
    y = x.new_empty(x.shape[0], weight.shape[1])
    product(x.contiguous(), weight, y, Epilogue(bias=bias))
    return y


def linear_gelu_fwd(
    x: Float[Tensor, "M K"], weight: Float[Tensor, "K N"], bias: Float[Tensor, " N"], slope: bool = True
) -> tuple[Float[Tensor, "M N"], Float[Tensor, "M N"] | None]:
    """Affine map, then GELU; returns the output, and GELU's slope at the map's values.

    Args:
        weight: Matrix, (in, out), in the dtype of ``x``.
        bias: Added to every row, float32.
        slope: Whether the slope is needed; ``None`` is returned if not.
    """
    y = x.new_empty(x.shape[0], weight.shape[1])
    slopes = torch.empty_like(y) if slope else None
    product(x.contiguous(), weight, y, Epilogue(bias=bias, gelu=True, slope=slopes))
    return y, slopes


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
        bias: Added to every row, float32.
    """
    y = x.new_empty(x.shape[0], weight.shape[1])
    epilogue = Epilogue(bias=bias, residual=residual.contiguous(), dropout=dropout)
    product(x.contiguous(), weight, y, epilogue)
    return y


def linear_bwd_dx(d_y: Float[Tensor, "M N"], weight: Float[Tensor, "K N"]) -> Float[Tensor, "M K"]:
    """Gradient of the input.

    Args:
        weight: Matrix, (in, out), in the dtype of ``d_y``.
    """
    d_x = d_y.new_empty(d_y.shape[0], weight.shape[0])
    product(d_y.contiguous(), weight.T, d_x)
    return d_x


def linear_gelu_bwd_dx(
    d_y: Float[Tensor, "M N"],
    weight: Float[Tensor, "K N"],
    slope: Float[Tensor, "M K"],
) -> Float[Tensor, "M K"]:
    """Gradient of what GELU took, where its output was the map's input.

    Args:
        weight: Matrix, (in, out), in the dtype of ``d_y``.
    """
    d_pre = torch.empty_like(slope)
    product(d_y.contiguous(), weight.T, d_pre, Epilogue(factor=slope.contiguous()))
    return d_pre


def linear_bwd_dwdb(
    x: Float[Tensor, "M K"],
    d_y: Float[Tensor, "M N"],
    d_weight: Float[Tensor, "K N"],
    d_bias: Float[Tensor, " N"],
) -> None:
    """Gradients of matrix and bias, added in place.

    Args:
        d_weight: Added to, float32.
        d_bias: Added to, float32.
    """
    product(x.contiguous().T, d_y.contiguous(), d_weight, accumulate=True, column_sums=d_bias)
