"""BPE in its obvious form: the layer that the fast ones must equal.

Training: write each distinct word as a list of byte ids; count every adjacent pair, weighted by how often the
word occurs; merge the most frequent pair everywhere; repeat. Encoding: replay the merges, the earliest
learned first. ``abab`` with the merges ``a b -> X`` and ``X X -> Y`` goes ``a b a b``, ``X X``, ``Y``.

Ties go to the pair with the smaller ids, left before right, which is also Hugging Face's rule.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence

from bpe_scratch.vocabulary import Pair


def count_pairs(words: Mapping[tuple[int, ...], int]) -> Counter[Pair]:
    """How often each adjacent pair occurs: ``{(1, 2, 1): 3}`` gives ``{(1, 2): 3, (2, 1): 3}``."""
    counts: Counter[Pair] = Counter()
    for word, count in words.items():
        for pair in itertools.pairwise(word):
            counts[pair] += count
    return counts


def merge_pair(ids: Sequence[int], pair: Pair, new: int) -> tuple[int, ...]:
    """Replace each occurrence from the left: ``merge_pair((1, 1, 1), (1, 1), 9)`` is ``(9, 1)``."""
    merged, i = [], 0
    while i < len(ids):
        if i + 1 < len(ids) and (ids[i], ids[i + 1]) == pair:
            merged.append(new)
            i += 2
        else:
            merged.append(ids[i])
            i += 1
    return tuple(merged)


def train_merges(
    words: Mapping[bytes, int], byte_ids: Sequence[int], merges: int, min_frequency: int
) -> list[Pair]:
    """Learn merges by counting everything again after each.

    Args:
        words: Distinct words and their counts.
        byte_ids: Id of each byte; the first new token gets the id after the largest.
        merges: New tokens to make.
        min_frequency: Least count of a pair worth merging.
    """
    table: Counter[tuple[int, ...]] = Counter()
    for word, count in words.items():
        table[tuple(byte_ids[byte] for byte in word)] += count
    tokens = {index: bytes([byte]) for byte, index in enumerate(byte_ids)}
    ids = {token: index for index, token in tokens.items()}
    learned: list[Pair] = []
    while len(ids) < 256 + merges:
        counts = count_pairs(table)
        if not counts:
            break
        pair = min(counts, key=lambda p: (-counts[p], p))
        if counts[pair] < max(min_frequency, 1):
            break
        joined = tokens[pair[0]] + tokens[pair[1]]
        new = ids.setdefault(joined, len(ids))
        tokens[new] = joined
        merged: Counter[tuple[int, ...]] = Counter()
        for symbols, count in table.items():
            merged[merge_pair(symbols, pair, new)] += count
        table = merged
        learned.append(pair)
    return learned


def encode_piece(piece: bytes, byte_ids: Sequence[int], pairs: Mapping[Pair, tuple[int, int]]) -> list[int]:
    """Apply the strongest merge in the piece until none applies.

    Args:
        piece: Bytes of one piece.
        byte_ids: Id of each byte.
        pairs: ``(rank, merged id)`` of each pair that merges; of equal ranks the leftmost goes first.
    """
    ids = [byte_ids[byte] for byte in piece]
    while True:
        found = [(pairs[pair][0], i) for i, pair in enumerate(itertools.pairwise(ids)) if pair in pairs]
        if not found:
            return ids
        _, i = min(found)
        ids[i : i + 2] = [pairs[ids[i], ids[i + 1]][1]]
