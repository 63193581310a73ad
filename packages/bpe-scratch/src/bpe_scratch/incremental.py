"""Training without recounting: after a merge only the pairs beside it change."""

from __future__ import annotations

import heapq
import itertools
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from bpe_scratch.reference import merge_pair
from bpe_scratch.vocabulary import Pair


class _Corpus:
    """Distinct words as their ids, the count of each pair, and the words each pair was seen in."""

    def __init__(self, words: Mapping[bytes, int], byte_ids: Sequence[int]) -> None:
        self.words = [tuple(byte_ids[byte] for byte in word) for word in words]
        self.weights = list(words.values())
        self.counts: Counter[Pair] = Counter()
        self.places: defaultdict[Pair, set[int]] = defaultdict(set)
        for index, (word, weight) in enumerate(zip(self.words, self.weights, strict=True)):
            for pair in itertools.pairwise(word):
                self.counts[pair] += weight
                self.places[pair].add(index)

    def merge(self, pair: Pair, new: int) -> set[Pair]:
        """Merge a pair everywhere; returns the pairs whose count grew."""
        grown: set[Pair] = set()
        for index in self.places.pop(pair, ()):
            word, weight = self.words[index], self.weights[index]
            merged = self.words[index] = merge_pair(word, pair, new)
            for old in itertools.pairwise(word):
                self.counts[old] -= weight
            for now in itertools.pairwise(merged):
                self.counts[now] += weight
                if new in now:
                    self.places[now].add(index)
                    grown.add(now)
        self.counts.pop(pair, None)
        return grown


def pop_most_frequent(heap: list[tuple[int, Pair]], counts: Mapping[Pair, int], least: int) -> Pair | None:
    """Take the pair with the highest count off the heap, the lowest of those with as many.

    Counts fall without notice to the heap, which holds them negative: an entry that is out of date is put
    back where it belongs now. A count that grows has to be pushed. ``None`` if none counts ``least``.
    """
    while heap:
        negative, pair = heapq.heappop(heap)
        count = counts[pair]
        if count < least:
            continue
        if count == -negative:
            return pair
        heapq.heappush(heap, (-count, pair))
    return None


def train_merges(
    words: Mapping[bytes, int], byte_ids: Sequence[int], merges: int, min_frequency: int
) -> list[Pair]:
    """Learn merges; the same ones as the reference, whose arguments these are."""
    corpus = _Corpus(words, byte_ids)
    tokens = {index: bytes([byte]) for byte, index in enumerate(byte_ids)}
    ids = {token: index for index, token in tokens.items()}
    heap = [(-count, pair) for pair, count in corpus.counts.items()]
    heapq.heapify(heap)
    learned: list[Pair] = []
    least = max(min_frequency, 1)
    while len(ids) < 256 + merges:
        pair = pop_most_frequent(heap, corpus.counts, least)
        if pair is None:
            break
        joined = tokens[pair[0]] + tokens[pair[1]]
        new = ids.setdefault(joined, len(ids))
        tokens[new] = joined
        learned.append(pair)
        for grown in corpus.merge(pair, new):
            heapq.heappush(heap, (-corpus.counts[grown], grown))
    return learned
