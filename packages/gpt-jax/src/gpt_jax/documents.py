"""Where the documents of packed rows begin, as cuDNN wants to be told.

Shapes: B rows, T positions, S documents that a row may hold.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int32

MULTIPLE = 8
"""Documents of the fullest row are rounded up to a multiple of this: every other number is a compilation."""


def first_positions(segment_starts: Int32[np.ndarray, "B T"]) -> Int32[np.ndarray, "B S"]:
    """First position of each document of a row, then -1: at least once, as cuDNN reads one place more.

    ``[[0, 0, 2, 2]]`` becomes ``[[0, 2, -1, -1, -1, -1, -1, -1, -1]]``.
    """
    opens = segment_starts == np.arange(segment_starts.shape[1])
    row, position = np.nonzero(opens)
    most = -(-int(opens.sum(1).max()) // MULTIPLE) * MULTIPLE
    firsts = np.full((len(opens), most + 1), -1, np.int32)
    firsts[row, np.cumsum(opens, 1)[row, position] - 1] = position
    return firsts
