"""The Python side of the fast trainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from bpe_scratch.compiled import learning
from bpe_scratch.compiled.state import LEARNING, State
from bpe_scratch.vocabulary import Pair

_BUDGET = 512  # merges until the first look at Ctrl-C; twice as many until the next: they become cheaper
_FIRST_PAIRS = 1 << 20


def train_merges(
    words: Mapping[bytes, int], byte_ids: Sequence[int], merges: int, min_frequency: int
) -> list[Pair]:
    """Learn merges; the same ones as the reference, whose arguments these are.

    That is, up to the first merge that makes bytes which are a token already: here it makes one more token.
    """
    # a separator, then each word and a separator
    text = np.frombuffer(b"\0".join([b"", *words, b""]), dtype=np.uint8)
    sizes = np.fromiter(map(len, words), np.int64, len(words)) + 1
    nodes = np.empty((text.size + 1, learning.FIELDS), dtype=np.int32)
    nodes[:-1, learning.SYMBOL], nodes[:, learning.PAIR] = np.array(byte_ids)[text], learning.NO_PAIR
    nodes[1:-1, learning.WORD] = np.repeat(np.arange(len(words)), sizes)
    nodes[np.cumsum([0, *sizes]), learning.SYMBOL] = learning.SEPARATOR
    merges = min(merges, text.size)  # each leaves a byte less: more cannot be made, nor need room
    state, size = State(LEARNING), 256 + merges
    # no pair occurs more often than a count can say
    state["least"] = min(max(min_frequency, 1), np.iinfo(np.int64).max)
    state["wanted"], state["budget"] = merges, _BUDGET
    state["size"] = text.size
    learned = np.empty((merges, 2), dtype=np.int64)
    state.point(
        nodes=nodes, counts=np.fromiter(words.values(), np.int64),
        lengths=np.ones(size, dtype=np.int64), merges=learned,
        # one row for each pair of bytes, then two for each token
        rows=np.zeros((max(1 << 16, 2 * size), 3), dtype=np.int64),
        used=np.empty(max(1 << 16, 2 * size), dtype=np.int32),
        # a merge makes two pairs at most and takes one node: memory that is never written is never taken
        places=np.empty(3 * len(nodes), dtype=np.int32), noted=np.empty(2 * len(nodes), dtype=np.int32),
        pairs=np.empty((_FIRST_PAIRS, learning.COLUMNS), dtype=np.int64),
    )  # fmt: skip
    state["pairs_room"] = _FIRST_PAIRS
    learning.begin(state.record)
    going = True
    while going and (before := state["learned"]) < merges:
        going = learning.learn(state.record)
        if going and state["learned"] < min(before + state["budget"], merges):
            pairs = state.array("pairs")
            state.point(pairs=np.concatenate([pairs, np.empty_like(pairs)]))
            state["pairs_room"] *= 2
        state["budget"] *= 2
    return [(left, right) for left, right in learned[: state["learned"]].tolist()]
