# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
"""From ids to bytes: add up the lengths, then copy eight bytes at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bpe_scratch.compiled.kernel import kernel
from bpe_scratch.compiled.memory import address, load32, load_bytes, store_bytes


@kernel
def measure(ids, spans):
    """``(bytes in all, -1)``, or ``(0, position)`` of the first id that is unknown (a length of -1)."""
    total, size, number = 0, spans.shape[0], ids.size
    ids, table = address(ids), address(spans)
    for position in range(number):
        index = load32(ids, position)
        if index < 0 or index >= size:
            return 0, position
        length = load32(table, 2 * index + 1)
        if length < 0:
            return 0, position
        total += length
    return total, -1


@kernel
def copy_tokens(ids, spans, blob, out):
    """Write the bytes of known ids; ``blob`` and ``out`` have eight bytes to spare."""
    number = ids.size
    ids, spans, blob, out = address(ids), address(spans), address(blob), address(out)
    end = 0
    for position in range(number):
        index = load32(ids, position)
        start, length = load32(spans, 2 * index), load32(spans, 2 * index + 1)
        store_bytes(out, end, load_bytes(blob, start))
        for k in range(8, length, 8):
            store_bytes(out, end + k, load_bytes(blob, start + k))
        end += length


class CompiledDecoder:
    """Decodes arrays of ids."""

    def __init__(self, tokens: Sequence[bytes | None]) -> None:
        known = [token or b"" for token in tokens]
        lengths = np.array([len(token) for token in known], dtype=np.int32)
        starts = np.cumsum(lengths, dtype=np.int64) - lengths
        # start and length side by side, one cache line for both; -1 marks an id that is not in the vocabulary
        self._spans = np.empty((len(known), 2), dtype=np.int32)
        self._spans[:, 0] = starts
        self._spans[:, 1] = np.where([token is None for token in tokens], -1, lengths)
        self._blob = np.frombuffer(b"".join([*known, bytes(8)]), dtype=np.uint8)

    def decode(self, ids: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint8] | None:
        """The bytes of ids, or ``None`` if one is unknown.

        Args:
            ids: Ids, contiguous; from 2^31 on they count as unknown.
        """
        total, bad = measure(ids, self._spans)
        if bad >= 0:
            return None
        out = np.empty(total + 8, dtype=np.uint8)
        copy_tokens(ids, self._spans, self._blob, out)
        return out[:total]
