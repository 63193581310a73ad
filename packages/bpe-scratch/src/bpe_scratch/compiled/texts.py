"""Documents as kernels take them: UTF-8, one after another."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import numpy.typing as npt

CHUNK = 1 << 18  # bytes for one call of a kernel: they stay in the cache
_MARGIN = bytes(64)


def lay_out(parts: Sequence[bytes]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """``(text, bounds)``: part ``i`` is ``text[bounds[i]:bounds[i + 1]]``; there is room beyond both ends."""
    text = np.frombuffer(b"".join([_MARGIN, *parts, _MARGIN]), dtype=np.uint8)
    return text, np.fromiter(accumulate(map(len, parts), initial=len(_MARGIN)), np.int64)
