# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
"""The Python side of the fast encoder: makes room, feeds documents, collects ids."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from bpe_scratch.compiled import encoding, merging, word_table
from bpe_scratch.compiled.cutting import find_piece_end
from bpe_scratch.compiled.pieces import KINDS
from bpe_scratch.patterns import to_utf8
from bpe_scratch.unicode_classes import class_table
from bpe_scratch.vocabulary import Vocabulary

PADDING = b"\0" * 32
_CHUNK = 1 << 18  # bytes joined for one call: text, ids and hot slots stay in the cache
_OUT = 1 << 19
_FIRST_LOG, _LAST_LOG = 17, 20  # slots of the word table: 4 MB to 32 MB
_LARGEST_ARENA = 1 << 25
_BUDGET = 1 << 20  # merges of a long piece between two looks at Ctrl-C
MAX_IDS = 1 << 28


def padded(parts: Sequence[bytes]) -> npt.NDArray[np.uint8]:
    """Bytes joined, with room to read beyond the end.

    Args:
        parts: UTF-8 of each document.
    """
    return np.frombuffer(b"".join([*parts, PADDING]), dtype=np.uint8)


def table_log(entries: int) -> int:
    """Power of two that holds this many entries at most half full."""
    return max(4, (2 * entries).bit_length())


class _Words:
    """The table of known pieces with what belongs to it."""

    def __init__(self, log: int) -> None:
        self.log = log
        self.slots = np.zeros(word_table.SLOT << log, dtype=np.uint64)
        self.arena = np.zeros(1 << 16, dtype=np.uint8)
        self.pool = np.zeros(1 << 15, dtype=np.int32)

    def copy(self) -> _Words:
        other = _Words.__new__(_Words)
        other.log = self.log
        other.slots, other.arena, other.pool = self.slots.copy(), self.arena.copy(), self.pool.copy()
        return other

    def grow(self, state: npt.NDArray[np.int64]) -> bool:
        """Make room where it is short; false if a limit is reached."""
        if state[encoding.SLOTS_USED] >= (1 << self.log) * 3 // 4:
            if self.log >= _LAST_LOG:
                return False
            larger = np.zeros(word_table.SLOT << (self.log + 1), dtype=np.uint64)
            word_table.rehash(self.slots, larger, 64 - self.log - 1)
            self.slots, self.log = larger, self.log + 1
        if state[encoding.ARENA_USED] + encoding.LONGEST_SHORT + 32 > self.arena.size:
            if self.arena.size >= _LARGEST_ARENA:
                return False
            self.arena = np.concatenate([self.arena, np.zeros_like(self.arena)])
        if state[encoding.POOL_USED] + encoding.LONGEST_SHORT > self.pool.size:
            if 4 * self.pool.size >= _LARGEST_ARENA:
                return False
            self.pool = np.concatenate([self.pool, np.zeros_like(self.pool)])
        return True


class CompiledEncoder:
    """Encodes with kernels. One thread at a time uses one encoder; :meth:`clone` gives another its own."""

    def __init__(self, vocabulary: Vocabulary, pattern: str) -> None:
        self._kind = KINDS[pattern]
        self._table = class_table()
        self._whole = vocabulary.whole_pieces
        self._byte_ids = np.array(vocabulary.byte_ids, dtype=np.int32)
        self._pair_log = table_log(len(vocabulary.merges))
        self._pairs = np.zeros(2 << self._pair_log, dtype=np.uint64)
        rows = vocabulary.merge_array
        ranks = np.array(vocabulary.ranks, dtype=np.int64)
        merging.fill_pairs(self._pairs, 64 - self._pair_log, rows[:, 0], rows[:, 1], ranks, rows[:, 2])
        self._prepare()
        self._seed(vocabulary)
        self._seeded, self._seeded_state = self._words.copy(), self._state.copy()

    def _prepare(self) -> None:
        self._lock = threading.Lock()
        self._ids = np.zeros(encoding.LONGEST_SHORT + 1, dtype=np.int32)
        self._found = np.zeros(encoding.LONGEST_SHORT + 1, dtype=np.uint64)
        self._batch = np.zeros(5 * encoding.BATCH, dtype=np.uint64)
        self._out = np.zeros(_OUT, dtype=np.uint32)

    def _seed(self, vocabulary: Vocabulary) -> None:
        """Enter every token that encodes to itself as a known piece."""
        items = [(i, t) for i, t in enumerate(vocabulary.tokens) if t and len(t) <= encoding.LONGEST_SHORT]
        self._words = _Words(max(_FIRST_LOG, table_log(len(items))))
        self._state = np.zeros(encoding.STATE_SIZE, dtype=np.int64)
        seeds = np.array([i for i, _ in items], dtype=np.int64)
        ends = np.cumsum([len(t) for _, t in items], dtype=np.int64)
        for _ in self._run(KINDS["none"], padded([t for _, t in items]), ends, np.zeros_like(ends), seeds):
            pass

    def clone(self) -> CompiledEncoder:
        """An encoder of the same vocabulary with a cache of its own."""
        other = CompiledEncoder.__new__(CompiledEncoder)
        other.__dict__.update(self.__dict__)
        other._prepare()
        other._words, other._state = self._seeded.copy(), self._seeded_state.copy()
        return other

    def encode(self, text: str) -> list[int]:
        """The ids of a text without special tokens.

        Args:
            text: Any text that has a UTF-8 form.
        """
        return self.encode_array(text).tolist()

    def encode_array(self, text: str) -> npt.NDArray[np.uint32]:
        """The ids of a text, as an array.

        Args:
            text: Any text that has a UTF-8 form.
        """
        raw = to_utf8(text)
        parts = list(self._encode_chunk([raw], np.zeros(1, dtype=np.int64)))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def encode_arrays(
        self, texts: Sequence[str], lengths: npt.NDArray[np.int64], dtype: type
    ) -> Iterator[npt.NDArray[np.uint32]]:
        """The ids of many texts, in parts of any length.

        Args:
            texts: Texts without special tokens.
            lengths: Zeros; receives the number of ids of each text.
            dtype: Type of the parts.
        """
        first, size, chunk = 0, 0, []
        for number, text in enumerate(texts):
            chunk.append(to_utf8(text))
            size += len(chunk[-1])
            if size >= _CHUNK:
                yield from (
                    part.astype(dtype) for part in self._encode_chunk(chunk, lengths[first : number + 1])
                )
                first, size, chunk = number + 1, 0, []
        if chunk:
            yield from (part.astype(dtype) for part in self._encode_chunk(chunk, lengths[first:]))

    def _encode_chunk(
        self, chunk: Sequence[bytes], lengths: npt.NDArray[np.int64]
    ) -> Iterator[npt.NDArray[np.uint32]]:
        ends = np.cumsum([len(raw) for raw in chunk], dtype=np.int64)
        with self._lock:
            yield from [
                part.copy() for part in self._run(self._kind, padded(chunk), ends, lengths, _NO_SEEDS)
            ]

    def _run(
        self,
        kind: int,
        text: npt.NDArray[np.uint8],
        ends: npt.NDArray[np.int64],
        lengths: npt.NDArray[np.int64],
        seeds: npt.NDArray[np.int64],
    ) -> Iterator[npt.NDArray[np.uint32]]:
        state = self._state
        state[encoding.POSITION] = state[encoding.DOCUMENT] = 0
        while True:
            state[encoding.WRITTEN] = 0
            words = self._words
            reason = encoding.encode_documents(
                kind, text, ends, lengths, state, *self._table, words.slots, 64 - words.log, words.arena,
                words.pool, self._byte_ids, self._pairs, 64 - self._pair_log, self._whole, seeds, self._ids,
                self._found, self._batch, self._out,
            )  # fmt: skip
            yield self._out[: state[encoding.WRITTEN]]
            if reason == encoding.DONE:
                return
            if reason == encoding.CACHE_FULL and not words.grow(state):
                self._forget()
                state = self._state
            if reason == encoding.LONG_PIECE:
                yield self._long(kind, text, ends, lengths, state)

    def _forget(self) -> None:
        """Back to the vocabulary alone: the cache has a limit."""
        position = self._state[: encoding.SLOTS_USED].copy()
        self._words, self._state = self._seeded.copy(), self._seeded_state.copy()
        self._state[: encoding.SLOTS_USED] = position

    def _long(
        self,
        kind: int,
        text: npt.NDArray[np.uint8],
        ends: npt.NDArray[np.int64],
        lengths: npt.NDArray[np.int64],
        state: npt.NDArray[np.int64],
    ) -> npt.NDArray[np.uint32]:
        """One piece that is too long for the cache, by the heap."""
        document, begin = state[encoding.DOCUMENT], state[encoding.POSITION]
        stop = find_piece_end(kind, text, begin, ends[document], *self._table)
        n = int(stop - begin)
        ids = np.empty(n, dtype=np.int32)
        links = np.empty((n, 2), dtype=np.int32)
        heap = np.empty(2 * n, dtype=np.uint64)
        shift = 64 - self._pair_log
        size = merging.start_long(text[begin:stop], self._byte_ids, self._pairs, shift, ids, links, heap)
        while size > 0:
            size = merging.continue_long(self._pairs, shift, ids, links, heap, size, _BUDGET)
        ids = ids[ids >= 0]
        lengths[document] += ids.size
        state[encoding.POSITION] = stop
        return ids.astype(np.uint32)


_NO_SEEDS = np.zeros(0, dtype=np.int64)
