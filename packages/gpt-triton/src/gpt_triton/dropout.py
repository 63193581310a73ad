"""Dropout by Philox-4x32-10 in torch: the same masks, bit for bit, as every other backend draws.

The rule stands in ``gpt_trainer.philox``. A mask is a pure function of its key and an element's place in the
whole step's batch, so nothing is carried from step to step, and backward draws it again instead of keeping
it: the map is linear and diagonal, and its own derivative. ``kernels.primitives`` has the same rule inside a
kernel. Shapes: B rows, T positions, M = B*T, D width, L blocks; ``*n`` any.

References:
    Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from gpt_trainer import philox as rule
from gpt_trainer.philox import MULTIPLIERS, ROUNDS, WEYL, WORDS, Site, dropout_threshold
from jaxtyping import Bool, Float, Int
from torch import Tensor

LOW = 0xFFFFFFFF
Key = Int[Tensor, " 3"]
"""The two words of a mask's key, and the number of the first row in the whole step's batch."""


class Dropout(NamedTuple):
    """One site's mask; ``None`` in its place means no dropout.

    Attributes:
        rate: Share of elements set to zero, in (0, 1).
        key: On the device, so that a recorded launch can be replayed with another, and other rows.
        context: Positions of a row, T.
    """

    rate: float
    key: Key
    context: int

    @property
    def keep_scale(self) -> float:
        """What kept elements are multiplied by."""
        return 1.0 / (1.0 - self.rate)

    @property
    def threshold(self) -> int:
        """The smallest word of Philox that keeps its element."""
        return dropout_threshold(self.rate)


Drops = tuple[Dropout | None, ...]
"""The masks of a block, by ``Site``."""

NO_DROPS: Drops = (None,) * len(Site)


def dropouts(keys: Int[Tensor, "L 4 3"] | None, layer: int, rate: float, context: int) -> Drops:
    """The masks of a block; none without keys."""
    if keys is None:
        return NO_DROPS
    return tuple(Dropout(rate, key, context) for key in keys[layer])


def philox(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox-4x32-10: four words for each counter.

    All words are int64 that hold 32 bits. The product of two of them may pass 2^63 and wrap, which
    leaves its 64 bits as they should be; the shift then drags the sign along, hence the mask after it.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = ((p1 >> 32) & LOW) ^ c1 ^ k0, p1 & LOW, ((p0 >> 32) & LOW) ^ c3 ^ k1, p0 & LOW
        k0, k1 = (k0 + WEYL[0]) & LOW, (k1 + WEYL[1]) & LOW
    return c0, c1, c2, c3


def dropout_keys(seed: int, step: int, first_row: int, n_layer: int) -> Int[Tensor, "L 4 3"]:
    """Of every mask in one forward pass, by layer and ``Site``: key and first row; on the CPU.

    Args:
        seed: The run's seed, below 2^64.
        step: Optimizer steps already taken, from 0.
    """
    return torch.from_numpy(rule.dropout_keys(seed, step, first_row, n_layer)).long()


def dropout_mask(
    shape: tuple[int, int, int], dropout: Dropout, row: int = 0
) -> Bool[Tensor, "rows lines columns"]:
    """True where an element is kept.

    Args:
        shape: Rows, lines of a row, columns of a line.
        row: The first row, counted from that of ``dropout``.
    """
    (rows, lines, columns), device = shape, dropout.key.device
    k0, k1, first_row = dropout.key
    at = first_row + torch.arange(row, row + rows, device=device)[:, None, None]
    line = torch.arange(lines, device=device)[:, None]
    call = torch.arange(-(-columns // WORDS), device=device)
    # the first rounds are as small as their counters: sizes meet as the words do
    words = torch.stack(philox((call, line, at, torch.zeros_like(k0)), (k0, k1)), -1)
    return (words >= dropout.threshold).flatten(2)[:, :, :columns]


def drop(x: Float[Tensor, "M D"], dropout: Dropout) -> Float[Tensor, "M D"]:
    """``x`` with a share ``rate`` of its elements set to zero and the rest scaled by ``1 / (1 - rate)``."""
    context, width = dropout.context, x.shape[1]
    keep = dropout_mask((len(x) // context, context, width), dropout).flatten(0, 1)
    return torch.where(keep, x * dropout.keep_scale, 0.0)
