"""A hash table of two 64-bit keys and a value, asked and filled with whole arrays.

Open addressing: a key stands in the first free slot behind its hash, and all keys that are not decided yet
step on together.  Keys that enter at once may want the same slot: each writes its number there, and the one
that is read back has it; the rest see who got it, and either are that key too or go on.

Shapes: N keys asked for, F of them new and different, S slots.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]
_C1, _C2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)
_HALF = np.uint64(32)


class ArrayTable:
    """Keys whose second half is not 0, and their values.

    Attributes:
        used: Slots that hold a key.
        values: Value of each slot, ``[S + 1]``, to be written by the caller after ``insert``. The last one
            is that of every key not found, whose slot is -1.
    """

    def __init__(self, log: int, absent: int = 0) -> None:
        """An empty table.

        Args:
            log: Slots as a power of two; the caller sees to it that some stay free.
            absent: Value of the keys that are not there.
        """
        self._log, self._mask = np.uint64(64 - log), (1 << log) - 1
        self._first, self._second = (np.zeros(1 << log, dtype=np.uint64) for _ in range(2))
        self.values = np.zeros((1 << log) + 1, dtype=np.int64)
        self.values[-1] = absent
        self.used = 0

    def _home(self, first: Keys, second: Keys) -> Ints:
        h = second * _C2
        h ^= first
        h *= _C1
        h ^= h >> _HALF
        h *= _C2
        h >>= self._log
        return h.view(np.int64)

    def find(self, first: Keys, second: Keys) -> Ints:
        """The slot of each key, -1 where it is not in the table, ``[N]``.

        Args:
            first: First halves, ``[N]``.
            second: Second halves, ``[N]``.
        """
        slots = self._home(first, second)
        there = self._second.take(slots)
        other = np.flatnonzero((self._first.take(slots) != first) | (there != second))
        at = slots[other]
        slots[other] = -1
        going = there[other] != 0
        rest, at = other[going], at[going]
        while rest.size:
            at = (at + 1) & self._mask
            there = self._second[at]
            hit = (self._first[at] == first[rest]) & (there == second[rest])
            slots[rest[hit]] = at[hit]
            going = ~hit & (there != 0)
            rest, at = rest[going], at[going]
        return slots

    def insert(self, first: Keys, second: Keys) -> tuple[Ints, Ints]:
        """Enter the keys that are not there yet.

        Args:
            first: First halves, ``[N]``, repeated ones allowed.
            second: Second halves, ``[N]``.

        Returns:
            ``(slots, fresh)``: the slot of each key, ``[N]``, and one place in the arguments of each key that
            is new, ``[F]``.
        """
        at, slots = self._home(first, second), np.empty(first.size, dtype=np.int64)
        rest, fresh = np.arange(first.size), [np.zeros(0, dtype=np.int64)]
        while rest.size:
            free = self._second[at] == 0
            wanted, asking = at[free], rest[free]
            self.values[wanted] = asking
            taken = self.values[wanted] == asking
            wanted, asking = wanted[taken], asking[taken]
            self._first[wanted], self._second[wanted] = first[asking], second[asking]
            fresh.append(asking)
            hit = (self._first[at] == first[rest]) & (self._second[at] == second[rest])
            slots[rest[hit]] = at[hit]
            rest, at = rest[~hit], (at[~hit] + 1) & self._mask
        new = np.concatenate(fresh)
        self.used += new.size
        return slots, new
