"""What a source of text is, and how documents are held out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import Any, NamedTuple, Protocol, runtime_checkable

from gpt_data.errors import DataError

TAIL_FRACTION = 0.05
"""Share of a lone document that is held out."""
TOO_LONG_ADVICE = "; split it, or raise --max-document-bytes"


class Document(NamedTuple):
    """One document and the split it belongs to (``train`` or ``val``)."""

    split: str
    text: str


@runtime_checkable
class Source(Protocol):
    """Documents in a fixed order, from any place in it.

    Attributes:
        total_bytes: Bytes of text in all, if that is known beforehand.
    """

    total_bytes: int | None

    def identity(self) -> dict[str, Any]:
        """What decides the documents, as JSON: another identity is another corpus."""
        ...

    def pin(self) -> dict[str, str]:
        """What has to be kept so that a later process reads the same version of the corpus."""
        ...

    def documents(self, start: int = 0) -> Iterator[Document]:
        """The documents from number ``start`` on."""
        ...

    def sample(self) -> Iterator[str]:
        """Training documents to train a tokenizer on, the most telling first."""
        ...


def hold_out(open_at: Callable[[int], Iterator[str]], start: int, every: int) -> Iterator[Document]:
    """Hold out the second of every ``every`` documents; of a lone document its tail.

    Args:
        open_at: Gives the documents from a number on.
        start: Number of the first document to give.
        every: Length of the cycle.
    """
    if start >= 2:
        yield from _by_number(open_at(start), start, every)
        return
    texts = open_at(0)
    first = list(islice(texts, 2))
    lone = len(first) == 1
    documents = iter(cut_tail(first[0])) if lone else _by_number(chain(first, texts), 0, every)
    yield from islice(documents, start, None)


def cut_tail(text: str) -> list[Document]:
    r"""A lone document as two: all but the last twentieth, cut after a line's end, and the rest.

    >>> cut_tail("a\n" * 20 + "z\n")[1]
    Document(split='val', text='z\n')
    """
    at = text.rfind("\n", 0, int(len(text) * (1 - TAIL_FRACTION)) + 1) + 1
    if at <= 0:
        at = int(len(text) * (1 - TAIL_FRACTION))
    return [Document("train", text[:at]), Document("val", text[at:])]


def check_document(text: str, where: str, limit: int) -> str:
    """Return ``text`` if it is valid Unicode of at most ``limit`` bytes.

    Args:
        text: The document.
        where: Its place, for the message.
        limit: Largest size in UTF-8.

    Raises:
        DataError: If it is longer or holds a lone surrogate.
    """
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise DataError(f"{where} holds a lone surrogate at character {error.start}") from error
    if size > limit:
        raise too_long(where, limit)
    return text


def too_long(where: str, limit: int) -> DataError:
    """The error for a document over the limit."""
    return DataError(f"{where} is longer than {limit} bytes{TOO_LONG_ADVICE}")


def _by_number(texts: Iterator[str], start: int, every: int) -> Iterator[Document]:
    for number, text in enumerate(texts, start):
        yield Document("val" if number % every == 1 else "train", text)
