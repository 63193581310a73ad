"""The Python side of the fast trainer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from bpe_scratch.compiled import learning, pair_heap
from bpe_scratch.errors import DuplicateTokenError
from bpe_scratch.vocabulary import Pair

_BUDGET = 512  # merges between two looks at Ctrl-C
_BASE = 0x9E3779B97F4A7C15


def train_merges(
    words: tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], npt.NDArray[np.int64]],
    byte_ids: npt.NDArray[np.int32],
    merges: int,
    min_frequency: int,
    on_progress: Callable[[int], None] | None = None,
) -> list[Pair]:
    """Learn merges; the same ones as the reference.

    Args:
        words: Bytes, starts and counts, as the word counter gives them.
        byte_ids: Id of each byte, a permutation of 0 to 255.
        merges: New tokens to make.
        min_frequency: Least count of a pair worth merging.
        on_progress: Called with the number of merges learned so far.

    Returns:
        The pairs in the order learned.

    Raises:
        DuplicateTokenError: If a merge would make bytes that are a token already.
    """
    text, starts, counts = words
    least = max(min_frequency, 1)
    nodes = np.empty((text.size + starts.size + 1, learning.FIELDS), dtype=np.int32)
    used = learning.lay_out(text, starts, byte_ids, nodes)
    pairs = np.empty((1 << 20, pair_heap.COLUMNS), dtype=np.int64)
    # memory that is never written is never taken, so the room may be generous
    places = np.empty(3 * used + 1024, dtype=np.int32)
    grid = np.zeros((2, 256, 256), dtype=np.int64)
    number, end = learning.index_bytes(nodes, used, counts, least, grid[0], grid[1], pairs, places)
    heap = np.empty((pairs.shape[0], 2), dtype=np.uint64)
    state = np.array([number, end, pair_heap.fill_heap(heap, pairs, number), 0], dtype=np.int64)
    tokens = _Tokens(byte_ids, merges)
    learned = np.empty((merges, 2), dtype=np.int64)
    while state[learning.LEARNED] < merges:
        before = int(state[learning.LEARNED])
        reason = learning.learn(
            _BUDGET, least, nodes, counts, tokens.lengths, tokens.hashes, tokens.powers, tokens.seen,
            pairs, places, heap, tokens.around, tokens.touched, learned, state,
        )  # fmt: skip
        if reason == learning.DUPLICATE:
            raise DuplicateTokenError
        if reason == learning.PAIRS_FULL:
            pairs, heap = _longer(pairs), _longer(heap)
        elif reason == learning.PLACES_FULL:
            places = _longer(places)
        elif state[learning.LEARNED] < min(before + _BUDGET, merges):
            break
        if on_progress is not None:
            on_progress(int(state[learning.LEARNED]))
    return [(left, right) for left, right in learned[: state[learning.LEARNED]].tolist()]


class _Tokens:
    """What the trainer keeps of each token: its length, a hash of its bytes, and the counts around it."""

    def __init__(self, byte_ids: npt.NDArray[np.int32], merges: int) -> None:
        size = 256 + merges
        self.lengths = np.ones(size, dtype=np.int32)
        self.hashes = np.zeros(size, dtype=np.uint64)
        self.hashes[byte_ids] = np.arange(1, 257, dtype=np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F)
        self.powers = np.full(size, _BASE, dtype=np.uint64)
        self.seen = np.zeros(1 << (2 * size).bit_length(), dtype=np.uint64)
        self.around = np.zeros((2 * size, 2), dtype=np.uint64)
        self.touched = np.zeros(2 * size, dtype=np.int32)


def _longer(array: np.ndarray) -> np.ndarray:
    longer = np.empty((2 * array.shape[0], *array.shape[1:]), dtype=array.dtype)
    longer[: array.shape[0]] = array
    return longer
