# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
"""UTF-8 of texts that Python keeps in 16 bits a character, as it does English with a single dash in it.

``str.encode`` goes through these from character to character; here 64 of ASCII go at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from bpe_scratch.compiled.kernel import inner, kernel
from bpe_scratch.compiled.memory import address, load16, lowest_bit, narrow, pointer, store8
from bpe_scratch.patterns import to_utf8

_SHORT = 1 << 10  # to call a kernel would take longer
_WINDOW = 64


@inner
def put(code, out, at):
    """Write one character; returns its end, or -1 for a surrogate."""
    if code < 0x80:
        store8(out, at, code)
        return at + 1
    if code < 0x800:
        store8(out, at, 0xC0 | code >> 6)
    else:
        store8(out, at, 0xE0 | code >> 12)
        at += 1
        store8(out, at, 0x80 | code >> 6 & 0x3F)
    store8(out, at + 1, 0x80 | code & 0x3F)
    return -1 if 0xD800 <= code < 0xE000 else at + 2


@kernel
def write_utf8(text, out, at):
    """Write a text from ``out[at]`` on; returns its end, or -1 if it has another width, or a surrogate."""
    source, number, out, i = pointer(text._data), text._length, address(out), 0
    if text._kind != 2:
        return -1
    while i < number and at >= 0:
        if i + _WINDOW <= number:
            step = lowest_bit(narrow(source, i, out, at))
            i, at = i + step, at + step
        # what follows singly, up to the next that is ASCII
        ascii_ = False
        while i < number and at >= 0 and not ascii_:
            code = load16(source, i)
            at = put(code, out, at)
            ascii_ = code < 0x80
            i += 1
    return at


class Texts:
    """UTF-8 of documents one after another, as kernels take them: with room to read beyond both ends.

    Attributes:
        text: The bytes; document ``i`` is ``text[bounds[i]:bounds[i + 1]]``.
    """

    def __init__(self) -> None:
        self.text = np.zeros(1 << 12, dtype=np.uint8)
        self._bounds = [_WINDOW]

    def __len__(self) -> int:
        return self._bounds[-1] - _WINDOW

    @property
    def bounds(self) -> npt.NDArray[np.int64]:
        """Where the documents begin, and the end of the last."""
        return np.array(self._bounds, dtype=np.int64)

    def append(self, text: str) -> None:
        """Add a document; raises as :func:`to_utf8` does."""
        # a subclass may say otherwise than it is
        plain, at = str.__str__(text), self._bounds[-1]
        if len(plain) >= _SHORT and not plain.isascii():
            self._make_room(3 * len(plain))
            end = write_utf8(plain, self.text, at)
            if end >= 0:
                self._bounds.append(end)
                return
        self.extend([to_utf8(plain)])

    def extend(self, parts: Sequence[bytes]) -> None:
        """Add documents that are UTF-8 already."""
        raw, at = b"".join(parts), self._bounds[-1]
        self._make_room(len(raw))
        self.text.data[at : at + len(raw)] = raw
        self._bounds += [at + end for end in accumulate(map(len, parts))]

    def clear(self) -> None:
        """Forget all documents."""
        self._bounds = [_WINDOW]

    def _make_room(self, more: int) -> None:
        needed = self._bounds[-1] + more + _WINDOW
        if needed > self.text.size:
            longer = np.zeros(max(needed, 2 * self.text.size), dtype=np.uint8)
            longer[: self._bounds[-1]] = self.text[: self._bounds[-1]]
            self.text = longer
