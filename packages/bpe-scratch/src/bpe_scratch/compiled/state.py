"""What kernels work on: documents, and one record of addresses, sizes and counters that Python fills.

``[n]`` is the length of an array whose address a field holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

CHUNK = 1 << 18  # bytes of documents for one call of a kernel: they stay in the cache
_MARGIN, _LINE = bytes(64), 64
_ENCODING = """
    kind                                   the pattern
    text                                   UTF-8 of documents one after another
    blocks classes                         the table of Unicode classes
    cuts batch                             scratch for the pieces looked up together
    slots shift arena arena_size           the table of known pieces: 2**(64 - shift) slots; long pieces
    pool pool_size                         ids that do not fit their slot
    byte_ids byte_pairs                    [256] id of each byte; [65536] what two of them become
    pairs pair_shift                       the merges
    pieces                                 scratch for those that are merged side by side
    out narrow                             the ids that are written, in uint16 if narrow, or else uint32
    counting                               whether pieces are counted, not encoded
    position document written              how far encoding is
    slots_used arena_used pool_used        how full the tables are
    stop                                   end of the piece that was left
"""
_LEARNING = """
    nodes size counts                      the words as linked symbols; [words] how often each occurs
    least budget wanted                    least count of a pair; merges to learn in this call, and in all
    lengths                                [256 + wanted] of each token, in bytes
    pairs pairs_room places                the pairs; where they begin, in the nodes
    rows rows_used used noted noted_used   scratch: pairs beside a new token, and where they are
    merges                                 [wanted, 2] the pairs learned
    pairs_used places_used learned
"""


def _fields(lines: str) -> np.dtype[np.void]:
    names = [name for line in lines.strip().split("\n") for name in line.strip().split("  ")[0].split()]
    return np.dtype([(name, np.int64) for name in names])


ENCODING, LEARNING = _fields(_ENCODING), _fields(_LEARNING)


class State:
    """A record, and the arrays whose addresses stand in it, which must live as long as it does."""

    def __init__(self, kind: np.dtype[np.void]) -> None:
        self.record = np.zeros(1, dtype=kind)
        self._arrays: dict[str, np.ndarray] = {}

    def __getitem__(self, field: str) -> int:
        return int(self.record[field][0])

    def __setitem__(self, field: str, value: int) -> None:
        self.record[field] = value

    def point(self, **arrays: npt.NDArray[Any]) -> None:
        """Let fields hold the addresses of arrays."""
        for field, array in arrays.items():
            self._arrays[field] = array
            self[field] = array.__array_interface__["data"][0]

    def array(self, field: str) -> npt.NDArray[Any]:
        """The array that a field points to."""
        return self._arrays[field]


def aligned_zeros(size: int) -> npt.NDArray[np.uint64]:
    """Zeros from the start of a cache line on: what lies across two lines would cost two reads."""
    numbers = np.zeros(size + _LINE // 8, dtype=np.uint64)
    begin = -numbers.ctypes.data % _LINE // 8
    return numbers[begin : begin + size]


def lay_out(parts: Sequence[bytes]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """``(text, bounds)``: part ``i`` is ``text[bounds[i]:bounds[i + 1]]``; there is room beyond both ends."""
    text = np.frombuffer(b"".join([_MARGIN, *parts, _MARGIN]), dtype=np.uint8)
    return text, np.fromiter(accumulate(map(len, parts), initial=len(_MARGIN)), np.int64)
