"""Attention of a few new positions to all earlier ones, as generation needs it, and heads side by side.

Training's attention, forward and backward, is an op: ``reference/attention.py`` and ``kernels/attention.py``.
Shapes: B rows, T positions, n of them new, C slots of the cache, H heads, K head width, W = 3 H K.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gpt_triton.model import wide_product


def attend(
    q: Float[Tensor, "B H n K"],
    k: Float[Tensor, "B H C K"],
    v: Float[Tensor, "B H C K"],
    mask: Bool[Tensor, "B n C"],
) -> Float[Tensor, "B H n K"]:
    """Attention of ``n`` positions to the keys that each may see; weights are rounded to the values' type.

    Args:
        mask: True where a query may see a key, at least once for every query.
    """
    return attention_weights(q, k, mask).to(v.dtype) @ v


def attention_weights(
    q: Float[Tensor, "B H n K"], k: Float[Tensor, "B H C K"], mask: Bool[Tensor, "B n C"]
) -> Float[Tensor, "B H n C"]:
    """``softmax(q k^T / sqrt(K))`` over the visible keys, in float32."""
    s = wide_product(q, k.mT) / math.sqrt(q.shape[3])  # [B, H, n, C]
    return torch.softmax(s.masked_fill_(~mask[:, None], -math.inf), -1)


def split_heads(
    qkv: Float[Tensor, "B T W"], n_head: int
) -> tuple[Float[Tensor, "B H T K"], Float[Tensor, "B H T K"], Float[Tensor, "B H T K"]]:
    """Queries, keys and values by head; W = 3 H K."""
    q, k, v = qkv.unflatten(-1, (3, n_head, -1)).unbind(2)  # each [B, T, H, K]
    return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
