"""Causal attention, written out or by torch's fused kernels.

    out_t = sum_s drop(softmax_s(q_t . k_s / sqrt(K))) v_s      over  start(t) <= s <= t

Shapes: B rows, T positions, t queries, S keys that a tile of them sees, or boundaries, M tokens of all
rows (B T), H heads, K head width, R bytes of masks.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.func import vmap

from gpt_torchfunc.dropout import Key, draw_tile, unpack

Bits = tuple[UInt8[Tensor, "B H _ _"], ...]
"""The masks of all heads' weights, a tile of queries each; see ``draw_tile``."""
TILE = 256
"""Queries of a tile: at T = 1024 five eighths of the square are computed, by four plain products."""


def attend(
    q: Float[Tensor, "B H t K"],
    k: Float[Tensor, "B H T K"],
    v: Float[Tensor, "B H T K"],
    mask: Bool[Tensor, "#B t T"],
    bits: Bits | None = None,
    rate: float = 0.0,
) -> Float[Tensor, "B H t K"]:
    """Attention written out, by tiles of queries, which see the keys up to their last and no further.

    Args:
        mask: True where a query may see a key; the queries are the last t of T positions.
        bits: Dropout masks of the weights; ``None`` means no dropout.
    """
    count, context = q.shape[2], k.shape[2]
    tiles = []
    for number, start in enumerate(range(0, count, TILE)):
        stop = min(start + TILE, count)
        seen = context - count + stop
        parts = q[:, :, start:stop], k[:, :, :seen], v[:, :, :seen], mask[:, start:stop, :seen]
        tiles.append(_attend_tile(*parts, None if bits is None else bits[number], rate))
    return tiles[0] if len(tiles) == 1 else torch.cat(tiles, 2)


def draw_weights(shape: tuple[int, int, int], key: Key, rate: float) -> Bits:
    """Dropout masks of all weights, as far as they are computed, by tiles.

    Args:
        shape: Rows, heads, positions.
    """
    context = shape[2]
    stops = [(start, min(start + TILE, context)) for start in range(0, context, TILE)]
    return tuple(draw_tile(shape, start, stop, key, rate) for start, stop in stops)


def _attend_tile(
    q: Float[Tensor, "B H t K"],
    k: Float[Tensor, "B H S K"],
    v: Float[Tensor, "B H S K"],
    mask: Bool[Tensor, "#B t S"],
    bits: UInt8[Tensor, "B H t R"] | None,
    rate: float,
) -> Float[Tensor, "B H t K"]:
    """Attention of one head of one row, mapped over heads and rows."""
    over_heads = vmap(attention_weights, in_dims=(0, 0, None))
    over_rows = vmap(over_heads, in_dims=(0, 0, 0 if mask.shape[0] > 1 else None))
    weights = over_rows(q, k, mask if mask.shape[0] > 1 else mask[0])  # [B, H, t, S]
    if bits is not None:
        weights = torch.where(unpack(bits, k.shape[2]), weights * (1.0 / (1.0 - rate)), 0.0)
    return vmap(vmap(torch.matmul))(weights.to(v.dtype), v)


def attention_weights(
    q: Float[Tensor, "t K"], k: Float[Tensor, "T K"], mask: Bool[Tensor, "t T"]
) -> Float[Tensor, "t T"]:
    """``softmax(q k^T / sqrt(K))`` over the visible keys of one head, in float32."""
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = (q @ k.T).to(wide) / math.sqrt(q.shape[-1])  # [t, T]
    return torch.softmax(scores.masked_fill(~mask, float("-inf")), -1)


def attend_fused(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B H T K"],
    v: Float[Tensor, "B H T K"],
    mask: Float[Tensor, "#B T T"] | None = None,
    boundaries: Int[Tensor, " S"] | None = None,
) -> Float[Tensor, "B H T K"]:
    """Causal attention by torch's fused kernel, within documents if it is told of them one way or the other.

    Args:
        mask: What is added to the scores, 0 or minus infinity.
        boundaries: Where documents begin and end, counted through all rows.
    """
    if boundaries is None:
        wide_mask = None if mask is None else mask[:, None]  # [#B, 1, T, T]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=wide_mask, is_causal=mask is None)
    rows, _, context, _ = q.shape
    tokens = [heads.transpose(1, 2).flatten(0, 1) for heads in (q, k, v)]  # each [M, H, K]
    # rows of different lengths behind each other; torch has no public name for it that vjp sees through
    out, *_ = torch.ops.aten._flash_attention_forward(
        *tokens, boundaries, boundaries, context, context, 0.0, True, False
    )
    return out.unflatten(0, (rows, context)).transpose(1, 2)


def visible(
    context: int,
    segment_starts: Int[Tensor, "B T"] | None,
    device: torch.device,
) -> Bool[Tensor, "#B T T"]:
    """True where a query (row) may see a key (column): not ahead, and in the same document."""
    index = torch.arange(context, device=device)
    causal = (index[None, :] <= index[:, None])[None]  # [1, T, T]
    if segment_starts is None:
        return causal
    return causal & (index >= segment_starts[:, :, None])
