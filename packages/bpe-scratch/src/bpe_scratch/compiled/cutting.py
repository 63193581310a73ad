# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
"""The pieces of a text as the automata cut it: for looking at, and for the tests."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from bpe_scratch.compiled.kernel import kernel
from bpe_scratch.compiled.memory import address
from bpe_scratch.compiled.pieces import KINDS, piece_end
from bpe_scratch.patterns import to_utf8
from bpe_scratch.unicode_classes import class_table


@kernel
def cut_all(kind, text, end, blocks, classes, ends):
    """Write the end of every piece; returns their number."""
    text, blocks, classes, i, number = address(text), address(blocks), address(classes), 0, 0
    while i < end:
        i = piece_end(kind, text, i, end, blocks, classes)
        ends[number] = i
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
    padded = np.frombuffer(raw + bytes(32), dtype=np.uint8)
    ends = np.empty(len(raw), dtype=np.int64)
    number = cut_all(KINDS[pattern], padded, len(raw), *class_table(), ends)
    return [raw[a:b].decode() for a, b in pairwise([0, *ends[:number].tolist()])]
