"""Training over whole arrays: each merge is a few NumPy operations, however often it occurs.

The distinct words stand one after another in one array of symbols, a wall before and behind each, and know
their neighbours by two arrays of links.  A pair has a count and the ascending places where it begins.  All
occurrences of a pair with a new token come to be in the one pass that makes the token, so a pair's places are
written once; those that have gone meanwhile are recognised by their symbols.  A pair whose count is too low
at birth can never be merged, since counts only fall, and is not kept at all.

Shapes: N slots, W words, P places of one pair.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bpe_scratch.errors import DuplicateTokenError
from bpe_scratch.incremental import pop_most_frequent
from bpe_scratch.vocabulary import Pair

Ints = npt.NDArray[np.int64]
_WALL = -1
_BITS = 32


class Around(NamedTuple):
    """The occurrences of a pair that are merged, and what stands beside them."""

    left: Ints  # [P] place of the first symbol
    right: Ints  # [P] place of the second
    before: Ints  # [P] place before the first
    after: Ints  # [P] place behind the second
    follows: npt.NDArray[np.bool_]  # [P] whether the one before is an occurrence too


class _Corpus:
    """Words as linked symbols; the count and the places of each pair, by ``left << 32 | right``."""

    def __init__(self, words: Mapping[bytes, int], byte_ids: Sequence[int], least: int) -> None:
        lengths = np.array([len(word) for word in words], dtype=np.int64)
        text = np.frombuffer(b"".join(words), dtype=np.uint8)
        number = np.repeat(np.arange(lengths.size), lengths)  # [bytes] the word of each
        # word w begins behind w + 1 walls
        at = np.arange(text.size) + number + 1
        self.symbols = np.full(text.size + lengths.size + 1, _WALL, dtype=np.int64)
        self.symbols[at] = np.array(byte_ids, dtype=np.int64)[text]
        self.weights = np.zeros(self.symbols.size, dtype=np.int64)
        self.weights[at] = np.fromiter(words.values(), dtype=np.int64, count=len(words))[number]
        self.following = np.arange(1, self.symbols.size + 1)
        self.previous = np.arange(-1, self.symbols.size - 1)
        self.least = least
        self.counts: dict[int, int] = {}
        self.places: dict[int, Ints] = {}
        starts = np.flatnonzero((self.symbols[:-1] >= 0) & (self.symbols[1:] >= 0))
        self.heap = self._enter(self.symbols[starts] << _BITS | self.symbols[starts + 1], starts)
        heapq.heapify(self.heap)

    def _enter(self, keys: Ints, places: Ints) -> list[tuple[int, int]]:
        """Keep the pairs that begin at these places and are frequent enough; returns their heap entries."""
        if not keys.size:
            return []
        order, begins, sums = _group(keys, self.weights[places])
        places, keys = places[order], keys[order]
        ends = np.append(begins[1:], keys.size)
        kept = np.flatnonzero(sums >= self.least)
        begins, ends, sums, keys = begins[kept], ends[kept], sums[kept], keys[begins[kept]]
        entries = []
        for key, count, begin, end in zip(
            keys.tolist(), sums.tolist(), begins.tolist(), ends.tolist(), strict=True
        ):
            self.counts[key] = count
            self.places[key] = places[begin:end]
            entries.append((-count, key))
        return entries

    def occurrences(self, key: int) -> Around:
        """Where a pair is now; of overlapping ones every other, from the left."""
        a, b = key >> _BITS, key & ((1 << _BITS) - 1)
        left = self.places.pop(key)
        right = self.following[left]
        live = (self.symbols[left] == a) & (self.symbols[right] == b)
        left, right = left[live], right[live]
        if a == b:
            index = np.arange(left.size)
            begins = np.append(True, left[1:] != right[:-1])
            even = (index - np.maximum.accumulate(np.where(begins, index, 0))) % 2 == 0
            left, right = left[even], right[even]
        after = self.following[right]
        follows = np.append(False, left[1:] == after[:-1])
        return Around(left, right, self.previous[left], after, follows)

    def merge(self, key: int, new: int) -> None:
        """Write a new token over every occurrence of a pair."""
        around = self.occurrences(key)
        symbols, alone = self.symbols, ~around.follows
        self.counts.pop(key)
        self._lower(around, alone)
        symbols[around.left], symbols[around.right] = new, _WALL - 1
        self.following[around.left] = around.after
        # the wall behind the last word has no slot behind it, and needs none
        self.previous[around.after] = around.left
        before = around.before[alone]
        before = before[symbols[before] >= 0]
        left = around.left[symbols[around.after] >= 0]
        # a new token before a new token is entered once, by the first of them
        places = np.concatenate([before, left])
        keys = symbols[places] << _BITS | symbols[self.following[places]]
        for entry in self._enter(keys, places):
            heapq.heappush(self.heap, entry)

    def _lower(self, around: Around, alone: npt.NDArray[np.bool_]) -> None:
        """The pairs beside the occurrences are no more; between two of them there is only one."""
        symbols, counts = self.symbols, self.counts
        before, left = around.before[alone], around.left[alone]
        keys = np.concatenate(
            [
                symbols[before] << _BITS | symbols[left],
                symbols[around.right] << _BITS | symbols[around.after],
            ]
        )
        beside = np.concatenate([symbols[before], symbols[around.after]])
        weights = np.concatenate([self.weights[left], self.weights[around.right]])
        keys, weights = keys[beside >= 0], weights[beside >= 0]
        if not keys.size:
            return
        order, begins, sums = _group(keys, weights)
        for key, count in zip(keys[order][begins].tolist(), sums.tolist(), strict=True):
            if key in counts:
                counts[key] -= count


def _group(keys: Ints, weights: Ints) -> tuple[Ints, Ints, Ints]:
    """``(order, begins, sums)``: the order that sorts keys, where each begins, and the sum of its weights."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    begins = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    return order, begins, np.add.reduceat(weights[order], begins)


def train_merges(
    words: Mapping[bytes, int],
    byte_ids: Sequence[int],
    merges: int,
    min_frequency: int,
    on_progress: Callable[[int], None] | None = None,
) -> list[Pair]:
    """Learn merges; the same ones as the reference.

    Args:
        words: Distinct words and their counts.
        byte_ids: Id of each byte.
        merges: New tokens to make.
        min_frequency: Least count of a pair worth merging.
        on_progress: Called with the number of merges learned so far.

    Returns:
        The pairs in the order learned.

    Raises:
        DuplicateTokenError: If a merge would make bytes that are a token already; then pairs can gain counts
            again, which this trainer rules out.
    """
    corpus = _Corpus(words, byte_ids, max(min_frequency, 1))
    tokens = {index: bytes([byte]) for byte, index in enumerate(byte_ids)}
    known = set(tokens.values())
    learned: list[Pair] = []
    while len(learned) < merges:
        key = pop_most_frequent(corpus.heap, corpus.counts, corpus.least)
        if key is None:
            break
        pair, new = (key >> _BITS, key & ((1 << _BITS) - 1)), 256 + len(learned)
        tokens[new] = tokens[pair[0]] + tokens[pair[1]]
        if tokens[new] in known:
            raise DuplicateTokenError
        known.add(tokens[new])
        learned.append(pair)
        corpus.merge(key, new)
        if on_progress is not None:
            on_progress(len(learned))
    return learned
