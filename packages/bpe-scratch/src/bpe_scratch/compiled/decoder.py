"""The Python side of the fast decoder: tables of a vocabulary, and room for results."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import types

from bpe_scratch.compiled import decoding
from bpe_scratch.compiled.kernel import for_types
from bpe_scratch.compiled.results import new_bytes, new_text

# bytes of text beyond ASCII that are decoded at a time
_BLOCK = 1 << 14
_LATIN, _TWO_BYTES, _FOUR_BYTES = 1, 2, 4
_WIDEST = {1: 0xFF, 2: 0xFFFF, 4: 0x10FFFF}

Ids = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]


class _Measured(NamedTuple):
    """Ids that are all known, and what they add up to."""

    ids: tuple[npt.NDArray[np.uint8], bool, int]  # their bytes, whether two each, number
    size: int  # bytes
    characters: int  # if they are UTF-8
    widths: int  # which of _LATIN, _TWO_BYTES, _FOUR_BYTES occur


def _sums(tokens: Sequence[bytes | None], text: npt.NDArray[np.uint8], spans: npt.NDArray[np.int64]) -> Ids:
    """What each token adds, as ``decoding`` says."""
    starts, ends = spans[:, 0], spans.sum(axis=1)

    def count(found: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint64]:
        before = np.concatenate([[0], np.cumsum(found)])
        return (before[ends] - before[starts]).astype(np.uint64)

    sums = (ends - starts).astype(np.uint64) | count(text & 0xC0 != 0x80) << np.uint64(32)
    # the first byte of a character tells how wide it is: below U+0100, below U+10000, beyond
    for first, last, width in ((0x80, 0xC4, _LATIN), (0xC4, 0xF0, _TWO_BYTES), (0xF0, 0x100, _FOUR_BYTES)):
        found = count((text >= first) & (text < last)) > 0
        sums |= found.astype(np.uint64) * np.uint64(width << 61)
    sums[[token is None for token in tokens]] = decoding.UNKNOWN
    return sums


def _slots(text: npt.NDArray[np.uint8], spans: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """Each token of up to 15 bytes with its length, as ``decoding`` says."""
    places = np.arange(decoding.SLOT - 1)
    slots = np.zeros((len(spans), decoding.SLOT), dtype=np.uint8)
    padded = np.concatenate([text, np.zeros(decoding.SLOT, dtype=np.uint8)])
    slots[:, :-1] = padded[spans[:, :1] + places] * (places < spans[:, 1:])
    slots[:, -1] = np.minimum(spans[:, 1], decoding.LONG)
    before = np.concatenate([[0], np.cumsum(text >= 0x80)])
    other = before[spans.sum(axis=1)] > before[spans[:, 0]]
    slots[other, -1] |= decoding.OTHER
    return slots


class CompiledDecoder:
    """Decodes lists and arrays of ids; ``None`` where an id is unknown.

    Args:
        tokens: Bytes of each id, ``None`` for an id that is not in the vocabulary.
    """

    def __init__(self, tokens: Sequence[bytes | None]) -> None:
        known = [token or b"" for token in tokens]
        lengths = np.array([len(token) for token in known], dtype=np.int64)
        blob = np.frombuffer(b"".join(known), dtype=np.uint8)
        spans = np.stack([np.cumsum(lengths) - lengths, lengths], axis=1)
        sums, slots = _sums(tokens, blob, spans), _slots(blob, spans)
        # kernels are given addresses, and the arrays must live
        self._arrays = (sums, slots, spans, blob)
        self._sums = (sums.ctypes.data, len(tokens))
        self._tables = (slots.ctypes.data, spans.ctypes.data, blob.ctypes.data)
        self._dtype = np.dtype(np.uint16 if len(tokens) <= 1 << 16 else np.uint32)
        # the longest token must fit, behind what is left of a character
        self._block = max(_BLOCK, int(lengths.max(initial=0)) + 3)
        self._kernels = _kernels()

    def decode_bytes(self, ids: Ids | list[int]) -> bytes | None:
        """The bytes of ids.

        Args:
            ids: A list, or an array that is contiguous; numbers from 2^31 on count as unknown.
        """
        known = self._measure(ids)
        return None if known is None else self._copy(known)

    def decode_text(self, ids: Ids | list[int]) -> str | None:
        """The text of ids; what is not UTF-8 becomes U+FFFD as Python has it.

        Args:
            ids: As in :meth:`decode_bytes`.
        """
        known = self._measure(ids)
        if known is None:
            return None
        kind = 4 if known.widths & _FOUR_BYTES else 2 if known.widths & _TWO_BYTES else 1
        text = new_text(known.characters, _WIDEST[kind] if known.widths else 0x7F, kind)
        block = min(self._block, known.size)
        if self._kernels.write_text(*known.ids, *self._tables, block, text, kind):
            return text
        return str(self._copy(known), "utf-8", "replace")

    def _measure(self, ids: Ids | list[int]) -> _Measured | None:
        if isinstance(ids, list):
            numbers = np.empty(len(ids) * self._dtype.itemsize, dtype=np.uint8)
            given = (numbers, self._dtype.itemsize == 2, len(ids))
            # the address of the list: its number by CPython's own rule
            *sums, bad = self._kernels.measure_list(id(ids), *given, *self._sums)
        else:
            given = (ids.view(np.uint8), ids.itemsize == 2, ids.size)
            *sums, bad = self._kernels.measure(*given, *self._sums)
        return None if bad >= 0 else _Measured(given, *sums)

    def _copy(self, known: _Measured) -> bytes:
        if not known.size:
            return b""
        out, place = new_bytes(known.size)
        self._kernels.copy_tokens(*known.ids, *self._tables, place, known.size)
        return out


class _Kernels(NamedTuple):
    measure: Any
    measure_list: Any
    copy_tokens: Any
    write_text: Any


@cache
def _kernels() -> _Kernels:
    """The kernels of ``decoding``, compiled for the arguments that they are given here."""
    i64, i1 = types.int64, types.boolean
    # an array that may not be written is of a type of its own, and stands for both
    read, written = (types.Array(types.uint8, 1, "C", readonly=only) for only in (True, False))
    return _Kernels(
        for_types(decoding.measure, read, i1, i64, i64, i64),
        for_types(decoding.measure_list, i64, written, i1, i64, i64, i64),
        for_types(decoding.copy_tokens, read, i1, *(i64,) * 6),
        for_types(decoding.write_text, read, i1, *(i64,) * 5, types.unicode_type, i64),
    )
