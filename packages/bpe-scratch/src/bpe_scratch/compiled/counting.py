"""Counting the distinct pieces of a corpus in the word table; the value of a slot is the count."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from bpe_scratch.compiled import encoding
from bpe_scratch.compiled.encoder import encoding_state
from bpe_scratch.compiled.utf8 import Texts
from bpe_scratch.compiled.word_table import ARENA_START, INLINE, LONG, OFFSET, SLOT, WordTable
from bpe_scratch.words import Words

_CHUNK = 1 << 18
_FIRST_LOG, _FIRST_ARENA = 16, 1 << 16
_COUNT, _LENGTH = 2, INLINE


class WordCounter:
    """Counts of distinct pieces, in memory that grows with the number of distinct pieces only."""

    def __init__(self, pattern: str) -> None:
        self._state = encoding_state(pattern)
        self._state["counting"] = 1
        self._state["longest"] = np.iinfo(np.int64).max
        self._table = WordTable(self._state, _FIRST_LOG, _FIRST_ARENA, 0)

    def __len__(self) -> int:
        return self._state["slots_used"]

    def add(self, documents: Iterable[str]) -> Iterator[int]:
        """Count the pieces of documents; yields now and then the number of documents read."""
        chunk, done = Texts(), 0
        for done, text in enumerate(documents, start=1):
            chunk.append(text)
            if len(chunk) >= _CHUNK:
                self._add_chunk(chunk)
                chunk.clear()
                yield done
        self._add_chunk(chunk)
        yield done

    def _add_chunk(self, chunk: Texts) -> None:
        state, text, bounds = self._state, chunk.text, chunk.bounds
        lengths, out = np.zeros(len(bounds) - 1, dtype=np.int64), np.zeros(0, dtype=np.uint8)
        state["position"] = state["document"] = 0
        while encoding.encode_documents(state.record, text, bounds, lengths, out) != encoding.DONE:
            if self._table.is_full():
                self._table.rehash(self._table.log + 1)
            needed = state["stop"] - state["position"] + 64
            if state["arena_used"] + needed > state["arena_size"]:
                arena = state.array("arena")
                self._table.put("arena", np.concatenate([arena, np.zeros(arena.size + needed, np.uint8)]))

    def words(self) -> Words:
        """The words in no particular order, and the counter is empty again."""
        slots = self._table.slots
        rows = slots.reshape(-1, SLOT).take(np.flatnonzero(slots[1::SLOT]), axis=0)
        keys = np.ascontiguousarray(rows[:, :2]).view(np.uint8)  # [words, 16]
        long = np.flatnonzero(keys[:, _LENGTH] > INLINE)
        arena, pieces = self._state.array("arena").tobytes(), list[bytes]()
        for at in (rows[long, 1] & OFFSET).tolist():
            pieces.append(arena[at + 8 : at + 8 + int.from_bytes(arena[at : at + 8], "little")])
        keys[long, _LENGTH] = 0
        # bytes beside bytes: to compare numbers of eight bytes would take longer than the rest
        short = keys[:, :INLINE][np.arange(INLINE, dtype=np.uint8) < keys[:, _LENGTH:]]
        # those that are long stand as empty words, and come at the end
        lengths = np.concatenate([keys[:, _LENGTH], np.array([len(piece) for piece in pieces], np.int64)])
        counts = np.concatenate([rows[:, _COUNT], rows[long, _COUNT]]).astype(np.int64)
        text = np.concatenate([short, np.frombuffer(b"".join(pieces), dtype=np.uint8)])
        self._table = WordTable(self._state, _FIRST_LOG, _FIRST_ARENA, 0)
        return Words(text, np.concatenate([[0], np.cumsum(lengths)]), counts)

    def forget(self, count: int) -> None:
        """Drop every word that was seen at most ``count`` times."""
        table, arena = self._table, self._state.array("arena")
        rows = table.slots.reshape(-1, SLOT)
        rows[rows[:, _COUNT] <= count] = 0
        kept, end = [arena[:ARENA_START]], ARENA_START
        for row in np.flatnonzero(rows[:, 1] >= LONG).tolist():
            begin = int(rows[row, 1] & OFFSET)
            size = (int.from_bytes(arena[begin : begin + 8], "little") + 15) // 8 * 8
            kept.append(arena[begin : begin + size])
            rows[row, 1] += np.uint64(end) - np.uint64(begin)
            end += size
        table.put("arena", np.concatenate([*kept, np.zeros(_FIRST_ARENA, dtype=np.uint8)]))
        table.rehash(table.log)
        self._state["slots_used"], self._state["arena_used"] = int(np.count_nonzero(rows[:, 1])), end
