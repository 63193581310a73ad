"""Causal attention, written out or by torch's fused kernels.

    out_t = sum_s drop(softmax_s(q_t . k_s / sqrt(K))) v_s      over  start(t) <= s <= t

Shapes: B rows, T positions, t queries, S keys that a tile of them sees, or boundaries, M tokens of all
rows (B T), H heads, K head width, D = H K, W = 3 D, R bytes of masks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Int32, Shaped, UInt8
from torch import Tensor
from torch.func import vmap

from gpt_torchfunc.dropout import Key, draw_tile, unpack

Bits = tuple[UInt8[Tensor, "B H _ _"], ...]
"""The masks of all heads' weights, a tile of queries each; see ``draw_tile``."""
BFLOAT16_ONE = 0x3F80
TILE = 256
"""Queries of a tile: at T = 1024 five eighths of the square are computed, by four plain products."""


def mix(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B H T K"],
    v: Float[Tensor, "B H T K"],
    mask: Shaped[Tensor, "#B T T"] | None,
    boundaries: Int[Tensor, " S"] | None,
    bits: Bits | None,
    rate: float,
    *,
    fused: bool,
) -> Float[Tensor, "M D"]:
    """Attention by one of its forms, see ``attend`` and ``attend_fused``; heads side by side again."""
    if fused:
        out = attend_fused(q, k, v, mask, boundaries)
    else:
        # heads that lie side by side would be copied apart for every tile
        q, k, v = (heads.contiguous() for heads in (q, k, v))
        out = attend(q, k, v, mask, bits, rate)
    return out.transpose(1, 2).flatten(2).flatten(0, 1)


def attend(
    q: Float[Tensor, "B H t K"],
    k: Float[Tensor, "B H T K"],
    v: Float[Tensor, "B H T K"],
    mask: Bool[Tensor, "#B t T"] | None = None,
    bits: Bits | None = None,
    rate: float = 0.0,
) -> Float[Tensor, "B H t K"]:
    """Attention written out, by tiles of queries, which see the keys up to their last and no further.

    Args:
        mask: True where a query may see a key; the queries are the last t of T positions. ``None`` hides
            what is ahead, and costs no memory.
        bits: Dropout masks of the weights; ``None`` means no dropout.
    """
    count, context = q.shape[2], k.shape[2]
    tiles = []
    for number, start in enumerate(range(0, count, TILE)):
        stop = min(start + TILE, count)
        seen = context - count + stop
        parts = q[:, :, start:stop], k[:, :, :seen], v[:, :, :seen]
        its_mask = _causal(stop - start, seen, q.device)[None] if mask is None else mask[:, start:stop, :seen]
        tiles.append(_attend_tile(*parts, its_mask, None if bits is None else bits[number], rate))
    return tiles[0] if len(tiles) == 1 else torch.cat(tiles, 2)


def draw_weights(shape: tuple[int, int, int], key: Key, rate: float) -> Bits:
    """Dropout masks of all weights, as far as they are computed, by tiles.

    Args:
        shape: Rows, heads, positions.
    """
    context = shape[2]
    stops = [(start, min(start + TILE, context)) for start in range(0, context, TILE)]
    return tuple(draw_tile(shape, start, stop, key, rate) for start, stop in stops)


def spread_weights(
    bits: Bits, spread: Callable[[Tensor, Tensor], None], words: Int32[Tensor, "B H T half"]
) -> None:
    """Write the masks of all weights into a square of bfloat16 ones and zeros, as far as a tile looks.

    Args:
        spread: ``spread_tile``, or what it is compiled to.
        words: The square, two numbers a word: half as many instructions, which are what it costs.
    """
    stop = 0
    for tile in bits:
        start, stop = stop, stop + tile.shape[2]
        spread(tile, words[:, :, start:stop, : stop // 2])


def spread_tile(bits: UInt8[Tensor, "B H t R"], words: Int32[Tensor, "B H t half"]) -> None:
    """Write a tile's mask."""
    pair = bits[..., None].to(torch.int32) >> 2 * torch.arange(4, dtype=torch.int32, device=bits.device)
    both = (pair & 1) * BFLOAT16_ONE + (pair & 2) * (BFLOAT16_ONE << 15)  # [B, H, t, R, 4]
    words.copy_(both.flatten(-2))


def _attend_tile(
    q: Float[Tensor, "B H t K"],
    k: Float[Tensor, "B H S K"],
    v: Float[Tensor, "B H S K"],
    mask: Bool[Tensor, "#B t S"],
    bits: UInt8[Tensor, "B H t R"] | None,
    rate: float,
) -> Float[Tensor, "B H t K"]:
    """Attention of one head of one row, mapped over heads and rows."""
    shared, whole = mask.shape[0] == 1, bits is None
    kept = None if bits is None else unpack(bits, k.shape[2])
    over_heads = vmap(partial(attention_weights, rate=rate), in_dims=(0, 0, None, None if whole else 0))
    over_rows = vmap(over_heads, in_dims=(0, 0, None if shared else 0, None if whole else 0))
    weights = over_rows(q, k, mask[0] if shared else mask, kept)  # [B, H, t, S]
    return vmap(vmap(torch.matmul))(weights.to(v.dtype), v)


def attention_weights(
    q: Float[Tensor, "t K"],
    k: Float[Tensor, "T K"],
    mask: Bool[Tensor, "t T"],
    kept: Bool[Tensor, "t T"] | None = None,
    *,
    rate: float = 0.0,
) -> Float[Tensor, "t T"]:
    """``drop(softmax(q k^T / sqrt(K)))`` over the visible keys of one head, in float32.

    With dropout it is ``2^(z' - log2 sum 2^z) / (1 - rate)``, where 2^z is the exponential of a score, and z'
    is z, or minus infinity for a weight that is dropped. Then no sum asks for the dropout mask, that of the
    derivative neither, and torch's compiler holds a whole row in registers, which it reads once.

    Args:
        kept: The dropout mask; ``None`` means no dropout.
    """
    scores = (q @ k.T).to(statistics_dtype(q.dtype)) / math.sqrt(q.shape[-1])  # [t, T]
    scores = scores.masked_fill(~mask, float("-inf"))
    if kept is None:
        return torch.softmax(scores, -1)
    z = (scores - scores.detach().amax(-1, keepdim=True)) * math.log2(math.e)
    total = torch.exp2(z).sum(-1, keepdim=True).log2() + math.log2(1.0 - rate)
    return torch.exp2(torch.where(kept, z, float("-inf")) - total)


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


def visible(segment_starts: Int[Tensor, "B T"]) -> Bool[Tensor, "B T T"]:
    """True where a query (row) may see a key (column): not ahead, and in the same document."""
    context, device = segment_starts.shape[1], segment_starts.device
    index = torch.arange(context, device=device)
    return _causal(context, context, device) & (index >= segment_starts[:, :, None])


def _causal(count: int, context: int, device: torch.device) -> Bool[Tensor, "t T"]:
    """Which of all keys are not ahead of the last ``count`` positions."""
    index = torch.arange(context, device=device)
    return index <= index[context - count :, None]


def split_heads(
    qkv: Float[Tensor, "B T W"], n_head: int
) -> tuple[Float[Tensor, "B H T K"], Float[Tensor, "B H T K"], Float[Tensor, "B H T K"]]:
    """Queries, keys and values by head; W = 3 D."""
    q, k, v = qkv.unflatten(-1, (3, n_head, -1)).unbind(2)  # each [B, T, H, K]
    return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """Type of softmax and loss statistics: float32, or float64 when a check runs in it."""
    return torch.promote_types(dtype, torch.float32)
