# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
"""Counting the distinct pieces of a corpus in the word table; the value of a slot is the count."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from bpe_scratch.compiled.cuts import CUTS, cut_pieces
from bpe_scratch.compiled.cutting import padded
from bpe_scratch.compiled.kernel import kernel
from bpe_scratch.compiled.memory import address, load8, load64, load_bytes, store8, store64
from bpe_scratch.compiled.pieces import KINDS
from bpe_scratch.compiled.word_table import (
    INLINE,
    SLOT,
    ask_for_slots,
    empty_slots,
    fill_slot,
    find_slot,
    rehash,
)
from bpe_scratch.patterns import to_utf8
from bpe_scratch.unicode_classes import class_table

_CHUNK = 1 << 18
_FIRST_LOG = 16
_DONE, _FULL = 0, 1
_POSITION, _DOCUMENT, _SLOTS_USED, _ARENA_USED, _NEEDED = 0, 1, 2, 3, 4


@kernel
def count_documents(kind, text, bounds, weights, state, blocks, classes, cuts, slots, shift, arena, batch):
    """Count the pieces of documents that stand one after another; stops when the table or the arena is full.

    ``bounds`` [documents + 1] are where they begin and end, ``weights`` [documents] is how often each occurs.
    """
    room, arena_size = (slots.size // SLOT) * 3 // 4, arena.size
    text, blocks, classes, slots = address(text), address(blocks), address(classes), address(slots)
    cuts, arena, batch = address(cuts), address(arena), address(batch)
    i, document, used, arena_used = state[0], state[1], state[2], state[3]
    reason = _DONE
    while document < weights.size and reason == _DONE:
        begin, end, weight = bounds[document], bounds[document + 1], np.uint64(weights[document])
        i = max(i, begin)
        while i < end and reason == _DONE:
            m = cut_pieces(kind, text, i, begin, end, blocks, classes, cuts)
            ask_for_slots(text, cuts, m, slots, shift, batch, end)
            for q in range(m):
                i = np.int64(load64(cuts, q))
                n = np.int64(load64(cuts, q + 1)) - i
                k0, k1 = load64(batch, 3 * q), load64(batch, 3 * q + 1)
                at = np.int64(load64(batch, 3 * q + 2))
                at, known = find_slot(slots, shift, arena, text, i, n, k0, k1, at)
                if not known:
                    if used >= room or arena_used + n + 32 > arena_size:
                        reason, state[4] = _FULL, n
                        break
                    used += 1
                    arena_used = fill_slot(slots, at, arena, arena_used, text, i, n, k0, k1)
                store64(slots, at + 2, load64(slots, at + 2) + weight)
            if reason == _DONE:
                i = np.int64(load64(cuts, m))
        if reason == _DONE:
            document += 1
    state[0], state[1], state[2], state[3] = i, document, used, arena_used
    return reason


@kernel
def gather_words(slots, arena, starts, counts, out):
    """Write the bytes of all words one after another, each with its start and count.

    Returns the bytes in all.
    """
    source, target = address(slots), address(out)
    end = w = np.int64(0)
    arena = address(arena)
    for at in range(0, slots.size, SLOT):
        k1 = load64(source, at + 1)
        if k1 == 0:
            continue
        n = np.int64(k1 >> np.uint64(56))
        if n <= INLINE:
            k0 = load64(source, at)
            for k in range(n):
                word = k0 if k < 8 else k1
                store8(target, end + k, np.int64(word >> np.uint64(8 * (k & 7)) & np.uint64(255)))
        else:
            offset = np.int64(k1 & np.uint64((1 << 56) - 1))
            n = np.int64(load_bytes(arena, offset))
            for k in range(n):
                store8(target, end + k, load8(arena, offset + 8 + k))
        starts[w], counts[w] = end, np.int64(load64(source, at + 2))
        end += n
        w += 1
    starts[w] = end
    return end


class WordCounter:
    """Counts of distinct pieces, in memory that grows with the number of distinct pieces only."""

    def __init__(self, pattern: str) -> None:
        self._kind = KINDS[pattern]
        self._table = class_table()
        self._batch = np.zeros(3 * CUTS, dtype=np.uint64)
        self._cuts = np.zeros(CUTS, dtype=np.uint64)
        self.clear()

    def clear(self) -> None:
        """Forget everything, and give the memory back."""
        self._log = _FIRST_LOG
        self._slots = empty_slots(self._log)
        self._arena = np.zeros(1 << 16, dtype=np.uint8)
        self._state = np.zeros(5, dtype=np.int64)

    def __len__(self) -> int:
        return int(self._state[_SLOTS_USED])

    def add(self, documents: Iterable[str]) -> Iterator[int]:
        """Count the pieces of documents; yields now and then the number of documents read.

        Args:
            documents: Texts; no piece crosses from one to the next.
        """
        chunk: list[bytes] = []
        size = done = 0
        for text in documents:
            chunk.append(to_utf8(text))
            size += len(chunk[-1])
            if size >= _CHUNK:
                self.add_bytes(chunk)
                done += len(chunk)
                chunk, size = [], 0
                yield done
        self.add_bytes(chunk)
        yield done + len(chunk)

    def add_bytes(
        self, chunk: list[bytes], weights: npt.NDArray[np.int64] | None = None, whole: bool = False
    ) -> None:
        """Count the pieces of a few documents.

        Args:
            chunk: UTF-8 of each document.
            weights: How often each document occurs; once if not given.
            whole: Whether each document is one piece, whatever the pattern.
        """
        state, (text, bounds) = self._state, padded(chunk)
        weights = np.ones(len(chunk), dtype=np.int64) if weights is None else weights
        state[_POSITION] = state[_DOCUMENT] = 0
        kind = KINDS["none"] if whole else self._kind
        while (
            count_documents(
                kind,
                text,
                bounds,
                weights,
                state,
                *self._table,
                self._cuts,
                self._slots,
                64 - self._log,
                self._arena,
                self._batch,
            )
            == _FULL
        ):
            self._grow()

    def _grow(self) -> None:
        if self._state[_SLOTS_USED] >= (1 << self._log) * 3 // 4:
            larger = empty_slots(self._log + 1)
            rehash(self._slots, larger, 64 - self._log - 1)
            self._slots, self._log = larger, self._log + 1
        needed = int(self._state[_ARENA_USED] + self._state[_NEEDED]) + 64
        if needed > self._arena.size:
            larger_arena = np.zeros(max(2 * self._arena.size, needed), dtype=np.uint8)
            larger_arena[: self._arena.size] = self._arena
            self._arena = larger_arena

    def words(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """``(bytes, starts, counts)``: word ``w`` is ``bytes[starts[w]:starts[w + 1]]``.

        In no particular order.
        """
        number = len(self)
        starts, counts = np.zeros(number + 1, dtype=np.int64), np.zeros(number, dtype=np.int64)
        bound = INLINE * number + int(self._state[_ARENA_USED])
        out = np.empty(bound, dtype=np.uint8)
        end = gather_words(self._slots, self._arena, starts, counts, out)
        return out[:end].copy(), starts, counts

    def forget(self, count: int) -> int:
        """Drop every word that was seen at most ``count`` times; returns how many are left.

        Args:
            count: Largest count to drop.
        """
        text, starts, counts = self.words()
        keep = np.flatnonzero(counts > count)
        self.clear()
        words = [text[starts[w] : starts[w + 1]].tobytes() for w in keep]
        self.add_bytes(words, counts[keep], whole=True)
        return len(self)
