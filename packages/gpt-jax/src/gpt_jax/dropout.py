"""Dropout by Philox-4x32-10 in JAX: the same masks, bit for bit, as every other backend draws.

The rule stands in ``gpt_trainer.philox``. A mask is a pure function of its key and an element's place in the
whole step's batch, so nothing is carried from step to step. A call gives the words of four columns, whose
bits share a byte: XLA would draw what reads them four times into whatever it is fused with, so drawing is
a program apart.

Shapes: L blocks, B rows, T positions, M tokens of all rows (B T), D width, H heads, t queries of a tile,
S keys; r rows and l lines of any shape, n calls of a line, C columns of it; ``*n`` counters.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from gpt_trainer.philox import MULTIPLIERS, ROUNDS, WEYL, WORDS, Site, dropout_threshold
from jax import lax
from jaxtyping import Array, Bool, Float, UInt8, UInt32

Words = UInt32[Array, "*n"]
Key = UInt32[Array, " 3"]
"""The two words of a mask's key, and the number of the first row in the whole step's batch."""


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


def philox(counter: tuple[Array, Array, Array, Array], key: tuple[Array, Array]) -> tuple[Array, ...]:
    """Philox-4x32-10: four words for each counter.

    Args:
        counter: Four arrays of one number of axes, whose sizes are broadcast to each other.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        (high0, low0), (high1, low1) = multiply(c0, MULTIPLIERS[0]), multiply(c2, MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + jnp.uint32(WEYL[0]), k1 + jnp.uint32(WEYL[1])
    return c0, c1, c2, c3


def dropout_keys(
    seed: UInt32[Array, " 2"], step: UInt32[Array, ""], first_row: UInt32[Array, ""], n_layer: int
) -> UInt32[Array, "L 4 3"]:
    """Keys of every mask in one forward pass, by layer and ``Site``.

    Args:
        step: Optimizer steps already taken, from 0.
        first_row: Of the pass, in the whole step's batch.
    """
    shape = (n_layer, len(Site))
    layer, site = (lax.broadcasted_iota(jnp.uint32, shape, axis) for axis in (0, 1))
    steps, rows = (jnp.broadcast_to(word, shape) for word in (step, first_row))
    k0, k1, *_ = philox((steps, layer, site, jnp.zeros_like(site)), (seed[0], seed[1]))
    return jnp.stack([k0, k1, rows], -1)


def draw_rows(shape: tuple[int, ...], key: Key, rate: float) -> UInt8[Array, "B T n"]:
    """The mask of a tensor ``[B, T, D]``, four columns to a byte: see ``unpack``."""
    rows, lines, columns = shape
    return _draw(_iota(rows, 0, 3), _iota(lines, 1, 3), columns, key, rate)


def draw_tile(
    shape: tuple[int, int, int], start: int, stop: int, key: Key, rate: float
) -> UInt8[Array, "B H t n"]:
    """The part ``[:, :, start:stop, :stop]`` of a mask ``[B, H, T, T]``, four keys to a byte.

    Args:
        shape: Rows, heads, positions.
    """
    rows, heads, context = shape
    line = _iota(heads, 1, 4) * jnp.uint32(context) + _iota(stop - start, 2, 4) + jnp.uint32(start)
    return _draw(_iota(rows, 0, 4), line, stop, key, rate)


def _draw(
    row: UInt32[Array, "*r 1"], line: UInt32[Array, "*l 1"], columns: int, key: Key, rate: float
) -> UInt8[Array, "*rl n"]:
    """Which elements of some lines are kept: bit i of byte n is column ``4 n + i``.

    Args:
        row: Of each line, counted from ``key``'s first.
        line: Number of each within its row; the shapes of both are broadcast to each other.
        columns: Of a line.
    """
    call = _iota(-(-columns // WORDS), row.ndim - 1, row.ndim)
    words = philox((call, line, row + key[2], jnp.zeros_like(call)), (key[0], key[1]))
    bits = [(word >= jnp.uint32(dropout_threshold(rate))).astype(jnp.uint8) for word in words]
    return bits[0] | bits[1] << 1 | bits[2] << 2 | bits[3] << 3


def _iota(size: int, axis: int, axes: int) -> UInt32[Array, "..."]:
    """0, 1, ... along one of so many axes; the others have size 1."""
    shape = [1] * axes
    shape[axis] = size
    return lax.broadcasted_iota(jnp.uint32, shape, axis)


def unpack(bits: UInt8[Array, "*shape n"], columns: int) -> Bool[Array, "*shape C"]:
    """A mask element by element."""
    each = bits[..., None] >> _iota(WORDS, bits.ndim, bits.ndim + 1).astype(jnp.uint8) & 1  # [*shape, n, 4]
    return each.reshape(*bits.shape[:-1], -1)[..., :columns] == 1


def dropout(x: Float[Array, "M D"], key: Key | None, rate: float, rows: int) -> Float[Array, "M D"]:
    """``x`` with a share ``rate`` of its elements set to zero and the rest scaled by ``1 / (1 - rate)``.

    Args:
        key: Of the mask; ``None`` leaves ``x`` as it is.
        rate: Share of elements that are dropped, in ``[0, 1)``.
        rows: Number of rows, B.
    """
    if key is None:
        return x
    shape = rows, len(x) // rows, x.shape[1]
    # tokens in one axis: else XLA puts rows innermost, and transposes before and behind each product
    bits = lax.optimization_barrier(draw_rows(shape, key, rate).reshape(len(x), -1))
    return _masked(x, bits, rate)


@partial(jax.checkpoint, static_argnums=2)
def _masked(x: Float[Array, "M D"], bits: UInt8[Array, "M n"], rate: float) -> Float[Array, "M D"]:
    """``x / (1 - rate)`` where it is kept, else 0; backward is left the bits."""
    return jnp.where(unpack(bits, x.shape[-1]), x * (1.0 / (1.0 - rate)), jnp.zeros_like(x))
