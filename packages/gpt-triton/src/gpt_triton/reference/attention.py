"""Causal self-attention within documents: row by row, all weights of a row's heads at once.

    S = Q K^T / sqrt(K),   P = softmax over the keys that a query may see,   O = (P R) V

with mask scale R, all ones without dropout. With d_O given and delta = row sums of d_O * O:

    d_V = (P R)^T d_O,   d_P = (d_O V^T) R,   d_S = P (d_P - delta),
    d_Q = d_S K / sqrt(K),   d_K = d_S^T Q / sqrt(K)

Weights are formed again in the backward. The log-sum-exp of each row of S is for the kernels, which form them
tile by tile. Shapes: B rows, T positions, W = 3 D, H heads, K head width.

References:
    Vaswani et al. 2017, section 3.2.1; Dao 2023, "FlashAttention-2", sections 2.3 and 3.1.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gpt_triton.dropout import Dropout, dropout_mask
from gpt_triton.ops import AttentionResiduals
from gpt_triton.reference.layers import widen


def attention_fwd(
    qkv: Float[Tensor, "B T W"],
    n_head: int,
    segment_starts: Int[Tensor, "B T"] | None,
    dropout: Dropout | None = None,
) -> tuple[Float[Tensor, "B T W//3"], AttentionResiduals]:
    """Attention of every head; softmax and sums in float32.

    Args:
        qkv: Queries, keys and values, side by side.
        segment_starts: First position that each position may see; ``None`` means 0.
    """
    q, k, v = _heads(qkv, 3, n_head)
    out, lse = torch.empty_like(q), q.new_empty(q.shape[:3])
    for row in range(len(qkv)):
        s = scores(q[row], k[row], _visible(segment_starts, row, qkv))
        p = torch.softmax(s, -1)
        out[row] = (p if dropout is None else p * _mask_scale(dropout, row, p)) @ v[row]
        lse[row] = s.amax(-1) - p.amax(-1).log()  # L = S - log P wherever P is largest
    merged = _merged(out[None], qkv.dtype)
    return merged, AttentionResiduals(qkv, merged, lse, segment_starts)


def attention_bwd(
    res: AttentionResiduals,
    d_out: Float[Tensor, "B T D"],
    n_head: int,
    dropout: Dropout | None = None,
) -> Float[Tensor, "B T 3*D"]:
    """Gradient of queries, keys and values."""
    heads = _heads(res.qkv, 3, n_head)
    (out,), (d_o,) = _heads(res.out, 1, n_head), _heads(d_out, 1, n_head)
    d_heads = torch.empty_like(heads)
    for row in range(len(d_out)):
        q, k, v = heads[:, row]
        p = torch.softmax(scores(q, k, _visible(res.segment_starts, row, d_out)), -1)
        d_p, kept = d_o[row] @ v.mT, p
        if dropout is not None:
            scale = _mask_scale(dropout, row, p)
            d_p, kept = d_p * scale, p * scale
        delta = (d_o[row] * out[row]).sum(-1, keepdim=True)
        d_s = p * (d_p - delta)
        for part, gradient in zip(d_heads[:, row], (d_s @ k, d_s.mT @ q, kept.mT @ d_o[row]), strict=True):
            part.copy_(gradient)
    d_heads[:2] /= math.sqrt(heads.shape[-1])
    return _merged(d_heads, d_out.dtype)


def scores(
    q: Float[Tensor, "H T K"], k: Float[Tensor, "H T K"], visible: Bool[Tensor, "T T"]
) -> Float[Tensor, "H T T"]:
    """``S`` of one row's heads, minus infinity where a query (row) may not see a key (column)."""
    return (q / math.sqrt(q.shape[-1]) @ k.mT).masked_fill(~visible, -math.inf)


def _visible(segment_starts: Int[Tensor, "B T"] | None, row: int, like: Tensor) -> Bool[Tensor, "T T"]:
    """True where a query (row of the matrix) may see a key (column): not ahead, and in the same document."""
    index = torch.arange(like.shape[1], device=like.device)
    causal = index <= index[:, None]
    return causal if segment_starts is None else causal & (index >= segment_starts[row][:, None])


def _mask_scale(dropout: Dropout, row: int, p: Float[Tensor, "H T T"]) -> Float[Tensor, "H T T"]:
    """0 where an attention weight is dropped, ``1 / (1 - rate)`` where it is kept."""
    heads, context, _ = p.shape
    keep = dropout_mask((1, heads * context, context), dropout, row)
    return (keep.to(p.dtype) / (1.0 - dropout.rate)).view_as(p)


def _heads(x: Float[Tensor, "B T W"], parts: int, n_head: int) -> Float[Tensor, "parts B H T K"]:
    """``parts`` tensors laid side by side, each split into heads, widened."""
    return widen(x).unflatten(2, (parts, n_head, -1)).permute(2, 0, 3, 1, 4)


def _merged(x: Float[Tensor, "parts B H T K"], dtype: torch.dtype) -> Float[Tensor, "B T W"]:
    """The inverse of ``_heads``."""
    return x.permute(1, 3, 0, 2, 4).flatten(2).to(dtype)
