"""One piece in O(n log n): a linked list of symbols and a heap of the merges that are possible now."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from itertools import pairwise

from bpe_scratch.vocabulary import Pair


def encode_piece(piece: bytes, byte_ids: Sequence[int], pairs: Mapping[Pair, tuple[int, int]]) -> list[int]:
    """The ids of one piece; the same as the reference, whose arguments these are, fast for long ones too.

    The lowest rank goes first, then the leftmost; a symbol that is swallowed becomes -1.
    """
    ids = [byte_ids[byte] for byte in piece]
    n = len(ids)
    following = list(range(1, n + 1))
    previous = list(range(-1, n - 1))
    get = pairs.get
    heap = [
        (found[0], i, left, right)
        for i, (left, right) in enumerate(pairwise(ids))
        if (found := get((left, right)))
    ]
    heapq.heapify(heap)
    while heap:
        _, i, left, right = heapq.heappop(heap)
        j = following[i]
        # an entry is stale once either symbol has changed; ids only grow out of merges, so equality suffices
        if ids[i] != left or j >= n or ids[j] != right:
            continue
        new = pairs[left, right][1]
        ids[i], ids[j] = new, -1
        after, before = following[j], previous[i]
        following[i] = after
        if after < n:
            previous[after] = i
            if found := get((new, ids[after])):
                heapq.heappush(heap, (found[0], i, new, ids[after]))
        if before >= 0 and (found := get((ids[before], new))):
            heapq.heappush(heap, (found[0], before, ids[before], new))
    return [index for index in ids if index >= 0]
