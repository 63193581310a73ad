"""From ids back to bytes and text, whole or one by one."""

from __future__ import annotations

import codecs
import operator
from array import array
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from bpe_scratch.errors import TokenIdError

# below this many ids a list of bytes is joined faster than a kernel is called
_SHORT = 64
_LARGEST = (1 << 32) - 1


class Decoder:
    """Looks tokens up; by a kernel where there is one and it pays."""

    def __init__(self, tokens: Sequence[bytes | None], *, compiled: bool) -> None:
        self._tokens = tokens
        self._kernel: Callable[[npt.NDArray[np.uint32]], npt.NDArray[np.uint8] | None] | None = None
        if compiled:
            from bpe_scratch.compiled.decoding import CompiledDecoder

            self._kernel = CompiledDecoder(tokens).decode

    def decode(self, ids: Iterable[int]) -> bytes | npt.NDArray[np.uint8]:
        """The bytes of ids, as bytes or as an array.

        Args:
            ids: Ids, special ones included.

        Raises:
            TokenIdError: Naming the first id outside the vocabulary and its position.
        """
        if isinstance(ids, np.ndarray) and (ids.dtype.kind not in "iu" or ids.ndim != 1):
            raise TokenIdError(
                f"ids are an array of {ids.dtype} and shape {ids.shape}, not a row of integers"
            )
        known = ids if isinstance(ids, np.ndarray) else list(ids)
        if len(known) > _SHORT and self._kernel is not None:
            numbers = _as_uint32(known)
            if numbers is not None and (found := self._kernel(numbers)) is not None:
                return found
        return self._join(known.tolist() if isinstance(known, np.ndarray) else known)

    def _join(self, ids: list[int]) -> bytes:
        table = self._tokens
        try:
            parts = [table[index] for index in ids]
            if (not ids or min(ids) >= 0) and None not in parts:
                return b"".join(parts)  # type: ignore[arg-type]
        except (IndexError, TypeError):
            pass
        raise self._error(ids)

    def _error(self, ids: Sequence[int]) -> TokenIdError:
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
        """Take one id; returns the text completed by it.

        Args:
            index: An id of the vocabulary.
        """
        return self._text.decode(bytes(self._tokens.decode([index])))

    def flush(self) -> str:
        """End of the stream: a character that was left unfinished becomes U+FFFD."""
        rest = self._text.decode(b"", final=True)
        self._text.reset()
        return rest


def _as_uint32(ids: Sequence[int] | npt.NDArray[np.integer]) -> npt.NDArray[np.uint32] | None:
    """The ids, or ``None`` if one has no such form."""
    if isinstance(ids, np.ndarray):
        # one comparison finds negative numbers too: as unsigned ones they are large
        if ids.dtype.itemsize > 4 and int(ids.astype(np.uint64, copy=False).max()) > _LARGEST:
            return None
        return np.ascontiguousarray(ids, dtype=np.uint32)
    try:
        # three times as fast as np.array on a list, and more than twice as fast as an array of signed numbers
        return np.frombuffer(array("I", ids), dtype=np.uint32)
    except (TypeError, OverflowError):
        return None
