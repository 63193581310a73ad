"""The Python side of the fast encoder: makes room, feeds documents, collects ids."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bpe_scratch.compiled import encoding, merging
from bpe_scratch.compiled.cuts import CUTS
from bpe_scratch.compiled.pair_table import NO_PAIR, point_to_pairs
from bpe_scratch.compiled.pieces import KINDS
from bpe_scratch.compiled.state import CHUNK, ENCODING, State, aligned_zeros, lay_out
from bpe_scratch.compiled.word_table import LONGEST, point_to_words
from bpe_scratch.encoders import IdArray
from bpe_scratch.patterns import batches, to_utf8
from bpe_scratch.unicode_classes import class_table
from bpe_scratch.vocabulary import Vocabulary

# 32 MB of slots for known words; memory that is never written is never taken
_LOG, _ARENA, _POOL = 20, 1 << 25, 1 << 23
_BUDGET = 1 << 23  # merges of a long piece between two looks at Ctrl-C: some seconds


def encoding_state(pattern: str) -> State:
    """A record for a pattern, with its tables of characters and the scratch that kernels need."""
    state, table = State(ENCODING), class_table()
    state["kind"] = KINDS[pattern]
    state.point(
        blocks=table.blocks,
        classes=table.classes,
        cuts=np.zeros(CUTS, dtype=np.uint64),
        batch=np.zeros(encoding.BATCH_SIZE, dtype=np.uint64),
        pieces=aligned_zeros(merging.GROUP * merging.PIECE // 8),
    )
    return state


class CompiledEncoder:
    """Encodes with kernels. One thread at a time uses it."""

    def __init__(self, vocabulary: Vocabulary, pattern: str) -> None:
        self._lock = threading.Lock()
        self._vocabulary = vocabulary
        self._state = encoding_state(pattern)
        point_to_pairs(self._state, vocabulary)
        self._seed()

    def _seed(self) -> None:
        """Begin with every token as a known piece, and nothing else."""
        tokens = self._vocabulary.tokens
        items = [(i, token) for i, token in enumerate(tokens) if token and len(token) <= LONGEST]
        text, bounds = lay_out([token for _, token in items])
        # at most half full
        log = max(_LOG, (2 * len(items)).bit_length())
        arena, pool = max(_ARENA, 2 * text.size + 32 * len(items)), max(_POOL, text.size)
        point_to_words(self._state, log, arena, pool)
        indexes = np.array([i for i, _ in items], dtype=np.int64)
        whole = self._vocabulary.whole_pieces
        encoding.enter_tokens(self._state.record, text, bounds, whole, indexes)

    def encode(self, text: str) -> list[int]:
        """The ids of a text without special tokens."""
        ids: list[int] = self.encode_array([text], np.zeros(1, dtype=np.int64), np.uint32).tolist()
        return ids

    def encode_array(self, texts: Sequence[str], lengths: npt.NDArray[np.int64], dtype: type) -> IdArray:
        """The ids of many texts; ``lengths``, zeros, receives the number of ids of each."""
        # no more ids than bytes; memory that is never written is never taken
        size = sum(len(text) if text.isascii() else 4 * len(text) for text in map(str.__str__, texts))
        out: npt.NDArray[Any] = np.empty(size + encoding.SPARE, dtype=dtype)
        first = written = 0
        for parts in batches(map(to_utf8, texts), CHUNK):
            written = self._encode_chunk(parts, lengths[first : first + len(parts)], out, written)
            first += len(parts)
        # gives back what was not needed, in place
        out.resize(written, refcheck=False)
        return out

    def _encode_chunk(
        self, parts: list[bytes], lengths: npt.NDArray[np.int64], out: npt.NDArray[Any], written: int
    ) -> int:
        text, bounds = lay_out(parts)
        given = text, bounds, lengths, out.view(np.uint8)
        with self._lock:
            state = self._state
            state["position"] = state["document"] = 0
            state["narrow"], state["written"] = out.itemsize == 2, written
            while reason := encoding.encode_documents(state.record, *given):
                if reason == encoding.TABLE_FULL:
                    self._seed()
                    continue
                ids, written = self._long(text[state["position"] : state["stop"]]), state["written"]
                out[written : written + ids.size] = ids
                lengths[state["document"]] += ids.size
                state["written"], state["position"] = written + ids.size, state["stop"]
            return state["written"]

    def _long(self, piece: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32]:
        """One piece that is too long for the cache, by the heap."""
        known, n = self._vocabulary, piece.size
        if known.whole_pieces and (whole := known.id_of_token.get(piece.tobytes())) is not None:
            return np.array([whole], dtype=np.int32)
        ids, places = self._state.array("byte_ids")[piece], np.arange(n, dtype=np.int32)
        links = np.stack([places - 1, places + 1], axis=1)
        answers = self._state.array("byte_pairs")[piece[:-1].astype(np.uint16) << 8 | piece[1:]]
        entries = (answers & merging.RANK | places[:-1].astype(np.uint64))[answers != NO_PAIR]
        while entries.size > 0:
            entries = merging.continue_long(self._state.record, ids, links, entries, _BUDGET)
        return ids[ids >= 0]
