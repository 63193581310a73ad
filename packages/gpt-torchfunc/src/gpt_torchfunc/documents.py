"""Where the documents of packed rows begin and end, as FlashAttention wants to be told.

Shapes: B rows, T positions, S boundaries.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int32

MULTIPLE = 256
"""Their number is rounded up to a multiple of this: launches are recorded for each number by itself."""


def boundaries(segment_starts: Int32[np.ndarray, "B T"]) -> Int32[np.ndarray, " S"]:
    """Positions, counted through all rows, at which documents begin; then the end, at least once.

    ``[[0, 0, 2], [0, 1, 1]]`` becomes ``[0, 2, 3, 4, 6, 6, 6, ...]``.
    """
    opens = np.flatnonzero(segment_starts == np.arange(segment_starts.shape[1]))
    found = np.full(-(-(len(opens) + 1) // MULTIPLE) * MULTIPLE, segment_starts.size, np.int32)
    found[: len(opens)] = opens
    return found
