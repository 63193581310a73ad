"""Dropout by Philox-4x32-10 in torch: the same masks, bit for bit, as every other backend draws.

The rule stands in ``gpt_trainer.philox``. A mask is a pure function of its key and the element's index, so
nothing is carried from step to step, and backward draws it again instead of keeping it: the map is linear and
diagonal, and its own derivative. ``kernels.primitives.keep_mask`` is the same rule inside a kernel.
Shapes: L blocks; ``*n`` any.

References:
    Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from gpt_trainer import philox as rule
from gpt_trainer.philox import MULTIPLIERS, ROUNDS, WEYL, Site, dropout_threshold
from jaxtyping import Bool, Float, Int
from torch import Tensor

LOW = 0xFFFFFFFF


class Dropout(NamedTuple):
    """One site's mask; ``None`` in its place means no dropout.

    Attributes:
        rate: Share of elements set to zero, in (0, 1).
        key: The two 32-bit Philox key words, on the device, so that a recorded launch can be replayed
            with another key.
    """

    rate: float
    key: Int[Tensor, " 2"]


def dropout_at(keys: Int[Tensor, "4 2"] | None, site: Site, rate: float) -> Dropout | None:
    """The mask of one site of a block; ``None`` without keys."""
    return None if keys is None else Dropout(rate, keys[site])


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


def dropout_keys(seed: int, step: int, micro_batch: int, n_layer: int) -> Int[Tensor, "L 4 2"]:
    """Keys of every mask in one forward pass, by layer and ``Site``; on the CPU.

    Args:
        seed: The run's seed, below 2^64.
        step: Optimizer steps already taken, from 0.
    """
    return torch.from_numpy(rule.dropout_keys(seed, step, micro_batch, n_layer)).long()


def keep_mask(index: Int[Tensor, "*n"], dropout: Dropout) -> Bool[Tensor, "*n"]:
    """True where an element is kept.

    Args:
        index: Row-major positions of the elements in the whole tensor, int64.
    """
    zero = torch.zeros_like(index)
    word, _ = philox((index & LOW, index >> 32, zero, zero), (dropout.key[0], dropout.key[1]))
    return word >= dropout_threshold(dropout.rate)


def dropout_mask(shape: torch.Size, key: Int[Tensor, " 2"], rate: float) -> Bool[Tensor, " ..."]:
    """True where an element of a tensor of ``shape`` is kept."""
    return keep_mask(torch.arange(shape.numel(), device=key.device), Dropout(rate, key)).view(shape)


def dropout(
    x: Float[Tensor, "*shape"], key: Int[Tensor, " 2"] | None, rate: float
) -> Float[Tensor, "*shape"]:
    """``x`` with a share ``rate`` of its elements set to zero and the rest scaled by ``1 / (1 - rate)``.

    Args:
        key: The mask's two key words; ``None`` leaves ``x`` as it is.
        rate: Share of elements that are dropped, in ``[0, 1)``.
    """
    if key is None:
        return x
    return torch.where(dropout_mask(x.shape, key, rate), x * (1.0 / (1.0 - rate)), 0.0)
