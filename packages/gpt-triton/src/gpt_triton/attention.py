"""Attention of a few new positions to all earlier ones, as generation needs it.

Training's attention, forward and backward, is an op: ``reference/attention.py`` and ``kernels/attention.py``.
Shapes: B rows, n new positions, t positions so far with them, H heads, K head width.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def attend(
    q: Float[Tensor, "B H n K"],
    k: Float[Tensor, "B H t K"],
    v: Float[Tensor, "B H t K"],
    mask: Bool[Tensor, "B n t"],
) -> Float[Tensor, "B H n K"]:
    """Attention of ``n`` positions to the keys that each may see.

    Args:
        mask: True where a query may see a key, at least once for every query.
    """
    return (attention_weights(q, k, mask) @ v.float()).to(q.dtype)


def attention_weights(
    q: Float[Tensor, "B H n K"], k: Float[Tensor, "B H t K"], mask: Bool[Tensor, "B n t"]
) -> Float[Tensor, "B H n t"]:
    """``softmax(q k^T / sqrt(K))`` over the visible keys, in float32."""
    s = q.float() @ k.float().mT / math.sqrt(q.shape[3])  # [B, H, n, t]
    return torch.softmax(s.masked_fill_(~mask[:, None], -math.inf), -1)
