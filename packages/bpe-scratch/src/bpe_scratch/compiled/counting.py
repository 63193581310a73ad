"""Counting the distinct pieces of a corpus in the word table; the value of a slot is the count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from bpe_scratch.compiled import encoding
from bpe_scratch.compiled.encoder import encoding_state
from bpe_scratch.compiled.state import CHUNK, lay_out
from bpe_scratch.compiled.word_table import INLINE, LONG, OFFSET, SLOT, point_to_words
from bpe_scratch.patterns import batches, to_utf8

# 32 MB of slots; memory that is never written is never taken
_LOG, _ARENA = 20, 1 << 25
_COUNT = 2


class WordCounter:
    """Counts distinct pieces in a table of limited size; when that is full, they move to ``counts``."""

    def __init__(self, pattern: str) -> None:
        self.counts: Counter[bytes] = Counter()
        self._state = encoding_state(pattern)
        self._state["counting"] = 1
        point_to_words(self._state, _LOG, _ARENA, 0)

    def add(self, documents: Iterable[str]) -> Iterator[Counter[bytes]]:
        """Count the pieces of documents; yields ``counts`` now and then, and when all is in them."""
        for parts in batches(map(to_utf8, documents), CHUNK):
            self._add_chunk(parts)
            yield self.counts
        self._empty_table()
        yield self.counts

    def _add_chunk(self, parts: Sequence[bytes]) -> None:
        state, (text, bounds) = self._state, lay_out(parts)
        given = text, bounds, np.zeros(len(parts), dtype=np.int64), np.zeros(0, dtype=np.uint8)
        state["position"] = state["document"] = 0
        while reason := encoding.encode_documents(state.record, *given):
            if reason == encoding.LONG_PIECE:
                self.counts[text[state["position"] : state["stop"]].tobytes()] += 1
                state["position"] = state["stop"]
            else:
                self._empty_table()

    def _empty_table(self) -> None:
        rows = self._state.array("slots").reshape(-1, SLOT)
        rows = rows[rows[:, 1] != 0]
        keys, arena = rows[:, :2].tobytes(), self._state.array("arena")
        words = [keys[at : at + n] for at, n in zip(range(0, len(keys), 16), keys[INLINE::16], strict=True)]
        for row in np.flatnonzero(rows[:, 1] >= LONG).tolist():
            # behind its length, which is less than 256
            begin = int(rows[row, 1] & OFFSET) + 8
            words[row] = arena[begin : begin + int(arena[begin - 8])].tobytes()
        self.counts.update(dict(zip(words, rows[:, _COUNT].tolist(), strict=True)))
        point_to_words(self._state, _LOG, _ARENA, 0)
