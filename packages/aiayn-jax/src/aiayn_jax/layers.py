"""What the encoder-decoder needs beside GPT-2's layers: sinusoids, LayerNorm after a sum, ReLU.

Shapes: B rows, T positions, D width, n bytes of a mask for it, F feed-forward width, L layers.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from gpt_jax.dropout import draw_rows, unpack
from gpt_jax.model import layer_norm
from jax import lax
from jaxtyping import Array, Float, Float64, UInt8, UInt32

from aiayn_jax.parameters import Attention, Network, Site
from aiayn_jax.plan import Plan

Masks = dict[Site, Array]
"""Dropout masks by site, each ``[L, B, T, n]``, or of one layer ``[B, T, n]``; empty means no dropout."""


def positions(length: int, width: int) -> Float64[np.ndarray, "T D"]:
    """The sinusoids: each pair of columns turns at a rate of its own, from 1 down to 1 / 10000."""
    rates = 10000.0 ** (-np.arange(0, width, 2) / width)
    angles = np.arange(length)[:, None] * rates
    return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(length, width)


def draw_masks(
    keys: UInt32[Array, "L 4 3"] | None, sites: tuple[Site, ...], shape: tuple[int, ...], plan: Plan
) -> tuple[UInt8[Array, "B T n"] | None, Masks]:
    """The masks of one stack: of its embedding, and of each layer by site.

    All are drawn at once, before the layers, and kept for backward, a byte for four elements: drawing
    them again costs more than reading them. The barrier keeps XLA from fusing the drawing with what reads
    it: on an H100 that one program took 10.1 ms of a step, and drawing 19 masks alone takes 1.0 ms (base, 560
    rows of 48, jax 0.11.2, 2026-11-25).

    Args:
        keys: Dropout keys by layer and ``Site``; ``None`` means no dropout, and no masks.
    """
    if keys is None:
        return None, {}
    of_layers = jnp.stack([keys[:, site] for site in sites])  # [sites, L, 3]
    flat = jnp.concatenate([keys[:1, Site.EMBEDDING], of_layers.reshape(-1, 3)])
    masks = jax.vmap(lambda key: draw_rows(shape, key, plan.dropout))(flat)  # [1 + sites * L, B, T, n]
    masks = lax.optimization_barrier(masks)
    layers = masks[1:].reshape(*of_layers.shape[:2], *masks.shape[1:])
    return masks[0], dict(zip(sites, layers, strict=True))


def masked(x: Float[Array, "B T D"], mask: UInt8[Array, "B T n"] | None, plan: Plan) -> Float[Array, "B T D"]:
    """``x / (1 - rate)`` where the mask holds, else 0."""
    if mask is None:
        return x
    return jnp.where(unpack(mask, x.shape[-1]), x * (1.0 / (1.0 - plan.dropout)), 0.0)


def add_norm(
    part: Attention | Network,
    x: Float[Array, "B T D"],
    h: Float[Array, "B T D"],
    mask: UInt8[Array, "B T n"] | None,
    plan: Plan,
) -> Float[Array, "B T D"]:
    """``LayerNorm(x + drop(h))``, the sum in float32 and rounded once, after the LayerNorm.

    Args:
        mask: Which elements of ``h`` are kept; ``None`` means all.
    """

    @jax.checkpoint
    def of(x: Array, h: Array, mask: Array | None, gain: Array, bias: Array) -> Array:
        total = x.astype(gain.dtype) + masked(h.astype(gain.dtype), mask, plan)
        return layer_norm(total, gain, bias).astype(x.dtype)

    return of(x, h, mask, part.norm_gain, part.norm_bias)


@jax.custom_vjp
def relu(x: Float[Array, "B T F"]) -> Float[Array, "B T F"]:
    """``max(x, 0)``; backward sees by the result where ``x`` was positive, so that ``x`` is not kept."""
    return jnp.maximum(x, 0)


def relu_fwd(x: Float[Array, "B T F"]) -> tuple[Float[Array, "B T F"], Float[Array, "B T F"]]:
    """The result, twice: once to keep."""
    y = jnp.maximum(x, 0)
    return y, y


def relu_bwd(y: Float[Array, "B T F"], d_y: Float[Array, "B T F"]) -> tuple[Float[Array, "B T F"]]:
    """``d_y`` where ``x`` was positive, else 0."""
    return (jnp.where(y > 0, d_y, 0),)


relu.defvjp(relu_fwd, relu_bwd)
