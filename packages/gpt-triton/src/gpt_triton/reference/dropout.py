"""Dropout of a tensor; the rule of its mask stands in ``gpt_triton.dropout``. Any shape."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from gpt_triton import dropout as rule
from gpt_triton.dropout import Dropout


def dropout_fwd(x: Float[Tensor, "*n"], dropout: Dropout) -> Float[Tensor, "*n"]:
    """Zero the dropped elements and scale the kept ones by ``1 / (1 - rate)``."""
    return rule.dropout(x, dropout.key, dropout.rate)


def dropout_bwd(d_y: Float[Tensor, "*n"], dropout: Dropout) -> Float[Tensor, "*n"]:
    """Gradient of the input: the same mask and scale."""
    return rule.dropout(d_y, dropout.key, dropout.rate)
