"""The encoder over whole arrays: pieces as two 64-bit keys, looked up all at once in a hash table.

A piece of up to 15 bytes is its key (eight bytes; seven and the length), as in the compiled layer. Pieces
that are not in the table, and longer ones, are merged in Python, once each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from bpe_scratch.array_pieces import piece_starts
from bpe_scratch.encoders import PlainEncoder
from bpe_scratch.patterns import to_utf8
from bpe_scratch.vocabulary import Vocabulary

_CHUNK = 1 << 21
_LOG = 20
_LIMIT = (1 << _LOG) * 6 // 10
_INLINE = 15
_C1, _C2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)
_ALL = np.uint64(0xFFFFFFFFFFFFFFFF)
# masks of the first n bytes of a piece, for both halves of the key
_LOW_MASK = np.array([(1 << 8 * min(n, 8)) - 1 for n in range(_INLINE + 1)], dtype=np.uint64)
_HIGH_MASK = np.array([(1 << 8 * max(n - 8, 0)) - 1 for n in range(_INLINE + 1)], dtype=np.uint64)
Keys = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]


class ArrayEncoder(PlainEncoder):
    """Encodes GPT-2's pattern with NumPy; a short text as the plain encoder does."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__(vocabulary, "gpt2")
        self._reset()

    def _reset(self) -> None:
        self._first, self._second = (np.zeros(1 << _LOG, dtype=np.uint64) for _ in range(2))
        self._counts = np.zeros(1 << _LOG, dtype=np.int64)
        self._places = np.zeros(1 << _LOG, dtype=np.int64)
        self._pool = np.zeros(1 << 20, dtype=np.uint32)
        self._pool_used = self._used = 0

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
        ids, counts = self._look_up(raw, starts, widths)
        bounds = np.concatenate([[0], np.cumsum(counts)])
        lengths += np.diff(bounds[np.searchsorted(starts, np.append(begins, end))])
        return ids

    def _look_up(
        self, raw: npt.NDArray[np.uint8], starts: Ints, widths: Ints
    ) -> tuple[npt.NDArray[np.uint32], Ints]:
        """``(ids, number of ids of each piece)``."""
        slots, short = np.empty(starts.size, dtype=np.int64), widths <= _INLINE
        k0, k1 = _keys(raw, starts[short], widths[short])
        found = self._find(k0, k1)
        missing = found < 0
        if missing.any():
            if self._used + int(missing.sum()) > _LIMIT:
                self._forget(k0, k1, missing)
                found = self._find(k0, k1)
                missing = found < 0
            self._learn_keys(k0[missing], k1[missing])
            found[missing] = self._find(k0[missing], k1[missing])
        slots[short] = found
        counts, places = np.empty(starts.size, dtype=np.int64), np.empty(starts.size, dtype=np.int64)
        counts[short], places[short] = self._counts[found], self._places[found]
        pool, used = self._pool, self._pool_used
        extra: list[int] = []
        for piece in np.flatnonzero(~short).tolist():
            text = raw[starts[piece] : starts[piece] + widths[piece]].tobytes().decode()
            known = self._known.get(text) or self._learn(text)
            counts[piece], places[piece] = len(known), used + len(extra)
            extra.extend(known)
        if extra:
            pool = np.concatenate([pool[:used], np.array(extra, dtype=np.uint32)])
        ends = np.cumsum(counts)
        return pool[np.repeat(places - ends + counts, counts) + np.arange(ends[-1])], counts

    def _find(self, k0: Keys, k1: Keys) -> Ints:
        """The slot of each key, -1 where it is not in the table."""
        at = _first_slots(k0, k1)
        found = np.full(k0.size, -1, dtype=np.int64)
        hit = (self._first[at] == k0) & (self._second[at] == k1)
        found[hit] = at[hit]
        rest = np.flatnonzero(~hit & (self._second[at] != 0))
        at = at[rest]
        while rest.size:
            at = (at + 1) & ((1 << _LOG) - 1)
            hit = (self._first[at] == k0[rest]) & (self._second[at] == k1[rest])
            found[rest[hit]] = at[hit]
            going = ~hit & (self._second[at] != 0)
            rest, at = rest[going], at[going]
        return found

    def _learn_keys(self, k0: Keys, k1: Keys) -> None:
        """Merge each new piece once and enter it."""
        encode, known = self._learn, self._known
        seen: dict[tuple[int, int], None] = dict.fromkeys(zip(k0.tolist(), k1.tolist(), strict=True))
        slots = _first_slots(*(np.array(half, dtype=np.uint64) for half in zip(*seen, strict=True))).tolist()
        mask = (1 << _LOG) - 1
        ids: list[int] = []
        rows = []
        taken: set[int] = set()
        for (a, b), slot in zip(seen, slots, strict=True):
            width = b >> 56
            text = (a | (b & ((1 << 56) - 1)) << 64).to_bytes(16, "little")[:width].decode()
            piece = known.get(text) or encode(text)
            while self._second[slot] or slot in taken:
                slot = (slot + 1) & mask
            taken.add(slot)
            rows.append((slot, a, b, len(piece), self._pool_used + len(ids)))
            ids.extend(piece)
        self._enter(rows, ids)

    def _enter(self, rows: list[tuple[int, int, int, int, int]], ids: list[int]) -> None:
        slots = np.array([row[0] for row in rows], dtype=np.int64)
        self._first[slots] = np.array([row[1] for row in rows], dtype=np.uint64)
        self._second[slots] = np.array([row[2] for row in rows], dtype=np.uint64)
        self._counts[slots] = [row[3] for row in rows]
        self._places[slots] = [row[4] for row in rows]
        while self._pool_used + len(ids) > self._pool.size:
            self._pool = np.concatenate([self._pool, np.zeros_like(self._pool)])
        self._pool[self._pool_used : self._pool_used + len(ids)] = ids
        self._pool_used += len(ids)
        self._used += len(rows)

    def _forget(self, k0: Keys, k1: Keys, missing: npt.NDArray[np.bool_]) -> None:
        """Empty the table once it is full; a chunk alone always has room."""
        distinct = len(set(zip(k0[missing].tolist(), k1[missing].tolist(), strict=True)))
        if self._used + distinct > _LIMIT:
            self._reset()


def _keys(raw: npt.NDArray[np.uint8], starts: Ints, widths: Ints) -> tuple[Keys, Keys]:
    """Both halves of the keys of pieces of up to 15 bytes."""
    # every byte begins a 64-bit word: the same memory, read at a step of one
    words: Keys = np.ndarray((raw.size - 7,), dtype="<u8", buffer=raw, strides=(1,))
    k0 = words[starts] & _LOW_MASK[widths]
    k1 = words[starts + 8] & _HIGH_MASK[widths]
    return k0, k1 | widths.astype(np.uint64) << np.uint64(56)


def _first_slots(k0: Keys, k1: Keys) -> Ints:
    h = (k0 ^ (k1 * _C2)) * _C1
    h ^= h >> np.uint64(32)
    return ((h * _C2) >> np.uint64(64 - _LOG)).astype(np.int64)
