"""Attention of a few new positions to all earlier ones, as generation needs it.

Training's attention, forward and backward, is an op: ``reference/attention.py`` and ``kernels/attention.py``.
Shapes: B rows, n new positions, t positions so far with them, H heads, K head width.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor


def attend(
    q: Float[Tensor, "B H n K"], k: Float[Tensor, "B H t K"], v: Float[Tensor, "B H t K"]
) -> Float[Tensor, "B H n K"]:
    """Causal attention of the last ``n`` of ``t`` positions."""
    return (attention_weights(q, k) @ v.float()).to(q.dtype)


def attention_weights(q: Float[Tensor, "B H n K"], k: Float[Tensor, "B H t K"]) -> Float[Tensor, "B H n t"]:
    """``softmax(q k^T / sqrt(K))`` over the keys up to each query, in float32."""
    count, total = q.shape[2], k.shape[2]
    s = q.float() @ k.float().mT / math.sqrt(q.shape[3])  # [B, H, n, t]
    hidden = torch.ones(count, total, dtype=torch.bool, device=q.device).triu_(total - count + 1)
    return torch.softmax(s.masked_fill_(hidden, -math.inf), -1)
