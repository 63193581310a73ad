"""Millions of short texts without an object for each."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import overload


class PackedText(Sequence[str]):
    """Texts end to end as UTF-8, and where each one ends; a text is made anew whenever it is asked for.

    A Python string of the length of a sentence takes some 60 bytes besides its characters, and two bytes
    for each of them as soon as one is beyond Latin-1, such as a dash or a quotation mark.
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._bytes, self._ends = bytearray(), array("q", [0])
        for text in texts:
            self.append(text)

    def append(self, text: str) -> None:
        """Add a text at the end."""
        # a lone surrogate is kept, for the tokenizer to name it
        self._bytes += text.encode("utf-8", "surrogatepass")
        self._ends.append(len(self._bytes))

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> PackedText: ...
    def __getitem__(self, index: int | slice) -> str | PackedText:
        places = range(len(self))[index]
        if isinstance(places, range):
            return PackedText(map(self._text, places))
        return self._text(places)

    def __iter__(self) -> Iterator[str]:
        return map(self._text, range(len(self)))

    def _text(self, place: int) -> str:
        return self._bytes[self._ends[place] : self._ends[place + 1]].decode("utf-8", "surrogatepass")
