"""From a window of the stream to a row of a batch.

Window w is tokens w*T to w*T+T, and its targets are the same one place on, so that in one pass
every token is input once and target once. ``stream`` lets a position see the whole row before it;
``documents`` lets it see its own document only.

Shapes: T context, n = T + 1 tokens of a window, d documents that begin in it.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int32, Int64

from gpt_data.batch import IGNORE

Packing = Literal["stream", "documents"]
PACKINGS: tuple[Packing, ...] = ("stream", "documents")


class Row(NamedTuple):
    """One row of a batch, as ``gpt_data.batch.Batch`` describes it."""

    tokens: Int32[np.ndarray, " T"]
    targets: Int32[np.ndarray, " T"]
    segment_starts: Int32[np.ndarray, " T"] | None


def window_count(tokens: int, context: int) -> int:
    """Number of windows in a stream: the last token is a target only."""
    return max(0, (tokens - 1) // context)


def pack_documents(window: Int32[np.ndarray, " n"], starts: Int64[np.ndarray, " d"], end_of_text: int) -> Row:
    """A row whose positions see their own document only.

    A target is kept if it belongs to the same document, or is the end-of-text token by which the next
    document opens, as that is also the mark that this one has ended. A window that begins inside a
    document counts its positions from 0 all the same.

    Args:
        window: T + 1 tokens.
    """
    context = window.size - 1
    first = np.zeros(context, np.int32)
    inside = starts[starts < context]
    first[inside] = inside
    targets = window[1:].copy()
    opened = starts[starts > 0]
    targets[opened[window[opened] != end_of_text] - 1] = IGNORE
    return Row(window[:-1], targets, np.maximum.accumulate(first))
