r"""Which characters are letters, numbers and white space, in one small table.

The named patterns ask only for ``\s``, ``\p{L}``, ``\p{N}``, ``\p{M}`` and the case of a letter. Seven
classes answer all of them. They stand as runs in ``unicode_classes.txt``, one a line: first code point,
class.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

OTHER, UPPER, LOWER, LETTER, MARK, NUMBER, SPACE = range(7)
"""Lu and Lt are UPPER, Ll is LOWER, Lm and Lo (either case) are LETTER."""

CODE_POINTS = 0x110000
_BLOCK = 128


class ClassTable(NamedTuple):
    """Two-stage table: the class of ``c`` is ``classes[blocks[c >> 7] + (c & 127)]``."""

    blocks: npt.NDArray[np.int32]  # [8704] offset of the block of 128 code points
    classes: npt.NDArray[np.uint8]  # [blocks * 128]; the first block is ASCII, at offset 0


@cache
def class_table() -> ClassTable:
    """The classes of the file, with equal blocks of 128 stored once."""
    rows = resources.files("bpe_scratch").joinpath("unicode_classes.txt").read_text("ascii").split()
    lengths = np.diff([*(int(start, 16) for start in rows[::2]), CODE_POINTS])
    grid = np.repeat(np.array(rows[1::2], dtype=np.uint8), lengths).reshape(-1, _BLOCK)
    offsets: dict[bytes, int] = {}
    blocks = [offsets.setdefault(row.tobytes(), len(offsets) * _BLOCK) for row in grid]
    classes = np.frombuffer(b"".join(offsets), dtype=np.uint8)
    return ClassTable(np.array(blocks, dtype=np.int32), classes)
