"""From ids back to bytes and text, whole or one by one."""

from __future__ import annotations

import codecs
import operator
from array import array
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bpe_scratch.errors import TokenIdError

# ids looked up at once: their tokens stay in the cache until they are joined
_BLOCK = 1 << 14


class Decoder:
    """Looks tokens up in an array of bytes objects, and joins them."""

    def __init__(self, tokens: Sequence[bytes | None]) -> None:
        self._tokens = np.empty(len(tokens), dtype=object)
        self._tokens[:] = tokens

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of ids; raises :class:`TokenIdError` for the first that is none."""
        row = ids if isinstance(ids, np.ndarray) or type(ids) is list else list(ids)
        try:
            known = _indexes(row)
            blocks = (known[i : i + _BLOCK] for i in range(0, len(known), _BLOCK))
            # a gap in the vocabulary is None, which cannot be joined
            return b"".join([b"".join(self._tokens.take(block).tolist()) for block in blocks])
        except (IndexError, OverflowError, TypeError):
            raise self._error(row) from None

    def _error(self, ids: Iterable[Any]) -> TokenIdError:
        size = len(self._tokens)
        for position, index in enumerate(ids):
            try:
                number = operator.index(index)
            except TypeError:
                return TokenIdError(f"id {index!r} at position {position} is not an integer")
            if not 0 <= number < size or self._tokens[number] is None:
                return TokenIdError(f"id {number} at position {position} is not in the vocabulary of {size}")
        raise AssertionError("every id is known")


class TokenStream:
    """Decoding ids as they come: a character is emitted when its last byte has arrived."""

    def __init__(self, decoder: Decoder) -> None:
        self._tokens = decoder
        self._text = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, index: int) -> str:
        """Take one id; returns the text completed by it."""
        return self._text.decode(self._tokens.decode_bytes([index]))

    def flush(self) -> str:
        """End of the stream: a character that was left unfinished becomes U+FFFD."""
        rest = self._text.decode(b"", final=True)
        self._text.reset()
        return rest


def _indexes(ids: list[int] | npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Ids as an array without negative numbers, which NumPy would count from the end."""
    if isinstance(ids, list):
        return np.frombuffer(array("I", ids), dtype=np.uintc)
    if ids.dtype.kind not in "iu" or ids.ndim != 1:
        raise TokenIdError(f"ids are an array of {ids.dtype} and shape {ids.shape}, not a row of integers")
    row = ids.astype(np.intp, copy=False)
    if row.size and row.min() < 0:
        raise IndexError
    return row
