"""Dropout by Philox-4x32-10 in JAX: the same masks, bit for bit, as every other backend draws.

The rule stands in ``gpt_trainer.philox``. A mask is a pure function of its key and the element's
index, so nothing is carried from step to step, and backward draws it again instead of keeping it.
JAX has no 64-bit integers by default: the two words of a product are taken one by one where that can be.

Shapes: L blocks, B rows, H heads, T positions, t queries of a tile, S keys; ``*n`` counters.
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from gpt_trainer.philox import MULTIPLIERS, ROUNDS, WEYL, Site, dropout_threshold
from jax import lax
from jaxtyping import Array, Bool, Float, UInt32

Words = UInt32[Array, "*n"]


def multiply(a: Words, b: int) -> tuple[Words, Words]:
    """High and low word of a 64-bit product.

    ``multiply(0xFFFFFFFF, 0xFFFFFFFF)`` is ``(0xFFFFFFFE, 0x00000001)``.

    Args:
        b: A constant below 2^32.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return lax.mulhi(a, jnp.full_like(a, b)), a * jnp.uint32(b)
    # XLA's partitioner does not take mulhi (jaxlib 0.10.2: "failed to legalize")
    with jax.enable_x64(True):
        product = lax.convert_element_type(a, np.uint64) * np.uint64(b)
        high, low = (lax.convert_element_type(p, np.uint32) for p in (product >> np.uint64(32), product))
    return high, low


def philox(counter: tuple[Words, Words, Words, Words], key: tuple[Array, Array]) -> tuple[Words, Words]:
    """Words 0 and 1 of Philox-4x32-10 for each counter."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        (high0, low0), (high1, low1) = multiply(c0, MULTIPLIERS[0]), multiply(c2, MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + jnp.uint32(WEYL[0]), k1 + jnp.uint32(WEYL[1])
    return c0, c1


def dropout_keys(
    seed: UInt32[Array, " 2"], step: UInt32[Array, ""], micro_batch: UInt32[Array, ""], n_layer: int
) -> UInt32[Array, "L 4 2"]:
    """Keys of every mask in one forward pass, by layer and ``Site``.

    Args:
        step: Optimizer steps already taken, from 0.
    """
    shape = (n_layer, len(Site))
    layer, site = (lax.broadcasted_iota(jnp.uint32, shape, axis) for axis in (0, 1))
    steps, micro_batches = (jnp.broadcast_to(word, shape) for word in (step, micro_batch))
    return jnp.stack(philox((steps, micro_batches, layer, site), (seed[0], seed[1])), -1)


def dropout_mask(shape: tuple[int, ...], key: UInt32[Array, " 2"], rate: float) -> Bool[Array, "*shape"]:
    """True where an element of a tensor of ``shape`` is kept."""
    rows, width = math.prod(shape[:-1]), shape[-1]
    row = lax.broadcasted_iota(jnp.uint32, (rows, width), 0)
    column = lax.broadcasted_iota(jnp.uint32, (rows, width), 1)
    return _keep(row, column, (rows, width), key, rate).reshape(shape)


def dropout_mask_tile(
    shape: tuple[int, int, int, int], start: int, stop: int, key: UInt32[Array, " 2"], rate: float
) -> Bool[Array, "B H t S"]:
    """The part ``[:, :, start:stop, :stop]`` of a mask, without the rest."""
    rows, heads, queries, width = shape
    tile = (rows, heads, stop - start, stop)
    b, h, t, s = (lax.broadcasted_iota(jnp.uint32, tile, axis) for axis in range(4))
    row = (b * jnp.uint32(heads) + h) * jnp.uint32(queries) + t + jnp.uint32(start)
    return _keep(row, s, (rows * heads * queries, width), key, rate)


def _keep(
    row: Words, column: Words, whole: tuple[int, int], key: UInt32[Array, " 2"], rate: float
) -> Bool[Array, "*n"]:
    """The rule itself, at index ``row * width + column``, which takes two words where one is too few.

    Args:
        whole: Height and width of the whole mask.
    """
    height, width = whole
    zero = jnp.zeros_like(row)
    index, high = row * jnp.uint32(width) + column, zero
    if height * width > 2**32:
        high, low = multiply(row, width)
        high = high + (index < low).astype(jnp.uint32)
    word, _ = philox((index, high, zero, zero), (key[0], key[1]))
    return word >= jnp.uint32(dropout_threshold(rate))


def dropout(
    x: Float[Array, "*shape"], key: UInt32[Array, " 2"] | None, rate: float
) -> Float[Array, "*shape"]:
    """``x`` with a share ``rate`` of its elements set to zero and the rest scaled by ``1 / (1 - rate)``.

    Args:
        x: Any array with at least one axis.
        key: The mask's two key words; ``None`` leaves ``x`` as it is.
        rate: Share of elements that are dropped, in ``[0, 1)``.
    """
    return x if key is None else _masked(x, key, rate)


@partial(jax.checkpoint, static_argnums=2)
def _masked(x: Array, key: Array, rate: float) -> Array:
    return jnp.where(dropout_mask(x.shape, key, rate), x * (1.0 / (1.0 - rate)), jnp.zeros_like(x))
