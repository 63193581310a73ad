"""The Python side of the fast decoder: tables of a vocabulary, and room for results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bpe_scratch.compiled import decoding
from bpe_scratch.compiled.results import TextUnderConstruction, new_bytes, text_of
from bpe_scratch.compiled.text_units import BAD, WINDOW

# bytes decoded at a time, so that the steps find each other's results in the cache
_BLOCK = 1 << 15
_UNITS = {1: np.uint8, 2: np.uint16, 4: np.uint32}
_LATIN, _TWO_BYTES, _FOUR_BYTES = 1, 2, 4
_WIDEST = {1: 0xFF, 2: 0xFFFF, 4: 0x10FFFF}

Ids = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]


class _Measured(NamedTuple):
    """Ids that are all known, and what they add up to."""

    ids: Ids
    size: int  # bytes
    characters: int  # if they are UTF-8
    widths: int  # which of _LATIN, _TWO_BYTES, _FOUR_BYTES occur

    @property
    def arguments(self) -> tuple[int, bool, int]:
        """Address, whether two bytes each, number."""
        return self.ids.ctypes.data, self.ids.itemsize == 2, self.ids.size


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
    """Each token of up to 15 bytes with its length."""
    places = np.arange(decoding.SLOT - 1)
    slots = np.zeros((len(spans), decoding.SLOT), dtype=np.uint8)
    padded = np.concatenate([text, np.zeros(decoding.SLOT, dtype=np.uint8)])
    slots[:, :-1] = padded[spans[:, :1] + places] * (places < spans[:, 1:])
    slots[:, -1] = np.minimum(spans[:, 1], decoding.LONG)
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
        # a token that is longer than the room would never be written
        self._block = max(_BLOCK, int(lengths.max(initial=0)) + 4)

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
        text = self._short_text(known) if known.size <= self._block else self._long_text(known)
        return str(self._copy(known), "utf-8", "replace") if text is None else text

    def _measure(self, ids: Ids | list[int]) -> _Measured | None:
        if isinstance(ids, list):
            numbers: Any = np.empty(len(ids), dtype=self._dtype)
            # the address of the list: its number by CPython's own rule
            given = (id(ids), numbers.itemsize == 2, numbers.size)
            *sums, bad = decoding.measure_list(*given, *self._sums, numbers.ctypes.data)
            return None if bad >= 0 else _Measured(numbers, *sums)
        *sums, bad = decoding.measure(*_Measured(ids, 0, 0, 0).arguments, *self._sums)
        return None if bad >= 0 else _Measured(ids, *sums)

    def _copy(self, known: _Measured) -> bytes:
        if not known.size:
            return b""
        out, place = new_bytes(known.size)
        decoding.copy_tokens(*known.arguments, *self._tables, place, known.size)
        return out

    def _short_text(self, known: _Measured) -> str | None:
        """Text of one block, or ``None`` if it is not UTF-8."""
        kind = _kind(known.widths)
        text = np.empty(known.size + WINDOW, dtype=np.uint8)
        units = np.empty(known.size + WINDOW, dtype=_UNITS[kind])
        place = units.ctypes.data
        _, left, end = decoding.decode_block(
            *known.arguments, 0, *self._tables, text.ctypes.data, 0, known.size, place, 0, kind
        )
        return None if left else text_of(kind, place, end)

    def _long_text(self, known: _Measured) -> str | None:
        """Text of many blocks, or ``None`` if it is not UTF-8."""
        kind = _kind(known.widths)
        widest = _WIDEST[kind] if known.widths else 0x7F
        result = TextUnderConstruction(known.characters, widest, kind)
        text = np.empty(self._block + WINDOW, dtype=np.uint8)
        units = np.empty(1 + self._block + WINDOW, dtype=_UNITS[kind])
        # in front of each part, or Python would look for its widest character and make the part narrower
        units[0] = widest
        given, place, room = known.arguments, units.ctypes.data, text.ctypes.data
        position, left = 0, 0
        while position < known.ids.size:
            position, left, end = decoding.decode_block(
                *given, position, *self._tables, room, left, self._block, place, 1, kind
            )
            if left == BAD:
                return None
            result.append(text_of(kind, place, end), 1)
        return None if left else result.finish()


def _kind(widths: int) -> int:
    """Bytes of a character in Python's own string."""
    return 4 if widths & _FOUR_BYTES else 2 if widths & _TWO_BYTES else 1
