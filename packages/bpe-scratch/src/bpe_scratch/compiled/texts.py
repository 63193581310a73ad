"""Documents as kernels take them: UTF-8, one after another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from bpe_scratch.patterns import batches, to_utf8

_CHUNK = 1 << 18  # bytes for one call of a kernel: they stay in the cache
_MARGIN = bytes(64)


def in_chunks(texts: Iterable[str]) -> Iterator[list[bytes]]:
    """UTF-8 of some texts at a time; raises as :func:`to_utf8` does."""
    return batches(map(to_utf8, texts), _CHUNK)


def lay_out(parts: Sequence[bytes]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """``(text, bounds)``: part ``i`` is ``text[bounds[i]:bounds[i + 1]]``; there is room beyond both ends."""
    text = np.frombuffer(b"".join([_MARGIN, *parts, _MARGIN]), dtype=np.uint8)
    return text, np.fromiter(accumulate(map(len, parts), initial=len(_MARGIN)), np.int64)
