"""Causal self-attention within documents, by tiles of query rows.

    S = Q K^T / sqrt(K),   P = softmax over the keys that a query may see,   O = dropout(P) V

With d_O given, mask scale R (all ones without dropout) and delta = row sums of d_O * O:

    d_V = (P R)^T d_O,   d_P = (d_O V^T) R,   d_S = P (d_P - delta),
    d_Q = d_S K / sqrt(K),   d_K = d_S^T Q / sqrt(K)

Only the log-sum-exp of each row of S is kept: P = exp(S - lse) is recomputed, tile by tile. Keys past a
tile's last query are never touched. Shapes: B rows, T positions, D width, H heads, K = D/H head width,
N = B*H sequences of heads; a tile has n of them, q queries and k keys.

References:
    Vaswani et al. 2017, section 3.2.1; Dao 2023, "FlashAttention-2", sections 2.3 and 3.1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gpt_triton.dropout import Dropout, keep_mask
from gpt_triton.ops import AttentionResiduals
from gpt_triton.reference.tiles import accumulation_dtype, rows_per_tile

QUERIES = 64


def attention_fwd(
    qkv: Float[Tensor, "B T W"],
    n_head: int,
    segment_starts: Int[Tensor, "B T"] | None,
    dropout: Dropout | None = None,
) -> tuple[Float[Tensor, "B T W//3"], AttentionResiduals]:
    """Attention of every head; softmax and sums in float32.

    Args:
        qkv: Queries, keys and values, side by side: W = 3 D.
        segment_starts: First position that each position may see; ``None`` means 0.
    """
    rows, context, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    q, k, v = _split_heads(qkv, 3, n_head)
    out, lse = torch.empty_like(q), q.new_empty(q.shape[:2])
    starts = _per_head(segment_starts, n_head)
    scale = 1.0 / math.sqrt(width // n_head)
    for heads, first, last in _tiles(q):
        here = (heads, slice(first, last))
        s = torch.bmm(q[here], k[heads, :last].mT).mul_(scale)  # [n, q, k]
        _fill_hidden(s, starts, heads, first, last, -math.inf)
        top = s.amax(2, keepdim=True)
        p = s.sub_(top).exp_()
        total = p.sum(2, keepdim=True)
        lse[here] = (top + total.log()).squeeze(2)
        if dropout is not None:
            p.mul_(_tile_scale(p, dropout, heads, first, context))
        out[here] = torch.bmm(p, v[heads, :last]).div_(total)
    merged = _merge_heads(out[None], rows, qkv.dtype)
    return merged, AttentionResiduals(qkv, merged, lse.view(rows, n_head, context), segment_starts)


def attention_bwd(
    res: AttentionResiduals,
    d_out: Float[Tensor, "B T D"],
    n_head: int,
    dropout: Dropout | None = None,
) -> Float[Tensor, "B T 3*D"]:
    """Gradient of queries, keys and values."""
    rows, context, width = d_out.shape
    heads_of = _split_heads(res.qkv, 3, n_head)
    q, k, v = heads_of
    d_qkv = torch.zeros_like(heads_of)
    d_q, d_k, d_v = d_qkv
    (d_o,) = _split_heads(d_out, 1, n_head)
    lse = res.lse.reshape(-1, context, 1)
    delta = (_split_heads(res.out, 1, n_head)[0] * d_o).sum(2, keepdim=True)
    starts = _per_head(res.segment_starts, n_head)
    scale = 1.0 / math.sqrt(width // n_head)
    for heads, first, last in _tiles(q):
        here, seen = (heads, slice(first, last)), (heads, slice(0, last))
        # both subtractions ride on a product: exp(q k^T scale - lse), and d_o v^T - delta
        p = torch.baddbmm(-lse[here], q[here], k[seen].mT, alpha=scale).exp_()  # [n, q, k]
        _fill_hidden(p, starts, heads, first, last, 0.0)
        if dropout is None:
            d_s = torch.baddbmm(-delta[here], d_o[here], v[seen].mT)
            p_kept = p
        else:
            tile_scale = _tile_scale(p, dropout, heads, first, context)
            d_s = torch.bmm(d_o[here], v[seen].mT).mul_(tile_scale).sub_(delta[here])
            p_kept = p * tile_scale
        d_v[seen].baddbmm_(p_kept.mT, d_o[here])
        d_s.mul_(p)
        torch.bmm(d_s, k[seen], out=d_q[here]).mul_(scale)
        d_k[seen].baddbmm_(d_s.mT, q[here], alpha=scale)
    return _merge_heads(d_qkv, rows, d_out.dtype)


def _tiles(q: Float[Tensor, "N T K"]) -> Iterator[tuple[slice, int, int]]:
    """Heads, first and past-last query of each tile; a tile's weights fit the tile budget."""
    count, context = q.shape[:2]
    for first in range(0, context, QUERIES):
        last = min(first + QUERIES, context)
        group = rows_per_tile(q, (last - first) * last)
        for start in range(0, count, group):
            yield slice(start, start + group), first, last


def _split_heads(x: Float[Tensor, "B T W"], parts: int, n_head: int) -> Float[Tensor, "parts N T K"]:
    """``parts`` tensors laid side by side, each split into heads, in the accumulation dtype."""
    rows, context, width = x.shape
    x = x.view(rows, context, parts, n_head, width // (parts * n_head)).permute(2, 0, 3, 1, 4)
    return x.to(accumulation_dtype(x)).reshape(parts, rows * n_head, context, -1)


def _merge_heads(x: Float[Tensor, "parts N T K"], rows: int, dtype: torch.dtype) -> Float[Tensor, "B T W"]:
    """The inverse of ``_split_heads``."""
    parts, _, context, head_width = x.shape
    x = x.view(parts, rows, -1, context, head_width).permute(1, 3, 0, 2, 4)
    return x.to(dtype).reshape(rows, context, -1)


def _per_head(values: Int[Tensor, "B ..."] | None, n_head: int) -> Int[Tensor, "N ..."] | None:
    return None if values is None else values.repeat_interleave(n_head, 0)


def _fill_hidden(
    tile: Float[Tensor, "n q k"],
    starts: Int[Tensor, "N T"] | None,
    heads: slice,
    first: int,
    last: int,
    value: float,
) -> None:
    """Write ``value`` where a key lies after its query, or before its document."""
    queries = last - first
    future = torch.ones(queries, queries, dtype=torch.bool, device=tile.device).triu_(1)
    tile[:, :, first:].masked_fill_(future, value)
    if starts is not None:
        tile.masked_fill_(_before_start(starts[heads, first:last], last), value)


def _before_start(starts: Int[Tensor, "n q"], keys: int) -> Bool[Tensor, "n q k"]:
    return torch.arange(keys, device=starts.device) < starts[:, :, None]


def _tile_scale(
    tile: Float[Tensor, "n q k"], dropout: Dropout, heads: slice, first: int, context: int
) -> Float[Tensor, "n q k"]:
    """0 where an attention weight is dropped, ``1 / (1 - rate)`` where it is kept."""
    n, queries, keys = tile.shape
    n_index, q_index, k_index = (torch.arange(size, device=tile.device) for size in (n, queries, keys))
    row = (n_index[:, None] + heads.start) * context + q_index + first
    keep = keep_mask(row[:, :, None] * context + k_index, dropout)
    return keep.to(tile.dtype).div_(1.0 - dropout.rate)
