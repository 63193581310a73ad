"""The Python side of the fast trainer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from bpe_scratch.compiled import learning
from bpe_scratch.compiled.pair_heap import COLUMNS
from bpe_scratch.compiled.state import LEARNING, State
from bpe_scratch.errors import DuplicateTokenError
from bpe_scratch.training import Words
from bpe_scratch.vocabulary import Pair

_BUDGET = 512  # merges between two looks at Ctrl-C
_BASE = 0x9E3779B97F4A7C15
_FIRST_PAIRS = 1 << 20


def train_merges(
    words: Words,
    byte_ids: npt.NDArray[np.int32],
    merges: int,
    min_frequency: int,
    on_progress: Callable[[int], None] | None = None,
) -> list[Pair]:
    """Learn merges; the same ones as the reference, whose arguments these are.

    Raises:
        DuplicateTokenError: If a merge would make bytes that are a token already; then pairs can gain counts
            again, which this trainer rules out.
    """
    state = State(LEARNING)
    state["least"], state["wanted"], state["budget"] = max(min_frequency, 1), merges, _BUDGET
    _lay_out(state, words, byte_ids)
    _name_bytes(state, byte_ids, merges)
    _make_pairs_room(state, _FIRST_PAIRS)
    # memory that is never written is never taken, so the room may be generous
    _make_places_room(state, 3 * state["nodes_used"] + 1024)
    learning.index_bytes(state.record)
    learned = np.empty((merges, 2), dtype=np.int64)
    state.point(merges=learned)
    while (before := state["learned"]) < merges:
        reason = learning.learn(state.record)
        if reason == learning.DUPLICATE:
            raise DuplicateTokenError
        if reason == learning.PAIRS_FULL:
            _make_pairs_room(state, 2 * state["pairs_room"])
        elif reason == learning.PLACES_FULL:
            _make_places_room(state, 2 * state["places_room"])
        elif state["learned"] < min(before + _BUDGET, merges):
            break
        if on_progress is not None:
            on_progress(state["learned"])
    return [(left, right) for left, right in learned[: state["learned"]].tolist()]


def _lay_out(state: State, words: Words, byte_ids: npt.NDArray[np.int32]) -> None:
    state["words"] = words.counts.size
    nodes = np.empty((words.text.size + words.starts.size + 1, learning.FIELDS), dtype=np.int32)
    state.point(
        text=words.text, starts=words.starts, counts=words.counts, byte_ids=byte_ids, nodes=nodes,
        grid=np.zeros((1 << 16, 2), dtype=np.int64),
    )  # fmt: skip
    learning.lay_out(state.record)


def _name_bytes(state: State, byte_ids: npt.NDArray[np.int32], merges: int) -> None:
    """Length and hash of each byte, and room for those of all tokens."""
    size = 256 + merges
    hashes = np.zeros(size, dtype=np.uint64)
    hashes[byte_ids] = np.arange(1, 257, dtype=np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F)
    seen = np.zeros(1 << (2 * size).bit_length(), dtype=np.uint64)
    state["seen_mask"] = seen.size - 1
    state.point(
        lengths=np.ones(size, dtype=np.int64), hashes=hashes, powers=np.full(size, _BASE, dtype=np.uint64),
        seen=seen, around=np.zeros((2 * size, 2), dtype=np.int64), touched=np.zeros(2 * size, dtype=np.int32),
    )  # fmt: skip


def _make_pairs_room(state: State, rows: int) -> None:
    state.lengthen("pairs", (rows, COLUMNS), np.int64)
    state.lengthen("heap", (rows, 2), np.int64)
    state["pairs_room"] = rows


def _make_places_room(state: State, rows: int) -> None:
    state.lengthen("places", (rows,), np.int32)
    state["places_room"] = rows
