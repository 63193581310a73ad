"""From ids back to bytes and text, whole or one by one."""

from __future__ import annotations

import codecs
import operator
from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from bpe_scratch.errors import TokenIdError
from bpe_scratch.layers import tell_before_compiling

_Row = list[int] | npt.NDArray[np.integer[Any]]

# below this many ids a list of bytes is joined faster than a kernel is called
_SHORT = 64
_LARGEST = (1 << 32) - 1


class Decoder:
    """Looks tokens up; by a kernel where there is one and it pays."""

    def __init__(self, tokens: Sequence[bytes | None], *, compiled: bool) -> None:
        self._tokens = tokens
        self._compiled = compiled

    @cached_property
    def _kernel(self) -> Any:
        from bpe_scratch.compiled.decoder import CompiledDecoder

        tell_before_compiling("decoding", "write_text")
        return CompiledDecoder(self._tokens)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of ids.

        Args:
            ids: Ids, special ones included.

        Raises:
            TokenIdError: Naming the first id outside the vocabulary and its position.
        """
        known = _row(ids)
        for numbers in self._for_kernel(known):
            if (found := self._kernel.decode_bytes(numbers)) is not None:
                return found  # type: ignore[no-any-return]
        return self._join(known)

    def decode_text(self, ids: Iterable[int]) -> str:
        """The text of ids; bytes that are not UTF-8 become U+FFFD.

        Args:
            ids: As in :meth:`decode_bytes`.

        Raises:
            TokenIdError: As there.
        """
        known = _row(ids)
        for numbers in self._for_kernel(known):
            if (found := self._kernel.decode_text(numbers)) is not None:
                return found  # type: ignore[no-any-return]
        return str(self._join(known), "utf-8", "replace")

    def _for_kernel(self, ids: _Row) -> Iterator[Any]:
        """The forms in which a kernel may take ids, one after another until it knows them all."""
        if not self._compiled or len(ids) <= _SHORT:
            return
        if isinstance(ids, list):
            yield ids
        # lists hold more than plain integers: NumPy's are such
        numbers = as_unsigned(ids)
        if numbers is not None:
            yield numbers

    def _join(self, known: _Row) -> bytes:
        ids = known if isinstance(known, list) else known.tolist()
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
        return self._text.decode(self._tokens.decode_bytes([index]))

    def flush(self) -> str:
        """End of the stream: a character that was left unfinished becomes U+FFFD."""
        rest = self._text.decode(b"", final=True)
        self._text.reset()
        return rest


def _row(ids: Iterable[int]) -> _Row:
    """The ids as a plain list or as a row of integers."""
    if isinstance(ids, np.ndarray):
        if ids.dtype.kind not in "iu" or ids.ndim != 1:
            raise TokenIdError(
                f"ids are an array of {ids.dtype} and shape {ids.shape}, not a row of integers"
            )
        return ids
    return ids if type(ids) is list else list(ids)


def as_unsigned(ids: _Row) -> npt.NDArray[np.uint16] | npt.NDArray[np.uint32] | None:
    """The ids in a contiguous array of two or four bytes each, or ``None`` if one has no such form.

    Args:
        ids: Integers of any type.
    """
    if isinstance(ids, np.ndarray):
        # one comparison finds negative numbers too: as unsigned ones they are large
        if ids.dtype.itemsize > 4 and int(ids.astype(np.uint64, copy=False).max()) > _LARGEST:
            return None
        kind = np.uint16 if ids.dtype == np.uint16 else np.uint32
        found: npt.NDArray[Any] = np.ascontiguousarray(ids, kind)
        return found if found.flags.aligned else found.copy()
    try:
        return np.frombuffer(array("I", ids), dtype=np.uint32)
    except (TypeError, OverflowError):
        return None
