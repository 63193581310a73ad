# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
"""The Python side of the fast encoder: makes room, feeds documents, collects ids."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bpe_scratch.compiled import cuts, encoding, merging, word_table
from bpe_scratch.compiled.cutting import find_piece_end, padded
from bpe_scratch.compiled.pair_table import PairTable
from bpe_scratch.compiled.pieces import KINDS
from bpe_scratch.compiled.utf8 import TextBuffer, most_bytes
from bpe_scratch.unicode_classes import class_table
from bpe_scratch.vocabulary import Vocabulary

_CHUNK = 1 << 18  # bytes joined for one call, so that the text stays in the cache
_LEAST_OUT = encoding.LARGEST_BATCH
_FIRST_LOG, _LAST_LOG = 17, 20  # slots of the word table: 4 MB to 32 MB
_GROWTH = 2  # of the power of two: to move all words costs more than the memory
_LARGEST_ARENA = 1 << 25
_BUDGET = 1 << 20  # merges of a long piece between two looks at Ctrl-C


def table_log(entries: int) -> int:
    """Power of two that holds this many entries at most half full."""
    return max(4, (2 * entries).bit_length())


class _Words:
    """The table of known pieces with what belongs to it."""

    def __init__(self, log: int) -> None:
        self.log = log
        self.slots = word_table.empty_slots(log)
        self.arena = np.zeros(1 << 16, dtype=np.uint8)
        self.pool = np.zeros(1 << 18, dtype=np.int32)

    def copy(self) -> _Words:
        other = _Words.__new__(_Words)
        other.log, other.slots = self.log, word_table.empty_slots(self.log)
        other.slots[:] = self.slots
        other.arena, other.pool = self.arena.copy(), self.pool.copy()
        return other

    def grow(self, state: npt.NDArray[np.int64]) -> bool:
        """Make room where it is short; false if a limit is reached."""
        if state[encoding.SLOTS_USED] >= (1 << self.log) * 3 // 4:
            if self.log >= _LAST_LOG:
                return False
            log = min(self.log + _GROWTH, _LAST_LOG)
            larger = word_table.empty_slots(log)
            word_table.rehash(self.slots, larger, 64 - log)
            self.slots, self.log = larger, log
        if state[encoding.ARENA_USED] + encoding.LONGEST_SHORT + 32 > self.arena.size:
            if self.arena.size >= _LARGEST_ARENA:
                return False
            self.arena = np.concatenate([self.arena, np.zeros_like(self.arena)])
        if state[encoding.POOL_USED] + _LEAST_OUT > self.pool.size:
            if 4 * self.pool.size >= _LARGEST_ARENA:
                return False
            self.pool = np.concatenate([self.pool, np.zeros_like(self.pool)])
        return True


class _Output:
    """Ids of many chunks in one array that grows."""

    def __init__(self, size: int, dtype: type) -> None:
        self.ids: npt.NDArray[np.uint32] = np.empty(size, dtype=dtype)
        self.used = 0

    def make_room(self, more: int) -> None:
        if self.used + more > self.ids.size:
            longer = np.empty(2 * self.ids.size + more, dtype=self.ids.dtype)
            longer[: self.used] = self.ids[: self.used]
            self.ids = longer

    def append(self, ids: npt.NDArray[np.int32]) -> None:
        self.make_room(ids.size)
        self.ids[self.used : self.used + ids.size] = ids
        self.used += ids.size

    def finish(self) -> npt.NDArray[np.uint32]:
        """The ids; the array gives back the memory that it did not need, in place."""
        self.ids.resize(self.used, refcheck=False)
        return self.ids


class CompiledEncoder:
    """Encodes with kernels. One thread at a time uses one encoder; :meth:`clone` gives another its own."""

    def __init__(self, vocabulary: Vocabulary, pattern: str) -> None:
        self._kind = KINDS[pattern]
        self._table = class_table()
        self._whole = vocabulary.whole_pieces
        self._byte_ids = np.array(vocabulary.byte_ids, dtype=np.int32)
        pairs = PairTable(vocabulary)
        self._pairs, self._byte_pairs = pairs.arrays, pairs.byte_pairs
        self._prepare()
        self._seed(vocabulary)
        self._seeded, self._seeded_state = self._words.copy(), self._state.copy()

    def _prepare(self) -> None:
        self._lock = threading.Lock()
        self._ids = np.zeros(encoding.LONGEST_SHORT + 1, dtype=np.int32)
        self._found = np.zeros(encoding.LONGEST_SHORT + 1, dtype=np.uint64)
        self._batch = np.zeros(encoding.BATCH_SIZE, dtype=np.uint64)
        self._cuts = np.zeros(cuts.CUTS, dtype=np.uint64)

    def _seed(self, vocabulary: Vocabulary) -> None:
        """Enter every token that encodes to itself as a known piece."""
        items = [(i, t) for i, t in enumerate(vocabulary.tokens) if t and len(t) <= encoding.LONGEST_SHORT]
        self._words = words = _Words(max(_FIRST_LOG, table_log(len(items))))
        self._state = np.zeros(encoding.STATE_SIZE, dtype=np.int64)
        # a long piece at the arena's very start would look like one that is looked for
        self._state[encoding.ARENA_USED] = 8
        text, bounds = padded([t for _, t in items])
        words.arena = np.zeros(max(words.arena.size, 2 * text.size + 32 * len(items)), dtype=np.uint8)
        encoding.enter_tokens(
            text, bounds, self._whole, np.array([i for i, _ in items], dtype=np.int64), self._state,
            words.slots, 64 - words.log, words.arena, self._byte_ids, *self._pairs, self._ids, self._found,
        )  # fmt: skip

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
        buffer = TextBuffer(most_bytes(text))
        buffer.append(text)
        out = _Output(min(most_bytes(text), _LEAST_OUT) + encoding.SPARE, np.uint32)
        self._run(buffer, np.zeros(1, dtype=np.int64), out)
        return out.finish()

    def encode_arrays(
        self, texts: Sequence[str], lengths: npt.NDArray[np.int64], dtype: type
    ) -> list[npt.NDArray[np.uint32]]:
        """The ids of many texts, in one part.

        Args:
            texts: Texts without special tokens.
            lengths: Zeros; receives the number of ids of each text.
            dtype: Type of the ids.
        """
        size = sum(map(len, texts))
        # text has three characters to an id or more, nearly always
        out = _Output(size // 3 + _LEAST_OUT, dtype)
        buffer, first = TextBuffer(min(_CHUNK, 4 * size)), 0
        for number, text in enumerate(texts):
            if not buffer.has_room(text):
                self._run(buffer, lengths[first:number], out)
                buffer.clear(most_bytes(text))
                first = number
            buffer.append(text)
        self._run(buffer, lengths[first:], out)
        return [out.finish()]

    def _run(self, buffer: TextBuffer, lengths: npt.NDArray[np.int64], out: _Output) -> None:
        """Append the ids of a few documents to ``out``."""
        text, bounds = buffer.text, buffer.bounds
        with self._lock:
            self._state[encoding.POSITION] = self._state[encoding.DOCUMENT] = 0
            reason = None
            while reason != encoding.DONE:
                state, words = self._state, self._words
                state[encoding.WRITTEN] = out.used
                reason = encoding.encode_documents(
                    self._kind, text, bounds, lengths, state, *self._table, self._cuts, words.slots,
                    64 - words.log, words.arena, words.pool, self._byte_ids, self._byte_pairs,
                    *self._pairs, self._ids, self._found, self._batch, out.ids.view(np.uint8),
                    out.ids.itemsize == 2,
                )  # fmt: skip
                out.used = int(state[encoding.WRITTEN])
                if reason == encoding.OUT_FULL:
                    out.make_room(_LEAST_OUT)
                elif reason == encoding.CACHE_FULL and not words.grow(state):
                    self._forget()
                elif reason == encoding.LONG_PIECE:
                    out.append(self._long(text, bounds, lengths))

    def _forget(self) -> None:
        """Back to the vocabulary alone: the cache has a limit."""
        position = self._state[: encoding.SLOTS_USED].copy()
        self._words, self._state = self._seeded.copy(), self._seeded_state.copy()
        self._state[: encoding.SLOTS_USED] = position

    def _long(
        self, text: npt.NDArray[np.uint8], bounds: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int32]:
        """One piece that is too long for the cache, by the heap."""
        document, begin = self._state[encoding.DOCUMENT], self._state[encoding.POSITION]
        stop = find_piece_end(self._kind, text, begin, bounds[document + 1], *self._table)
        n = int(stop - begin)
        ids = np.empty(n, dtype=np.int32)
        links = np.empty((n, 2), dtype=np.int32)
        heap = np.empty(2 * n, dtype=np.uint64)
        size = merging.start_long(text[begin:stop], self._byte_ids, *self._pairs, ids, links, heap)
        while size > 0:
            size = merging.continue_long(*self._pairs, ids, links, heap, size, _BUDGET)
        ids = ids[ids >= 0]
        lengths[document] += ids.size
        self._state[encoding.POSITION] = stop
        return ids
