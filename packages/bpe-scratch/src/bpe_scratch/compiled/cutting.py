# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
"""Documents as the kernels take them, and the pieces of a text: for looking at, and for the tests."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from bpe_scratch.compiled.cuts import CUTS, cut_pieces
from bpe_scratch.compiled.kernel import kernel
from bpe_scratch.compiled.memory import address, load64
from bpe_scratch.compiled.pieces import KINDS, piece_end
from bpe_scratch.patterns import to_utf8
from bpe_scratch.unicode_classes import class_table

# windows of 64 bytes reach a little beyond both ends of the text
_PADDING = b"\0" * 64


def padded(parts: Sequence[bytes]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Bytes joined, with room to read beyond both ends.

    Args:
        parts: UTF-8 of each document.

    Returns:
        ``(text, bounds)``: document ``i`` is ``text[bounds[i]:bounds[i + 1]]``.
    """
    bounds = np.cumsum([len(_PADDING), *map(len, parts)], dtype=np.int64)
    return np.frombuffer(b"".join([_PADDING, *parts, _PADDING]), dtype=np.uint8), bounds


@kernel
def cut_all(kind, text, bounds, blocks, classes, cuts, ends):
    """Write the end of every piece of one document; returns their number."""
    text, blocks, classes, cuts, number = address(text), address(blocks), address(classes), address(cuts), 0
    i, begin, end = bounds[0], bounds[0], bounds[1]
    while i < end:
        m = cut_pieces(kind, text, i, begin, end, blocks, classes, cuts)
        for q in range(1, m + 1):
            i = np.int64(load64(cuts, q))
            ends[number] = i - begin
            number += 1
    return number


@kernel
def find_piece_end(kind, text, i, end, blocks, classes):
    """:func:`piece_end`, to be called from Python."""
    return piece_end(kind, address(text), i, end, address(blocks), address(classes))


def cut(pattern: str, text: str) -> list[str]:
    """The pieces of a text.

    Args:
        pattern: Name of a pattern.
        text: Any text that has a UTF-8 form.
    """
    raw = to_utf8(text)
    ends = np.empty(len(raw), dtype=np.int64)
    number = cut_all(KINDS[pattern], *padded([raw]), *class_table(), np.zeros(CUTS, dtype=np.uint64), ends)
    return [raw[a:b].decode() for a, b in pairwise([0, *ends[:number].tolist()])]
