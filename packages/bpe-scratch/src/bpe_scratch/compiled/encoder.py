"""The Python side of the fast encoder: makes room, feeds documents, collects ids."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from bpe_scratch.compiled import encoding, merging
from bpe_scratch.compiled.cuts import CUTS
from bpe_scratch.compiled.pair_table import point_to_pairs
from bpe_scratch.compiled.pieces import KINDS
from bpe_scratch.compiled.state import State, encoding_state
from bpe_scratch.compiled.word_table import WordTable
from bpe_scratch.patterns import to_utf8
from bpe_scratch.vocabulary import Vocabulary

_CHUNK = 1 << 18  # bytes joined for one call, so that the text stays in the cache
_FIRST_LOG, _LAST_LOG = 17, 20  # slots of the word table: 4 MB to 32 MB
_GROWTH = 2  # of the power of two: to move all words costs more than the memory
_LARGEST_ARENA = 1 << 25
_BUDGET = 1 << 20  # merges of a long piece between two looks at Ctrl-C
# windows of 64 bytes reach a little beyond both ends of the text
_PADDING = b"\0" * 64


def padded(parts: Sequence[bytes]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Bytes joined, with room to read beyond both ends.

    Returns:
        ``(text, bounds)``: document ``i`` is ``text[bounds[i]:bounds[i + 1]]``.
    """
    bounds = [*accumulate(map(len, parts), initial=len(_PADDING))]
    text = np.frombuffer(b"".join([_PADDING, *parts, _PADDING]), dtype=np.uint8)
    return text, np.array(bounds, dtype=np.int64)


def point_to_scratch(state: State) -> None:
    """Give a state the scratch that its kernels need."""
    state.point(
        cuts=np.zeros(CUTS, dtype=np.uint64),
        batch=np.zeros(encoding.BATCH_SIZE, dtype=np.uint64),
        ids=np.zeros(encoding.LONGEST_SHORT + 1, dtype=np.int32),
        found=np.zeros(encoding.LONGEST_SHORT + 1, dtype=np.uint64),
    )


class CompiledEncoder:
    """Encodes with kernels. One thread at a time uses one encoder; :meth:`clone` gives another its own."""

    def __init__(self, vocabulary: Vocabulary, pattern: str) -> None:
        self._lock = threading.Lock()
        self._vocabulary, self._pattern = vocabulary, pattern
        self._state = encoding_state(KINDS[pattern])
        self._state["longest"] = encoding.LONGEST_SHORT
        point_to_scratch(self._state)
        point_to_pairs(self._state, vocabulary)
        self._words = self._seed()

    def _seed(self) -> WordTable:
        """A table with every token that encodes to itself as a known piece."""
        tokens, longest = self._vocabulary.tokens, encoding.LONGEST_SHORT
        items = [(i, token) for i, token in enumerate(tokens) if token and len(token) <= longest]
        text, bounds = padded([token for _, token in items])
        # at most half full
        log = max(_FIRST_LOG, (2 * len(items)).bit_length())
        words = WordTable(self._state, log, max(1 << 16, 2 * text.size + 32 * len(items)), 1 << 18)
        indexes = np.array([i for i, _ in items], dtype=np.int64)
        encoding.enter_tokens(self._state.record, text, bounds, self._vocabulary.whole_pieces, indexes)
        return words

    def clone(self) -> CompiledEncoder:
        """An encoder of the same vocabulary with a cache of its own."""
        return CompiledEncoder(self._vocabulary, self._pattern)

    def encode(self, text: str) -> list[int]:
        """The ids of a text without special tokens."""
        ids: list[int] = next(self.encode_arrays([text], np.zeros(1, dtype=np.int64), np.uint32)).tolist()
        return ids

    def encode_arrays(
        self, texts: Sequence[str], lengths: npt.NDArray[np.int64], dtype: type
    ) -> Iterator[npt.NDArray[Any]]:
        """The ids of many texts, in one part; ``lengths``, zeros, receives the number of ids of each text."""
        # no more ids than bytes; memory that is never written is never taken
        size = sum(len(text) if text.isascii() else 4 * len(text) for text in map(str.__str__, texts))
        out: npt.NDArray[Any] = np.empty(size + encoding.SPARE, dtype=dtype)
        chunk: list[bytes] = []
        first = bytes_held = written = 0
        for number, text in enumerate(texts, start=1):
            chunk.append(to_utf8(text))
            bytes_held += len(chunk[-1])
            if bytes_held >= _CHUNK or number == len(texts):
                written = self._encode_chunk(chunk, lengths[first:number], out, written)
                chunk, first, bytes_held = [], number, 0
        # gives back what was not needed, in place
        out.resize(written, refcheck=False)
        yield out

    def _encode_chunk(
        self, chunk: list[bytes], lengths: npt.NDArray[np.int64], out: npt.NDArray[Any], written: int
    ) -> int:
        text, bounds = padded(chunk)
        with self._lock:
            state, reason = self._state, -1
            state["narrow"], state["written"], state["position"], state["document"] = (
                out.itemsize == 2,
                written,
                0,
                0,
            )
            while reason != encoding.DONE:
                reason = encoding.encode_documents(state.record, text, bounds, lengths, out.view(np.uint8))
                if reason == encoding.TABLE_FULL and not self._grow():
                    # the cache has a limit: back to the vocabulary alone
                    self._words = self._seed()
                elif reason == encoding.LONG_PIECE:
                    ids, written = self._long(), state["written"]
                    out[written : written + ids.size] = ids
                    lengths[state["document"]] += ids.size
                    state["written"], state["position"] = written + ids.size, state["stop"]
            return state["written"]

    def _grow(self) -> bool:
        """Make room where it is short; false if a limit is reached."""
        words, state = self._words, self._state
        if words.is_full():
            if words.log >= _LAST_LOG:
                return False
            words.rehash(min(words.log + _GROWTH, _LAST_LOG))
        if state["arena_used"] + encoding.LONGEST_SHORT + 32 > state["arena_size"]:
            return words.double("arena", _LARGEST_ARENA)
        if state["pool_used"] + encoding.LARGEST_BATCH > state["pool_size"]:
            return words.double("pool", _LARGEST_ARENA)
        return True

    def _long(self) -> npt.NDArray[np.int32]:
        """One piece that is too long for the cache, by the heap."""
        n = self._state["stop"] - self._state["position"]
        ids = np.empty(n, dtype=np.int32)
        links = np.empty((n, 2), dtype=np.int32)
        heap = np.empty(2 * n, dtype=np.uint64)
        size = merging.start_long(self._state.record, ids, links, heap)
        while size > 0:
            size = merging.continue_long(self._state.record, ids, links, heap, size, _BUDGET)
        return ids[ids >= 0]
