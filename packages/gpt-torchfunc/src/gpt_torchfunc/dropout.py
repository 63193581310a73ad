"""Dropout by Philox-4x32-10 in torch: the same masks, bit for bit, as every other backend draws.

The rule stands in ``gpt_trainer.philox``. A mask is a pure function of its key and the element's
index, so nothing is carried from step to step, and a compiled step draws it inside its kernels.
Shapes: L blocks, B rows, H heads, t queries of a tile, R bytes for them,
S keys, n counters; ``...`` what is masked.
"""

from __future__ import annotations

import torch
from gpt_trainer.philox import MULTIPLIERS, ROUNDS, WEYL, Site, dropout_threshold
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

LOW = 0xFFFFFFFF
BITS = 8
"""Queries whose masks share a byte."""


def philox(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Words 0 and 1 of Philox-4x32-10 for each counter.

    All words are int64 that hold 32 bits. The product of two of them may pass 2^63 and wrap, which
    leaves its 64 bits as they should be; the shift then drags the sign along, hence the mask after it.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = ((p1 >> 32) & LOW) ^ c1 ^ k0, p1 & LOW, ((p0 >> 32) & LOW) ^ c3 ^ k1, p0 & LOW
        k0, k1 = (k0 + WEYL[0]) & LOW, (k1 + WEYL[1]) & LOW
    return c0, c1


def dropout_keys(seed: int, step: int, micro_batch: int, n_layer: int) -> Int64[Tensor, "L 4 2"]:
    """Keys of every mask in one forward pass, by layer and ``Site``; on the CPU.

    Args:
        seed: The run's seed, below 2^64.
        step: Optimizer steps already taken, from 0.
    """
    layer = torch.arange(n_layer)[:, None]
    site = torch.tensor([int(site) for site in Site])
    key = (torch.tensor(seed & LOW), torch.tensor((seed >> 32) & LOW))
    words = philox((torch.tensor(step), torch.tensor(micro_batch), layer, site), key)
    return torch.stack(words, -1)


def dropout_mask(shape: torch.Size, key: Int64[Tensor, " 2"], rate: float) -> Bool[Tensor, " ..."]:
    """True where an element of a tensor of ``shape`` is kept."""
    return _keep(torch.arange(shape.numel(), device=key.device), key, rate).view(shape)


def dropout_mask_tile(
    shape: tuple[int, int, int, int], start: int, stop: int, key: Int64[Tensor, " 2"], rate: float
) -> UInt8[Tensor, "B H R S"]:
    """The part ``[:, :, start:stop, :stop]`` of a mask, eight queries to a byte: see ``unpack``."""
    rows, heads, queries, width = shape
    size = -(-(stop - start) // BITS)
    head = torch.arange(rows * heads, device=key.device).view(rows, heads, 1, 1) * queries
    query, seen = torch.arange(size, device=key.device)[:, None], torch.arange(stop, device=key.device)
    bits = torch.zeros(rows, heads, size, stop, dtype=torch.uint8, device=key.device)
    for bit in range(BITS):
        index = (head + query + (start + bit * size)) * width + seen
        bits = bits | _keep(index, key, rate).to(torch.uint8) << bit
    return bits


def unpack(bits: UInt8[Tensor, "B H R S"], count: int) -> Bool[Tensor, "B H t S"]:
    """A mask of ``count`` queries: bit i of byte (r, s) is query ``i R + r`` and key s."""
    bit = torch.arange(BITS, dtype=torch.uint8, device=bits.device)[:, None, None]
    return ((bits[:, :, None] >> bit & 1) == 1).flatten(2, 3)[:, :, :count]


def _keep(index: Int64[Tensor, "*n"], key: Int64[Tensor, " 2"], rate: float) -> Bool[Tensor, "*n"]:
    """The rule itself, at the elements' indices."""
    zero = torch.zeros_like(index)
    word, _ = philox((index & LOW, index >> 32, zero, zero), (key[0], key[1]))
    return word >= dropout_threshold(rate)


def dropout(
    x: Float[Tensor, "*shape"], key: Int64[Tensor, " 2"] | None, rate: float
) -> Float[Tensor, "*shape"]:
    """``x`` with a share ``rate`` of its elements set to zero and the rest scaled by ``1 / (1 - rate)``.

    Args:
        key: The mask's two key words; ``None`` leaves ``x`` as it is.
        rate: Share of elements that are dropped, in ``[0, 1)``.
    """
    if key is None:
        return x
    return torch.where(dropout_mask(x.shape, key, rate), x * (1.0 / (1.0 - rate)), 0.0)
