"""Counting words over whole arrays: the pieces of a batch share slots of a table, and slots are counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import chain

import numpy as np

from bpe_scratch.array_encoder import INLINE, keys_of
from bpe_scratch.array_pieces import piece_starts
from bpe_scratch.array_table import ArrayTable
from bpe_scratch.patterns import resolve_pattern, splitter, to_utf8


def piece_counter(pattern: str) -> Callable[[Sequence[str]], Mapping[bytes, int]]:
    """A function from documents to the counts of their pieces; over whole arrays for ``gpt2``.

    Args:
        pattern: As in :func:`bpe_scratch.patterns.resolve_pattern`.
    """
    if resolve_pattern(pattern)[0] == "gpt2":
        return count_pieces
    split = splitter(pattern)

    def count(documents: Sequence[str]) -> Counter[bytes]:
        for document in documents:
            to_utf8(document)
        return Counter(map(str.encode, chain.from_iterable(map(split, documents))))

    return count


def count_pieces(documents: Sequence[str]) -> dict[bytes, int]:
    """How often each of GPT-2's pieces occurs.

    Args:
        documents: Texts; no piece crosses from one to the next.

    Raises:
        TextError: If a text holds a lone surrogate.
    """
    parts = [to_utf8(document) for document in documents]
    sizes = np.array([len(part) for part in parts], dtype=np.int64)
    raw = b"".join([*parts, bytes(16)])
    text, end = np.frombuffer(raw, dtype=np.uint8), len(raw) - 16
    if not end:
        return {}
    starts = piece_starts(text[:end], (np.cumsum(sizes) - sizes)[sizes > 0])
    widths = np.diff(starts, append=end)
    short = widths <= INLINE
    first, width = starts[short], widths[short]
    # at most half full
    table = ArrayTable(max(4, (2 * first.size).bit_length()))
    slots, fresh = table.insert(*keys_of(text, first, width))
    numbers = np.bincount(slots, minlength=1)[slots[fresh]]
    ends = first[fresh] + width[fresh]
    spans = zip(first[fresh].tolist(), ends.tolist(), numbers.tolist(), strict=True)
    counts = {raw[start:stop]: number for start, stop, number in spans}
    for start, stop in zip(starts[~short].tolist(), (starts + widths)[~short].tolist(), strict=True):
        piece = raw[start:stop]
        counts[piece] = counts.get(piece, 0) + 1
    return counts
