"""Dropout by Philox-4x32-10: element ``i`` is kept where word 0 of ``philox(i, key)`` reaches a threshold.

The mask is drawn again in the backward, so nothing is saved; the map is linear and diagonal, so the
backward is the forward. The rule is that of ``gpt_trainer.philox``, bit for bit. Any shape.

References:
    Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
"""

from __future__ import annotations

import torch
from gpt_trainer.philox import MULTIPLIERS, ROUNDS, WEYL, dropout_threshold
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gpt_triton.reference.tiles import rows_per_tile
from gpt_triton.residuals import Dropout

LOW = 0xFFFFFFFF


def keep_mask(index: Int[Tensor, "*n"], dropout: Dropout) -> Bool[Tensor, "*n"]:
    """True where an element is kept.

    Args:
        index: Row-major positions of the elements in the whole tensor, int64.
    """
    return _philox_word(index, dropout.key) >= dropout_threshold(dropout.rate)


def dropout_fwd(x: Float[Tensor, "*n"], dropout: Dropout) -> Float[Tensor, "*n"]:
    """Zero the dropped elements and scale the kept ones by ``1 / (1 - rate)``.

    Args:
        x: Any tensor; element ``i`` is its ``i``-th in row-major order.
    """
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    source, target = x.reshape(-1), y.view(-1)
    tile = rows_per_tile(x, 1)
    scale = 1.0 / (1.0 - dropout.rate)
    for start in range(0, source.numel(), tile):
        stop = min(start + tile, source.numel())
        keep = keep_mask(torch.arange(start, stop, device=x.device), dropout)
        target[start:stop] = (source[start:stop] * scale).masked_fill_(~keep, 0.0)
    return y


def dropout_bwd(d_y: Float[Tensor, "*n"], dropout: Dropout) -> Float[Tensor, "*n"]:
    """Gradient of the input: the same mask and scale."""
    return dropout_fwd(d_y, dropout)


def _philox_word(index: Int[Tensor, "*n"], key: Int[Tensor, " 2"]) -> Int[Tensor, "*n"]:
    """Word 0 of Philox at counter ``(index low, index high, 0, 0)``, in int64.

    A 64-bit product wraps around as a signed number, but its bits are those of the unsigned product, so
    that both halves are right once masked.
    """
    c0, c1 = index & LOW, index >> 32
    c2 = c3 = torch.zeros_like(index)
    k0, k1 = key[0], key[1]
    for _ in range(ROUNDS):
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c2 = (((p1 >> 32) & LOW) ^ c1).bitwise_xor_(k0), (((p0 >> 32) & LOW) ^ c3).bitwise_xor_(k1)
        c1, c3 = p1.bitwise_and_(LOW), p0.bitwise_and_(LOW)
        k0, k1 = (k0 + WEYL[0]) & LOW, (k1 + WEYL[1]) & LOW
    return c0
