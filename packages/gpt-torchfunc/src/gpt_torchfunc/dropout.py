"""Dropout by Philox-4x32-10 in torch: the same masks, bit for bit, as every other backend draws.

The rule stands in ``gpt_trainer.philox``. A mask is a pure function of its key and an element's place in the
whole step's batch, so nothing is carried from step to step. A call gives the words of four columns, and two
calls a byte. The bytes are drawn apart from where they are used, and kept for backward: compiled into what
reads them, a call would be made again for each of its columns, and in each pass over them.

Shapes: L blocks, B rows, T positions, M tokens of all rows (B T), D width, H heads, t queries of a tile,
S keys, R bytes for D or S, n counters; ``...`` whatever else.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from gpt_trainer import philox as rule
from gpt_trainer.philox import MULTIPLIERS, ROUNDS, WEYL, WORDS, dropout_threshold
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

Key = Int64[Tensor, " 3"]
"""The two words of a mask's key, and the number of the first row in the whole step's batch."""

LOW = 0xFFFFFFFF
BITS = 8
"""Columns whose masks share a byte."""


def philox(counter: Sequence[Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
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


def dropout_keys(seed: int, step: int, first_row: int, n_layer: int) -> Int64[Tensor, "L 4 3"]:
    """Keys of every mask in one forward pass, by layer and ``Site``; on the CPU.

    Args:
        seed: The run's seed, below 2^64.
        step: Optimizer steps already taken, from 0.
        first_row: Of the pass, in the whole step's batch.
    """
    return torch.from_numpy(rule.dropout_keys(seed, step, first_row, n_layer)).long()


def draw_rows(shape: tuple[int, int, int], key: Key, rate: float) -> UInt8[Tensor, "M R"]:
    """The mask of a tensor ``[B, T, D]``, eight columns to a byte: see ``unpack``."""
    rows, lines, columns = shape
    row, line = _count(rows, key)[:, None, None], _count(lines, key)[:, None]
    return _draw(row, line, columns, key, rate).flatten(0, 1)


def draw_tile(
    shape: tuple[int, int, int], start: int, stop: int, key: Key, rate: float
) -> UInt8[Tensor, "B H t R"]:
    """The part ``[:, :, start:stop, :stop]`` of a mask ``[B, H, T, T]``, eight keys to a byte.

    Args:
        shape: Rows, heads, positions.
    """
    rows, heads, context = shape
    head, query = _count(heads, key)[:, None, None], _count(stop - start, key)[:, None]
    row, line = _count(rows, key)[:, None, None, None], head * context + query + start
    return _draw(row, line, stop, key, rate)


def _draw(
    row: Int64[Tensor, "*r 1"], line: Int64[Tensor, "*l 1"], columns: int, key: Key, rate: float
) -> UInt8[Tensor, "*rl R"]:
    """Which elements of some lines are kept: bit i of byte r is column ``8 r + i``.

    Args:
        row: Of each line, counted from ``key``'s first.
        line: Number of each within its row.
    """
    k0, k1, first_row = key.unbind(0)
    calls, threshold = BITS // WORDS, dropout_threshold(rate)
    first_call = _count(-(-columns // BITS), key) * calls
    words: list[Tensor] = []
    for call in range(calls):
        # LOW changes nothing; without it torch's compiler would count in 32 bits, and multiply so
        counter = (first_call + call) & LOW, line, row + first_row, torch.zeros_like(k0)
        # of one size, or the small first rounds would be a kernel by themselves
        words += philox(torch.broadcast_tensors(*counter), (k0, k1))
    bits = (words[0] >= threshold).to(torch.uint8)
    for place, word in enumerate(words[1:], 1):
        bits = bits | (word >= threshold).to(torch.uint8) << place
    return bits


def _count(size: int, key: Key) -> Int64[Tensor, " n"]:
    return torch.arange(size, device=key.device)


def unpack(bits: UInt8[Tensor, "*shape R"], columns: int) -> Bool[Tensor, "*shape S"]:
    """A mask element by element."""
    place = torch.arange(BITS, dtype=torch.uint8, device=bits.device)
    return ((bits[..., None] >> place & 1) == 1).flatten(-2)[..., :columns]


def dropout(x: Float[Tensor, "M D"], bits: UInt8[Tensor, "M R"] | None, rate: float) -> Float[Tensor, "M D"]:
    """``x`` with a share ``rate`` of its elements set to zero and the rest scaled by ``1 / (1 - rate)``.

    Args:
        bits: Which are kept; ``None`` leaves ``x`` as it is.
        rate: Share of elements that are dropped, in ``[0, 1)``.
    """
    if bits is None:
        return x
    return torch.where(unpack(bits, x.shape[1]), x * (1.0 / (1.0 - rate)), 0.0)
