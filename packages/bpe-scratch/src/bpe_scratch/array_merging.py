"""Many short words merged side by side: in each round, every word makes the one merge that is next for it.

That is the lowest rank in the word and of equal ones the leftmost, as in ``reference.py``, so nothing is
assumed of the order of merges, and a run like ``aaaa`` needs no care.  A word has a column of 16 places; its
symbols never move.  A merge writes the new token over the left symbol and clears the right one's bit in the
word's mask of places still alive; the neighbours are found in that mask.

Shapes: P = 16 places, W words, L words that merge in a round.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bpe_scratch.array_table import ArrayTable, Ints, Keys
from bpe_scratch.vocabulary import Vocabulary

PLACES = 16
_BITS = 4
# behind every rank, and with any place in its low bits still the same
_NONE = (1 << 62) - 1
# the last place of a column belongs to no word: it stands for a neighbour that is missing
_NOWHERE = PLACES - 1
_NO_ID = np.uint64(0xFFFFFFFF)
_BLOCK = 1 << 13
_MASKS = np.arange(1 << PLACES)
# log2 of a power of two is exact; an empty mask has neither
_LOWEST = np.where(_MASKS, np.log2(np.maximum(_MASKS & -_MASKS, 1)), _NOWHERE).astype(np.int64)
_HIGHEST = np.where(_MASKS, np.floor(np.log2(np.maximum(_MASKS, 1))), _NOWHERE).astype(np.int64)


class ArrayMerger:
    """The merges of a vocabulary, for words of at most 15 bytes."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Enter the merges into a hash table.

        Args:
            vocabulary: Tokens and merges. Merges of equal rank make the same token, as everywhere here.
        """
        rows = vocabulary.merge_array
        ranks = np.unique(np.array(vocabulary.ranks, dtype=np.int64), return_inverse=True)[1]
        self._pairs = ArrayTable(max(6, (8 * len(rows)).bit_length()), absent=_NONE)
        halves = rows.astype(np.uint64)
        slots, _ = self._pairs.insert(halves[:, 0], halves[:, 1] + np.uint64(1))
        self._pairs.values[slots] = ranks << _BITS
        self._made = np.zeros(len(rows), dtype=np.uint64)
        self._made[ranks] = halves[:, 2]
        self._byte_ids = np.array(vocabulary.byte_ids, dtype=np.uint64)
        left, right = np.divmod(np.arange(1 << 16), 256)
        self._of_bytes = self._order(self._byte_ids[left], self._byte_ids[right])

    def _order(self, left: Keys, right: Keys) -> Ints:
        """The rank of each pair, above the bits of a place; ``_NONE`` where it does not merge."""
        return self._pairs.values[self._pairs.find(left, right + np.uint64(1))]

    def merge(self, words: npt.NDArray[np.uint8], widths: Ints) -> tuple[npt.NDArray[np.uint32], Ints]:
        """The ids of many words.

        Args:
            words: Bytes of each word, ``[W, P]``; what stands behind its width does not matter.
            widths: Bytes of each word, 1 to 15, ``[W]``.

        Returns:
            ``(ids, counts)``: the ids of all words one after another, and how many each has, ``[W]``.
        """
        ids, counts = [], []
        for begin in range(0, len(words), _BLOCK):
            part = slice(begin, begin + _BLOCK)
            symbols, alive = self._merge_block(words[part].T, widths[part])
            left = (alive[:, None] >> np.arange(PLACES) & 1).astype(bool)  # [W, P]
            ids.append(symbols.T[left].astype(np.uint32))
            counts.append(left.sum(axis=1))
        return np.concatenate(ids), np.concatenate(counts)

    def _merge_block(self, words: npt.NDArray[np.uint8], widths: Ints) -> tuple[Keys, Ints]:
        """``(symbols [P, W], mask of the places alive [W])`` after all merges."""
        symbols, alive = self._byte_ids[words], (1 << widths) - 1
        symbols[_NOWHERE] = _NO_ID
        order = self._first_order(words, widths)
        while True:
            best = order.min(axis=0)
            live = np.flatnonzero(best != _NONE)
            if not live.size:
                return symbols, alive
            self._merge_once(symbols, order, alive, live, best[live])

    def _first_order(self, words: npt.NDArray[np.uint8], widths: Ints) -> Ints:
        """Rank and place of the pair that begins at each place, ``[P, W]``."""
        order = np.full(words.shape, _NONE, dtype=np.int64)
        order[:-1] = self._of_bytes[words[:-1].astype(np.int64) << 8 | words[1:]]
        place = np.arange(PLACES)[:, None]
        order |= place
        order[place + 1 >= widths] = _NONE
        return order

    def _merge_once(self, symbols: Keys, order: Ints, alive: Ints, live: Ints, best: Ints) -> None:
        """Make the next merge of each word of ``live``, ``[L]``, in place."""
        left, mask = best & (PLACES - 1), alive[live]
        behind = mask & -2 << left
        right, after = _LOWEST[behind], _LOWEST[behind & behind - 1]
        before = _HIGHEST[mask & (1 << left) - 1]
        alive[live] = mask ^ 1 << right
        new = self._made[best >> _BITS]
        symbols[left, live] = new
        order[right, live] = _NONE
        # both new pairs of every word in one look-up
        places, columns = np.concatenate([left, before]), np.concatenate([live, live])
        firsts = np.concatenate([new, symbols[before, live]])
        seconds = np.concatenate([symbols[after, live], new])
        order[places, columns] = self._order(firsts, seconds) | places
