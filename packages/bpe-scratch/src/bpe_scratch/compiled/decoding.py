# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
"""From ids to bytes: add up the lengths, then copy eight bytes at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bpe_scratch.compiled.kernel import kernel
from bpe_scratch.compiled.memory import address, load32, load_bytes, store_bytes


@kernel
def measure(ids, lengths):
    """``(bytes in all, -1)``, or ``(0, position)`` of the first id that is unknown (a length of -1)."""
    total, size = 0, lengths.size
    table = address(lengths)
    for position in range(ids.size):
        index = ids[position]
        if index < 0 or index >= size:
            return 0, position
        length = load32(table, index)
        if length < 0:
            return 0, position
        total += length
    return total, -1


@kernel
def copy_tokens(ids, starts, lengths, blob, out):
    """Write the bytes of known ids; ``blob`` and ``out`` have eight bytes to spare."""
    starts, lengths, blob, out = address(starts), address(lengths), address(blob), address(out)
    end = 0
    for position in range(ids.size):
        index = np.int64(ids[position])
        start, length = load32(starts, index), load32(lengths, index)
        for k in range(0, length, 8):
            store_bytes(out, end + k, load_bytes(blob, start + k))
        end += length


class CompiledDecoder:
    """Decodes arrays of ids."""

    def __init__(self, tokens: Sequence[bytes | None]) -> None:
        known = [token or b"" for token in tokens]
        lengths = np.array([len(token) for token in known], dtype=np.int32)
        self._starts = (np.cumsum(lengths, dtype=np.int64) - lengths).astype(np.int32)
        self._lengths = np.where([token is None for token in tokens], np.int32(-1), lengths)
        self._blob = np.frombuffer(b"".join([*known, bytes(8)]), dtype=np.uint8)

    def decode(self, ids: npt.NDArray[np.int64]) -> bytes | None:
        """The bytes of ids, or ``None`` if one is unknown.

        Args:
            ids: Ids as int64.
        """
        total, bad = measure(ids, self._lengths)
        if bad >= 0:
            return None
        out = np.empty(total + 8, dtype=np.uint8)
        copy_tokens(ids, self._starts, self._lengths, self._blob, out)
        return out[:total].tobytes()
