"""Causal attention written out, by tiles of queries.

    out_t = sum_s drop(softmax_s(q_t . k_s / sqrt(K))) v_s      over  start(t) <= s <= t

A tile of queries sees the keys up to its last query and no further, so the upper triangle is never
computed. Each tile is a ``jax.checkpoint``: backward forms its weights again, so that no more than
one tile of them, ``[B, H, tile, T]``, exists at a time.

Shapes: B rows, T positions, t queries of a tile, S keys that a tile sees, H heads, K head width, W = 3 H K.

References:
    Rabe and Staats 2021, "Self-attention does not need O(n^2) memory".
"""

from __future__ import annotations

import importlib.util
import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from gpt_jax.dropout import Key, draw_tile, unpack
from gpt_jax.precision import product

TILE = 256
"""Queries of a tile: at T = 1024 five eighths of the square are computed, by four plain products."""


def mix(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H K"],
    segment_starts: Int[Array, "B T"] | None,
    documents: Int[Array, "B S"] | None,
    key: Key | None,
    rate: float,
    *,
    fused: bool,
    layer: int = 0,
) -> Float[Array, "B T H K"]:
    """Attention by the fused kernel, if it is wanted and takes the case: see ``attend`` and ``attend_fused``.

    It draws its own random numbers, and has no derivative for rows of odd length: with dropout there are
    kernels of our own for the shapes that they take, and else the written form is used.
    """
    context, width = q.shape[1::2]
    told = segment_starts is None or documents is not None
    if fused and key is None and told and context % 2 == 0:
        return attend_fused(q, k, v, documents, layer)
    if fused and key is not None and segment_starts is None and kernels_take(context, width):
        # half a second of imports, which nobody else needs
        from gpt_jax.dropped_attention import attend_dropped

        return attend_dropped(q, k, v, key, rate)
    return attend(q, k, v, segment_starts, key, rate)


def attend(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H K"],
    segment_starts: Int[Array, "B T"] | None = None,
    key: Key | None = None,
    rate: float = 0.0,
) -> Float[Array, "B T H K"]:
    """Causal attention, each position within its own document.

    Args:
        segment_starts: First position of each position's document; ``None`` means that all are 0.
        key: Dropout key of the attention weights; ``None`` means no dropout.
    """
    tiles = [
        jax.checkpoint(partial(_attend_tile, start=start, rate=rate))(q, k, v, segment_starts, key)
        for start in range(0, q.shape[1], TILE)
    ]
    return jnp.concatenate(tiles, axis=1)


def attend_fused(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H K"],
    documents: Int[Array, "B S"] | None = None,
    layer: int = 0,
) -> Float[Array, "B T H K"]:
    """Causal attention by cuDNN's kernel, each position within its own document; T is even.

    Args:
        documents: As ``first_positions`` makes them; ``None`` means one in each row.
        layer: Which of several calls in one program this is, from 0.
    """
    scale = fused_scale(q.shape[-1], layer)
    if documents is None:
        return jax.nn.dot_product_attention(q, k, v, scale=scale, is_causal=True, implementation="cudnn")
    # jax.nn takes a length for each row, and has no name for documents within one, up to version 0.11
    from jax._src.cudnn.fused_attention_stablehlo import MaskType, dot_product_attention

    there = documents[:, :-1] >= 0
    ends = jnp.where(documents[:, 1:] >= 0, documents[:, 1:], q.shape[1])
    lengths = jnp.where(there, ends - documents[:, :-1], -1)
    kind = MaskType.PADDING_CAUSAL
    return dot_product_attention(
        q, k, v, None, None, lengths, lengths, documents, documents, scale=scale, mask_type=kind
    )


def kernels_take(context: int, width: int) -> bool:
    """Whether the kernels of ``dropped_attention.py`` take rows of T positions and heads of width K.

    They need JAX's Pallas with Triton, which JAX 0.11 still has, and says that a later one will not.
    """
    there = importlib.util.find_spec("jax.experimental.pallas.triton") is not None
    return there and context % 512 == 0 and width in (16, 32, 64, 128)


def fused_scale(width: int, layer: int) -> float:
    """``1 / sqrt(K)`` in float32, which is all that the kernel sees, and another float64 in each layer.

    XLA marks a backward kernel as deterministic while it compiles it, but compiles equal calls once: of
    two in a program, the second goes without the mark, and is not found when it is to run (XLA pull
    request 46500). Calls that differ beyond float32's last bit are not equal.

    Args:
        layer: From 0, below 2^14.
    """
    return (1.0 + layer * 2.0**-40) / math.sqrt(width)


def _attend_tile(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H K"],
    segment_starts: Int[Array, "B T"] | None,
    key: Key | None,
    *,
    start: int,
    rate: float,
) -> Float[Array, "B t H K"]:
    """What the queries from ``start`` on see."""
    rows, context, heads, _ = q.shape
    stop = min(start + TILE, context)
    starts = None if segment_starts is None else segment_starts[:, start:stop]
    query_index = jnp.arange(start, stop, dtype=jnp.int32)
    mask = visible(query_index, stop, starts)
    weights = attention_weights(q[:, start:stop], k[:, :stop], mask)
    if key is not None:
        bits = lax.optimization_barrier(draw_tile((rows, heads, context), start, stop, key, rate))
        weights = jnp.where(unpack(bits, stop), weights / (1.0 - rate), 0.0)
    return weighted_sum(weights, v[:, :stop])


def visible(
    query_index: Int[Array, " t"],
    stop: int,
    starts: Int[Array, "B t"] | None,
) -> Bool[Array, "#B t S"]:
    """True where a query may see a key: not ahead of it, and in the same document.

    Args:
        starts: First position of each query's document, or ``None``.
    """
    key_index = jnp.arange(stop, dtype=jnp.int32)[None, None]
    causal = key_index <= query_index[None, :, None]
    if starts is None:
        return causal
    return causal & (key_index >= starts[:, :, None])


def attention_weights(
    q: Float[Array, "B t H K"], k: Float[Array, "B S H K"], mask: Bool[Array, "#B t S"]
) -> Float[Array, "B H t S"]:
    """``softmax(q k^T / sqrt(K))`` over the visible keys, in float32.

    Args:
        mask: True where a query may see a key; at least once for every query.
    """
    scores = product("bthk,bshk->bhts", q, k, wide=True)
    scores = jnp.where(mask[:, None], scores / math.sqrt(q.shape[-1]), -jnp.inf)
    return jax.nn.softmax(scores, axis=-1)


def weighted_sum(weights: Float[Array, "B H t S"], v: Float[Array, "B S H K"]) -> Float[Array, "B t H K"]:
    """Mean of the values by the weights, which are rounded to the values' type first."""
    return product("bhts,bshk->bthk", weights.astype(v.dtype), v)


def split_heads(
    qkv: Float[Array, "B T W"], n_head: int
) -> tuple[Float[Array, "B T H K"], Float[Array, "B T H K"], Float[Array, "B T H K"]]:
    """Queries, keys and values by head; W = 3 H K."""
    rows, context, width = qkv.shape
    split = qkv.reshape(rows, context, 3, n_head, width // (3 * n_head))
    return split[:, :, 0], split[:, :, 1], split[:, :, 2]
