"""Causal attention that drops weights, as three Pallas kernels; ``attention.attend`` is the form to read.

    p_ts  = softmax_s(q_t . k_s / sqrt(K)),  s <= t          w_ts = m_ts / (1 - r)
    out_t = sum_s w_ts p_ts v_s                              D_t  = d_out_t . out_t
    d_v_s = sum_t w_ts p_ts d_out_t                          d_S_ts = p_ts (w_ts d_out_t . v_s - D_t)
    d_q_t = sum_s d_S_ts k_s / sqrt(K)                       d_k_s  = sum_t d_S_ts q_t / sqrt(K)

No score leaves a kernel. The mask m is drawn once, by XLA, eight queries to a byte, and kept for backward: at
some thirty instructions for each weight it would cost as much as the kernels, in each of them. The queries of
a tile share their bit: byte (r, s) holds those of the queries ``i T/8 + r`` for i from 0 to 7.

Shapes: B rows, T positions, H heads, K head width, t queries and s keys of a tile, R = T/8 rows of bytes.

References:
    Dao 2023, "FlashAttention-2: Faster Attention with Better Parallelism and Work Partitioning".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from gpt_trainer.philox import WORDS
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Bool, Float, UInt8

from gpt_jax.dropout import Key, draw_tile

BITS = 8
TILE = 64
"""Queries and keys of a tile. R, the rows of bytes, is a multiple of it, so that T is one of 512."""
LOG2_E = math.log2(math.e)

Heads = Float[Array, "B T H K"]
Ref = Any
"""What a kernel reads or writes: a block of an array."""


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def attend_dropped(q: Heads, k: Heads, v: Heads, key: Key, rate: float, interpret: bool = False) -> Heads:
    """Causal attention with dropout of its weights.

    Args:
        q: T is a multiple of 512, K a power of two, from 16 to 128.
        rate: Share of weights that are dropped.
        interpret: Run the kernels' text by JAX itself, on any device, slowly.
    """
    return attend_dropped_fwd(q, k, v, key, rate, interpret)[0]


def attend_dropped_fwd(
    q: Heads, k: Heads, v: Heads, key: Key, rate: float, interpret: bool
) -> tuple[Heads, tuple[Heads, Heads, Heads, Heads, Float[Array, "B H T"], UInt8[Array, "B H R T"]]]:
    """The result; kept are it, what it is made from, the log-sum-exp of the scores, and the mask."""
    rows, context, heads, _ = q.shape
    # not before there are queries: XLA would draw the masks of several layers at once, in thrice the time
    key, q = lax.optimization_barrier((key, q))
    bits = mask_bits((rows, heads, context), key, rate)
    out, lse = _kernel(_out_kernel, q, rate, interpret)(
        in_specs=[_tile(q), _row(k), _row(v), _bits_of_queries(bits)],
        out_specs=[_tile(q), _tile_statistics()],
        out_shape=[_like(q), jax.ShapeDtypeStruct((rows, heads, context), jnp.float32)],
    )(q, k, v, bits)
    return out, (q, k, v, out, lse, bits)


def attend_dropped_bwd(
    rate: float, interpret: bool, residuals: tuple[Any, ...], d_out: Heads
) -> tuple[Heads, Heads, Heads, None]:
    """Gradients of queries, keys and values."""
    q, k, v, out, lse, bits = residuals
    delta = (d_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1).transpose(0, 2, 1)  # [B, H, T]
    given = q, k, v, d_out, lse, delta, bits
    one, all_ = _tile_statistics(), _row_statistics(lse)
    d_q = _kernel(_d_q_kernel, q, rate, interpret)(
        in_specs=[_tile(q), _row(k), _row(v), _tile(q), one, one, _bits_of_queries(bits)],
        out_specs=_tile(q),
        out_shape=_like(q),
    )(*given)
    d_k, d_v = _kernel(_d_kv_kernel, q, rate, interpret)(
        in_specs=[_row(q), _tile(k), _tile(v), _row(d_out), all_, all_, _bits_of_keys(bits)],
        out_specs=[_tile(k), _tile(v)],
        out_shape=[_like(k), _like(v)],
    )(*given)
    return d_q, d_k, d_v, None


attend_dropped.defvjp(attend_dropped_fwd, attend_dropped_bwd)


def mask_bits(shape: tuple[int, int, int], key: Key, rate: float) -> UInt8[Array, "B H R T"]:
    """A mask ``[B, H, T, T]`` as far as it is seen: bit i of byte (r, s): query ``i R + r`` keeps s.

    Args:
        shape: Rows, heads, positions.
    """
    context = shape[-1]
    rows, calls = context // BITS, context // WORDS
    fours = draw_tile(shape, 0, context, key, rate).reshape(*shape[:2], BITS, rows, calls)
    words = jnp.zeros((*shape[:2], rows, calls), jnp.uint32)
    for bit in range(BITS):
        stop = (bit + 1) * rows // WORDS
        four = fours[:, :, bit, :, :stop].astype(jnp.uint32)
        spread = four * 0x00204081 & 0x01010101  # bit i of the four becomes the lowest of byte i
        words |= jnp.pad(spread << bit, ((0, 0), (0, 0), (0, 0), (0, calls - stop)))
    # apart from what takes the bytes one by one, into which XLA would draw each word four times
    words = lax.optimization_barrier(words)
    return lax.bitcast_convert_type(words, jnp.uint8).reshape(*shape[:2], rows, context)


def _out_kernel(
    q_ref: Ref, k_ref: Ref, v_ref: Ref, bits_ref: Ref, out_ref: Ref, lse_ref: Ref, *, rate: float
) -> None:
    own, q = pl.program_id(0), q_ref[...]
    bit = own * TILE // (k_ref.shape[0] // BITS)

    def add(tile: Array, sums: tuple[Array, Array, Array], *, whole: bool) -> tuple[Array, Array, Array]:
        out, most, total = sums
        keys = pl.ds(tile * TILE, TILE)
        scores = _scores(q, k_ref[keys, :])  # [t, s]
        scores = scores if whole else jnp.where(_causal(), scores, -jnp.inf)
        new_most = jnp.maximum(most, scores.max(-1))
        p, shrink = jnp.exp2(scores - new_most[:, None]), jnp.exp2(most - new_most)
        kept = jnp.where(_keep(bits_ref[:, keys], bit), p, 0.0)
        out = out * shrink[:, None] + triton.dot(kept.astype(q.dtype), v_ref[keys, :])
        return out, new_most, total * shrink + p.sum(-1)

    sums = (jnp.zeros(q.shape, jnp.float32), jnp.full(TILE, -jnp.inf, jnp.float32), jnp.zeros(TILE))
    out, most, total = add(own, lax.fori_loop(0, own, partial(add, whole=True), sums), whole=False)
    out_ref[...] = (out / (total * (1.0 - rate))[:, None]).astype(out_ref.dtype)
    lse_ref[...] = most + jnp.log2(total)


def _d_q_kernel(
    q_ref: Ref,
    k_ref: Ref,
    v_ref: Ref,
    d_out_ref: Ref,
    lse_ref: Ref,
    delta_ref: Ref,
    bits_ref: Ref,
    d_q_ref: Ref,
    *,
    rate: float,
) -> None:
    own, q, d_out = pl.program_id(0), q_ref[...], d_out_ref[...]
    lse, delta = lse_ref[...][:, None], delta_ref[...][:, None]
    bit = own * TILE // (k_ref.shape[0] // BITS)

    def add(tile: Array, d_q: Array, *, whole: bool) -> Array:
        keys = pl.ds(tile * TILE, TILE)
        k = k_ref[keys, :]
        p = jnp.exp2(_scores(q, k) - lse)  # [t, s]
        p = p if whole else jnp.where(_causal(), p, 0.0)
        d_w = triton.dot(d_out, v_ref[keys, :], trans_b=True) / (1.0 - rate)
        d_scores = p * (jnp.where(_keep(bits_ref[:, keys], bit), d_w, 0.0) - delta)
        return d_q + triton.dot(d_scores.astype(q.dtype), k)

    d_q = lax.fori_loop(0, own, partial(add, whole=True), jnp.zeros(q.shape, jnp.float32))
    d_q_ref[...] = (add(own, d_q, whole=False) / math.sqrt(q.shape[-1])).astype(d_q_ref.dtype)


def _d_kv_kernel(
    q_ref: Ref,
    k_ref: Ref,
    v_ref: Ref,
    d_out_ref: Ref,
    lse_ref: Ref,
    delta_ref: Ref,
    bits_ref: Ref,
    d_k_ref: Ref,
    d_v_ref: Ref,
    *,
    rate: float,
) -> None:
    own, k, v, rows = pl.program_id(0), k_ref[...], v_ref[...], bits_ref.shape[0]

    def add(tile: Array, sums: tuple[Array, Array], *, whole: bool) -> tuple[Array, Array]:
        d_k, d_v = sums
        at = tile * TILE
        queries = pl.ds(at, TILE)
        q, d_out = q_ref[queries, :], d_out_ref[queries, :]
        p = jnp.exp2(_scores(k, q) - lse_ref[queries][None])  # [s, t]
        p = p if whole else jnp.where(_causal().T, p, 0.0)
        keep = _keep(bits_ref[pl.ds(at % rows, TILE), :], at // rows).T
        d_v = d_v + triton.dot(jnp.where(keep, p, 0.0).astype(k.dtype), d_out)
        d_w = triton.dot(v, d_out, trans_b=True) / (1.0 - rate)
        d_scores = p * (jnp.where(keep, d_w, 0.0) - delta_ref[queries][None])
        return d_k + triton.dot(d_scores.astype(k.dtype), q), d_v

    sums = add(own, (jnp.zeros(k.shape, jnp.float32), jnp.zeros(k.shape, jnp.float32)), whole=False)
    last = q_ref.shape[0] // TILE
    d_k, d_v = lax.fori_loop(own + 1, last, partial(add, whole=True), sums)
    d_k_ref[...] = (d_k / math.sqrt(k.shape[-1])).astype(d_k_ref.dtype)
    d_v_ref[...] = (d_v / (1.0 - rate)).astype(d_v_ref.dtype)


def _scores(a: Float[Array, "m K"], b: Float[Array, "n K"]) -> Float[Array, "m n"]:
    """``a b^T / sqrt(K)`` as a power of two, which is one instruction."""
    return triton.dot(a, b, trans_b=True) * (LOG2_E / math.sqrt(a.shape[-1]))


def _causal() -> Bool[Array, "t s"]:
    """True where a query is not before a key, in a tile on the diagonal."""
    query, key = (lax.broadcasted_iota(jnp.int32, (TILE, TILE), axis) for axis in (0, 1))
    return query >= key


def _keep(bits: UInt8[Array, "t s"], bit: Array) -> Bool[Array, "t s"]:
    return (bits.astype(jnp.int32) >> bit) & 1 == 1


def _kernel(body: Callable[..., None], q: Heads, rate: float, interpret: bool) -> Callable[..., Any]:
    """A kernel with one program for each tile of each head, without what it reads and writes."""
    rows, context, heads, _ = q.shape
    return partial(
        pl.pallas_call,
        partial(body, rate=rate),
        grid=(context // TILE, heads, rows),
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=3),
        interpret=interpret,
    )


def _like(x: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _tile(x: Heads) -> pl.BlockSpec:
    """A program's own positions of a head."""
    return pl.BlockSpec((None, TILE, None, x.shape[-1]), lambda i, h, b: (b, i, h, 0))


def _row(x: Heads) -> pl.BlockSpec:
    """All positions of a head."""
    return pl.BlockSpec((None, x.shape[1], None, x.shape[-1]), lambda _, h, b: (b, 0, h, 0))


def _tile_statistics() -> pl.BlockSpec:
    return pl.BlockSpec((None, None, TILE), lambda i, h, b: (b, h, i))


def _row_statistics(x: Float[Array, "B H T"]) -> pl.BlockSpec:
    return pl.BlockSpec((None, None, x.shape[-1]), lambda _, h, b: (b, h, 0))


def _bits_of_queries(bits: UInt8[Array, "B H R T"]) -> pl.BlockSpec:
    """Bytes of a tile of queries and all keys; tiles R apart share them."""
    tiles = bits.shape[2] // TILE
    return pl.BlockSpec((None, None, TILE, bits.shape[3]), lambda i, h, b: (b, h, i % tiles, 0))


def _bits_of_keys(bits: UInt8[Array, "B H R T"]) -> pl.BlockSpec:
    """Bytes of all queries and a tile of keys."""
    return pl.BlockSpec((None, None, bits.shape[2], TILE), lambda i, h, b: (b, h, 0, i))
