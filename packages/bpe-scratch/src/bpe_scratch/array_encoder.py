"""The encoder over whole arrays: pieces as two 64-bit keys, looked up all at once in a hash table.

A piece of up to 15 bytes is its key (eight bytes; seven and the length), as in the compiled layer. Pieces
that are not in the table, and longer ones, are merged in Python, once each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from threading import Lock

import numpy as np
import numpy.typing as npt

from bpe_scratch.array_merging import ArrayMerger
from bpe_scratch.array_pieces import piece_starts
from bpe_scratch.array_table import ArrayTable, Ints, Keys
from bpe_scratch.encoders import PlainEncoder
from bpe_scratch.patterns import to_utf8
from bpe_scratch.vocabulary import Vocabulary

_CHUNK = 1 << 21
_BLOCK = 1 << 18
_LOG = 20
_LIMIT = (1 << _LOG) * 6 // 10
INLINE = 15
# fewer new pieces than this are merged one by one
_FEW = 64
# a value holds the count of ids, and above it where they stand in the pool, or a single id itself
_COUNT_BITS = 4
_COUNT = (1 << _COUNT_BITS) - 1
# by the bytes of a piece: masks of both halves of the key, and the width in its last byte; 16 stands for more
_LOW_MASK, _HIGH_MASK = np.zeros((2, INLINE + 2), dtype=np.uint64)
_LOW_MASK[:-1] = [(1 << 8 * min(n, 8)) - 1 for n in range(INLINE + 1)]
_HIGH_MASK[:-1] = [(1 << 8 * max(n - 8, 0)) - 1 for n in range(INLINE + 1)]
_WIDTH = np.arange(INLINE + 2, dtype=np.uint64) << np.uint64(56)


class ArrayEncoder(PlainEncoder):
    """Encodes GPT-2's pattern with NumPy; a short text as the plain encoder does."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__(vocabulary, "gpt2")
        self._merger: ArrayMerger | None = None
        # threads that share a tokenizer take turns: the table is in order only between blocks
        self._turn = Lock()
        self._reset()

    def _reset(self) -> None:
        self._table = ArrayTable(_LOG)
        self._pool = np.zeros(1 << 20, dtype=np.uint32)
        self._pool_used = 0
        # all long pieces find one entry, and are then looked at one by one
        self._table.insert(np.zeros(1, dtype=np.uint64), _WIDTH[-1:])

    def encode_arrays(
        self, texts: Sequence[str], lengths: Ints, dtype: type
    ) -> Iterator[npt.NDArray[np.uint32]]:
        """The ids of many texts, in parts of any length.

        Args:
            texts: Texts without special tokens.
            lengths: Zeros; receives the number of ids of each text.
            dtype: Type of the parts.
        """
        first = size = 0
        for number, text in enumerate(texts):
            size += len(text)
            if size >= _CHUNK or number == len(texts) - 1:
                yield self._encode_chunk(texts[first : number + 1], lengths[first : number + 1]).astype(dtype)
                first, size = number + 1, 0

    def encode(self, text: str) -> list[int]:
        """The ids of a text without special tokens.

        Args:
            text: Any text that has a UTF-8 form.
        """
        if len(text) < 1 << 14:
            return super().encode(text)
        return self._encode_chunk([text], np.zeros(1, dtype=np.int64)).tolist()

    def _encode_chunk(self, texts: Sequence[str], lengths: Ints) -> npt.NDArray[np.uint32]:
        parts = [to_utf8(text) for text in texts]
        sizes = np.array([len(part) for part in parts], dtype=np.int64)
        raw = np.frombuffer(b"".join([*parts, bytes(16)]), dtype=np.uint8)
        end = raw.size - 16
        if not end:
            return np.zeros(0, dtype=np.uint32)
        begins = np.cumsum(sizes) - sizes
        starts = piece_starts(raw[:end], begins[sizes > 0])
        widths = np.diff(starts, append=end)
        parts_of_ids, parts_of_counts = [], [np.zeros(1, dtype=np.int64)]
        for first in range(0, starts.size, _BLOCK):
            block = slice(first, first + _BLOCK)
            with self._turn:
                ids, counts = self._look_up(raw, starts[block], widths[block])
            parts_of_ids.append(ids)
            parts_of_counts.append(counts)
        bounds = np.cumsum(np.concatenate(parts_of_counts))
        lengths += np.diff(bounds[np.searchsorted(starts, np.append(begins, end))])
        return np.concatenate(parts_of_ids)

    def _look_up(
        self, raw: npt.NDArray[np.uint8], starts: Ints, widths: Ints
    ) -> tuple[npt.NDArray[np.uint32], Ints]:
        """``(ids, number of ids of each piece)``."""
        # first the slots, for learning may empty the table and begin another
        slots = self._slots(*keys_of(raw, starts, widths))
        values = self._table.values[slots]
        counts, places = values & _COUNT, values >> _COUNT_BITS
        pool = self._pool
        long = np.flatnonzero(widths > INLINE)
        if long.size:
            extra, counts[long], places[long] = self._long_pieces(raw, starts[long], widths[long])
            pool = np.concatenate([pool[: self._pool_used], extra])
        return _write(counts, places, pool), counts

    def _long_pieces(
        self, raw: npt.NDArray[np.uint8], starts: Ints, widths: Ints
    ) -> tuple[npt.NDArray[np.uint32], list[int], list[int]]:
        """``(their ids, to stand behind the pool; counts; places)`` of pieces that are no key."""
        ids: list[int] = []
        counts, places = [], []
        for start, width in zip(starts.tolist(), widths.tolist(), strict=True):
            text = raw[start : start + width].tobytes().decode()
            known = self._known.get(text) or self._learn(text)
            counts.append(len(known))
            places.append(known[0] if len(known) == 1 else self._pool_used + len(ids))
            ids.extend(known)
        return np.array(ids, dtype=np.uint32), counts, places

    def _slots(self, k0: Keys, k1: Keys) -> Ints:
        """The slot of each key; those that are not there are learned."""
        slots = self._table.find(k0, k1)
        missing = np.flatnonzero(slots < 0)
        if missing.size and self._table.used + missing.size > _LIMIT:
            # emptied once it is full; a block alone always has room
            self._reset()
            missing = np.arange(slots.size)
        if missing.size:
            try:
                slots[missing] = self._learn_keys(k0[missing], k1[missing])
            except BaseException:
                # Ctrl-C between a key and its ids must not leave the one without the other
                self._reset()
                raise
        return slots

    def _learn_keys(self, k0: Keys, k1: Keys) -> Ints:
        """Merge each new piece once and enter it; returns the slots."""
        slots, fresh = self._table.insert(k0, k1)
        words = np.stack([k0[fresh], k1[fresh]], axis=1).astype("<u8").view(np.uint8)
        widths = words[:, INLINE].astype(np.int64)
        ids, counts = self._merge_words(words, widths)
        begins = np.cumsum(counts) - counts
        places = np.where(counts == 1, ids[begins], begins + self._pool_used)
        self._table.values[slots[fresh]] = places << _COUNT_BITS | counts
        used = self._pool_used + ids.size
        if used > self._pool.size:
            self._pool = np.resize(self._pool, 2 * used)
        self._pool[self._pool_used : used] = ids
        self._pool_used = used
        return slots

    def _merge_words(self, words: npt.NDArray[np.uint8], widths: Ints) -> tuple[npt.NDArray[np.uint32], Ints]:
        """``(ids of all, count of each)``; few one by one, or where a token is not merged from its bytes."""
        if len(words) < _FEW or self._vocabulary.whole_pieces:
            pieces = [word[:width].tobytes().decode() for word, width in zip(words, widths, strict=True)]
            known = [self._known.get(piece) or self._learn(piece) for piece in pieces]
            counts = np.array([len(ids) for ids in known], dtype=np.int64)
            return np.array(list(chain.from_iterable(known)), dtype=np.uint32), counts
        if self._merger is None:
            self._merger = ArrayMerger(self._vocabulary)
        return self._merger.merge(words, widths)


def _write(counts: Ints, places: Ints, pool: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """The ids of pieces: a single one is the place itself, several stand at their place in the pool."""
    ids = np.repeat(places.astype(np.uint32), counts)
    several = np.flatnonzero(counts > 1)
    widths, places = counts[several], places[several]
    ends = np.cumsum(widths)
    begins = (np.cumsum(counts) - counts)[several]
    offset = np.arange(widths.sum()) - np.repeat(ends - widths, widths)
    ids[offset + np.repeat(begins, widths)] = pool[offset + np.repeat(places, widths)]
    return ids


def keys_of(raw: npt.NDArray[np.uint8], starts: Ints, widths: Ints) -> tuple[Keys, Keys]:
    """Both halves of the keys of pieces; those of over 15 bytes share one.

    Args:
        raw: Text, and 16 bytes more.
        starts: Where each piece starts.
        widths: Its bytes, 1 at least.
    """
    # every byte begins 16 of them: the same memory, read at a step of one
    sixteen = np.ndarray((raw.size - 15,), dtype="V16", buffer=raw, strides=(1,))
    halves = sixteen[starts].view("<u8").reshape(-1, 2)
    kept = np.minimum(widths, INLINE + 1)
    return halves[:, 0] & _LOW_MASK[kept], halves[:, 1] & _HIGH_MASK[kept] | _WIDTH[kept]
