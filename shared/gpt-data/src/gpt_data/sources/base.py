"""What a source of text is, and how documents are held out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from itertools import islice
from typing import Any, NamedTuple, Protocol, runtime_checkable

from gpt_data.errors import InputError

TAIL_FRACTION = 0.05
"""Share of the text of few documents that is held out."""
KEPT_CHARACTERS = 2**25
"""Few documents that are no longer than this are read once, and kept."""
TOO_LONG_ADVICE = "; split it, or raise --max-document-bytes"


class Document(NamedTuple):
    """One document and the split it belongs to (``train`` or ``val``)."""

    split: str
    text: str


@runtime_checkable
class Source(Protocol):
    """Documents in a fixed order, from any place in it; a kind of source is a class below it.

    Attributes:
        total_bytes: Bytes of text in all, if that is known beforehand.
        notes: What the user should know about what is read, one line each.
    """

    total_bytes: int | None = None
    notes: tuple[str, ...] = ()

    def identity(self) -> dict[str, Any]:
        """What decides the documents, as JSON: another identity is another corpus."""
        ...

    def pin(self) -> dict[str, str]:
        """What has to be kept so that a later process reads the same version: nothing of files at hand."""
        return {}

    def documents(self, start: int = 0) -> Iterator[Document]:
        """The documents from number ``start`` on."""
        ...

    def sample(self) -> Iterator[str]:
        """Training documents to train a tokenizer on, the most telling first: in order if all are alike."""
        return (document.text for document in self.documents() if document.split == "train")


class HoldOut:
    """The second of every ``every`` documents is held out; of fewer than that, the end of their text.

    Args:
        open_at: Gives the documents from a number on; the same ones every time.
    """

    def __init__(self, open_at: Callable[[int], Iterator[str]], every: int) -> None:
        self.open_at = open_at
        self.every = every

    @property
    def rule(self) -> str:
        """What is held out, in words."""
        return f"1 document in {self.every}, or the last {TAIL_FRACTION:.0%} of the text of fewer"

    def documents(self, start: int = 0) -> Iterator[Document]:
        """The documents from number ``start`` on; one that is cut counts twice."""
        # a number past the cycle is known from a process that has read so far
        if start > self.every or self._few is None:
            return self._by_number(start)
        total, texts = self._few
        return islice(cut_tail(texts or self.open_at(0), total), start, None)

    @cached_property
    def _few(self) -> tuple[int, list[str]] | None:
        """Characters of all documents, if they are fewer than a cycle, and these, if not too long to keep."""
        kept, total, number = list[str](), 0, 0
        for number, text in enumerate(islice(self.open_at(0), self.every), 1):  # noqa: B007 - counted
            total += len(text)
            kept = [*kept, text] if total <= KEPT_CHARACTERS else []
        return (total, kept) if number < self.every else None

    def _by_number(self, start: int) -> Iterator[Document]:
        for number, text in enumerate(self.open_at(start), start):
            yield Document("val" if number % self.every == 1 else "train", text)


def cut_tail(texts: Iterable[str], total: int) -> Iterator[Document]:
    r"""Documents, with about the last twentieth of the text held out, from a line's end if one is near.

    >>> list(cut_tail(["a\n" * 20 + "z\n"], 42))[1]
    Document(split='val', text='z\n')

    Args:
        texts: The documents; there is something to train on, however short they are.
    """
    left = max(1, int(total * (1 - TAIL_FRACTION)))
    for text in texts:
        if not left or len(text) <= left:
            yield Document("train" if left else "val", text)
            left -= min(left, len(text))
            continue
        nearest = text.rfind("\n", max(0, left - int(total * TAIL_FRACTION)), left + 1) + 1
        at, left = nearest or left, 0
        yield from (Document("train", text[:at]), Document("val", text[at:]))


def check_document(text: str, where: str, limit: int) -> str:
    """Return ``text`` if it is valid Unicode of at most ``limit`` bytes.

    Args:
        limit: Largest size in UTF-8.

    Raises:
        InputError: If it is longer or holds a lone surrogate.
    """
    try:
        size = len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError as error:
        raise InputError(f"{where} holds a lone surrogate at character {error.start}") from error
    if size > limit:
        raise too_long(where, limit)
    return text


def too_long(where: str, limit: int) -> InputError:
    """The error for a document over the limit."""
    return InputError(f"{where} is longer than {limit} bytes{TOO_LONG_ADVICE}")
